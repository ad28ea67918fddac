//! Addresses of the kernel's symbols.
//!
//! The kernel side compares function pointers it meets with a few of them. The kernel tells them by name
//! to a program that asks (Linux 5.16). Where it does not, they are read from `/proc/kallsyms`: some
//! 120,000 lines, which the kernel makes up as they are read, and which take a sixth of all that a start
//! takes. One pass in large pieces, which ends once every name was seen.

mod ask;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Where the kernel lists its symbols.
pub const KALLSYMS: &str = "/proc/kallsyms";

/// How much is read at once, in bytes.
const PIECE: usize = 64 * 1024;
/// No line is as long, in bytes: a symbol's name has at most 512 (`KSYM_NAME_LEN`), a module's 56.
const MAX_LINE: usize = 1024;

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    /// The file cannot be read.
    #[error(
        "cannot read the kernel's symbols from {}: the kernel must be built with CONFIG_KALLSYMS, and /proc be mounted",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line that is not `address type name [module]`.
    #[error("{}:{line}: not a line of kernel symbols", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line; the first is 1.
        line: u64,
    },
    /// The kernel shows zeros in the place of all addresses (`kallsyms_show_value` in kernel/ksyms_common.c, 6.18).
    #[error(
        "the kernel hides all addresses in {}: run with CAP_SYSLOG (as root), and see that `sysctl kernel.kptr_restrict` is not 2",
        path.display()
    )]
    Hidden {
        /// The file.
        path: PathBuf,
    },
}

/// The symbols that were asked for.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    found: Vec<(String, Option<u64>)>,
}

impl Symbols {
    /// The `wanted` of the running kernel: as it says itself, or else as [`KALLSYMS`] has them.
    ///
    /// # Errors
    ///
    /// Those of [`Symbols::read`].
    pub fn of_this_kernel(wanted: &[&str]) -> Result<Self, SymbolsError> {
        // Why it does not say is of no concern: what keeps it from it, the file's error tells as well.
        Self::asked(wanted).or_else(|_| Self::read(Path::new(KALLSYMS), wanted))
    }

    /// The `wanted` as the running kernel says itself.
    ///
    /// # Errors
    ///
    /// That it has no way to say (before Linux 5.16), or does not say it to this process.
    pub fn asked(wanted: &[&str]) -> io::Result<Self> {
        let names = wanted.iter().map(ToString::to_string);
        let found = names.zip(ask::addresses(wanted)?).collect();
        Ok(Self { found })
    }

    /// Looks the `wanted` names up in the file at `path`, usually [`KALLSYMS`].
    ///
    /// Of several symbols of one name the first is taken: the kernel's own stand before its modules'.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is of another form; and that every
    /// address in it is zero, as for a reader who may not see them.
    pub fn read(path: &Path, wanted: &[&str]) -> Result<Self, SymbolsError> {
        let failed = |source| SymbolsError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let mut scan = Scan::new(wanted);
        match scan.run(BufReader::with_capacity(PIECE, file)) {
            Ok(()) if scan.is_hidden() => Err(SymbolsError::Hidden {
                path: path.to_owned(),
            }),
            Ok(()) => Ok(scan.symbols),
            Err(Stop::Read(source)) => Err(failed(source)),
            Err(Stop::Line) => Err(SymbolsError::Line {
                path: path.to_owned(),
                line: scan.lines,
            }),
        }
    }

    /// The address of the symbol of this name, if the kernel has it and it was asked for.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<u64> {
        let (_, address) = self.found.iter().find(|(wanted, _)| wanted == name)?;
        *address
    }
}

/// Why a pass ended early.
#[derive(Debug)]
enum Stop {
    Read(io::Error),
    Line,
}

/// A pass over the file.
struct Scan {
    symbols: Symbols,
    missing: usize,
    /// How many lines were read.
    lines: u64,
    /// Whether one of them had an address other than zero.
    shown: bool,
}

impl Scan {
    fn new(wanted: &[&str]) -> Self {
        let wanted = wanted.iter().collect::<BTreeSet<_>>();
        let found: Vec<_> = wanted
            .iter()
            .map(|name| ((**name).to_string(), None))
            .collect();
        Self {
            missing: found.len(),
            symbols: Symbols { found },
            lines: 0,
            shown: false,
        }
    }

    /// Some symbols have the address zero (those of the per-CPU area, until Linux 6.15): that alone does not tell.
    fn is_hidden(&self) -> bool {
        self.lines > 0 && !self.shown && !self.symbols.found.is_empty()
    }

    fn is_done(&self) -> bool {
        self.missing == 0 && (self.shown || self.symbols.found.is_empty())
    }

    fn run(&mut self, mut file: impl BufRead) -> Result<(), Stop> {
        let mut line = Vec::with_capacity(MAX_LINE);
        while !self.is_done() {
            line.clear();
            let mut limited = file.by_ref().take(MAX_LINE as u64);
            if limited.read_until(b'\n', &mut line).map_err(Stop::Read)? == 0 {
                break;
            }
            self.lines += 1;
            if line.len() == MAX_LINE {
                return Err(Stop::Line);
            }
            self.line(line.strip_suffix(b"\n").unwrap_or(&line))?;
        }
        Ok(())
    }

