//! What a guest runs: which tests, through which backends.

use super::lock::Arch;

/// The backends of the suite on a kernel: all that work there.
pub fn backends(arch: Arch, series: &str) -> &'static [&'static str] {
    match (arch, series) {
        // Trampolines on arm64 came later: attaching fails with ENOTSUPP.
        (Arch::Aarch64, "6.1") => &["kprobe", "tracepoint"],
        _ => &["fentry", "kprobe", "tracepoint"],
    }
}

/// Tests that concern the kernel itself and not what a backend sees of it: its types, and by which rules
/// it refuses a bind.
pub const KERNEL: &str = "btf prototypes differential";

/// How many pairs of sockets the last of them takes.
pub const CASES: u32 = 2000;

/// Scenarios that no backend concerns, and that are run once: those that trace nothing, and filters, which
/// handlers apply that all backends have in common. Each of these starts a trace, which takes seconds.
pub const ONCE: [&str; 3] = ["list::", "why::", "filters::"];

/// The backend of what is run once; none if portwatch is to choose. The one that starts soonest, but
/// for one kernel each, so that filters are held against the hooks of all of them.
pub fn backend_of_once(arch: Arch, series: &str) -> Option<&'static str> {
    match (arch, series) {
        (Arch::X86_64, "6.12") | (Arch::Aarch64, "7.3") => None,
        (_, "6.1") => Some("kprobe"),
        _ => Some("tracepoint"),
    }
}

/// Tests that keep others on this kernel from being seen whole.
pub fn not_beside_others(series: &str) -> &'static [&'static str] {
    match series {
        // Who is held in bind(2) has one of as many kretprobe instances as there are processors
        // (`register_kretprobe`, kernel/kprobes.c, without CONFIG_PREEMPTION; at least ten later): while
        // it lasts, no other return from bind(2) is probed, which portwatch tells as a loss.
        "5.10" => &["process::two_tasks_whose_ids_lead_to_one_seat"],
        _ => &[],
    }
}

/// The test that waits for a minute, which is run beside all others.
pub const SLOW: &str = "a_minute::later_a_timewait_expires";

/// Tests that do not concern the kernel: they see to what portwatch makes of
/// records that other tests here provoke as well, or to what it says before it
/// loads anything. Each starts traces of its own, which takes seconds where the
/// verifier is emulated. `cargo xtask test host` runs them.
pub const NOT_IN_GUESTS: [&str; 18] = [
    // Rendering.
    "text::",
    // Filters that the kernel side knows nothing of.
    "filters::a_duration_ends_it",
    "filters::a_filter_that_matches_nothing_is_no_error",
    "filters::by_comm",
    "filters::by_ipv4",
    "filters::by_ipv6",
    "filters::by_tcp",
    "filters::by_udp",
    "filters::unix_beside_the_filters_of_ip",
    "list::filters",
    // Another way to say what another test says.
    "filters::a_count_ends_it",
    "filters::by_the_name_of_a_netns",
    "filters::by_the_path_of_a_netns",
    "filters::by_the_name_of_a_user",
    "filters::by_several_events",
    // What is tested is how the tests start programs.
    "list::a_test_is_told_alone",
    // Said before anything is loaded.
    "filters::malformed_values_are_named_before_anything_is_attached",
    "filters::who_may_not_trace_is_told_why_and_what_to_do",
];
