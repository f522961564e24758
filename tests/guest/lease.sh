#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What udhcpc runs with its lease in the environment: address, MTU, route, resolvers. Keeps the lease in /tmp/lease.
# Adversary: nobody (busybox has checked the values).
case "$1" in
deconfig)
    ip -4 addr flush dev "$interface"
    ;;
bound | renew)
    env | grep -E '^(ip|subnet|mask|router|dns|mtu|domain|search|serverid|lease|hostname)=' >/tmp/lease
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    ip addr add "$ip/$mask" dev "$interface"
    for gateway in $router; do
        ip route add "$gateway" dev "$interface" scope link 2>/dev/null
        ip route add default via "$gateway" dev "$interface"
    done
    for server in $dns; do
        echo "nameserver $server"
    done >/etc/resolv.conf
    ;;
esac
