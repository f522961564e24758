# SPDX-License-Identifier: Apache-2.0
"""stream: what one helper tells another of a guest that moves. passt's format, version 2, which both speak.

Called by move.py. Pure functions from bytes to records and back. All numbers are big-endian, but for the ports, which
are in the byte order of the machine (both must have the same one).

    16 bytes   header: magic, version, the oldest version that can read this
    42         what was seen of the guest: global IPv6, link-local and IPv4 address, MAC address
    4          number of flows
    112 each   flow: the guest's end (FLOW)
    then for each flow, in the same order:
    52         socket: the peer's end (SOCKET)
    n, m       its send queue, and its receive queue

A flow has two sides, that which opened it first; of each it is said whether it is the host's (1) or the guest's (2),
and an address and port of ours and of the other. What passt keeps for itself there (retransmissions, flags, the size
of the send buffer) is written as if nothing were under way, and not read. There is no place in it for SACK: a
connection whose guest has SACK goes on without.

Adversary: whoever wrote the bytes; they come from another machine. Each number is checked before it is used: a size
that cannot be ends the reading (Malformed), what is wrong with one flow only loses that flow (`fault`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lockgate.core.flow_records import TcpFlow
from lockgate.plugin.address import UNSET

MAGIC = 0xB1BB1D1B0BB1D1B0
VERSION = 2

FLOWS_MAX = 65536  # of one guest: as many as a worker has at most
QUEUE_MAX = 64 << 20  # bytes of one queue; tcp_rmem and tcp_wmem end below that on any machine

HEADER = struct.Struct(">QII")
SEEN = struct.Struct(">16s16s4s6s")
COUNT = struct.Struct(">I")
_SIDES = struct.Struct("=2B16s16sHH16s16sHH")
_GUEST = struct.Struct(">BBBBIIBBHHIIIII")
_SOCKET = struct.Struct(">12I4B")
FLOW_SIZE = _SIDES.size + _GUEST.size
SOCKET_SIZE = _SOCKET.size

_HOST_SIDE, _GUEST_SIDE = 1, 2
# What has happened to a connection: it is established; a FIN came from the peer, was sent to it, came from the guest,
# was sent to it, and was acknowledged by it.
_ESTABLISHED, _PEER_ENDED, _END_TO_PEER, _GUEST_ENDED, _END_TO_GUEST, _END_TAKEN = 4, 8, 16, 32, 64, 128
_GUEST_EVENTS = {0: 0, 1: _GUEST_ENDED | _END_TO_PEER}  # by TcpFlow.guest_ended
_PEER_EVENTS = {0: 0, 1: _PEER_ENDED, 2: _PEER_ENDED | _END_TO_GUEST | _END_TAKEN}  # by TcpFlow.peer_ended
_ENDS = {
    _ESTABLISHED | of_guest | of_peer: (guest, peer)
    for guest, of_guest in _GUEST_EVENTS.items()
    for peer, of_peer in _PEER_EVENTS.items()
}
# Of tcp_info: established, and every state in which one of the ends, or both, has sent its FIN and the other lives.
TCP_ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING = 1, 4, 5, 8, 9, 11
STATES = frozenset({TCP_ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING})
PEER_ENDED_STATES = frozenset({CLOSE_WAIT, LAST_ACK, CLOSING})
OUR_END_UNDER_WAY_STATES = frozenset({FIN_WAIT1, LAST_ACK, CLOSING})
OPTION_TIMESTAMPS, OPTION_SACK, OPTION_SCALE = 1, 2, 4
SCALE_MAX = 14  # RFC 7323, 2.3
WINDOW_MAX = 0xFFFF << SCALE_MAX
MSS_MIN, MSS_MAX = 88, 0xFFFF  # to the guest; see TCP_MSS_MIN
MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # of an IPv4 address in 16 bytes


class Malformed(Exception):
    """Nothing behind this can be made sense of; the text says what it was."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of the guest. Addresses of 16 bytes, UNSET where there is none."""

    addr6: bytes
    link_local: bytes
    addr4: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class End:
    """One end of the host's socket."""

    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection: the guest's end, and between whom the host's socket is."""

    guest: TcpFlow
    local: End
    peer: End
    fault: str = ""  # why it cannot be taken over


@dataclass(frozen=True, slots=True)
class Socket:
    """The peer's end of a connection: the state of the kernel's socket, without its queues."""

    snd_seq: int  # of the first byte of the send queue
    rcv_seq: int  # of the first byte of the receive queue
    send_queue: int  # bytes
    not_sent: int  # of those
    receive_queue: int
    mss: int
    timestamp: int
    snd_wl1: int
    snd_wnd: int
    max_window: int
    rcv_wnd: int
    rcv_wup: int
    snd_scale: int
    rcv_scale: int
    state: int
    options: int

    def fault(self) -> str:
        """Why no socket can be made of it; empty: one can."""
        if self.state not in STATES:
            return f"its socket is in state {self.state}: not established, and not about to be closed"
        if max(self.snd_scale, self.rcv_scale) > SCALE_MAX or max(self.snd_wnd, self.rcv_wnd) > WINDOW_MAX:
            return "its windows are larger than TCP has them"
        if not 0 < self.mss <= MSS_MAX:
            return f"its segments have {self.mss} bytes"
        return ""


def difference(later: int, earlier: int) -> int:
    """Between two sequence numbers."""
    return (later - earlier) & 0xFFFFFFFF


# ---- the head ----


def pack_head(seen: Seen, flows: int) -> bytes:
    addr4 = seen.addr4[12:] if seen.addr4 != UNSET else bytes(4)
    return (
        HEADER.pack(MAGIC, VERSION, VERSION)
        + SEEN.pack(seen.addr6, seen.link_local, addr4, seen.mac)
        + COUNT.pack(flows)
    )


def check_header(data: bytes) -> None:
    magic, version, readable_by = HEADER.unpack(data)
    if magic != MAGIC:
        raise Malformed(f"it begins with {magic:#x}, not with passt's {MAGIC:#x}")
    if version < VERSION or readable_by > VERSION:
        raise Malformed(f"it has version {version}, readable by {readable_by}: version {VERSION} is understood here")


def unpack_seen(data: bytes) -> Seen:
    addr6, link_local, addr4, mac = SEEN.unpack(data)
    return Seen(addr6, link_local, UNSET if addr4 == bytes(4) else MAPPED_PREFIX + addr4, mac)


def unpack_count(data: bytes) -> int:
    (count,) = COUNT.unpack(data)
    if count > FLOWS_MAX:
        raise Malformed(f"it announces {count} flows: at most {FLOWS_MAX} are expected")
    return int(count)


# ---- flows ----


def pack_flow(flow: Flow, send_buffer: int) -> bytes:
    """`send_buffer`: of the socket, which passt keeps in units of 256 bytes."""
    guest = flow.guest
    inside = (guest.remote_addr, guest.guest_addr, guest.remote_port, guest.guest_port)
    outside = (flow.local.address, flow.peer.address, flow.local.port, flow.peer.port)
    if guest.inbound:
        sides = _SIDES.pack(_HOST_SIDE, _GUEST_SIDE, *outside, *inside)
    else:
        sides = _SIDES.pack(_GUEST_SIDE, _HOST_SIDE, *inside, *outside)
    return sides + _GUEST.pack(
        0,  # retransmissions
        guest.guest_scale,
        guest.our_scale,
        _ESTABLISHED | _GUEST_EVENTS[guest.guest_ended] | _PEER_EVENTS[guest.peer_ended],
        guest.mss,
        send_buffer >> 8,
        0,  # flags
        0,  # a part of a number that duplicates are told by
        min(guest.snd_window >> guest.guest_scale, 0xFFFF),
        min(difference(guest.rcv_edge, guest.rcv_acked) >> guest.our_scale, 0xFFFF),
        guest.snd_nxt,
        guest.snd_una,
        guest.rcv_nxt,
        guest.rcv_acked,
        guest.irs,
    )


def unpack_flow(data: bytes) -> Flow:
    first, second, *numbers = _SIDES.unpack_from(data)
    one, two = numbers[:4], numbers[4:]
    inbound = first == _HOST_SIDE
    inside, outside = (two, one) if inbound else (one, two)
    _, guest_scale, our_scale, events, mss, _, _, _, told, offered, *sequence = _GUEST.unpack_from(data, _SIDES.size)
    snd_nxt, snd_una, rcv_nxt, rcv_acked, irs = sequence
    fault = ""
    if {first, second} != {_HOST_SIDE, _GUEST_SIDE}:
        fault = f"it is between interfaces {first} and {second}"
    elif events not in _ENDS:
        fault = f"it is in the middle of something that cannot be taken over ({events:#x})"
    elif len({one.startswith(MAPPED_PREFIX) for one in (*inside[:2], *outside[:2])}) > 1:
        fault = "its addresses are of IPv4 and of IPv6"
    elif max(guest_scale, our_scale) > SCALE_MAX or not MSS_MIN <= mss <= MSS_MAX:
        fault = f"its guest's segments have {mss} bytes, its windows are scaled by {guest_scale} and {our_scale}"
    if fault:  # numbers that the worker's record has no room for must not reach it
        guest_scale = our_scale = mss = 0
    ended = _ENDS.get(events, (0, 0))
    # The edge is told by what was acknowledged; a receiver may have taken more than it offered: it offers no less.
    edge = rcv_acked + (offered << our_scale)
    if difference(edge, rcv_nxt) > 0x7FFFFFFF:
        edge = rcv_nxt
    guest = TcpFlow(
        guest_addr=inside[1],
        remote_addr=inside[0],
        guest_port=inside[3],
        remote_port=inside[2],
        mss=mss,
        guest_scale=guest_scale,
        our_scale=our_scale,
        inbound=int(inbound),
        sack_allowed=0,
        snd_una=snd_una,
        snd_nxt=snd_nxt,
        snd_window=told << guest_scale,
        rcv_nxt=rcv_nxt,
        rcv_acked=rcv_acked,
        rcv_edge=edge & 0xFFFFFFFF,
        irs=irs,
        guest_ended=ended[0],
        peer_ended=ended[1],
    )
    return Flow(guest, End(outside[0], outside[2]), End(outside[1], outside[3]), fault)


# ---- sockets ----


def pack_socket(socket: Socket) -> bytes:
    return _SOCKET.pack(
        socket.snd_seq,
        socket.rcv_seq,
        socket.send_queue,
        socket.not_sent,
        socket.receive_queue,
        socket.mss,
        socket.timestamp,
        socket.snd_wl1,
        socket.snd_wnd,
        socket.max_window,
        socket.rcv_wnd,
        socket.rcv_wup,
        socket.snd_scale,
        socket.rcv_scale,
        socket.state,
        socket.options,
    )


def unpack_socket(data: bytes) -> Socket:
    socket = Socket(*_SOCKET.unpack(data))
    if max(socket.send_queue, socket.receive_queue) > QUEUE_MAX:
        raise Malformed(
            f"it announces queues of {socket.send_queue} and {socket.receive_queue} bytes: {QUEUE_MAX} is the most"
        )
    if socket.not_sent > socket.send_queue:
        raise Malformed(f"of a queue of {socket.send_queue} bytes it says that {socket.not_sent} were not sent")
    return socket


def mismatch(flow: Flow, socket: Socket) -> str:
    """Why these two cannot be the ends of one connection; empty: they can."""
    in_flight = difference(flow.guest.snd_nxt, flow.guest.snd_una)
    if in_flight > socket.receive_queue:
        return f"{in_flight} bytes are under way to the guest, and {socket.receive_queue} are in the socket's queue"
    return ""
