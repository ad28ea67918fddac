//! Where the kernel fields portwatch reads lie in the running kernel.
//!
//! Resolves each of [`portwatch_common::for_each_field`] from BTF to the `u32`
//! the kernel side takes it as. What a missing field costs is decided by that
//! list alone: here a required one is an error, an optional one is noted.

use std::fmt;

use portwatch_common::field::{ABSENT, bitfield};
use portwatch_common::for_each_field;

use super::btf::{Btf, BtfError};

/// A bitfield's byte must lie below this offset, to be packed.
const BITFIELD_END: u32 = 1 << 20;

/// What is wanted of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// Its offset, in bytes.
    Plain,
    /// Its byte, shift and width, packed. A field of one whole byte will do.
    Bits,
    /// The size of a type, in bytes.
    Size,
}

/// A field of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// The kernel side's name for it, and its global variable's.
    pub name: &'static str,
    /// What is wanted of it.
    pub kind: FieldKind,
    /// Whether nothing works without it.
    pub required: bool,
    /// `struct:path`, or a type alone; alternatives behind `|`, the first that exists is taken.
    pub path: &'static str,
}

macro_rules! kind {
    (plain) => {
        FieldKind::Plain
    };
    (bits) => {
        FieldKind::Bits
    };
    (size) => {
        FieldKind::Size
    };
}

macro_rules! is_required {
    (required) => {
        true
    };
    (optional) => {
        false
    };
}

macro_rules! specs {
    ($($name:ident: $kind:ident $policy:ident $path:literal,)*) => {
        /// The fields of [`portwatch_common::for_each_field`], in its order.
        pub const FIELDS: &[FieldSpec] = &[$(FieldSpec {
            name: stringify!($name),
            kind: kind!($kind),
            required: is_required!($policy),
            path: $path,
        },)*];
    };
}

for_each_field!(specs);

/// A field the kernel does not have, or not in a form that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The kernel side's name for it.
    pub name: &'static str,
    /// Where it was looked for: `struct:path`, with its alternatives.
    pub path: &'static str,
    /// Why it cannot be read.
    pub reason: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.path, self.reason)
    }
}

/// This kernel lacks fields without which nothing works; all of them are named.
#[derive(Debug, thiserror::Error)]
#[error(
    "portwatch does not know this kernel's structs; please report it with the version. What it cannot read: {}",
    missing.iter().map(Missing::to_string).collect::<Vec<_>>().join("; ")
)]
pub struct LayoutError {
    /// The required fields that are missing.
    pub missing: Vec<Missing>,
}

/// The values of all [`FIELDS`] in one kernel.
#[derive(Clone, Debug)]
pub struct Layout {
    /// In the order of [`FIELDS`].
    values: Vec<u32>,
    absent: Vec<Missing>,
}

impl Layout {
    /// Looks up every field.
    ///
    /// # Errors
    ///
    /// Required fields that are missing.
    pub fn resolve(btf: &Btf) -> Result<Self, LayoutError> {
        let mut layout = Self {
            values: Vec::with_capacity(FIELDS.len()),
            absent: Vec::new(),
        };
        let mut missing = Vec::new();
        for spec in FIELDS {
            let value = spec.resolve(btf).unwrap_or_else(|reason| {
                let list = if spec.required {
                    &mut missing
                } else {
                    &mut layout.absent
                };
                list.push(Missing {
                    name: spec.name,
                    path: spec.path,
                    reason,
                });
                ABSENT
            });
            layout.values.push(value);
        }
        if missing.is_empty() {
            Ok(layout)
        } else {
            Err(LayoutError { missing })
        }
    }

    /// Every field's name and value, [`ABSENT`] included, as `EbpfLoader::override_global` takes them.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &u32)> {
        FIELDS.iter().map(|spec| spec.name).zip(&self.values)
    }

    /// The value of one field; `None` where there is no field of this name, or this kernel does not have it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u32> {
        self.iter()
            .find(|(field, _)| *field == name)
            .map(|(_, value)| *value)
            .filter(|value| *value != ABSENT)
    }

    /// The optional fields this kernel does not have.
    #[must_use]
    pub fn absent(&self) -> &[Missing] {
        &self.absent
    }
}

