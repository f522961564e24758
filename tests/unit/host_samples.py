# SPDX-License-Identifier: Apache-2.0
"""Hosts made up for tests: records as the kernel would give them, in few words. Used by test_hostnet, test_netview,
test_dhcp and test_ra."""

from __future__ import annotations

import _socket

from lockgate.plugin import address, hostnet, netlink, netview, resolvconf
from lockgate.plugin.spec import NetworkSpec

LO, ETH0, WLAN0, WG0 = 1, 2, 3, 4
LINKS = [
    netlink.Link(LO, "lo", netlink.LINK_LOOPBACK, 65536),
    netlink.Link(ETH0, "eth0", 0, 1500),
    netlink.Link(WLAN0, "wlan0", 0, 1500),
    netlink.Link(WG0, "wg0", 0, 1420),
]

ENDLESS_SEARCH = tuple(f"{'x' * 60}.{n}.example.org" for n in range(6))


def ip(text: str) -> bytes:
    raw = address.parse(text)
    assert raw is not None, text
    return raw


def _family(raw: bytes) -> int:
    return _socket.AF_INET if address.is_ipv4(raw) else _socket.AF_INET6


def own(index: int, text: str, scope: int = 0, flags: int = 0) -> netlink.Address:
    """An address of the host: `own(ETH0, "192.0.2.7/24")`."""
    plain, _, prefix = text.partition("/")
    raw = ip(plain)
    return netlink.Address(_family(raw), index, raw, int(prefix), scope, flags)


def route(text: str, *hops: tuple[int, str] | tuple[int, str, int], **fields: int) -> netlink.Route:
    """`route("0.0.0.0/0", (ETH0, "192.0.2.1"))`; a hop is interface, gateway ("" for none) and perhaps weight."""
    plain, _, prefix = text.partition("/")
    raw = ip(plain)
    return netlink.Route(
        _family(raw),
        fields.get("table", netlink.TABLE_MAIN),
        fields.get("kind", netlink.ROUTE_UNICAST),
        address.UNSET if prefix == "0" else raw,
        int(prefix),
        0,
        tuple(
            netlink.NextHop(hop[0], ip(hop[1]) if hop[1] else address.UNSET, (*hop, 1)[2], fields.get("flags", 0))
            for hop in hops
        ),
    )


def host(*records: netlink.Address | netlink.Route, resolv_conf: str = "") -> hostnet.HostNet:
    addresses = [record for record in records if isinstance(record, netlink.Address)]
    routes = [record for record in records if isinstance(record, netlink.Route)]
    return hostnet.HostNet(LINKS, addresses, routes, resolvconf.parse(resolv_conf))


ORDINARY = (
    own(LO, "127.0.0.1/8", scope=254),
    own(ETH0, "192.0.2.7/24"),
    own(LO, "::1/128", scope=254),
    own(ETH0, "2001:db8::7/64"),
    own(ETH0, "fe80::7/64", scope=netlink.SCOPE_LINK),
    route("0.0.0.0/0", (ETH0, "192.0.2.1")),
    route("192.0.2.0/24", (ETH0, "")),
    route("::/0", (ETH0, "fe80::a")),
    route("2001:db8::/64", (ETH0, "")),
    route("fe80::/64", (ETH0, "")),
)
RESOLV_CONF = "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org lab.example.org\n"


def assignments(
    *records: netlink.Address | netlink.Route, resolv_conf: str = RESOLV_CONF, mtu: int = 65520
) -> netview.Assignments:
    """What a guest of an ordinary host (or of the given one) is assigned."""
    return netview.assign(NetworkSpec(contract="passt", mtu=mtu), host(*(records or ORDINARY), resolv_conf=resolv_conf))
