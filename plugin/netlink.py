# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: what links, addresses, routes and neighbours a network namespace has. (netlink_change.py changes them.)

Called by hostnet.py before READY, hence the light imports; by neighbours.py later. Adversary: nobody, it is the kernel
that answers; still, no length is believed, and what does not parse is a NetlinkError, never another exception.

The codec is sans-io: `*_request` make datagrams, a `Dump` takes datagrams until it is `finished`. `dump` joins both
over a socket. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d, all zeros where there is none; prefix lengths count as in
the address's own family (IPv4: at most 32).

What we know of the kernel's dumps:
- A dump is a set of multipart messages that ends with DONE, which may carry a negative errno, or with ERROR.
- NLM_F_DUMP_INTR on any of them means that something changed meanwhile: objects may be missing or come twice.
- The header of a route request selects the table only with NETLINK_GET_STRICT_CHK (Linux 4.20). A table that has never
  had a route is ENOENT then.
- Routes come in the order of their prefixes: a default route comes first, so a limit on the number loses none; among
  equal prefixes, the lowest metric first.
- A request for a family that is not built in, or disabled, is answered with all the others.
- A request for neighbours may name their interface (Linux 4.4); an interface that is gone has none (ENODEV).
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import sys

from lockgate.plugin.address import IPV4_MAPPED, UNSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE_MAIN = 254
NEIGHBOURS_GROUP = 1 << 2  # RTMGRP_NEIGH
NEIGHBOUR_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # NUD_REACHABLE, _STALE, _DELAY, _PROBE, _PERMANENT
ROUTE_UNICAST = 1  # rtm_type, <linux/rtnetlink.h>
SCOPE_LINK = 253
ADDRESS_DAD_FAILED = 0x08  # ifa_flags, <linux/if_addr.h>
ADDRESS_DEPRECATED = 0x20
HOP_DEAD = 1  # rtnh_flags
HOP_ON_LINK = 4
LINK_LOOPBACK = 8  # IFF_*

RECORDS_MAX = 16384  # of one dump: far more than a template needs, and a full BGP table would take seconds
_ATTEMPTS = 5  # a host that starts containers without pause interrupts any number of dumps; the last one is then used
_DATAGRAM_MAX = 65536  # the kernel sends at most 32 KiB at once

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x01, 0x300, 0x10
_RTM_F_CLONED = 0x200

_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_IFALIAS, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 20, 29, 37
_NETNSA_NSID, _NETNSA_FD = 1, 3
_INFO_KIND = 1  # IFLA_INFO_KIND
_EXT_MASK_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS = 1, 4, 5, 6, 8
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_PREF = 9, 15, 18, 20
_RTAX_MTU = 2
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_ATTRIBUTE_TYPE = 0x3FFF  # without the bits for nested and for network order

_HEADER = struct.Struct("=IHHII")  # length, type, flags, seq, port
_LINK = struct.Struct("=BxHiII")  # family, ARPHRD_*, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, NUD_*, flags, type
_HOP = struct.Struct("=HBBi")  # length, flags, weight - 1, index
_VIA = struct.Struct("=H16s")  # struct rtvia, with an address of IPv6
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_ERROR = struct.Struct("=i")


class NetlinkError(OSError):
    """The kernel refused a request, or answered what we do not understand."""


class Link:
    __slots__ = ("alias", "flags", "index", "kind", "mac", "master", "mtu", "name", "peer_namespace")

    def __init__(
        self,
        index: int,
        name: str,
        flags: int,
        mtu: int,
        mac: bytes = b"",
        *,
        kind: str = "",
        master: int = 0,
        alias: str = "",
        peer_namespace: int = -1,
    ) -> None:
        self.index = index
        self.name = name
        self.flags = flags
        self.mtu = mtu
        self.mac = mac  # as long as the link's addresses are
        self.kind = kind  # "bridge", "veth" …; empty: a device that was not made over netlink
        self.master = master  # the bridge that it is a port of; 0: none
        self.alias = alias  # a note that whoever made it left on it
        self.peer_namespace = peer_namespace  # where its other end is, as namespace_number() says; -1: here, or none