    /// Takes a line `ffffffff81000000 T _text`, to which a module adds a tab and `[module]`.
    fn line(&mut self, line: &[u8]) -> Result<(), Stop> {
        let mut digits = 0;
        let mut address: u64 = 0;
        for byte in line {
            let Some(digit) = (*byte as char).to_digit(16) else {
                break;
            };
            address = address << 4 | u64::from(digit);
            digits += 1;
        }
        if !(1..=16).contains(&digits) {
            return Err(Stop::Line);
        }
        let Some([b' ', _, b' ', rest @ ..]) = line.get(digits..) else {
            return Err(Stop::Line);
        };
        self.shown |= address != 0;

        let Some((_, slot)) = self.symbols.found.iter_mut().find(|(name, slot)| {
            slot.is_none()
                && rest
                    .strip_prefix(name.as_bytes())
                    .is_some_and(|rest| matches!(rest, [] | [b'\t', ..]))
        }) else {
            return Ok(());
        };
        if let Some(tab) = rest.iter().position(|byte| *byte == b'\t')
            && !matches!(rest.get(tab..), Some([b'\t', b'[', .., b']']))
        {
            return Err(Stop::Line);
        }
        *slot = Some(address);
        self.missing -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SYMBOLS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81234560 t tw_timer_handler
ffffffff81234560 t tw_timer_handler_not
ffffffff81999990 t twice
ffffffffc0001000 t br_init\t[bridge]
ffffffffc0002000 t twice\t[bridge]
";
    const ALL: [&str; 4] = ["tw_timer_handler", "br_init", "twice", "fixed_percpu_data"];

    fn scan(text: &str, wanted: &[&str], piece: usize) -> (Scan, Result<(), Stop>) {
        let mut scan = Scan::new(wanted);
        let result = scan.run(BufReader::with_capacity(piece, text.as_bytes()));
        (scan, result)
    }

    #[test]
    fn finds_symbols_wherever_a_piece_ends() {
        for piece in 1..SYMBOLS.len() + 10 {
            let (scan, result) = scan(SYMBOLS, &ALL, piece);
            assert!(result.is_ok(), "pieces of {piece}: {result:?}");
            assert!(!scan.is_hidden());
            let get = |name| scan.symbols.address(name);
            assert_eq!(get("tw_timer_handler"), Some(0xffff_ffff_8123_4560));
            assert_eq!(get("twice"), Some(0xffff_ffff_8199_9990));
            assert_eq!(get("fixed_percpu_data"), Some(0));
            assert_eq!(get("br_init"), Some(0xffff_ffff_c000_1000));
        }
    }

    #[test]
    fn stops_when_all_are_found() {
        let (scan, _) = scan(SYMBOLS, &["tw_timer_handler"], PIECE);
        assert_eq!(scan.lines, 3);
    }

    #[test]
    fn asks_for_a_name_twice() {
        let (scan, _) = scan(SYMBOLS, &["_text", "_text"], PIECE);
        assert_eq!(scan.lines, 2);
        assert_eq!(scan.symbols.address("_text"), Some(0xffff_ffff_8100_0000));
    }

    #[test]
    fn takes_a_last_line_without_its_end() {
        let (scan, _) = scan("ffffffff81000000 T _text", &["_text"], PIECE);
        assert_eq!(scan.symbols.address("_text"), Some(0xffff_ffff_8100_0000));
    }

    #[test]
    fn tells_a_missing_symbol_from_hidden_ones() {
        let (shown, _) = scan(SYMBOLS, &["tw_timer"], PIECE);
        assert_eq!(shown.symbols.address("tw_timer"), None);
        assert!(!shown.is_hidden());

        let zeros: String = SYMBOLS
            .lines()
            .map(|line| format!("0000000000000000{}\n", &line[16..]))
            .collect();
        let (hidden, result) = scan(&zeros, &["tw_timer_handler"], PIECE);
        assert!(result.is_ok());
        assert!(hidden.is_hidden());

        let (empty, _) = scan("", &["tw_timer_handler"], PIECE);
        assert!(!empty.is_hidden());
    }

    #[test]
    fn says_what_to_do_about_hidden_addresses() {
        let error = SymbolsError::Hidden {
            path: KALLSYMS.into(),
        };
        assert_eq!(
            error.to_string(),
            "the kernel hides all addresses in /proc/kallsyms: run with CAP_SYSLOG (as root), \
             and see that `sysctl kernel.kptr_restrict` is not 2"
        );
    }

    #[test]
    fn names_the_line_that_is_not_one() {
        for bad in [
            "",
            "T _text",
            "ffffffff81000000",
            "ffffffff81000000 T",
            "ffffffff81000000  _text",
            "ffffffff810000001 T _text",
            "ffffffffc0001000 t twice\tbridge",
        ] {
            let text = format!("ffffffff81000000 T _stext\n{bad}\n");
            let (scan, result) = scan(&text, &["twice"], PIECE);
            assert!(matches!(result, Err(Stop::Line)), "`{bad}`");
            assert_eq!(scan.lines, 2, "`{bad}`");
        }
        let endless = format!("ffffffff81000000 T {}", "n".repeat(MAX_LINE));
        let (scan, result) = scan(&endless, &["twice"], PIECE);
        assert!(matches!(result, Err(Stop::Line)));
        assert_eq!(scan.lines, 1);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Symbols::read(Path::new("/nonexistent/kallsyms"), &["a"]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot read the kernel's symbols from /nonexistent/kallsyms:"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn survives_anything(bytes: Vec<u8>) {
            let _ = Scan::new(&["a", "ab"]).run(bytes.as_slice());
        }

        #[test]
        fn survives_lines_of_the_right_letters(text in "[0f T\t\\[\\]ab\n]{0,200}") {
            let _ = Scan::new(&["a", "ab"]).run(text.as_bytes());
        }
    }
}
