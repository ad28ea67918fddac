//! The kernel's own answer where a symbol is, by a program that is run once.
//!
//! `bpf_kallsyms_lookup_name` came with Linux 5.16, for programs of the kind that bpf(2) runs for
//! whoever loaded them (`BPF_PROG_TYPE_SYSCALL`, 5.14). aya has no such kind.

use std::io;
use std::os::fd::OwnedFd;

use aya_obj::generated::{BPF_F_SLEEPABLE, bpf_cmd, bpf_func_id, bpf_insn, bpf_prog_type};

use crate::kernel::bpf::{self, address, bpf, number, zeroed};

/// What the program writes for each name: what the helper returned, and the address.
type Answer = [i64; 2];

// Registers: what the helper returns, its arguments, what a call leaves as it is, and the stack's end.
const R0: u8 = 0;
const ARGUMENTS: [u8; 4] = [1, 2, 3, 4];
const CONTEXT: u8 = 6;
const FRAME: u8 = 10;

// Opcodes: include/uapi/linux/bpf_common.h, include/uapi/linux/bpf.h.
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const STORE_WORD_IMMEDIATE: u8 = 0x62;
const STORE_IMMEDIATE: u8 = 0x7a;
const STORE: u8 = 0x7b;
const LOAD: u8 = 0x79;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Where on the stack the helper writes the address; the name lies below.
const FOUND: i16 = -8;

/// The addresses of symbols, in the order of their names; `None` of one that the kernel does not have.
///
/// # Errors
///
/// That the kernel has no such helper, does not let this process load programs, or hides its symbols'
/// addresses from it.
pub(super) fn addresses(names: &[&str]) -> io::Result<Vec<Option<u64>>> {
    const NOT_FOUND: i64 = -(libc::ENOENT as i64);

    let program = bpf::load(&instructions(names), c"GPL", |program| {
        program.prog_type = bpf_prog_type::BPF_PROG_TYPE_SYSCALL as u32;
        program.prog_flags = BPF_F_SLEEPABLE;
    })?;
    let mut answers: Vec<Answer> = vec![[0; 2]; names.len()];
    run(&program, &mut answers)?;
    let answers = answers.into_iter().map(|[result, found]| match result {
        0 => Ok(Some(found.cast_unsigned())),
        NOT_FOUND => Ok(None),
        _ => Err(io::Error::from_raw_os_error(
            i32::try_from(-result).unwrap_or(libc::EINVAL),
        )),
    });
    answers.collect()
}

fn instruction(code: u8, destination: u8, source: u8, off: i16, imm: i32) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(destination, source),
        off,
        imm,
    }
}

fn instructions(names: &[&str]) -> Vec<bpf_insn> {
    let [name, length, flags, found] = ARGUMENTS;
    let mut code = vec![instruction(MOVE, CONTEXT, name, 0, 0)];
    let answers = (0_i16..).step_by(size_of::<Answer>());
    for (wanted, answer) in names.iter().zip(answers) {
        // The helper wants the NUL that ends it.
        let mut bytes = [wanted.as_bytes(), &[0]].concat();
        let len = bytes.len() as i32;
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let begin = FOUND - bytes.len() as i16;
        for (word, at) in bytes.chunks_exact(4).zip((begin..).step_by(4)) {
            let mut four = [0; 4];
            four.copy_from_slice(word);
            let value = i32::from_ne_bytes(four);
            code.push(instruction(STORE_WORD_IMMEDIATE, FRAME, 0, at, value));
        }
        code.extend([
            instruction(STORE_IMMEDIATE, FRAME, 0, FOUND, 0),
            instruction(MOVE, name, FRAME, 0, 0),
            instruction(ADD_IMMEDIATE, name, 0, 0, begin.into()),
            instruction(MOVE_IMMEDIATE, length, 0, 0, len),
            instruction(MOVE_IMMEDIATE, flags, 0, 0, 0),
            instruction(MOVE, found, FRAME, 0, 0),
            instruction(ADD_IMMEDIATE, found, 0, 0, FOUND.into()),
            instruction(
                CALL,
                0,
                0,
                0,
                bpf_func_id::BPF_FUNC_kallsyms_lookup_name as i32,
            ),
            instruction(STORE, CONTEXT, R0, answer, 0),
            instruction(LOAD, R0, FRAME, FOUND, 0),
            instruction(STORE, CONTEXT, R0, answer + 8, 0),
        ]);
    }
    code.extend([
        instruction(MOVE_IMMEDIATE, R0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    code
}

/// The kernel copies the context back to where it came from (`bpf_prog_test_run_syscall`,
/// net/bpf/test_run.c).
fn run(program: &OwnedFd, answers: &mut [Answer]) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.test.prog_fd = number(program);
    attributes.test.ctx_in = address(answers.as_mut_ptr());
    attributes.test.ctx_size_in = size_of_val(answers) as u32;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes).map(drop)
}
