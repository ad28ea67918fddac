#!/bin/busybox sh
# The first process of a guest: prepares it, runs what xtask put beside it, and
# tells how each ended. /dev/ttyS0 has the kernel's messages, the second port
# what is printed here; what xtask has to understand begins with a `@`.
/bin/busybox mkdir -p /bin /dev /proc /sys /run /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
cp -r /files/. /
ip link set lo up
. /suite/settings
exec </dev/null >"$PORT" 2>&1
stty -F "$PORT" -opost
while read -r module; do
    insmod "/modules/$module" || echo "cannot load $module"
done </modules/order

export PORTWATCH_BIN=/suite/portwatch PORTWATCH_CASES PORTWATCH_TEST_PATIENCE RUST_BACKTRACE=1
for test in $KERNEL; do
    echo "@begin $test"
    "/suite/$test" --show-output $FILTERS
    echo "@end $?"
done

# The kernel skips a program on a processor where a preempted task is in the
# middle of it: portwatch tells so, and how many, but a scenario whose event is
# missing has failed. At one priority of SCHED_FIFO, which portwatch inherits
# too, nobody preempts anybody.
undisturbed() {
    /suite/actor fifo exec=/suite/deps/host host "$@"
}

# Threads of the kernel are among them. Before Linux 6.5 softirqs are left to one while it is
# awake, and segments that nobody handles in time are sent again; detaching waits for others.
threads=
for process in /proc/[0-9]*; do
    case "$(cat "$process/comm")" in
    ksoftirqd/* | kworker/* | rcu*) threads="$threads fifo=${process#/proc/}" ;;
    esac
done
echo | /suite/actor $threads >/dev/null

# What sleeps through a minute does so beside all others.
for backend in $BACKENDS; do
    export PORTWATCH_TEST_BACKEND="$backend"
    for test in $SLOW; do
        {
            echo | undisturbed --show-output --exact "$test" >"/tmp/slow.$backend" 2>&1
            echo "@end $?" >>"/tmp/slow.$backend"
        } &
    done
done
if [ -n "$ONCE" ]; then
    unset PORTWATCH_TEST_BACKEND
    [ -z "$BACKEND_OF_ONCE" ] || export PORTWATCH_TEST_BACKEND="$BACKEND_OF_ONCE"
    echo "@begin suite once"
    echo | undisturbed --show-output --test-threads 4 $ONCE $SKIPPED
    echo "@end $?"
    echo "@uptime $(cut -d ' ' -f 1 /proc/uptime)"
fi
for backend in $BACKENDS; do
    export PORTWATCH_TEST_BACKEND="$backend"
    echo "@begin doctor $backend"
    /suite/portwatch doctor -v --backend "$backend"
    echo "@end $?"
    echo "@begin suite $backend"
    echo | undisturbed --show-output --test-threads 4 $FILTERS $SKIPPED $NOT_AGAIN
    echo "@end $?"
    echo "@uptime $(cut -d ' ' -f 1 /proc/uptime)"
done
wait
if [ -n "$SLOW" ]; then
    for backend in $BACKENDS; do
        echo "@begin slow $backend"
        cat "/tmp/slow.$backend"
    done
fi
echo "@uptime $(cut -d ' ' -f 1 /proc/uptime)"
echo "@done"
poweroff -f
