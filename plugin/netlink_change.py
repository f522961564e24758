# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: how links, addresses and routes of a network namespace are changed.

Called by agent.py, inside a container's namespace, and by bridge_network.py for the namespace that containers share.
Adversary: the container, which may change or remove at any time what is changed here: each request names its interface
by the number that it has had from the start, and what the kernel then refuses is an OSError for that request alone. The
codec is sans-io (`*_request` make datagrams, `parse_answer` reads one); `Changes` joins both over a socket. Records are
those of netlink.py; the interfaces in them are not looked at, since what was the host's is now put on another.

What we know of the kernel:
- Each request is answered by ERROR, with 0 or a negative errno; with NETLINK_EXT_ACK often by a sentence too.
- A route of IPv4 that is added with APPEND comes behind those with the same prefix and metric, which it would precede
  without.
- The answer to a route whose gateway no other route leads to (yet) is ENETUNREACH, EHOSTUNREACH or EINVAL.
- The last address of IPv4 takes all routes of its interface along, and the first of a network all others of that.
- A bridge takes the MAC address and the MTU of its ports, unless it was told its own. With a link, its other end goes.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from lockgate.plugin import netlink
from lockgate.plugin.address import UNSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 17, 20, 21, 24, 25
_RTM_NEWRULE, _RTM_DELRULE = 32, 33
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK = 0x01, 0x04
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE, _NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200  # of an answer

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_ATTR_MESSAGE = 1  # NLMSGERR_ATTR_MSG

_IFF_UP = 0x1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 20, 26, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1  # IFLA_INFO_*, VETH_INFO_PEER
_IFLA_INET6_ADDR_GEN_MODE = 8
_GEN_MODE_EUI64, _GEN_MODE_NONE = b"\0", b"\1"  # IN6_ADDR_GEN_MODE_*
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS = 1, 4, 5, 6, 8
_RTA_MULTIPATH, _RTA_VIA, _RTA_PREF = 9, 18, 20
_RTAX_MTU = 2
_FRA_IIFNAME, _FRA_PRIORITY = 3, 6
_PROHIBIT = 8  # FR_ACT_PROHIBIT

_HEADER = struct.Struct("=IHHII")  # length, type, flags, seq, port
_LINK = struct.Struct("=BxHiII")  # family, ARPHRD_*, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_HOP = struct.Struct("=HBBi")  # length, flags, weight - 1, index
_RULE = struct.Struct("=BxxxxxxBI")  # struct fib_rule_hdr: family, fields left 0 (the x), action, flags
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_ANSWER = struct.Struct("=iIHHII")  # a negative errno, the header of what it is about
_FAMILY = struct.Struct("=H")
_ANSWER_MAX = 65536

_THERE_ALREADY = (errno.EEXIST,)
_GONE_ALREADY = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL)


def link_request(
    seq: int, index: int, *, up: bool = False, mtu: int = 0, mac: bytes = b"", alias: str = "", master: int = 0
) -> bytes:
    """What is 0 or empty stays as it is; no link is set down here."""
    change = _IFF_UP if up else 0
    body = _LINK.pack(_socket.AF_UNSPEC, 0, index, change, change) + _link_attributes(mtu=mtu, mac=mac)
    if master:
        body += _attribute(_IFLA_MASTER, _NUMBER.pack(master))
    if alias:
        body += _attribute(_IFLA_IFALIAS, alias.encode())
    return _request(_RTM_NEWLINK, 0, seq, body)


def bridge_request(seq: int, name: str, *, mtu: int, mac: bytes) -> bytes:
    """A new bridge, without ports and down."""
    info = _attribute(_INFO_KIND, b"bridge")
    body = _new_link(name, mtu, mac) + _attribute(_IFLA_LINKINFO, info)
    return _request(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, seq, body)


def veth_request(seq: int, name: str, peer: str, network: int, *, mtu: int, mac: bytes) -> bytes:
    """A new pair of links, both down; the second one (whose MAC address is given) in the namespace that the descriptor
    `network` stands for."""
    other = _new_link(peer, mtu, mac) + _attribute(_IFLA_NET_NS_FD, _NUMBER.pack(network))
    info = _attribute(_INFO_KIND, b"veth") + _attribute(_INFO_DATA, _attribute(_VETH_PEER, other))
    body = _new_link(name, mtu, b"") + _attribute(_IFLA_LINKINFO, info)
    return _request(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, seq, body)


def link_delete_request(seq: int, index: int) -> bytes:
    return _request(_RTM_DELLINK, 0, seq, _LINK.pack(_socket.AF_UNSPEC, 0, index, 0, 0))


