//! What the kernel side is told at load besides the fields' offsets.

use portwatch_common::field::ABSENT;

use super::btf::Btf;
use super::hook;
use super::side::describe;
use super::symbols::Symbols;

/// Addresses of the functions that timers which concern us call; 0 where they are not known.
#[derive(Default)]
pub(super) struct Timers {
    timewait: u64,
    request: u64,
}

impl Timers {
    /// Looks them up.
    ///
    /// # Errors
    ///
    /// Why they are not known.
    pub(super) fn read() -> Result<Self, String> {
        const TIMEWAIT: &str = "tw_timer_handler";
        const REQUEST: &str = "reqsk_timer_handler";

        let symbols =
            Symbols::of_this_kernel(&[TIMEWAIT, REQUEST]).map_err(|error| describe(&error))?;
        let timewait = symbols.address(TIMEWAIT);
        Ok(Self {
            timewait: timewait.ok_or(format!("this kernel has no {TIMEWAIT}"))?,
            request: symbols.address(REQUEST).unwrap_or(0),
        })
    }

    /// As values of the globals of the kernel side.
    pub(super) fn settings(&self) -> [(&'static str, u64); 2] {
        [
            ("TIMEWAIT_HANDLER", self.timewait),
            ("REQUEST_HANDLER", self.request),
        ]
    }
}

/// Values of the globals of the kernel side, by their names.
pub(super) fn resolve(btf: &Btf) -> Vec<(&'static str, u32)> {
    let bit = |name| {
        btf.enum_value(name)
            .and_then(|value| u32::try_from(value).ok())
            .unwrap_or(0)
    };
    let index = |name| {
        btf.enum_value(name)
            .and_then(|value| u32::try_from(value).ok())
            .unwrap_or(ABSENT)
    };
    // Whether the kernel has the newer of two functions.
    let first = |targets: &[&str; 2]| u32::from(btf.function(targets[0]).is_some());
    let calls = SystemCalls::of_this_machine();
    vec![
        ("NR_BIND", calls.bind),
        ("NR_LISTEN", calls.listen),
        ("NR_COMPAT_BIND", calls.compat_bind),
        ("NR_COMPAT_LISTEN", calls.compat_listen),
        ("NR_COMPAT_SOCKETCALL", calls.compat_socketcall),
        ("COMPAT_MASK", calls.compat_mask),
        ("NR_IGNORE", calls.ignore),
        ("BIND_TAKES_SK", first(&hook::INET_BIND)),
        ("LISTEN_TAKES_SK", first(&hook::INET_LISTEN)),
        (
            "BIND_CONFLICT",
            u32::from(btf.function("inet_bind_conflict").is_some()),
        ),
        ("HASHDANCE_SCHEDULES", first(&hook::HASHDANCE)),
        (
            "TASK_TYPED",
            u32::from(btf.function("bpf_get_current_task_btf").is_some()),
        ),
        ("FLAG_FREEBIND", bit("INET_FLAGS_FREEBIND")),
        ("FLAG_TRANSPARENT", bit("INET_FLAGS_TRANSPARENT")),
        (
            "FLAG_BIND_ADDRESS_NO_PORT",
            bit("INET_FLAGS_BIND_ADDRESS_NO_PORT"),
        ),
        ("SUBSYS_PIDS", index("pids_cgrp_id")),
        ("SUBSYS_MEMORY", index("memory_cgrp_id")),
        ("SUBSYS_DEVICES", index("devices_cgrp_id")),
        ("SUBSYS_CPU", index("cpu_cgrp_id")),
    ]
}

/// Numbers of the system calls that concern us, and how a 32-bit task's call is told.
struct SystemCalls {
    bind: u32,
    listen: u32,
    compat_bind: u32,
    compat_listen: u32,
    compat_socketcall: u32,
    compat_mask: u32,
    ignore: u32,
}

impl SystemCalls {
    #[cfg(target_arch = "x86_64")]
    const fn of_this_machine() -> Self {
        Self {
            bind: 49,
            listen: 50,
            // arch/x86/entry/syscalls/syscall_32.tbl
            compat_bind: 361,
            compat_listen: 363,
            compat_socketcall: 102,
            // TS_COMPAT, arch/x86/include/asm/thread_info.h
            compat_mask: 0x2,
            // __X32_SYSCALL_BIT, arch/x86/include/uapi/asm/unistd.h
            ignore: 0x4000_0000,
        }
    }

    #[cfg(target_arch = "aarch64")]
    const fn of_this_machine() -> Self {
        Self {
            bind: 200,
            listen: 201,
            // arch/arm64/tools/syscall_32.tbl
            compat_bind: 282,
            compat_listen: 284,
            compat_socketcall: 102,
            // PSR_MODE32_BIT, arch/arm64/include/uapi/asm/ptrace.h
            compat_mask: 0x10,
            ignore: 0,
        }
    }
}
