//! The kernel side of portwatch: one file per kernel path.
//!
//! Adapters, a file for each backend ([`trampoline`], [`kprobe`],
//! [`tracepoint`]), fetch arguments and call handlers ([`bind`], [`listen`],
//! [`autobind`], [`release`], [`timewait`], [`task`] with [`path`] and [`tree`], [`snapshot`]), which
//! write records through [`emit`]. Kernel memory is read through [`layout`] and
//! nowhere else; what counts as interesting is for [`filter`] to say.
#![no_std]
#![no_main]
// Inline assembly for BPF is not stable yet.
#![feature(asm_experimental_arch)]

mod autobind;
mod bind;
mod call;
mod conflict;
mod emit;
mod filter;
mod kprobe;
mod layout;
mod listen;
mod maps;
mod path;
mod release;
mod snapshot;
mod sock;
mod task;
mod timewait;
mod tracepoint;
mod trampoline;
mod tree;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel lets only GPL-compatible programs call the helpers used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
