# SPDX-License-Identifier: Apache-2.0
"""What pasta's namespace agent and the others say to each other: a SEQPACKET socket, a record for each word.

Used by agent.py inside the namespace and by whoever asks it. Sans-io but for `Agent`. Adversary, for both sides: the
other process, should a container have broken it. Records are fixed structures; one whose length or any field is not
what it can be is None, for the reader to refuse. Invariants: a request costs a bounded piece of work, and names no
interface, file or process: the agent knows its interface by number, and loopback is number 1 in every namespace.

    the agent, once:  READY, the interface, with its descriptor if there is one, and those of files that were asked for;
                      a note about what was refused
                      or FAILED, a sentence
    CONFIGURE, plan                      ->  ANSWER, errno of what failed first or 0, a sentence
    SOCKETS, kind, address, how many     ->  ANSWER, 0 or an errno for each, with the descriptors in order;
                                             for none, if the request is refused
    MEETING                              ->  the same, for the one socket at which others of the namespace come to us
    WORKER, with a channel               ->  ANSWER, 0; who asks there, a worker, asks for sockets, too, but gets
                                             such as are neither bound nor listening. The channel before it is closed.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct

from lockgate.plugin import netlink
from lockgate.plugin.address import IPV4_MAPPED, UNSET
from lockgate.plugin.namespace.interface_plan import ADDRESSES_MAX, HOPS_MAX, ROUTES_MAX, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

READY, FAILED, ANSWER = b"R", b"F", b"A"
CONFIGURE, SOCKETS, MEETING, WORKER = b"C", b"S", b"M", b"W"

SOCK_DIAG = "sock_diag"  # among the files that an agent is to open: the socket that lists others

RECORD_MAX = 131072
SOCKETS_MAX = 64  # of a request: the kernel hands over 253 descriptors at once
_TEXT_MAX = 1000

# Of SOCKETS: bind them, to consecutive ports; listen; IPv4 on a socket of IPv6 too; only on the loopback interface.
BIND, LISTEN, DUAL_STACK, LOOPBACK = 1, 2, 4, 8

_READY = struct.Struct("=cBxxIII6sxx16s16s")  # files, index, MTU, TUN_F_*, MAC, name, link-local address
_PLAN = struct.Struct("=cxHHxxI")  # addresses, routes, MTU
_ADDRESS = struct.Struct("=BBBx16s16s")  # family, prefix, scope, address, peer
# family, prefix, scope, protocol, type of service, preference, next hops, metric, MTU, destination
_ROUTE = struct.Struct("=BBBBBBBxII16s")
_HOP = struct.Struct("=BxH16s16s")  # flags, weight, gateway, via
_SOCKETS = struct.Struct("=cBBBHH16s")  # family, protocol, flags, first port, how many, address
_ANSWER = struct.Struct("=cxH")  # errno

SOCKETS_BYTES = _SOCKETS.size

_PREFIX_MAX = {_socket.AF_INET: 32, _socket.AF_INET6: 128}
_PORT_MAX = 65535


class AgentError(Exception):
    """Why there is no agent: a sentence for the caller."""


class Ready:
    """The interface as it is, and a note about what could not be done but does no harm; frozen by convention."""

    __slots__ = ("files", "index", "link_local", "mac", "mtu", "name", "note", "offloads")

    def __init__(
        self, *, index: int, mtu: int, offloads: int, mac: bytes, name: str, link_local: bytes, note: str, files: int
    ) -> None:
        self.index = index
        self.mtu = mtu
        self.offloads = offloads  # TUN_F_*, that the kernel took
        self.mac = mac
        self.name = name
        self.link_local = link_local
        self.note = note
        self.files = files  # how many came along

    def pack(self) -> bytes:
        name = self.name.encode("utf-8", "surrogateescape")
        numbers = self.files, self.index, self.mtu, self.offloads
        head = _READY.pack(READY, *numbers, self.mac, name, self.link_local)
        return head + pack_text(self.note)


def parse_ready(record: bytes) -> Ready:
    """Raises AgentError, with the agent's own words if it has failed."""
    if record[:1] == FAILED:
        raise AgentError(record[1:].decode("utf-8", "replace"))
    if record[:1] != READY or len(record) < _READY.size:
        raise AgentError("The namespace agent ended before it was ready")
    _, files, index, mtu, offloads, mac, name, link_local = _READY.unpack_from(record)
    return Ready(
        index=index,
        mtu=mtu,
        offloads=offloads,
        mac=mac,
        name=name.rstrip(b"\0").decode("utf-8", "surrogateescape"),
        link_local=link_local,
        note=record[_READY.size :].decode("utf-8", "replace"),
        files=files,
    )


