#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Brings eth0 up as a distribution would: an address by DHCP, one by IPv6 autoconfiguration, both at once.
# Called by the harness over the channel. Adversary: nobody. Arguments: seconds to wait, then any of inet inet6.
# Ends with status 0 once every family that was named has a global address.
seconds=$1
shift
await_address "$seconds" eth0 "$@" >/tmp/addresses &
waiting=$!
ip link set eth0 up || exit 1
case " $* " in *" inet "*)
    udhcpc -i eth0 -s /bin/lease -n -q -t 10 -T 1 >/tmp/udhcpc 2>&1 || { cat /tmp/udhcpc; exit 1; } ;;
esac
wait $waiting || { echo "no address of $* within $seconds s:"; ip addr show dev eth0; exit 1; }
cat /tmp/addresses