class Address:
    """One of the host's own addresses. Of a point-to-point link it is our end; `prefix` is then about the peer's, which
    is unset on any other link."""

    __slots__ = ("address", "family", "flags", "index", "peer", "prefix", "scope")

    def __init__(
        self, family: int, index: int, address: bytes, prefix: int, scope: int, flags: int, peer: bytes = UNSET
    ) -> None:
        self.family = family
        self.index = index
        self.address = address
        self.prefix = prefix
        self.scope = scope
        self.flags = flags
        self.peer = peer


class NextHop:
    """`gateway` is unset on a point-to-point link, and where an IPv4 route has an IPv6 gateway: that is in `via`."""

    __slots__ = ("flags", "gateway", "index", "via", "weight")

    def __init__(self, index: int, gateway: bytes, weight: int, flags: int, via: bytes = UNSET) -> None:
        self.index = index
        self.gateway = gateway
        self.weight = weight
        self.flags = flags
        self.via = via


class Route:
    """A route with one next hop or several; with none if it is a blackhole or the like. Of its metrics only the MTU
    is kept; 0: none."""

    __slots__ = (
        "destination",
        "family",
        "hops",
        "kind",
        "mtu",
        "preference",
        "prefix",
        "priority",
        "protocol",
        "scope",
        "table",
        "tos",
    )

    def __init__(
        self,
        family: int,
        table: int,
        kind: int,
        destination: bytes,
        prefix: int,
        priority: int,
        hops: tuple[NextHop, ...],
        protocol: int = 0,
        scope: int = 0,
        tos: int = 0,
        mtu: int = 0,
        preference: int = 0,
    ) -> None:
        self.family = family
        self.table = table
        self.kind = kind
        self.destination = destination
        self.prefix = prefix
        self.priority = priority
        self.hops = hops
        self.protocol = protocol  # RTPROT_*
        self.scope = scope
        self.tos = tos
        self.mtu = mtu
        self.preference = preference  # of a router among several (RFC 4191)


class Neighbour:
    """What the host knows of an address on one of its links; `mac` is as long as the link's addresses are."""

    __slots__ = ("address", "index", "mac", "state")

    def __init__(self, index: int, address: bytes, mac: bytes, state: int) -> None:
        self.index = index
        self.address = address
        self.mac = mac
        self.state = state


def link_request(seq: int) -> bytes:
    """All links, without the statistics that make up most of the answer."""
    mask = _ATTRIBUTE.pack(_ATTRIBUTE.size + _NUMBER.size, _IFLA_EXT_MASK) + _NUMBER.pack(_EXT_MASK_SKIP_STATS)
    return _request(_RTM_GETLINK, seq, _LINK.pack(_socket.AF_UNSPEC, 0, 0, 0, 0) + mask)


def address_request(seq: int) -> bytes:
    """All addresses of all families."""
    return _request(_RTM_GETADDR, seq, _ADDRESS.pack(_socket.AF_UNSPEC, 0, 0, 0, 0))


def route_request(seq: int, family: int) -> bytes:
    """The routes of the main table."""
    return _request(_RTM_GETROUTE, seq, _ROUTE.pack(family, 0, 0, 0, TABLE_MAIN, 0, 0, 0, 0))


def neighbour_request(seq: int, index: int) -> bytes:
    """The neighbours of one interface, of both families."""
    only = _ATTRIBUTE.pack(_ATTRIBUTE.size + _NUMBER.size, _NDA_IFINDEX) + _NUMBER.pack(index)
    return _request(_RTM_GETNEIGH, seq, _NEIGHBOUR.pack(_socket.AF_UNSPEC, 0, 0, 0, 0) + only)


def _request(kind: int, seq: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, seq, 0) + body


