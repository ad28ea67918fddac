//! The kernel fields portwatch reads, and how an offset is handed over.
//!
//! One `u32` a field: for a plain field its offset in bytes; for a bitfield the
//! offset of its byte in bits 0 to 19, the shift in bits 20 to 22, the width in
//! bits 23 to 27. [`ABSENT`] where this kernel has no such field.

/// Marks a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Packs a bitfield of `width` bits (at most 8, within one byte), `shift` bits up from the byte at `offset`.
#[must_use]
pub const fn bitfield(offset: u32, shift: u32, width: u32) -> u32 {
    offset | shift << 20 | width << 23
}

/// Takes a packed bitfield apart again: offset, shift, width.
#[must_use]
pub const fn unpack(bitfield: u32) -> (u32, u32, u32) {
    (bitfield & 0xf_ffff, bitfield >> 20 & 7, bitfield >> 23 & 31)
}

/// Calls `$callback!` with every field, one a line:
/// `NAME: kind policy "struct:path"`.
///
/// Kind is `plain`, `bits`, or `size` (of a type). A path may have alternatives behind `|`,
/// the first that exists is taken: fields move between versions. Policy:
/// `required`: without it nothing works; `optional`: what it tells is left out.
#[macro_export]
macro_rules! for_each_field {
    ($callback:ident) => {
        $callback! {
            // struct pt_regs, by architecture. At the exit of a system call the
            // registers of its arguments are as they were, but for arm64's x0,
            // which is kept in orig_x0.
            REGS_NR: plain required "pt_regs:orig_ax|pt_regs:syscallno",
            REGS_ARG0: plain required "pt_regs:di|pt_regs:orig_x0",
            REGS_ARG1: plain required "pt_regs:si|pt_regs:regs[1]",
            REGS_ARG2: plain required "pt_regs:dx|pt_regs:regs[2]",
            REGS_COMPAT_ARG0: plain required "pt_regs:bx|pt_regs:orig_x0",
            REGS_COMPAT_ARG1: plain required "pt_regs:cx|pt_regs:regs[1]",
            REGS_COMPAT_ARG2: plain required "pt_regs:dx|pt_regs:regs[2]",
            TASK_COMPAT_WORD: plain optional "task_struct:thread_info.status",
            REGS_COMPAT_WORD: plain optional "pt_regs:pstate",
            // At the entry of a kernel function its arguments, at its exit what it returns.
            REGS_CALL0: plain required "pt_regs:di|pt_regs:regs[0]",
            REGS_CALL1: plain required "pt_regs:si|pt_regs:regs[1]",
            REGS_CALL2: plain required "pt_regs:dx|pt_regs:regs[2]",
            REGS_CALL3: plain required "pt_regs:cx|pt_regs:regs[3]",
            REGS_RETURN: plain required "pt_regs:ax|pt_regs:regs[0]",

            // From a descriptor to its socket.
            TASK_FILES: plain required "task_struct:files",
            FILES_FDT: plain required "files_struct:fdt",
            FDT_FD: plain required "fdtable:fd",
            FDT_MAX_FDS: plain required "fdtable:max_fds",
            FILE_INODE: plain required "file:f_inode",
            FILE_PRIVATE: plain required "file:private_data",
            FILE_PATH_DENTRY: plain required "file:f_path.dentry",
            FILE_PATH_MNT: plain required "file:f_path.mnt",
            INODE_MODE: plain required "inode:i_mode",
            INODE_INO: plain required "inode:i_ino",
            SOCKET_FILE: plain required "socket:file",
            SOCKET_SK: plain required "socket:sk",

            // A socket, a timewait socket and a request socket begin alike.
            SOCK_FAMILY: plain required "sock_common:skc_family",
            SOCK_STATE: plain required "sock_common:skc_state",
            SOCK_REUSE: bits required "sock_common:skc_reuse",
            SOCK_REUSEPORT: bits required "sock_common:skc_reuseport",
            SOCK_V6ONLY: bits required "sock_common:skc_ipv6only",
            SOCK_DEVICE: plain required "sock_common:skc_bound_dev_if",
            SOCK_NET: plain required "sock_common:skc_net.net",
            SOCK_NUM: plain required "sock_common:skc_num",
            SOCK_DPORT: plain required "sock_common:skc_dport",
            SOCK_LOCAL4: plain required "sock_common:skc_rcv_saddr",
            SOCK_REMOTE4: plain required "sock_common:skc_daddr",
            SOCK_LOCAL6: plain required "sock_common:skc_v6_rcv_saddr",
            SOCK_REMOTE6: plain required "sock_common:skc_v6_daddr",
            SOCK_COOKIE: plain required "sock_common:skc_cookie",
            SOCK_PROTOCOL: plain required "sock:sk_protocol",
            SOCK_TYPE: plain required "sock:sk_type",
            SOCK_USERLOCKS: bits required "sock:sk_userlocks",
            SOCK_KERNEL: bits required "sock:sk_kern_sock",
            SOCK_SOCKET: plain required "sock:sk_socket",
            SOCK_UID: plain required "sock:sk_uid",
            // inet_flags since 6.6, single bits before.
            INET_FLAGS: plain optional "inet_sock:inet_flags",
            INET_FREEBIND: bits optional "inet_sock:freebind",
            INET_TRANSPARENT: bits optional "inet_sock:transparent",
            INET_BIND_ADDRESS_NO_PORT: bits optional "inet_sock:bind_address_no_port",
            UNIX_ADDR: plain optional "unix_sock:addr",
            UNIX_ADDRESS_LEN: plain optional "unix_address:len",
            UNIX_ADDRESS_NAME: plain optional "unix_address:name",

            // Network namespace and its interfaces.
            NET_INUM: plain required "net:ns.inum",
            NET_COUNT: plain optional "net:ns.__ns_ref|net:ns.count|net:count",
            NET_DEV_INDEX_HEAD: plain optional "net:dev_index_head",
            DEV_IFINDEX: plain optional "net_device:ifindex",
            DEV_NAME: plain optional "net_device:name",
            DEV_INDEX_HLIST: plain optional "net_device:index_hlist",

            // The tables of ports: TCP's by bucket, of which from 6.8 on sockets are found through
            // its buckets by address, and UDP's.
            NET_HASH_MIX: plain required "net:hash_mix",
            NET_HASHINFO: plain required "net:ipv4.tcp_death_row.hashinfo",
            HASHINFO_BHASH: plain required "inet_hashinfo:bhash",
            HASHINFO_BHASH_SIZE: plain required "inet_hashinfo:bhash_size",
            BHASH_CHAIN: plain required "inet_bind_hashbucket:chain",
            BHASH_BUCKET: size required "inet_bind_hashbucket",
            TB_PORT: plain required "inet_bind_bucket:port",
            TB_NET: plain required "inet_bind_bucket:ib_net.net",
            TB_NODE: plain required "inet_bind_bucket:node",
            TB_OWNERS: plain optional "inet_bind_bucket:owners",
            TB_BHASH2: plain optional "inet_bind_bucket:bhash2",
            TB2_NODE: plain optional "inet_bind2_bucket:bhash_node",
            TB2_OWNERS: plain optional "inet_bind2_bucket:owners",
            SOCK_BIND_NODE: plain required "sock_common:skc_bind_node",
            SOCK_NODE: plain required "sock_common:skc_node",
            SOCK_PROT: plain required "sock_common:skc_prot",
            NET_UDP_TABLE: plain optional "net:ipv4.udp_table",
            PROT_UDP_TABLE: plain optional "proto:h.udp_table",
            UDP_HASH: plain required "udp_table:hash",
            UDP_MASK: plain required "udp_table:mask",
            UDP_HEAD: plain required "udp_hslot:head",
            UDP_SLOT: size required "udp_hslot",

            // TIME_WAIT.
            TW_SUBSTATE: plain required "inet_timewait_sock:tw_substate",
            TW_TIMER: plain required "inet_timewait_sock:tw_timer",
            TIMER_FUNCTION: plain required "timer_list:function",
            TIMER_EXPIRES: plain required "timer_list:expires",
            REQUEST_TIMER: plain optional "request_sock:rsk_timer",

            // Who a process is.
            TASK_FLAGS: plain required "task_struct:flags",
            TASK_PID: plain required "task_struct:pid",
            TASK_TGID: plain required "task_struct:tgid",
            TASK_COMM: plain required "task_struct:comm",
            TASK_LEADER: plain required "task_struct:group_leader",
            TASK_PARENT: plain required "task_struct:real_parent",
            TASK_START: plain required "task_struct:start_boottime",
            TASK_MM: plain required "task_struct:mm",
            TASK_CRED: plain required "task_struct:cred",
            TASK_NSPROXY: plain required "task_struct:nsproxy",
            TASK_THREAD_PID: plain required "task_struct:thread_pid",
            TASK_CGROUPS: plain required "task_struct:cgroups",
            CRED_EUID: plain required "cred:euid",
            CRED_EGID: plain required "cred:egid",
            MM_ARG_START: plain required "mm_struct:arg_start",
            MM_ARG_END: plain required "mm_struct:arg_end",
            MM_EXE_FILE: plain required "mm_struct:exe_file",
            DENTRY_NAME: plain required "dentry:d_name.name",
            DENTRY_PARENT: plain required "dentry:d_parent",
            MOUNT_MNT: plain required "mount:mnt",
            MOUNT_PARENT: plain required "mount:mnt_parent",
            MOUNT_MOUNTPOINT: plain required "mount:mnt_mountpoint",
            VFSMOUNT_ROOT: plain required "vfsmount:mnt_root",
            NSPROXY_NET: plain required "nsproxy:net_ns",
            NSPROXY_MNT: plain required "nsproxy:mnt_ns",
            MNTNS_INUM: plain required "mnt_namespace:ns.inum",
            PIDNS_INUM: plain required "pid_namespace:ns.inum",
            PID_LEVEL: plain required "pid:level",
            PID_NUMBERS: plain required "pid:numbers",
            UPID_NR: plain required "upid:nr",
            UPID_NS: plain required "upid:ns",
            UPID_SIZE: size required "upid",

            // cgroup paths of both versions.
            CSS_SET_DEFAULT: plain optional "css_set:dfl_cgrp",
            CSS_SET_SUBSYS: plain optional "css_set:subsys",
            CSS_CGROUP: plain optional "cgroup_subsys_state:cgroup",
            CGROUP_KN: plain optional "cgroup:kn",
            CGROUP_ROOT: plain optional "cgroup:root",
            KERNFS_NAME: plain optional "kernfs_node:name",
            KERNFS_PARENT: plain optional "kernfs_node:__parent|kernfs_node:parent",
        }
    };
}
