//! Recordings: what `--json` and `--write` have left in files, one event a line.

use std::fmt;
use std::io::{self, BufRead};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{Recorded, SCHEMA};

/// A recording that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Source {
    /// Its file.
    pub file: String,
    /// How many events it has.
    pub events: u64,
    /// What in it could not be read, and so is in no other number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flaws: Vec<Flaw>,
}

/// Lines of a recording that say nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Flaw {
    /// The last line is cut off.
    Truncated,
    /// Lines are no events of portwatch.
    Foreign {
        /// How many.
        count: u64,
        /// The number of the first one, from 1.
        first: u64,
    },
    /// Lines are of another version of the schema.
    Schema {
        /// Which.
        schema: String,
        /// How many.
        count: u64,
    },
    /// Numbers of lines are missing: lines were lost after they were written.
    Gap {
        /// How many lines.
        count: u64,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the last line is cut off, and left out"),
            Self::Foreign { count: 1, first } => {
                write!(f, "line {first} is no event of portwatch, and left out")
            }
            Self::Foreign { count, first } => write!(
                f,
                "{count} lines are no events of portwatch, and left out; the first is line {first}"
            ),
            Self::Schema { schema, count } => write!(
                f,
                "{count} lines are of the schema {schema}, which this portwatch does not know, and left out"
            ),
            Self::Gap { count } => write!(f, "{count} lines are missing"),
        }
    }
}

/// The head of a line.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    schema: std::borrow::Cow<'a, str>,
}

/// How portwatch itself begins a line.
const HEAD: &[u8] = br#"{"schema":"portwatch/1","#;
/// How long a line may be: far more than an event ever has.
const LINE: u64 = 16 << 20;
/// How many unknown schemas are told apart.
const SCHEMAS: usize = 8;

/// Reads a recording to its end, and gives each event to `take`. Whatever is no event is left out and
/// told of.
///
/// # Errors
///
/// If reading fails.
pub fn read(
    mut from: impl BufRead,
    file: String,
    mut take: impl FnMut(&Recorded),
) -> io::Result<Source> {
    let mut source = Source {
        file,
        events: 0,
        flaws: Vec::new(),
    };
    let mut line = Vec::new();
    let mut number = 0;
    let mut next = None;
    loop {
        line.clear();
        if io::Read::take(&mut from, LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(source);
        }
        number += 1;
        let whole = line.ends_with(b"\n");
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        match serde_json::from_slice::<Recorded>(text) {
            Ok(_) if !text.starts_with(HEAD) && !is_known(text) => source.unknown(text),
            Ok(recorded) => {
                source.follow(&mut next, recorded.seq);
                source.events += 1;
                take(&recorded);
            }
            Err(error) if !whole && error.is_eof() => source.flaws.push(Flaw::Truncated),
            Err(_) if is_other_schema(text) => source.unknown(text),
            Err(_) => source.foreign(number),
        }
    }
}

fn schema(text: &[u8]) -> Option<String> {
    let head = serde_json::from_slice::<Head>(text).ok()?;
    Some(head.schema.into_owned())
}

fn is_known(text: &[u8]) -> bool {
    schema(text).is_some_and(|schema| schema == SCHEMA)
}

fn is_other_schema(text: &[u8]) -> bool {
    schema(text).is_some_and(|schema| schema.starts_with("portwatch/") && schema != SCHEMA)
}

impl Source {
    /// A stream's lines are numbered from 0, and streams may follow each other.
    fn follow(&mut self, next: &mut Option<u64>, seq: u64) {
        let missing = match *next {
            Some(next) if seq > next => seq - next,
            _ => 0,
        };
        *next = Some(seq.saturating_add(1));
        if missing == 0 {
            return;
        }
        for flaw in &mut self.flaws {
            if let Flaw::Gap { count } = flaw {
                *count += missing;
                return;
            }
        }
        self.flaws.push(Flaw::Gap { count: missing });
    }

    fn foreign(&mut self, number: u64) {
        for flaw in &mut self.flaws {
            if let Flaw::Foreign { count, .. } = flaw {
                *count += 1;
                return;
            }
        }
        self.flaws.push(Flaw::Foreign {
            count: 1,
            first: number,
        });
    }

    fn unknown(&mut self, text: &[u8]) {
        let unknown = schema(text).unwrap_or_default();
        let known = self.flaws.len();
        for flaw in &mut self.flaws {
            if let Flaw::Schema { schema, count } = flaw
                && (*schema == unknown || known >= SCHEMAS)
            {
                *count += 1;
                return;
            }
        }
        self.flaws.push(Flaw::Schema {
            schema: unknown,
            count: 1,
        });
    }
}
