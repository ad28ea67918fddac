#!/bin/busybox sh
# The first process of a guest whose clock counts instructions: the same work
# under each tool, in rounds. What xtask has to understand begins with a `@`.
/bin/busybox mkdir -p /bin /dev /proc /sys /run /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up
. /suite/settings
exec </dev/null >"$PORT" 2>&1
stty -F "$PORT" -opost

# At a priority of SCHED_FIFO no tool runs within a burst: what is measured is
# what the kernel does for it.
work() {
    echo | /suite/actor fifo exec=/suite/bench bench worker 0 sleep "$@" | grep -v '^started$'
}

measure() {
    for job in $JOBS; do
        echo "@result $1 $(work "$job")"
    done
}

# What a tool prints is in blocks: the first of them says that it sees all.
under() {
    name="$1"
    shift
    "$@" >/tmp/output 2>/tmp/errors &
    tool=$!
    until grep -q 127.0.0.1 /tmp/output; do
        if ! kill -0 $tool 2>/dev/null; then
            cat /tmp/errors
            return
        fi
        work udp-any:1:100:500000 >/dev/null
    done
    measure "$name"
    kill -INT $tool
    wait $tool
    # What a tool lost it did not have to carry.
    grep -hi lost /tmp/output /tmp/errors
}

work udp-any:1:100:0 >/dev/null
for round in $ROUNDS; do
    measure none
    under bindsnoop /suite/bindsnoop
    for backend in $BACKENDS; do
        under "$backend" /suite/portwatch trace --backend "$backend"
    done
done
echo "@done"
poweroff -f
