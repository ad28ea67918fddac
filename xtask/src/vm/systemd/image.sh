#!/bin/sh
# Run by fakeroot: makes `image`, a root file system, of the packages whose files
# the lines of `archives` name. No script of a package is run: what they would
# have made and the guest needs is made here, and systemd makes its users and
# folders itself when it starts.
set -e
# Links that base-files has as well. Folders of packages must not take their places.
for folder in bin lib lib64 sbin; do
    mkdir -p "tree/usr/$folder"
    ln -s "usr/$folder" "tree/$folder"
done
while read -r archive; do
    dpkg-deb --fsys-tarfile "$archive" | tar -x -p -C tree --keep-directory-symlink \
        --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale
done <archives
rm -f tree/boot/*
depmod --basedir tree "$(basename tree/usr/lib/modules/*)"

cd tree/etc
mkdir -p sysusers.d tmpfiles.d systemd/system/multi-user.target.wants
cp ../usr/share/base-passwd/passwd.master passwd
cp ../usr/share/base-passwd/group.master group
# Not the first start of this machine, so no unit is enabled by it.
echo 0123456789abcdef0123456789abcdef >machine-id
echo guest >hostname
echo 127.0.0.1 localhost >hosts
echo nameserver 127.0.0.1 >resolv.conf
for kind in auth account password session; do
    echo "$kind required pam_permit.so" >"pam.d/common-$kind"
done
cp pam.d/common-session pam.d/common-session-noninteractive
for program in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s xtables-nft-multi "../usr/sbin/$program"
done

# A user with ids of its own for containers.
echo 'u portwatch-test 54321 - /home/portwatch-test /bin/sh' >sysusers.d/portwatch.conf
echo 'd /home/portwatch-test 0700 portwatch-test portwatch-test' >tmpfiles.d/portwatch.conf
# As udev has it.
echo 'z /dev/net/tun 0666' >>tmpfiles.d/portwatch.conf
echo 'portwatch-test:1000000000:65536' | tee subuid >subgid

# What runs the tests, and nothing that takes long and that they do not need.
cat >systemd/system/portwatch-tests.service <<'UNIT'
[Unit]
After=dbus.socket systemd-logind.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/suite/run
UNIT
ln -s ../portwatch-tests.service systemd/system/multi-user.target.wants
for unit in serial-getty@ttyS0 getty@tty1 ldconfig systemd-journal-catalog-update \
    systemd-random-seed systemd-update-done; do
    ln -s /dev/null "systemd/system/$unit.service"
done

cd ../..
truncate --size 4G image
mkfs.ext4 -q -O ^has_journal -d tree image
rm -rf tree