def barrier_request(seq: int, family: int, interface: str, priority: int, there: bool) -> bytes:
    """A rule by which nothing that comes from an interface is sent on, after the one for our own addresses."""
    body = _RULE.pack(family, _PROHIBIT, 0) + _attribute(_FRA_PRIORITY, _NUMBER.pack(priority))
    body += _attribute(_FRA_IIFNAME, interface.encode("utf-8", "surrogateescape") + b"\0")
    return _request(*((_RTM_NEWRULE, _NLM_F_CREATE | _NLM_F_EXCL) if there else (_RTM_DELRULE, 0)), seq, body)


def link_local_request(seq: int, index: int, by_kernel: bool) -> bytes:
    """Whether the kernel gives the link a link-local address when it comes up."""
    mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, _GEN_MODE_EUI64 if by_kernel else _GEN_MODE_NONE)
    of_ipv6 = _attribute(_socket.AF_INET6, mode)
    body = _LINK.pack(_socket.AF_UNSPEC, 0, index, 0, 0) + _attribute(_IFLA_AF_SPEC, of_ipv6)
    return _request(_RTM_NEWLINK, 0, seq, body)


def address_add_request(seq: int, index: int, one: netlink.Address) -> bytes:
    """For ever, and (IPv6) without asking whether somebody else has it. One that is there is made so."""
    return _request(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_REPLACE, seq, _address(index, one))


def address_delete_request(seq: int, index: int, one: netlink.Address) -> bytes:
    return _request(_RTM_DELADDR, 0, seq, _address(index, one))


def route_add_request(seq: int, index: int, one: netlink.Route, *, alone: bool = False) -> bytes:
    """`alone`: only if no other route has its prefix and metric."""
    flags = _NLM_F_CREATE | (_NLM_F_EXCL if alone else _NLM_F_APPEND)
    return _request(_RTM_NEWROUTE, flags, seq, _route(index, one))


def route_delete_request(seq: int, index: int, one: netlink.Route) -> bytes:
    return _request(_RTM_DELROUTE, 0, seq, _route(index, one))


def parse_answer(datagram: bytes, seq: int) -> OSError | None:
    """Of the request with this number: None if it was done. Raises BlockingIOError if it is another's answer, and
    netlink.NetlinkError (EBADMSG) if it is none."""
    if len(datagram) < _HEADER.size:
        raise netlink.NetlinkError(errno.EBADMSG, "a netlink message shorter than its header")
    length, kind, flags, number, _ = _HEADER.unpack_from(datagram)
    if kind != _NLMSG_ERROR or number != seq:
        raise BlockingIOError
    if not _HEADER.size + _ANSWER.size <= length <= len(datagram):
        raise netlink.NetlinkError(errno.EBADMSG, f"a netlink answer of {length} bytes")
    code = -_ANSWER.unpack_from(datagram, _HEADER.size)[0]
    if code == 0:
        return None
    said = ""
    if flags & _NLM_F_ACK_TLVS and flags & _NLM_F_CAPPED:
        attributes = netlink.parse_attributes(datagram[:length], _HEADER.size + _ANSWER.size)
        said = attributes.get(_ATTR_MESSAGE, b"").rstrip(b"\0").decode("ascii", "replace")
    return OSError(code, f"{os.strerror(code)} ({said.rstrip('.')})" if said else os.strerror(code))


class Changes:
    """One socket for changes, in the namespace of the calling thread. Every method raises OSError."""

    def __init__(self) -> None:
        self._socket = netlink.open_socket()
        self._seq = 0
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                pass  # before Linux 4.12: then there is the number alone

    def close(self) -> None:
        self._socket.close()

    def set_link(
        self, index: int, *, up: bool = False, mtu: int = 0, mac: bytes = b"", alias: str = "", master: int = 0
    ) -> None:
        self._ask(lambda seq: link_request(seq, index, up=up, mtu=mtu, mac=mac, alias=alias, master=master))

    def make_bridge(self, name: str, *, mtu: int, mac: bytes) -> None:
        self._ask(lambda seq: bridge_request(seq, name, mtu=mtu, mac=mac))

    def make_veth(self, name: str, peer: str, network: int, *, mtu: int, mac: bytes) -> None:
        self._ask(lambda seq: veth_request(seq, name, peer, network, mtu=mtu, mac=mac))

    def delete_link(self, index: int) -> None:
        self._ask(lambda seq: link_delete_request(seq, index), (errno.ENODEV,))

    def set_barrier(self, family: int, interface: str, priority: int, there: bool) -> None:
        as_good = _THERE_ALREADY if there else _GONE_ALREADY
        self._ask(lambda seq: barrier_request(seq, family, interface, priority, there), as_good)

    def set_link_local(self, index: int, by_kernel: bool) -> None:
        self._ask(lambda seq: link_local_request(seq, index, by_kernel))

    def add_address(self, index: int, one: netlink.Address) -> None:
        self._ask(lambda seq: address_add_request(seq, index, one), _THERE_ALREADY)

    def delete_address(self, index: int, one: netlink.Address) -> None:
        self._ask(lambda seq: address_delete_request(seq, index, one), _GONE_ALREADY)

    def add_route(self, index: int, one: netlink.Route) -> None:
        self._ask(lambda seq: route_add_request(seq, index, one), _THERE_ALREADY)

    def add_route_alone(self, index: int, one: netlink.Route) -> None:
        """FileExistsError: another route has its prefix and metric."""
        self._ask(lambda seq: route_add_request(seq, index, one, alone=True))

    def delete_route(self, index: int, one: netlink.Route) -> None:
        self._ask(lambda seq: route_delete_request(seq, index, one), _GONE_ALREADY)

    def add_routes(self, index: int, routes: Sequence[netlink.Route]) -> list[tuple[netlink.Route, OSError]]:
        """In their order as far as possible: a route waits for those that lead to its gateway. Those that were
        refused to the end, and why."""
        refused: list[tuple[netlink.Route, OSError]] = []
        left = routes
        while left:
            refused = []
            for one in left:
                try:
                    self.add_route(index, one)
                except OSError as failure:
                    refused.append((one, failure))
            if len(refused) == len(left):
                break
            left = [one for one, _ in refused]
        return refused

    def _ask(self, request: Callable[[int], bytes], as_good: Sequence[int] = ()) -> None:
        """`as_good` are refusals that mean that all is as it should be."""
        self._seq += 1
        self._socket.sendto(request(self._seq), (0, 0))
        while True:
            datagram, sender = self._socket.recvfrom(_ANSWER_MAX)
            if sender[0] != 0:
                continue  # any process may send to a netlink socket
            try:
                failure = parse_answer(datagram, self._seq)
            except BlockingIOError:
                continue
            if failure is not None and failure.errno not in as_good:
                raise failure
            return