class Dump:
    """The answer to one request, fed datagram by datagram. Records are added to the list for their kind.

    `interrupted` asks the caller to start again; what was collected is as good as a view of a changing thing can be.
    `cut` says that it ended at RECORDS_MAX.
    """

    __slots__ = ("addresses", "cut", "finished", "interrupted", "links", "neighbours", "routes", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.finished = False
        self.interrupted = False
        self.cut = False
        self.links: list[Link] = []
        self.addresses: list[Address] = []
        self.routes: list[Route] = []
        self.neighbours: list[Neighbour] = []

    def feed(self, datagram: bytes) -> None:
        """Raises NetlinkError for a refusal, and for a malformed datagram (EBADMSG)."""
        try:
            for kind, flags, seq, body in _messages(datagram):
                if seq == self.seq and not self.finished:
                    self.interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                    self._take(kind, body)
        except struct.error:
            raise _malformed("a field with a wrong length") from None

    def _take(self, kind: int, body: bytes) -> None:
        if kind == _RTM_NEWLINK:
            self.links.append(_link_parse(body))
        elif kind == _RTM_NEWADDR:
            address = _address_parse(body)
            if address is not None:
                self.addresses.append(address)
        elif kind == _RTM_NEWROUTE:
            route = _route_parse(body)
            if route is not None:
                self.routes.append(route)
        elif kind == _RTM_NEWNEIGH:
            neighbour = _neighbour_parse(body)
            if neighbour is not None:
                self.neighbours.append(neighbour)
        elif kind in (_NLMSG_ERROR, _NLMSG_DONE):
            self.finished = True
            code = -_ERROR.unpack_from(body)[0] if kind == _NLMSG_ERROR or len(body) >= _ERROR.size else 0
            if code not in (0, errno.ENOENT, errno.ENODEV):  # no such table, so no routes; no such interface
                raise NetlinkError(code, f"the kernel refused a dump over netlink: {os.strerror(code)}")
        if len(self.links) + len(self.addresses) + len(self.routes) + len(self.neighbours) >= RECORDS_MAX:
            self.cut = self.finished = True


def open_socket() -> _socket.socket:
    """A socket for `dump`, in the namespace of the calling thread."""
    netlink = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _socket.NETLINK_ROUTE)
    try:
        netlink.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
    except OSError:
        pass  # before Linux 4.20: all tables come, and whoever chooses a route looks at its table
    return netlink


def dump(netlink: _socket.socket, request: bytes) -> Dump:
    """Sends `request` and reads the whole answer, again if it was interrupted. Blocks; the kernel answers at once.

    One socket a dump: after one that was cut, the kernel answers EBUSY to the next until all of the first was read.
    """
    seq = _HEADER.unpack_from(request)[3]
    for _ in range(_ATTEMPTS):
        answer = Dump(seq)
        netlink.sendto(request, (0, 0))
        while not answer.finished:
            datagram, sender = netlink.recvfrom(_DATAGRAM_MAX)
            if sender[0] == 0:  # the kernel; any process may send to a netlink socket
                answer.feed(datagram)
        if answer.cut or not answer.interrupted:
            break
    return answer


def namespace_number(netlink: _socket.socket, network: int) -> int:
    """By which number the namespace of `netlink` knows another, which a descriptor stands for; -1: by none."""
    body = bytes(4) + _ATTRIBUTE.pack(_ATTRIBUTE.size + _NUMBER.size, _NETNSA_FD) + _NUMBER.pack(network)
    netlink.sendto(_HEADER.pack(_HEADER.size + len(body), _RTM_GETNSID, _NLM_F_REQUEST, 1, 0) + body, (0, 0))
    while True:
        datagram, sender = netlink.recvfrom(_DATAGRAM_MAX)
        if sender[0] != 0:
            continue
        for kind, _, _, answer in _messages(datagram):
            number = parse_attributes(answer, 4).get(_NETNSA_NSID) if kind == _RTM_NEWNSID else None
            return -1 if number is None else int.from_bytes(number, sys.byteorder, signed=True)


