#!/bin/busybox sh
# The first process of the guest: lays this run's files upon the root file
# system and becomes its systemd.
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mkdir -p /root
/bin/busybox mount -t ext4 /dev/nvme0n1 /root
/bin/busybox cp -a /suite /files /root
exec /bin/busybox switch_root /root /sbin/init
