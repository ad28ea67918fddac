use proptest::prelude::*;

use super::blob::Blob;
use super::*;

const FLAG_FREEBIND: i32 = 11;

/// A small kernel with something of everything.
fn kernel() -> Blob {
    let mut blob = Blob::new();
    let int = blob.int("int", 4);
    let byte = blob.int("unsigned char", 1);
    let long = blob.int("long unsigned int", 8);
    let u32_ = blob.reference(8, "u32", int);
    let volatile = blob.reference(9, "", byte);
    let constant = blob.reference(10, "", u32_);
    let tag = blob.reference(18, "rcu", constant);

    // struct sock { union { struct { int low; int high; }; u64 both; }; volatile unsigned char state; u32 after;
    //               struct pair pairs[3]; struct sock *next; const tagged; char tail[]; }
    let halves = blob.structure("", 8, &[("low", int, 0), ("high", int, 32)]);
    let both = blob.union("", 8, &[("", halves, 0), ("both", long, 0)]);
    let pair = blob.structure("pair", 8, &[("first", int, 0), ("second", u32_, 32)]);
    let pair_name = blob.reference(8, "pair_t", pair);
    let pairs = blob.array(pair_name, 3);
    let rows = blob.array(pairs, 2);
    let tail = blob.array(byte, 0);
    let sock = 100;
    let next = blob.pointer(sock);
    let members = [
        ("", both, 64),
        ("state", volatile, 128),
        ("after", u32_, 160),
        ("rows", rows, 192),
        ("next", next, 576),
        ("tagged", tag, 640),
        ("tail", tail, 672),
    ];
    while blob.int("filler", 4) < sock - 1 {}
    assert_eq!(blob.structure("sock", 88, &members), sock);

    let flags = [
        ("plain", byte, 8, 0),
        ("reuse", byte, 16, 4),
        ("port", byte, 20, 1),
        ("v6only", byte, 21, 1),
        ("whole", byte, 24, 8),
        ("crossing", int, 38, 3),
        ("wide", int, 40, 9),
        ("odd", int, 51, 0),
        ("", pair, 64, 0),
    ];
    blob.flagged_structure("flags", 16, &flags);
    let three = blob.bit_int("unsigned char", 1, 2, 3);
    let whole = [
        ("three", three, 8),
        ("plain", byte, 16),
        ("aligned", int, 32),
        ("shifted", byte, 27),
    ];
    blob.structure("legacy", 8, &whole);

    blob.enumeration("", false, &[("FREEBIND", FLAG_FREEBIND), ("MAX", -1)]);
    blob.enumeration("signs", true, &[("MINUS", -2)]);
    blob.enumeration64("wide", &[("WIDE", 1 << 40), ("WIDE_MINUS", -3)]);

    let sock_ptr = blob.pointer(sock);
    let void_ptr = blob.pointer(0);
    let bind = blob.prototype(int, &[("sk", sock_ptr), ("port", int)]);
    blob.reference(12, "bind", bind);
    let format = blob.prototype(0, &[("", sock_ptr), ("", 0)]);
    blob.reference(12, "format", format);
    let nothing = blob.prototype(0, &[]);
    blob.reference(12, "nothing", nothing);
    blob.reference(12, "broken", int);
    let probe = blob.prototype(
        0,
        &[("__data", void_ptr), ("sk", sock_ptr), ("state", constant)],
    );
    let probe_ptr = blob.pointer(probe);
    blob.reference(8, "btf_trace_inet_sock_set_state", probe_ptr);
    blob.reference(8, "btf_trace_not_one", int);

    // The kinds that only have to be stepped over.
    blob.reference(7, "forward", 0);
    blob.record("variable", 14 << 24, int, &[1]);
    blob.record(".data", 15 << 24 | 1, 0, &[1, 0, 4]);
    blob.record("double", 16 << 24, 8, &[]);
    blob.record("tag", 17 << 24, sock, &[u32::MAX]);
    blob.reference(11, "", void_ptr);
    blob.structure("last", 4, &[("member", int, 0)]);
    blob
}

fn btf() -> Btf {
    Btf::parse(kernel().finish()).unwrap()
}

/// Offset, bits and size of a field that must be there.
fn place(type_name: &str, path: &str) -> (u32, Option<(u8, u8)>, u32) {
    let field = btf().field(type_name, path).unwrap().unwrap();
    (field.offset, field.bits, field.size)
}