def pack_text(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:_TEXT_MAX]


# ---- plans ----


def pack_plan(plan: Plan) -> bytes:
    """Routes that find no room are left out, the last ones first."""
    addresses = b"".join(map(pack_address, plan.addresses))
    routes, size = [], _PLAN.size + len(addresses)
    for packed in map(pack_route, plan.routes):
        size += len(packed)
        if size > RECORD_MAX:
            break
        routes.append(packed)
    return _PLAN.pack(CONFIGURE, len(plan.addresses), len(routes), plan.mtu) + addresses + b"".join(routes)


def parse_plan(record: bytes) -> Plan | None:
    if len(record) < _PLAN.size or record[:1] != CONFIGURE:
        return None
    _, addresses, routes, mtu = _PLAN.unpack_from(record)
    at, seen, roads = _PLAN.size, [], []
    if addresses > ADDRESSES_MAX or routes > ROUTES_MAX or mtu > _PORT_MAX:
        return None
    try:
        for _ in range(addresses):
            seen.append(_parse_address(record, at))
            at += _ADDRESS.size
        for _ in range(routes):
            route = _parse_route(record, at)
            roads.append(route)
            at += _ROUTE.size + len(route.hops) * _HOP.size
    except (struct.error, ValueError):
        return None
    return Plan(mtu, tuple(seen), tuple(roads)) if at == len(record) else None


def pack_address(one: netlink.Address) -> bytes:
    return _ADDRESS.pack(one.family, one.prefix, one.scope, one.address, one.peer)


def _parse_address(record: bytes, at: int) -> netlink.Address:
    family, prefix, scope, own, peer = _ADDRESS.unpack_from(record, at)
    _check(prefix <= _PREFIX_MAX.get(family, -1) and own != UNSET)
    _check_family(family, own, peer)
    return netlink.Address(family, 0, own, prefix, scope, 0, peer)


def pack_route(one: netlink.Route) -> bytes:
    numbers = one.family, one.prefix, one.scope, one.protocol, one.tos, one.preference
    head = _ROUTE.pack(*numbers, len(one.hops), one.priority, one.mtu, one.destination)
    return head + b"".join(_HOP.pack(hop.flags, hop.weight, hop.gateway, hop.via) for hop in one.hops)


def _parse_route(record: bytes, at: int) -> netlink.Route:
    family, prefix, scope, protocol, tos, preference, count, priority, mtu, target = _ROUTE.unpack_from(record, at)
    _check(prefix <= _PREFIX_MAX.get(family, -1) and 0 < count <= HOPS_MAX)
    _check_family(family, target)
    hops = []
    for place in range(count):
        flags, weight, gateway, via = _HOP.unpack_from(record, at + _ROUTE.size + place * _HOP.size)
        _check(flags in (0, netlink.HOP_ON_LINK) and 0 < weight <= 256)
        _check_family(family, gateway)
        _check(via == UNSET or (family == _socket.AF_INET and not via.startswith(IPV4_MAPPED)))
        hops.append(netlink.NextHop(0, gateway, weight, flags, via))
    kind, table = netlink.ROUTE_UNICAST, netlink.TABLE_MAIN
    more = protocol, scope, tos, mtu, preference
    return netlink.Route(family, table, kind, target, prefix, priority, tuple(hops), *more)


def _check(sensible: bool) -> None:
    if not sensible:
        raise ValueError


def _check_family(family: int, *addresses: bytes) -> None:
    _check(all(one == UNSET or one.startswith(IPV4_MAPPED) == (family == _socket.AF_INET) for one in addresses))


# ---- sockets ----


class SocketsWanted:
    """Sockets of one kind: unbound, or bound to `count` consecutive ports. All are close-on-exec and do not block."""

    __slots__ = ("address", "count", "family", "first", "flags", "protocol")

    def __init__(
        self, family: int, protocol: int, count: int = 1, *, flags: int = 0, address: bytes = UNSET, first: int = 0
    ) -> None:
        self.family = family
        self.protocol = protocol  # IPPROTO_TCP or _UDP
        self.count = count
        self.flags = flags  # BIND and others
        self.address = address  # unset: any
        self.first = first  # port; 0, of which there is one: any

    def pack(self) -> bytes:
        return _SOCKETS.pack(SOCKETS, self.family, self.protocol, self.flags, self.first, self.count, self.address)