def _malformed(what: str) -> NetlinkError:
    return NetlinkError(errno.EBADMSG, f"malformed netlink message: {what}")


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and body of each message. Aligned to 4 bytes, as attributes are."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, flags, seq, _ = _HEADER.unpack_from(datagram, at)
        if not _HEADER.size <= length <= len(datagram) - at:
            raise _malformed(f"length {length} with {len(datagram) - at} bytes left")
        yield kind, flags, seq, datagram[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def parse_attributes(data: bytes, at: int) -> dict[int, bytes]:
    """The attributes from `at` on. Of several with one type the last one counts, as for the kernel."""
    found = {}
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            raise _malformed(f"attribute of {length} bytes with {len(data) - at} left")
        found[kind & _ATTRIBUTE_TYPE] = data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found


def _number(attributes: dict[int, bytes], kind: int, otherwise: int) -> int:
    value: int = _NUMBER.unpack(attributes[kind])[0] if kind in attributes else otherwise
    return value


def _ip(family: int, raw: bytes | None) -> bytes:
    if raw is None:
        return UNSET
    if len(raw) != (4 if family == _socket.AF_INET else 16):
        raise _malformed(f"an address of {len(raw)} bytes")
    return IPV4_MAPPED + raw if family == _socket.AF_INET else raw


def _link_parse(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attributes = parse_attributes(body, _LINK.size)
    kind = parse_attributes(attributes.get(_IFLA_LINKINFO, b""), 0).get(_INFO_KIND, b"")
    return Link(
        index,
        _text(attributes.get(_IFLA_IFNAME, b"")),
        flags,
        _number(attributes, _IFLA_MTU, 0),
        attributes.get(_IFLA_ADDRESS, b""),
        kind=_text(kind),
        master=_number(attributes, _IFLA_MASTER, 0),
        alias=_text(attributes.get(_IFLA_IFALIAS, b"")),
        peer_namespace=_ERROR.unpack(attributes.get(_IFLA_LINK_NETNSID, _ERROR.pack(-1)))[0],
    )


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _address_parse(body: bytes) -> Address | None:
    family, prefix, flags, scope, index = _ADDRESS.unpack_from(body)
    if family not in (_socket.AF_INET, _socket.AF_INET6):
        return None
    attributes = parse_attributes(body, _ADDRESS.size)
    # With a peer, IFA_ADDRESS is the peer's and IFA_LOCAL ours; IPv6 leaves IFA_LOCAL out otherwise.
    other = _ip(family, attributes.get(_IFA_ADDRESS))
    own = _ip(family, attributes[_IFA_LOCAL]) if _IFA_LOCAL in attributes else other
    peer = UNSET if other == own else other
    return Address(family, index, own, prefix, scope, _number(attributes, _IFA_FLAGS, flags), peer)


def _neighbour_parse(body: bytes) -> Neighbour | None:
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    if family not in (_socket.AF_INET, _socket.AF_INET6):
        return None
    attributes = parse_attributes(body, _NEIGHBOUR.size)
    return Neighbour(index, _ip(family, attributes.get(_NDA_DST)), attributes.get(_NDA_LLADDR, b""), state)


def _route_parse(body: bytes) -> Route | None:
    family, prefix, _, tos, table, protocol, scope, kind, flags = _ROUTE.unpack_from(body)
    if family not in (_socket.AF_INET, _socket.AF_INET6) or flags & _RTM_F_CLONED:
        return None
    attributes = parse_attributes(body, _ROUTE.size)
    if _RTA_MULTIPATH in attributes:
        hops = tuple(_hops_parse(family, attributes[_RTA_MULTIPATH]))
    elif _RTA_OIF in attributes:
        hops = (_hop(family, _number(attributes, _RTA_OIF, 0), 1, flags & 0xFF, attributes),)
    else:
        hops = ()
    return Route(
        family,
        _number(attributes, _RTA_TABLE, table),
        kind,
        _ip(family, attributes.get(_RTA_DST)),
        prefix,
        _number(attributes, _RTA_PRIORITY, 0),
        hops,
        protocol,
        scope,
        tos,
        _number(parse_attributes(attributes[_RTA_METRICS], 0), _RTAX_MTU, 0) if _RTA_METRICS in attributes else 0,
        attributes[_RTA_PREF][0] if attributes.get(_RTA_PREF) else 0,
    )


def _hop(family: int, index: int, weight: int, flags: int, attributes: dict[int, bytes]) -> NextHop:
    via = attributes.get(_RTA_VIA, b"")
    other = UNSET if len(via) != _VIA.size else _VIA.unpack(via)[1]
    return NextHop(index, _ip(family, attributes.get(_RTA_GATEWAY)), weight, flags, other)


def _hops_parse(family: int, data: bytes) -> Iterator[NextHop]:
    at = 0
    while at + _HOP.size <= len(data):
        length, flags, weight, index = _HOP.unpack_from(data, at)
        if not _HOP.size <= length <= len(data) - at:
            raise _malformed(f"next hop of {length} bytes with {len(data) - at} left")
        attributes = parse_attributes(data[at : at + length], _HOP.size)
        yield _hop(family, index, weight + 1, flags, attributes)
        at += length + 3 & ~3