fn field_error(type_name: &str, path: &str) -> String {
    btf().field(type_name, path).unwrap_err().to_string()
}

#[test]
fn finds_members_through_anonymous_structs_and_unions() {
    assert_eq!(place("sock", "low"), (8, None, 4));
    assert_eq!(place("sock", "high"), (12, None, 4));
    assert_eq!(place("sock", "both"), (8, None, 8));
    assert_eq!(place("flags", "second"), (12, None, 4));
}

#[test]
fn finds_members_through_typedefs_and_qualifiers() {
    assert_eq!(place("sock", "state"), (16, None, 1));
    assert_eq!(place("sock", "tagged"), (80, None, 4));
    assert_eq!(place("pair_t", "second"), (4, None, 4));
    assert_eq!(place("last", "member"), (0, None, 4));
}

#[test]
fn finds_elements_of_arrays() {
    assert_eq!(place("sock", "rows"), (24, None, 48));
    assert_eq!(place("sock", "rows[1]"), (48, None, 24));
    assert_eq!(place("sock", "rows[1][2]"), (64, None, 8));
    assert_eq!(place("sock", "rows[1][2].second"), (68, None, 4));
    assert_eq!(place("sock", "tail"), (84, None, 0));
    assert_eq!(place("sock", "tail[7]"), (91, None, 1));
}

#[test]
fn absent_things_are_none() {
    let btf = btf();
    for (type_name, path) in [
        ("nosuch", "low"),
        ("sock", "nosuch"),
        ("sock", "low.first"),
        ("sock", "low[0]"),
        ("sock", "rows.first"),
        ("sock", "rows[2]"),
        ("sock", "next.low"),
        ("forward", "low"),
        ("bind", "sk"),
        ("u32", "low"),
    ] {
        assert_eq!(
            btf.field(type_name, path).unwrap(),
            None,
            "{type_name}:{path}"
        );
    }
    assert_eq!(btf.size_of("nosuch").unwrap(), None);
    assert_eq!(btf.enum_value("nosuch"), None);
    assert_eq!(btf.function("nosuch"), None);
    assert_eq!(btf.prototype("nosuch"), None);
    assert_eq!(btf.tracepoint("nosuch"), None);
}

#[test]
fn normalises_bitfields_of_a_flagged_struct() {
    assert_eq!(place("flags", "plain"), (1, None, 1));
    assert_eq!(place("flags", "reuse"), (2, Some((0, 4)), 1));
    assert_eq!(place("flags", "port"), (2, Some((4, 1)), 1));
    assert_eq!(place("flags", "v6only"), (2, Some((5, 1)), 1));
    assert_eq!(place("flags", "whole"), (3, Some((0, 8)), 1));
}

#[test]
fn normalises_bitfields_in_the_old_encoding() {
    assert_eq!(place("legacy", "three"), (1, Some((2, 3)), 1));
    assert_eq!(place("legacy", "plain"), (2, None, 1));
    assert_eq!(place("legacy", "aligned"), (4, None, 4));
}

#[test]
fn refuses_bitfields_beyond_one_byte() {
    assert_eq!(
        field_error("flags", "crossing"),
        "the bitfield `flags:crossing` of 3 bits, 38 bits into the type, does not lie within one byte"
    );
    for (type_name, path) in [("flags", "wide"), ("flags", "odd"), ("legacy", "shifted")] {
        let error = btf().field(type_name, path).unwrap_err();
        assert!(matches!(error, BtfError::Bitfield { .. }), "{error}");
    }
}

#[test]
fn refuses_paths_it_cannot_read() {
    for path in [
        "", ".", "a.", ".a", "a..b", "[0]", "a[", "a[]", "a[x]", "a[-1]", "a[0", "a0]", "a[0]b",
    ] {
        assert_eq!(
            field_error("sock", path),
            format!("`{path}` is not a path like `member.member[0]`")
        );
    }
}

#[test]
fn tells_sizes() {
    let btf = btf();
    let size = |name| btf.size_of(name).unwrap();
    assert_eq!(size("sock"), Some(88));
    assert_eq!(size("pair_t"), Some(8));
    assert_eq!(size("int"), Some(4));
    assert_eq!(size("u32"), Some(4));
    assert_eq!(size("wide"), Some(8));
    assert_eq!(size("double"), Some(8));
    assert_eq!(size("bind"), None);
    assert!(btf.has_struct("sock"));
    assert!(!btf.has_struct("pair_t"));
    assert!(!btf.has_struct("forward"));
}

