//! Read-only values besides the fields' offsets, which the user side sets at load.

/// Declares one read-only value a line: `NAME: type = what it is`.
///
/// Calls `$callback!` with all of them.
#[macro_export]
macro_rules! for_each_setting {
    ($callback:ident) => {
        $callback! {
            /// Number of bind(2) for native tasks.
            NR_BIND: u32,
            /// Number of listen(2) for native tasks.
            NR_LISTEN: u32,
            /// Number of bind(2) for 32-bit tasks, or 0 where there are none.
            NR_COMPAT_BIND: u32,
            /// Number of listen(2) for 32-bit tasks, or 0.
            NR_COMPAT_LISTEN: u32,
            /// Number of socketcall(2) for 32-bit tasks, or 0.
            NR_COMPAT_SOCKETCALL: u32,
            /// Bits of the word at [`COMPAT_WORD`](crate::field) that mark a 32-bit task's system call.
            COMPAT_MASK: u32,
            /// Bits of the number of a system call that do not belong to it (x32's mark).
            NR_IGNORE: u32,
            /// Address of `tw_timer_handler`, or 0.
            TIMEWAIT_HANDLER: u64,
            /// Address of `reqsk_timer_handler`, or 0.
            REQUEST_HANDLER: u64,
            /// 1 where binds are seen at `inet_bind_sk(sk, …)`, 0 where at `inet_bind(socket, …)`.
            BIND_TAKES_SK: u32,
            /// 1 where listens are seen at `__inet_listen_sk(sk, …)`, 0 where at `inet_listen(socket, …)`.
            LISTEN_TAKES_SK: u32,
            /// 1 where `inet_bind_conflict` decides over TCP (6.1 and later), 0 where `inet_rcv_saddr_equal` does.
            BIND_CONFLICT: u32,
            /// 1 where `inet_twsk_hashdance_schedule` arms the timer, 0 where it was armed before.
            HASHDANCE_SCHEDULES: u32,
            /// Number of the `inet_flags` bit of IP_FREEBIND.
            FLAG_FREEBIND: u32,
            /// Number of the `inet_flags` bit of IP_TRANSPARENT.
            FLAG_TRANSPARENT: u32,
            /// Number of the `inet_flags` bit of IP_BIND_ADDRESS_NO_PORT.
            FLAG_BIND_ADDRESS_NO_PORT: u32,
            /// Index in `css_set.subsys` of the pids controller, or [`ABSENT`](crate::field::ABSENT).
            SUBSYS_PIDS: u32,
            /// The same of the memory controller.
            SUBSYS_MEMORY: u32,
            /// The same of the devices controller.
            SUBSYS_DEVICES: u32,
            /// The same of the cpu controller.
            SUBSYS_CPU: u32,
            /// 1 where the helper `bpf_get_current_task_btf` gives the current task with its type (5.11 and later).
            TASK_TYPED: u32,
            /// 1 where the descendants of the processes in the map `TREE` are followed.
            FOLLOW_TREE: u32,
        }
    };
}
