//! System calls of 32-bit tasks: by their own numbers, and by socketcall(2).

use std::arch::asm;
use std::os::fd::{AsFd as _, AsRawFd as _};

use portwatch_tests::expect::{bind, bind_failed, listen, release, socket};
use portwatch_tests::socket::{address, sockaddr};
use portwatch_tests::{Scenario, Socket};

// arch/x86/entry/syscalls/syscall_32.tbl
const SOCKETCALL: u32 = 102;
const BIND: u32 = 361;
const LISTEN: u32 = 363;
// include/uapi/linux/net.h
const SYS_BIND: u32 = 2;
const SYS_LISTEN: u32 = 4;

/// Calls as a 32-bit task does. The kernel takes the task for one for the duration of the call.
fn int80(number: u32, first: u32, second: u32, third: u32) -> i32 {
    let result: u64;
    // SAFETY: these calls read no more memory than they are given by address; rbx, which the
    // compiler keeps for itself, is put back.
    unsafe {
        asm!(
            "push rbx",
            "mov ebx, {first:e}",
            "int 0x80",
            "pop rbx",
            first = in(reg) first,
            inlateout("rax") u64::from(number) => result,
            in("rcx") u64::from(second),
            in("rdx") u64::from(third),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as u32 as i32
}

/// Bytes below 4 GiB, where a 32-bit task's memory is.
fn low(bytes: &[u8]) -> u32 {
    // SAFETY: a new mapping, longer than the bytes, which is never taken back.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), page.cast(), bytes.len());
        u32::try_from(page.addr()).unwrap()
    }
}

fn words(words: [u32; 3]) -> u32 {
    low(&words.map(u32::to_ne_bytes).concat())
}

fn descriptor(socket: &Socket) -> u32 {
    socket.as_fd().as_raw_fd().cast_unsigned()
}

#[test]
fn calls_by_their_own_numbers() {
    let mut scenario = Scenario::new();
    let local = "127.0.0.1:8080";
    scenario.run(|| {
        let holder = Socket::tcp4();
        let place = low(&sockaddr(address(local)));
        assert_eq!(int80(BIND, descriptor(&holder), place, 16), 0);
        assert_eq!(int80(LISTEN, descriptor(&holder), 5, 0), 0);
        let newcomer = Socket::tcp4();
        let refused = int80(BIND, descriptor(&newcomer), place, 16);
        assert_eq!(refused, -libc::EADDRINUSE);
        drop(newcomer);
        drop(holder);
    });
    let holder = socket("tcp", local, &[]);
    scenario.expect(&[
        bind(holder.clone(), "$self"),
        listen(holder.clone(), 5, "$self"),
        bind_failed(holder.clone(), "EADDRINUSE", 98, "$self"),
        release(holder, "$self"),
    ]);
}

#[test]
fn calls_by_socketcall() {
    let mut scenario = Scenario::new();
    let local = "[::1]:8080";
    scenario.run(|| {
        let holder = Socket::tcp6();
        let place = low(&sockaddr(address(local)));
        let arguments = words([descriptor(&holder), place, 28]);
        assert_eq!(int80(SOCKETCALL, SYS_BIND, arguments, 0), 0);
        let arguments = words([descriptor(&holder), 7, 0]);
        assert_eq!(int80(SOCKETCALL, SYS_LISTEN, arguments, 0), 0);
        drop(holder);
    });
    // The kernel's own doing, for an address of one family (`__inet6_bind`).
    let holder = socket("tcp", local, &["v6only"]);
    scenario.expect(&[
        bind(holder.clone(), "$self"),
        listen(holder.clone(), 7, "$self"),
        release(holder, "$self"),
    ]);
}

/// getuid(2) has the number of socketcall(2), and geteuid16(2) of 32-bit tasks that of bind(2).
#[test]
fn calls_of_the_same_numbers_are_none_of_ours() {
    const GETEUID16: u32 = 49;
    let mut scenario = Scenario::new();
    scenario.run(|| {
        let socket = Socket::tcp4();
        let place = low(&sockaddr(address("127.0.0.1:8080")));
        // SAFETY: takes no arguments; what lies in the registers is an address all the same.
        unsafe {
            libc::syscall(
                libc::SYS_getuid,
                u64::from(descriptor(&socket)),
                u64::from(place),
                16u64,
            )
        };
        int80(GETEUID16, descriptor(&socket), place, 16);
    });
    scenario.expect(&[]);
}
