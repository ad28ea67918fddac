#!/bin/sh
# What the guest's unit portwatch-tests.service runs: see ../init.sh for what is
# printed.
. /suite/settings
exec </dev/null >"$PORT" 2>&1
stty -F "$PORT" -opost
cp -r /files/. /
export PORTWATCH_BIN=/suite/portwatch PORTWATCH_TEST_PATIENCE PORTWATCH_TEST_SYSTEMD=1
export RUST_BACKTRACE=1
echo "@uptime $(cut -d ' ' -f 1 /proc/uptime)"
echo "@begin doctor default"
/suite/portwatch doctor -v
echo "@end $?"
for suite in $SUITES; do
    echo "@begin $suite default"
    "/suite/deps/$suite" --show-output --test-threads 1 $FILTERS $SKIPPED
    echo "@end $?"
    echo "@uptime $(cut -d ' ' -f 1 /proc/uptime)"
done
echo "@done"