impl FieldSpec {
    /// The field's value, from the first alternative that exists and can be read, or why there is none.
    fn resolve(&self, btf: &Btf) -> Result<u32, String> {
        let mut reason = None;
        for path in self.path.split('|') {
            match self.alternative(btf, path) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) => reason = Some(error),
            }
        }
        Err(reason.unwrap_or_else(|| "not in this kernel".to_owned()))
    }

    fn alternative(&self, btf: &Btf, path: &str) -> Result<Option<u32>, String> {
        let said = |error: BtfError| error.to_string();
        if self.kind == FieldKind::Size {
            return btf.size_of(path).map_err(said);
        }
        let (type_name, member) = path
            .split_once(':')
            .ok_or_else(|| format!("`{path}` is not a path like `struct:member`"))?;
        let Some(field) = btf.field(type_name, member).map_err(said)? else {
            return Ok(None);
        };
        match (self.kind, field.bits) {
            (FieldKind::Plain, None) => Ok(Some(field.offset)),
            (FieldKind::Plain, Some(_)) => Err(format!("`{path}` is a bitfield here")),
            (_, None) if field.size != 1 => Err(format!(
                "`{path}` is no bitfield here but {}",
                field.type_name
            )),
            (_, bits) if field.offset < BITFIELD_END => {
                let (shift, width) = bits.unwrap_or((0, 8));
                let packed = bitfield(field.offset, u32::from(shift), u32::from(width));
                Ok(Some(packed))
            }
            _ => Err(format!("`{path}` lies too far into its struct")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf::blob::Blob;
    use super::*;

    /// A struct with the members of these paths, all of one word of 8 bytes but for the bitfields, in their order.
    fn add_struct(blob: &mut Blob, name: &str, paths: &[(&str, FieldKind)]) -> u32 {
        let word = blob.int("u64", 8);
        let byte = blob.int("u8", 1);
        let mut names: Vec<&str> = Vec::new();
        for (path, _) in paths {
            let first = path.split('.').next().unwrap();
            if !names.contains(&first) {
                names.push(first);
            }
        }
        let members: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(index, first)| {
                let inner: Vec<_> = paths
                    .iter()
                    .filter_map(|(path, kind)| Some((path.split_once('.')?, kind)))
                    .filter(|((outer, _), _)| outer == first)
                    .map(|((_, rest), kind)| (rest, *kind))
                    .collect();
                let is_bitfield = paths.contains(&(first, FieldKind::Bits));
                let id = match first.split_once('[') {
                    _ if !inner.is_empty() => add_struct(blob, "", &inner),
                    Some(_) => blob.array(word, 31),
                    None if is_bitfield => byte,
                    None => word,
                };
                let name = first.split('[').next().unwrap();
                let bit = index as u32 * 64 + if is_bitfield { 4 } else { 0 };
                (name, id, bit, if is_bitfield { 2 } else { 0 })
            })
            .collect();
        blob.flagged_structure(name, names.len() as u32 * 8, &members)
    }

    /// A kernel that has the first alternative of each field, but for those of the names in `without`.
    fn kernel(without: &[&str]) -> Btf {
        let mut blob = Blob::new();
        let fields: Vec<_> = FIELDS
            .iter()
            .filter(|spec| !without.contains(&spec.name))
            .map(|spec| (spec.path.split('|').next().unwrap(), spec.kind))
            .collect();
        let mut structs: Vec<&str> = Vec::new();
        for (path, _) in &fields {
            let name = path.split(':').next().unwrap();
            if !structs.contains(&name) {
                structs.push(name);
            }
        }
        for name in structs {
            let paths: Vec<_> = fields
                .iter()
                .filter_map(|(path, kind)| Some((path.split_once(':')?, *kind)))
                .filter(|((outer, _), _)| *outer == name)
                .map(|((_, path), kind)| (path, kind))
                .collect();
            add_struct(&mut blob, name, &paths);
        }
        Btf::parse(blob.finish()).unwrap()
    }

    #[test]
    fn every_field_has_a_name_of_its_own() {
        let mut names: Vec<_> = FIELDS.iter().map(|spec| spec.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FIELDS.len());
    }

    #[test]
    fn resolves_all_fields() {
        let layout = Layout::resolve(&kernel(&[])).unwrap();
        assert_eq!(layout.absent(), []);
        assert_eq!(layout.iter().count(), FIELDS.len());
        assert!(layout.iter().all(|(_, value)| *value != ABSENT));
        // The order of the list's fields within their structs.
        assert_eq!(layout.get("SOCK_FAMILY"), Some(0));
        assert_eq!(layout.get("SOCK_STATE"), Some(8));
        assert_eq!(layout.get("SOCK_REUSE"), Some(bitfield(16, 4, 2)));
        assert_eq!(layout.get("FILE_PATH_MNT"), Some(16 + 8));
        assert_eq!(layout.get("UPID_SIZE"), Some(16));
        assert_eq!(layout.get("NO_SUCH_FIELD"), None);
    }

    #[test]
    fn optional_fields_may_be_missing() {
        let layout = Layout::resolve(&kernel(&["INET_FLAGS", "REQUEST_TIMER"])).unwrap();
        let absent: Vec<_> = layout.absent().iter().map(Missing::to_string).collect();
        assert_eq!(
            absent,
            [
                "INET_FLAGS (inet_sock:inet_flags): not in this kernel",
                "REQUEST_TIMER (request_sock:rsk_timer): not in this kernel",
            ]
        );
        assert_eq!(layout.get("INET_FLAGS"), None);
        assert!(layout.iter().any(|field| field == ("INET_FLAGS", &ABSENT)));
    }

    #[test]
    fn all_missing_required_fields_are_named() {
        let error = Layout::resolve(&kernel(&["SOCK_NUM", "INET_FLAGS", "UPID_NR"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "portwatch does not know this kernel's structs; please report it with the version. \
             What it cannot read: SOCK_NUM (sock_common:skc_num): not in this kernel; \
             UPID_NR (upid:nr): not in this kernel"
        );
    }

    /// The value of a field `f` of `struct s`, whose list of paths is `path`.
    fn value(blob: Blob, kind: FieldKind, path: &'static str) -> Result<u32, String> {
        let spec = FieldSpec {
            name: "F",
            kind,
            required: true,
            path,
        };
        spec.resolve(&Btf::parse(blob.finish()).unwrap())
    }

    fn one_struct() -> Blob {
        let mut blob = Blob::new();
        let byte = blob.int("u8", 1);
        let word = blob.int("u32", 4);
        let members = [
            ("byte", byte, 16, 0),
            ("word", word, 32, 0),
            ("bits", byte, 66, 3),
            ("wide", word, 70, 3),
            ("far", byte, 0xff_fff8, 1),
        ];
        blob.flagged_structure("s", 2 << 20, &members);
        blob
    }

    #[test]
    fn takes_the_first_alternative_that_exists() {
        let plain = FieldKind::Plain;
        assert_eq!(value(one_struct(), plain, "s:none|s:word|s:byte"), Ok(4));
        assert_eq!(value(one_struct(), plain, "s:bits|s:byte"), Ok(2));
    }

    #[test]
    fn packs_bitfields_and_whole_bytes() {
        let bits = FieldKind::Bits;
        assert_eq!(value(one_struct(), bits, "s:bits"), Ok(bitfield(8, 2, 3)));
        assert_eq!(value(one_struct(), bits, "s:byte"), Ok(bitfield(2, 0, 8)));
    }

    #[test]
    fn refuses_a_field_of_the_wrong_form() {
        let (plain, bits) = (FieldKind::Plain, FieldKind::Bits);
        let reason = |kind, path| value(one_struct(), kind, path).unwrap_err();
        assert_eq!(reason(plain, "s:bits"), "`s:bits` is a bitfield here");
        assert_eq!(
            reason(bits, "s:word"),
            "`s:word` is no bitfield here but u32"
        );
        assert_eq!(
            reason(bits, "s:far"),
            "`s:far` lies too far into its struct"
        );
        assert_eq!(
            reason(plain, "s:wide"),
            "the bitfield `s:wide` of 3 bits, 70 bits into the type, does not lie within one byte"
        );
        assert_eq!(reason(plain, "s"), "`s` is not a path like `struct:member`");
    }
}
