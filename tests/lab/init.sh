#!/bin/busybox sh
# shellcheck shell=dash
# Start of a lab host. Its root is the build machine's own, read-only over 9p; what changes is in memory.
# Kernel words: lab.address=ADDRESS/BITS.
/bin/busybox mkdir -p /bin /proc /sys /dev /tmp /machine
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

while read -r module; do
	insmod "/modules/$module" || echo "lab: insmod $module failed"
done </modules/order

ip link set lo up
read -r words </proc/cmdline
for word in $words; do
	case $word in
	lab.address=*) ip addr add "${word#*=}" dev eth0 && ip link set eth0 mtu 9000 up ;;
	esac
done

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro machine /machine
mount -t proc proc /machine/proc
mount -t sysfs sys /machine/sys
mount -t debugfs debug /machine/sys/kernel/debug
mount -t tracefs trace /machine/sys/kernel/tracing
mount -t devtmpfs dev /machine/dev
mkdir -p /machine/dev/pts /machine/dev/shm
mount -t devpts pts /machine/dev/pts
for directory in dev/shm tmp run root var/tmp; do
	mount -t tmpfs tmp /machine/$directory
done
mkdir -p /machine/run/lab/bin /machine/run/lab/share
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro share /machine/run/lab/share
# All of the build machine's files, without what was just mounted over some, for tests/lab/inside.ts.
mkdir -p /machine/run/lab/machine
mount -o bind /machine /machine/run/lab/machine
# What gyges would unpack for itself is there already; what it adds to that is in memory.
mkdir -p /machine/root/.cache /machine/run/lab/added /machine/run/lab/work
mount -t overlay -o lowerdir=/machine/run/lab/share/cache,upperdir=/machine/run/lab/added,workdir=/machine/run/lab/work \
	overlay /machine/root/.cache
cp /bin/busybox /machine/run/lab/bin
chroot /machine /run/lab/bin/busybox --install -s /run/lab/bin
ln -s /run/lab/share/gyges /machine/run/lab/bin/gyges

# The host's own programs come first; busybox has those that the build machine lacks (insmod, lsmod, ...).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/lab/bin HOME=/root
ulimit -l unlimited
for port in /sys/class/virtio-ports/*; do
	# shellcheck disable=SC2093 # there is one
	exec /agent "/dev/${port##*/}" /machine
done
