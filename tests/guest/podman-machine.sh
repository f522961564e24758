#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What /init becomes in a machine of `podman machine`: as little of Fedora CoreOS as podman asks for. Keys come from its
# Ignition file, the address by DHCP; then sshd serves, podman is told "Ready", and the power button is waited for.
# Podman's API is a script that answers /_ping; port 7 echoes, over TCP and UDP.
# Adversary: nobody; it stands in for a distribution.
ignition=/sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw
head -c 4096 $ignition >/tmp/users # they come first; the kernel reads its file again from the start for each page
grep -o 'ssh-ed25519 [^"]*' /tmp/users >/etc/ssh/keys
uid=$(grep -o '"uid": *[0-9]*' /tmp/users | head -n 1 | grep -o '[0-9]*$')
cat >/etc/passwd <<END
root:*:0:0::/root:/usr/bin/bash
core:*:${uid:=1000}:$uid::/home/core:/usr/bin/bash
sshd:*:74:74::/run/sshd:/bin/false
END
mkdir -p /root /home/core /run/sshd /run/podman "/run/user/$uid/podman" /dev/pts
mount -t devpts devpts /dev/pts

ip link set eth0 up
udhcpc -i eth0 -s /bin/lease -n -q -t 10 -T 1
# A pipe that can be written to takes PIPE_BUF bytes. What is left may take a while after the end of what came.
socat -b 4096 -t 60 TCP-LISTEN:7,fork,reuseaddr PIPE &
echo_datagrams -l 7 &
until grep -q ':0007 .* 0A ' /proc/net/tcp && grep -q ':0007 ' /proc/net/udp6; do :; done
for socket in /run/podman/podman.sock "/run/user/$uid/podman/podman.sock"; do
    socat "UNIX-LISTEN:$socket,fork,mode=666" EXEC:/bin/answer-ping &
    until [ -S "$socket" ]; do :; done
done
chmod 600 /etc/ssh/ssh_host_ed25519_key
/usr/sbin/sshd

for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" != org.fedoraproject.port.0 ] || echo Ready >"/dev/${port##*/}"
done
for input in /sys/class/input/input*; do
    if [ "$(cat "$input/name")" = "Power Button" ]; then
        event=$(basename "$input"/event*)
        head -c 24 "/dev/input/$event" >/dev/null # one event
    fi
done
poweroff -f