def parse_sockets(record: bytes) -> SocketsWanted | None:
    """None: this is not to be had."""
    if len(record) != _SOCKETS.size or record[:1] != SOCKETS:
        return None
    _, family, protocol, flags, first, count, address = _SOCKETS.unpack(record)
    bound = flags & BIND
    if (
        family not in _PREFIX_MAX
        or protocol not in (_socket.IPPROTO_TCP, _socket.IPPROTO_UDP)
        or flags & ~(BIND | LISTEN | DUAL_STACK | LOOPBACK)
        or not 0 < count <= SOCKETS_MAX
        or (not bound and (first or address != UNSET or flags & (LISTEN | DUAL_STACK)))
        or (flags & LISTEN and protocol != _socket.IPPROTO_TCP)
        or (flags & DUAL_STACK and (family != _socket.AF_INET6 or address != UNSET))
        or (bound and (first + count - 1 > _PORT_MAX or (first == 0 and count != 1)))
        or (address != UNSET and address.startswith(IPV4_MAPPED) != (family == _socket.AF_INET))
    ):
        return None
    return SocketsWanted(family, protocol, count, flags=flags, address=address, first=first)


def parse_unbound(record: bytes) -> SocketsWanted | None:
    """The same, of a worker."""
    wanted = parse_sockets(record)
    return wanted if wanted is not None and not wanted.flags else None


# ---- answers ----


def pack_answer(error: int, text: str = "") -> bytes:
    return _ANSWER.pack(ANSWER, error) + pack_text(text)


def parse_answer(record: bytes) -> tuple[int, str] | None:
    """To CONFIGURE: an errno and what it is about; 0: all is as planned."""
    if len(record) < _ANSWER.size or record[:1] != ANSWER:
        return None
    return _ANSWER.unpack_from(record)[1], record[_ANSWER.size :].decode("utf-8", "replace")


def pack_results(errors: Sequence[int]) -> bytes:
    return ANSWER + struct.pack(f"={len(errors)}H", *errors)


def parse_results(record: bytes, descriptors: int) -> list[int] | None:
    """To SOCKETS: an errno for each; as many are 0 as descriptors came along."""
    if record[:1] != ANSWER or len(record) % 2 == 0:
        return None
    errors = list(struct.unpack(f"={len(record) // 2}H", record[1:]))
    return errors if errors.count(0) == descriptors else None


class Agent:
    """The agent's process as its parent sees it; `channel` is to be closed for it to end."""

    __slots__ = ("channel", "pid")

    def __init__(self, pid: int, channel: _socket.socket) -> None:
        self.pid = pid
        self.channel = channel

    def wait_ready(self) -> tuple[Ready, int, list[int]]:
        """The interface, its descriptor or -1, and those of the files. Raises AgentError."""
        record, fds = self._receive()
        ready = parse_ready(record)
        files = len(fds) - ready.files
        return ready, (fds[:files] or [-1])[0], fds[files:]

    def ask(self, request: bytes, fds: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        """A request's answer, which takes as long as the kernel does; an empty one: the agent is gone."""
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
        try:
            self.channel.sendmsg([request], rights)
        except (BrokenPipeError, ConnectionResetError):
            return b"", []
        return self._receive()

    def open_sockets(self, wanted: SocketsWanted) -> list[int]:
        """For each its descriptor, or an errno below zero."""
        record, fds = self.ask(wanted.pack())
        errors = parse_results(record, len(fds))
        if errors is None or len(errors) != wanted.count:
            _close(fds)
            return [-errno.EPIPE] * wanted.count  # the agent is gone, or will have none of it
        given = iter(fds)
        return [-error if error else next(given) for error in errors]

    def ask_for_answer(self, request: bytes, fds: Sequence[int] = ()) -> tuple[int, str] | None:
        """An errno, or 0, and what it is about; None: the agent is gone."""
        record, given = self.ask(request, fds)
        _close(given)
        return parse_answer(record)

    def open_worker_channel(self) -> _socket.socket:
        """The end of a worker, the first or the next. It asks there by itself, so that no connection waits for whoever
        else would have to ask for it; and has its own, since the last one may have left answers behind. Raises
        AgentError."""
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
        answer = self.ask_for_answer(WORKER, [theirs.fileno()])
        theirs.close()
        if answer is None or answer[0]:
            ours.close()
            raise AgentError("The namespace agent is gone")
        return ours

    def _receive(self) -> tuple[bytes, list[int]]:
        waiting = select.poll()
        waiting.register(self.channel, select.POLLIN)
        waiting.poll()
        room = _socket.CMSG_SPACE(SOCKETS_MAX * 4)
        try:
            record, rights, _, _ = self.channel.recvmsg(RECORD_MAX, room, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b"", []
        fds: list[int] = []
        for level, kind, data in rights:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds += struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])
        return record, fds


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