#[test]
fn tells_values_of_enumerators() {
    let btf = btf();
    assert_eq!(btf.enum_value("FREEBIND"), Some(i64::from(FLAG_FREEBIND)));
    assert_eq!(btf.enum_value("MAX"), Some(i64::from(u32::MAX)));
    assert_eq!(btf.enum_value("MINUS"), Some(-2));
    assert_eq!(btf.enum_value("WIDE"), Some(1 << 40));
    assert_eq!(btf.enum_value("WIDE_MINUS"), Some(-3));
    assert_eq!(btf.enum_value("wide"), None);
}

#[test]
fn tells_functions() {
    let btf = btf();
    let shape = |name| btf.function(name).map(|found| (found.args, found.variadic));
    assert_eq!(shape("bind"), Some((2, false)));
    assert_eq!(shape("format"), Some((1, true)));
    assert_eq!(shape("nothing"), Some((0, false)));
    assert_eq!(shape("broken"), None);
    assert_eq!(shape("sock"), None);
    let prototype = |name| btf.prototype(name).unwrap();
    assert_eq!(prototype("bind"), "int (struct sock *, int)");
    assert_eq!(prototype("format"), "void (struct sock *, ...)");
    assert_eq!(prototype("nothing"), "void (void)");
    let id = btf.function("bind").unwrap().id;
    assert_eq!(btf.declaration(id), "bind");
}

#[test]
fn tells_tracepoints() {
    let btf = btf();
    assert_eq!(
        btf.tracepoint("inet_sock_set_state"),
        Some(Tracepoint {
            args: vec!["struct sock *".to_owned(), "const u32".to_owned()]
        })
    );
    assert_eq!(btf.tracepoint("not_one"), None);
}

#[test]
fn writes_types_as_c() {
    let mut blob = Blob::new();
    let char_ = blob.int("char", 1);
    let constant = blob.reference(10, "", char_);
    let text = blob.pointer(constant);
    let fixed = blob.reference(10, "", text);
    let fixed_ptr = blob.pointer(fixed);
    let texts = blob.array(text, 2);
    let texts_ptr = blob.pointer(texts);
    let function = blob.prototype(0, &[("", text)]);
    let function_ptr = blob.pointer(function);
    let table = blob.array(function_ptr, 4);
    let getter = blob.prototype(function_ptr, &[]);
    let anonymous = blob.union("", 4, &[]);
    let itself = blob.pointer(13);
    assert_eq!(itself, 13);
    let dangling = blob.pointer(99);
    let btf = Btf::parse(blob.finish()).unwrap();
    for (id, text) in [
        (0, "void"),
        (text, "const char *"),
        (fixed, "const char *const"),
        (fixed_ptr, "const char *const *"),
        (texts, "const char *[2]"),
        (texts_ptr, "const char *(*)[2]"),
        (function_ptr, "void (*)(const char *)"),
        (table, "void (*[4])(const char *)"),
        (getter, "void (*(void))(const char *)"),
        (anonymous, "union {…}"),
        (dangling, "? *"),
    ] {
        assert_eq!(btf.declaration(id), text);
    }
    assert!(btf.declaration(itself).starts_with("… **"));
}

#[test]
fn types_of_one_name_must_agree() {
    let mut blob = Blob::new();
    let int = blob.int("int", 4);
    blob.structure("s", 8, &[("same", int, 0), ("moved", int, 32)]);
    blob.structure(
        "s",
        12,
        &[("same", int, 0), ("moved", int, 64), ("only", int, 32)],
    );
    let btf = Btf::parse(blob.finish()).unwrap();
    assert_eq!(btf.field("s", "same").unwrap().unwrap().offset, 0);
    assert_eq!(btf.field("s", "only").unwrap().unwrap().offset, 4);
    let error = btf.field("s", "moved").unwrap_err().to_string();
    assert_eq!(
        error,
        "the kernel has several types `s`, which do not agree"
    );
    assert!(matches!(btf.size_of("s"), Err(BtfError::Ambiguous(_))));
}

