//! The readers of the kernel's types and symbols, against the running kernel.
//!
//! The expectations are known from elsewhere: from the headers of the kernel,
//! and from `/proc`. They hold on kernels from 5.10 on, x86-64 and arm64; the
//! names of C's own integers are gcc's.

use std::path::Path;

use portwatch::kernel::btf::{self, Btf};
use portwatch::kernel::layout::{FIELDS, Layout};
use portwatch::kernel::symbols::{self, Symbols, SymbolsError};
use portwatch_common::field::{bitfield, unpack};

/// This kernel's types, unless it has none.
fn kernel(test: &str) -> Option<Btf> {
    let path = Path::new(btf::VMLINUX);
    if !path.exists() {
        println!("SKIP: {test}: there is no {}", path.display());
        return None;
    }
    Some(Btf::from_path(path).unwrap_or_else(|error| panic!("{error:?}")))
}

/// `struct sock_common` of include/net/sock.h: its first 24 bytes are alike from 5.10 to 7.3.
#[test]
fn sock_common_begins_as_ever() {
    let Some(btf) = kernel("sock_common_begins_as_ever") else {
        return;
    };
    for (path, offset, bits, size) in [
        ("skc_daddr", 0, None, 4),
        ("skc_rcv_saddr", 4, None, 4),
        ("skc_hash", 8, None, 4),
        ("skc_dport", 12, None, 2),
        ("skc_num", 14, None, 2),
        ("skc_family", 16, None, 2),
        ("skc_state", 18, None, 1),
        ("skc_reuse", 19, Some((0, 4)), 1),
        ("skc_reuseport", 19, Some((4, 1)), 1),
        ("skc_ipv6only", 19, Some((5, 1)), 1),
        ("skc_bound_dev_if", 20, None, 4),
    ] {
        let field = btf.field("sock_common", path).unwrap().unwrap();
        assert_eq!(
            (field.offset, field.bits, field.size),
            (offset, bits, size),
            "{path}"
        );
    }
    let within = btf.field("sock", "__sk_common.skc_num").unwrap().unwrap();
    assert_eq!((within.offset, within.type_name.as_str()), (14, "__u16"));
}

/// Types whose layout is part of the kernel's interface to programs.
#[test]
fn types_of_the_interface_are_as_documented() {
    let Some(btf) = kernel("types_of_the_interface_are_as_documented") else {
        return;
    };
    let offset = |name, path| btf.field(name, path).unwrap().map(|field| field.offset);
    assert_eq!(offset("sockaddr_in", "sin_port"), Some(2));
    assert_eq!(offset("sockaddr_in", "sin_addr.s_addr"), Some(4));
    assert_eq!(offset("in6_addr", "in6_u.u6_addr32[3]"), Some(12));
    assert_eq!(offset("in6_addr", "in6_u.u6_addr32[4]"), None);
    assert_eq!(btf.size_of("in6_addr").unwrap(), Some(16));
    assert_eq!(btf.size_of("u64").unwrap(), Some(8));
    assert_eq!(btf.enum_value("TCP_LISTEN"), Some(10));
    assert_eq!(btf.enum_value("BPF_MAP_TYPE_RINGBUF"), Some(27));
}

#[test]
fn functions_and_tracepoints_are_told() {
    let Some(btf) = kernel("functions_and_tracepoints_are_told") else {
        return;
    };
    assert_eq!(btf.function("inet_csk_get_port").unwrap().args, 2);
    assert_eq!(
        btf.prototype("inet_csk_get_port").unwrap(),
        "int (struct sock *, short unsigned int)"
    );
    assert_eq!(
        btf.tracepoint("inet_sock_set_state").unwrap().args,
        ["const struct sock *", "const int", "const int"]
    );
    assert_eq!(
        btf.tracepoint("sys_exit").unwrap().args,
        ["struct pt_regs *", "long int"]
    );
    assert_eq!(btf.tracepoint("no_such_tracepoint"), None);
}

#[test]
fn the_layout_of_this_kernel_is_known() {
    let Some(btf) = kernel("the_layout_of_this_kernel_is_known") else {
        return;
    };
    let layout = Layout::resolve(&btf).unwrap();
    assert_eq!(layout.iter().count(), FIELDS.len());
    assert_eq!(layout.get("SOCK_NUM"), Some(14));
    assert_eq!(layout.get("SOCK_REUSEPORT"), Some(bitfield(19, 4, 1)));
    // Four bits of a byte in 5.10, the whole byte later.
    let (_, _, width) = unpack(layout.get("SOCK_USERLOCKS").unwrap());
    assert!(width == 4 || width == 8, "{width} bits");
    // Either all of inet_sock's flags are one word, or each is a bit of its own.
    assert_ne!(
        layout.get("INET_FLAGS").is_some(),
        layout.get("INET_FREEBIND").is_some()
    );
    assert_eq!(
        layout.get("INET_FLAGS").is_some(),
        btf.enum_value("INET_FLAGS_FREEBIND").is_some()
    );
    for missing in layout.absent() {
        println!("absent: {missing}");
    }
}

#[test]
fn symbols_have_the_kernels_addresses() {
    let test = "symbols_have_the_kernels_addresses";
    let path = Path::new(symbols::KALLSYMS);
    if !path.exists() {
        println!("SKIP: {test}: there is no {}", path.display());
        return;
    }
    let wanted = ["_stext", "_etext", "tw_timer_handler", "no_such_symbol"];
    match Symbols::read(path, &wanted) {
        Ok(read) => {
            let address = |name| read.address(name).unwrap();
            assert!(address("_stext") < address("tw_timer_handler"));
            assert!(address("tw_timer_handler") < address("_etext"));
            assert_eq!(read.address("no_such_symbol"), None);
            // Who may see them in the file may ask, if the kernel has the helper.
            let can_be_asked =
                kernel(test).is_some_and(|btf| btf.function("bpf_kallsyms_lookup_name").is_some());
            let asked = Symbols::asked(&wanted);
            assert_eq!(asked.is_ok(), can_be_asked, "{asked:?}");
            if let Ok(asked) = asked {
                for name in wanted {
                    assert_eq!(asked.address(name), read.address(name), "{name}");
                }
            }
        }
        Err(error @ SymbolsError::Hidden { .. }) => println!("SKIP: {test}: {error}"),
        Err(error) => panic!("{error}"),
    }
}
