#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
#
# /init of the guest: mounts what a program expects, loads the modules, then runs commands that come over a second serial
# line (kernel argument channel=ttyS0), or becomes another program (then=/path). Started by the kernel. Adversary: nobody; it stands in for a distribution.
#
# The channel: the host sends "NUMBER BASE64-OF-A-SHELL-COMMAND\n" and gets "@@NUMBER STATUS BYTES\n" and then exactly that
# many bytes of its output. The console is another line, so that a kernel message can never be taken for an answer.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o size=75% tmpfs /tmp
for module in /modules/*.ko; do
    insmod "$module" || echo "init: $module was not loaded"
done
ip link set lo up
[ -z "$then" ] || exec "$then"

stty -F "/dev/$channel" raw -echo
exec 3<>"/dev/$channel"
echo "@@ready $(uname -r)" >&3
while IFS=' ' read -r number command <&3; do
    echo "$command" | base64 -d >/tmp/.command
    sh /tmp/.command </dev/null >/tmp/.output 2>&1 3>&-
    status=$?
    echo "@@$number $status $(wc -c </tmp/.output)" >&3
    cat /tmp/.output >&3
done
poweroff -f