#[test]
fn types_within_themselves_are_refused() {
    let mut blob = Blob::new();
    let typedef = blob.reference(8, "t", 1);
    let array = blob.array(2, 2);
    // Two anonymous members of its own type each.
    let outer = blob.structure(
        "s",
        8,
        &[("", 3, 0), ("", 3, 0), ("a", array, 0), ("t", typedef, 0)],
    );
    assert_eq!((typedef, array, outer), (1, 2, 3));
    let btf = Btf::parse(blob.finish()).unwrap();
    assert!(matches!(btf.field("s", "a"), Err(BtfError::Nesting(_))));
    assert!(matches!(btf.field("s", "none"), Err(BtfError::Nesting(_))));
    assert!(matches!(btf.size_of("t"), Err(BtfError::Nesting(_))));
}

#[test]
fn references_to_nothing_are_refused() {
    let mut blob = Blob::new();
    blob.structure("s", 8, &[("a", 77, 0)]);
    blob.reference(12, "f", 77);
    let btf = Btf::parse(blob.finish()).unwrap();
    assert!(matches!(btf.field("s", "a"), Err(BtfError::Reference(77))));
    assert_eq!(btf.function("f"), None);
    assert_eq!(btf.prototype("f").as_deref(), Some("?"));
}

#[test]
fn offsets_beyond_32_bits_are_refused() {
    let mut blob = Blob::new();
    let big = blob.structure("big", u32::MAX, &[]);
    let many = blob.array(big, u32::MAX);
    let more = blob.array(many, u32::MAX);
    blob.structure("s", 8, &[("a", more, 0)]);
    let btf = Btf::parse(blob.finish()).unwrap();
    for path in ["a", "a[0]", "a[0][3]", "a[4000000000][4000000000]"] {
        let error = btf.field("s", path).unwrap_err().to_string();
        assert_eq!(error, format!("`s:{path}` reaches beyond 32 bits of bytes"));
    }
}

fn parse_error(bytes: &[u8]) -> String {
    Btf::parse(bytes).unwrap_err().to_string()
}

#[test]
fn refuses_what_is_not_btf() {
    let valid = kernel().finish();
    assert_eq!(
        parse_error(&[]),
        "BTF is 0 bytes long, shorter than its header of 24"
    );
    assert_eq!(
        parse_error(&valid[..20]),
        "BTF is 20 bytes long, shorter than its header of 24"
    );
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = valid.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        parse_error(&changed)
    };
    assert_eq!(
        with(0, &0xeb9f_u16.swap_bytes().to_ne_bytes()),
        "BTF begins with 0x9feb instead of 0xeb9f"
    );
    assert_eq!(with(2, &[2]), "BTF has format version 2, only 1 is known");
    assert_eq!(
        with(4, &8u32.to_ne_bytes()),
        "BTF is 8 bytes long, shorter than its header of 24"
    );
    let len = valid.len();
    assert_eq!(
        with(4, &u32::MAX.to_ne_bytes()),
        format!("BTF's header ends at byte 4294967295, the file at {len}")
    );
    let section = |name, at| {
        let error = with(at, &u32::MAX.to_ne_bytes());
        assert!(
            error.starts_with(&format!("BTF's {name} ends at byte ")),
            "{error}"
        );
    };
    section("types", 8);
    section("types", 12);
    section("strings", 16);
    section("strings", 20);
}

#[test]
fn names_an_unknown_kind() {
    for kind in [0, 20, 31, 127] {
        let mut blob = Blob::new();
        blob.int("int", 4);
        blob.record("new", kind << 24 | 1, 0, &[0]);
        let error = parse_error(&blob.finish());
        let wanted = format!(
            "BTF type 2 is of kind {kind}, which is not known: this kernel is newer than this reader"
        );
        assert_eq!(error, wanted);
    }
}

#[test]
fn steps_over_an_unknown_kind_whose_length_the_layout_tells() {
    let mut blob = Blob::new();
    blob.record("new", 20 << 24 | 2, 0, &[7, 7, 7]);
    let int = blob.int("int", 4);
    blob.structure("s", 8, &[("a", int, 32), ("new", 1, 0)]);
    let mut kinds = [(0, 0); 21];
    kinds[20] = (4, 4);
    blob.layout(&kinds);
    let btf = Btf::parse(blob.finish()).unwrap();
    assert_eq!(btf.field("s", "a").unwrap().unwrap().offset, 4);
    assert!(matches!(btf.field("s", "new"), Err(BtfError::Unsized(1))));
    assert_eq!(btf.size_of("new").unwrap(), None);
}

