//! The ids of a few types, in the form that aya takes them.

use std::collections::BTreeMap;

use super::{Btf, HEADER_LEN, Kind, MAGIC, RECORD_LEN, VERSION};

/// BTF_KIND_FWD, which has nothing behind its record.
const FILLER: u32 = 7 << 24;

impl Btf {
    /// BTF in which only the functions and typedefs of these names are left, under the ids that they
    /// have here; that they refer to others is left out.
    ///
    /// To attach a program aya looks for a name among all types, one by one, of which it makes a value
    /// each: for forty programs that took longer than the kernel took to verify them.
    #[must_use]
    pub fn excerpt<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
        let wanted: BTreeMap<u32, (&str, u32)> = names
            .into_iter()
            .flat_map(|name| {
                let named = self.named(name);
                let info = named.filter_map(|ty| match ty.kind {
                    Kind::Func => Some((ty.id, 12 << 24)),
                    Kind::Typedef => Some((ty.id, 8 << 24)),
                    _ => None,
                });
                info.map(move |(id, info)| (id, (name, info)))
            })
            .collect();
        let last = wanted.last_key_value().map_or(0, |(id, _)| *id);
        let mut types = Vec::with_capacity(last as usize * RECORD_LEN);
        let mut strings = vec![0];
        for id in 1..=last {
            let (name, info) = match wanted.get(&id) {
                Some((name, info)) => {
                    let at = strings.len() as u32;
                    strings.extend_from_slice(name.as_bytes());
                    strings.push(0);
                    (at, *info)
                }
                None => (0, FILLER),
            };
            for word in [name, info, 0] {
                types.extend_from_slice(&word.to_ne_bytes());
            }
        }
        let lengths = [types.len() as u32, strings.len() as u32];
        let mut bytes = Vec::with_capacity(HEADER_LEN + types.len() + strings.len());
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[VERSION, 0]);
        for word in [HEADER_LEN as u32, 0, lengths[0], lengths[0], lengths[1]] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&types);
        bytes.extend_from_slice(&strings);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use aya::Endianness;
    use aya_obj::btf::BtfKind;

    use super::super::blob::Blob;
    use super::Btf;

    #[test]
    fn what_is_left_has_its_id() {
        let mut blob = Blob::new();
        let int = blob.int("int", 4);
        let prototype = blob.prototype(int, &[]);
        blob.structure("bind", 4, &[("x", int, 0)]);
        let bind = blob.reference(12, "bind", prototype);
        blob.reference(12, "other", prototype);
        let typedef = blob.reference(8, "btf_trace_bind", int);
        blob.int("last", 8);
        let btf = Btf::parse(blob.finish()).unwrap();

        let excerpt = btf.excerpt(["bind", "btf_trace_bind", "absent"]);
        let aya = aya::Btf::parse(&excerpt, Endianness::default()).unwrap();
        let id = |name, kind| aya.id_by_type_name_kind(name, kind).ok();
        assert_eq!(id("bind", BtfKind::Func), Some(bind));
        assert_eq!(id("btf_trace_bind", BtfKind::Typedef), Some(typedef));
        assert_eq!(id("other", BtfKind::Func), None);
        assert_eq!(id("bind", BtfKind::Struct), None);
        // Our own reader takes it as well.
        let again = Btf::parse(excerpt).unwrap();
        assert_eq!(again.function_type("bind").unwrap().id, bind);

        let nothing = btf.excerpt(["absent"]);
        assert!(aya::Btf::parse(&nothing, Endianness::default()).is_ok());
    }
}