def _request(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, seq, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _new_link(name: str, mtu: int, mac: bytes) -> bytes:
    text = name.encode("utf-8", "surrogateescape") + b"\0"
    body = _LINK.pack(_socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, text)
    return body + _link_attributes(mtu=mtu, mac=mac)


def _link_attributes(*, mtu: int, mac: bytes) -> bytes:
    attributes = _attribute(_IFLA_MTU, _NUMBER.pack(mtu)) if mtu else b""
    return attributes + (_attribute(_IFLA_ADDRESS, mac) if mac else b"")


def _raw(family: int, address: bytes) -> bytes:
    return address[12:] if family == _socket.AF_INET else address


def _address(index: int, one: netlink.Address) -> bytes:
    own, six = _raw(one.family, one.address), one.family == _socket.AF_INET6
    flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if six else 0)
    body = _ADDRESS.pack(one.family, one.prefix, flags, one.scope, index) + _attribute(_IFA_LOCAL, own)
    body += _attribute(_IFA_ADDRESS, own if one.peer == UNSET else _raw(one.family, one.peer))
    if not six and one.peer == UNSET and one.prefix <= 30:
        host_part = (1 << 32 - one.prefix) - 1
        body += _attribute(_IFA_BROADCAST, (int.from_bytes(own, "big") | host_part).to_bytes(4, "big"))
    return body + _attribute(_IFA_FLAGS, _NUMBER.pack(flags))


def _route(index: int, one: netlink.Route) -> bytes:
    """Without the preferred source, which may not be an address here."""
    single = one.hops[0].flags & netlink.HOP_ON_LINK if len(one.hops) == 1 else 0
    body = _ROUTE.pack(
        one.family, one.prefix, 0, one.tos, netlink.TABLE_MAIN, one.protocol, one.scope, one.kind, single
    )
    if one.prefix:
        body += _attribute(_RTA_DST, _raw(one.family, one.destination))
    if one.priority:
        body += _attribute(_RTA_PRIORITY, _NUMBER.pack(one.priority))
    if one.mtu:
        body += _attribute(_RTA_METRICS, _attribute(_RTAX_MTU, _NUMBER.pack(one.mtu)))
    if one.preference:
        body += _attribute(_RTA_PREF, bytes((one.preference,)))
    if not one.hops:
        return body  # a blackhole or the like
    if len(one.hops) == 1:
        return body + _attribute(_RTA_OIF, _NUMBER.pack(index)) + _gateway(one.family, one.hops[0])
    hops = b""
    for hop in one.hops:
        gateway = _gateway(one.family, hop)
        hops += _HOP.pack(_HOP.size + len(gateway), hop.flags & netlink.HOP_ON_LINK, hop.weight - 1, index) + gateway
    return body + _attribute(_RTA_MULTIPATH, hops)


def _gateway(family: int, hop: netlink.NextHop) -> bytes:
    if hop.via != UNSET:
        return _attribute(_RTA_VIA, _FAMILY.pack(_socket.AF_INET6) + hop.via)
    return b"" if hop.gateway == UNSET else _attribute(_RTA_GATEWAY, _raw(family, hop.gateway))