#[test]
fn names_must_end() {
    let mut blob = Blob::new();
    blob.int(&"n".repeat(MAX_NAME), 4);
    assert_eq!(
        Btf::parse(blob.finish())
            .unwrap()
            .size_of(&"n".repeat(MAX_NAME))
            .unwrap(),
        Some(4)
    );
    let mut blob = Blob::new();
    blob.int(&"n".repeat(MAX_NAME + 1), 4);
    assert_eq!(
        parse_error(&blob.finish()),
        "the name at 1 of BTF type 1 does not end within 512 bytes of the string section"
    );
    let mut bytes = {
        let mut blob = Blob::new();
        blob.int("int", 4);
        blob.finish()
    };
    *bytes.last_mut().unwrap() = b'!';
    assert!(matches!(
        Btf::parse(bytes),
        Err(BtfError::Name { id: 1, .. })
    ));
}

#[test]
fn every_truncation_is_refused() {
    let valid = kernel().finish();
    for len in 0..valid.len() {
        assert!(Btf::parse(&valid[..len]).is_err(), "the first {len} bytes");
    }
    // One that the header admits to.
    let types = u32::from_ne_bytes(valid[12..16].try_into().unwrap());
    for missing in 1..12 {
        let mut changed = valid.clone();
        changed[12..16].copy_from_slice(&(types - missing).to_ne_bytes());
        assert!(matches!(Btf::parse(changed), Err(BtfError::Truncated(_))));
    }
}

#[test]
fn errors_of_a_file_name_it() {
    let missing = Btf::from_path(Path::new("/nonexistent/btf")).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("cannot read the kernel's type information from /nonexistent/btf:"),
        "{missing}"
    );
    let not_btf = Btf::from_path(Path::new("/proc/self/status")).unwrap_err();
    assert_eq!(
        not_btf.to_string(),
        "cannot use the type information in /proc/self/status"
    );
    let source = std::error::Error::source(&not_btf).unwrap().to_string();
    assert!(source.starts_with("BTF begins with "), "{source}");
}

/// Asks everything of a blob that may be broken: only panics and hangs count.
fn ask(bytes: Vec<u8>) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for name in ["sock", "flags", "legacy", "pair_t", "wide", "last", "u32"] {
        let _ = btf.size_of(name);
        for path in [
            "low",
            "rows[1][2].second",
            "tail[7]",
            "reuse",
            "three",
            "tagged",
            "member",
        ] {
            let _ = btf.field(name, path);
        }
    }
    for name in ["FREEBIND", "WIDE", "MINUS"] {
        let _ = btf.enum_value(name);
    }
    for name in ["bind", "format", "nothing", "broken"] {
        let _ = (btf.function(name), btf.prototype(name));
    }
    let _ = btf.tracepoint("inet_sock_set_state");
    for id in 0..=btf.offsets.len() as u32 + 1 {
        let _ = (btf.declaration(id), btf.size(id, MAX_DEPTH));
    }
}

proptest! {
    #[test]
    fn survives_anything(bytes: Vec<u8>) {
        ask(bytes);
    }

    #[test]
    fn survives_anything_behind_a_header(types: Vec<u8>, strings: Vec<u8>) {
        let mut bytes = Blob::new().finish();
        bytes.truncate(24);
        bytes[12..16].copy_from_slice(&(types.len() as u32).to_ne_bytes());
        bytes[16..20].copy_from_slice(&(types.len() as u32).to_ne_bytes());
        bytes[20..24].copy_from_slice(&(strings.len() as u32).to_ne_bytes());
        bytes.extend(types);
        bytes.extend(strings);
        ask(bytes);
    }

    #[test]
    fn survives_changed_bytes(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
    ) {
        let mut bytes = kernel().finish();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        ask(bytes);
    }

    #[test]
    fn survives_changed_words(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u32..200), 1..24),
    ) {
        let mut bytes = kernel().finish();
        for (index, value) in changes {
            let at = index.index(bytes.len() / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        ask(bytes);
    }
}
