# SPDX-License-Identifier: Apache-2.0
"""connection: the peer's end of a connection, read out of one socket and put into another (tcp(7), linux/tcp.h).

Called by move.py, for sockets that the repair helper has put into repair mode: then the kernel tells and takes
numbers and queues, and connect() and close() send nothing. What arrives meanwhile would be acknowledged, and be in no
queue that moves: hence the seal. The peer sends it again, to whoever goes on.

Adversary: what is put into a socket comes from another machine. stream.py has checked it; the kernel has the last word.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys

from lockgate.plugin.migration.stream import (
    FIN_WAIT2,
    MAPPED_PREFIX,
    OPTION_SACK,
    OPTION_SCALE,
    OPTION_TIMESTAMPS,
    OUR_END_UNDER_WAY_STATES,
    End,
    Socket,
)

_TCP = socket.IPPROTO_TCP
_REPAIR_QUEUE, _QUEUE_SEQ, _REPAIR_OPTIONS, _TIMESTAMP, _REPAIR_WINDOW = 20, 21, 22, 24, 29
_NO_QUEUE, _RECEIVE_QUEUE, _SEND_QUEUE = 0, 1, 2
_MIN_TTL, _MIN_HOPCOUNT = 21, 73  # IP_MINTTL, IPV6_MINHOPCOUNT
_TTL_MAX = 255
_PEEK_OFF = 42
_BUFFER_LOCK = 72  # SO_BUF_LOCK
_OUTQ, _OUTQ_NOT_SENT, _INQ = 0x5411, 0x894B, 0x541B  # SIOCOUTQ, SIOCOUTQNSD, SIOCINQ
_INFO_SIZE = 8  # of tcp_info: what is read here
_OPTION_MSS, _OPTION_SCALE, _OPTION_SACK, _OPTION_TIMESTAMPS = 2, 3, 4, 8  # TCPOPT_*
_WINDOW = struct.Struct("=5I")  # struct tcp_repair_window
_PIECE = 1 << 16  # about what one segment of a queue holds


def seal(sock: socket.socket) -> None:
    """Nothing that arrives from here on is taken or answered: the kernel drops segments that have come further than
    they may (RFC 5082). Those of a neighbour that begins with 255 hops are taken; hardly any does. (A packet filter
    would drop them as well; but newer kernels allow none on TCP without a capability.)"""
    _allow_hops(sock, _TTL_MAX)


def unseal(sock: socket.socket) -> None:
    _allow_hops(sock, 0)


def _allow_hops(sock: socket.socket, least: int) -> None:
    sock.setsockopt(socket.IPPROTO_IP, _MIN_TTL, least)  # of an IPv6 socket, for IPv4 addresses mapped into IPv6
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _MIN_HOPCOUNT, least)


def ends(sock: socket.socket) -> tuple[End, End]:
    """Ours and the peer's."""
    return _end(sock, sock.getsockname()), _end(sock, sock.getpeername())


def _end(sock: socket.socket, name: tuple[str, int]) -> End:
    text = name[0].partition("%")[0]
    raw = socket.inet_pton(sock.family, text)
    return End(MAPPED_PREFIX + raw if sock.family == socket.AF_INET else raw, name[1])


def send_buffer(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


# ---- out of a socket ----


def _queued(sock: socket.socket, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(sock, request, bytes(4)), sys.byteorder)


def _sequence(sock: socket.socket, queue: int) -> int:
    sock.setsockopt(_TCP, _REPAIR_QUEUE, queue)
    return sock.getsockopt(_TCP, _QUEUE_SEQ) & 0xFFFFFFFF


def read_state(sock: socket.socket) -> Socket:
    """Of a sealed socket in repair mode."""
    _stop_peeking_at_offset(sock)
    info = sock.getsockopt(_TCP, socket.TCP_INFO, _INFO_SIZE)
    scales = (info[6] & 0xF, info[6] >> 4)[:: 1 if sys.byteorder == "little" else -1]  # two bit fields of a C struct
    receive_end, receive_queue = _sequence(sock, _RECEIVE_QUEUE), _queued(sock, _INQ)
    # Left at the send queue: as long as it is chosen the kernel sends nothing new by itself.
    send_end, send_queue = _sequence(sock, _SEND_QUEUE), _queued(sock, _OUTQ)
    snd_seq, not_sent = send_end - send_queue, _queued(sock, _OUTQ_NOT_SENT)
    # Our FIN counts as a byte, which is in no queue; the other socket sends it again.
    if info[0] in OUR_END_UNDER_WAY_STATES:
        send_queue, not_sent = send_queue - 1, max(0, not_sent - 1)
    elif info[0] == FIN_WAIT2:
        snd_seq -= 1
    window = _WINDOW.unpack(sock.getsockopt(_TCP, _REPAIR_WINDOW, _WINDOW.size))
    return Socket(
        snd_seq=snd_seq & 0xFFFFFFFF,
        rcv_seq=(receive_end - receive_queue) & 0xFFFFFFFF,
        send_queue=send_queue,
        not_sent=min(not_sent, send_queue),
        receive_queue=receive_queue,
        mss=sock.getsockopt(_TCP, socket.TCP_MAXSEG),
        timestamp=sock.getsockopt(_TCP, _TIMESTAMP) & 0xFFFFFFFF,
        snd_wl1=window[0],
        snd_wnd=window[1],
        max_window=window[2],
        rcv_wnd=window[3],
        rcv_wup=window[4],
        snd_scale=scales[0],
        rcv_scale=scales[1],
        state=info[0],
        options=info[5],
    )


def _stop_peeking_at_offset(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _PEEK_OFF, -1)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # before Linux 6.9: nobody has set it either
            raise


def read_queue(sock: socket.socket, state: Socket, *, sending: bool) -> bytes:
    """All bytes of the send queue, or of the receive queue."""
    size = state.send_queue if sending else state.receive_queue
    if not size:
        return b""
    sock.setsockopt(_TCP, _REPAIR_QUEUE, _SEND_QUEUE if sending else _RECEIVE_QUEUE)
    data = sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    sock.setsockopt(_TCP, _REPAIR_QUEUE, _SEND_QUEUE)
    if len(data) != size:
        raise OSError(errno.EIO, f"{len(data)} of {size} bytes can be read of a queue")
    return data


# ---- into a socket ----


def _name(end: End, scope_id: int) -> tuple[object, ...]:
    if end.address.startswith(MAPPED_PREFIX):
        return socket.inet_ntop(socket.AF_INET, end.address[12:]), end.port
    local = end.address[:2] == b"\xfe\x80"
    return socket.inet_ntop(socket.AF_INET6, end.address), end.port, 0, scope_id if local else 0


def new_socket(local: End, scope_id: int) -> socket.socket:
    """A socket that is bound where the other one was, and not connected; to be put into repair mode."""
    family = socket.AF_INET if local.address.startswith(MAPPED_PREFIX) else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(_name(local, scope_id))
    except OSError:
        sock.close()
        raise
    return sock


def connect(sock: socket.socket, peer: End, state: Socket, scope_id: int) -> None:
    """Of a bound socket in repair mode: established from here on, though no segment was sent. It is sealed."""
    for queue, sequence in ((_SEND_QUEUE, state.snd_seq), (_RECEIVE_QUEUE, state.rcv_seq)):
        sock.setsockopt(_TCP, _REPAIR_QUEUE, queue)
        sock.setsockopt(_TCP, _QUEUE_SEQ, struct.pack("=I", sequence))
    seal(sock)
    sock.connect(_name(peer, scope_id))
    options = [(_OPTION_MSS, state.mss)]
    if state.options & OPTION_SCALE:
        options.append((_OPTION_SCALE, state.snd_scale | state.rcv_scale << 16))
    if state.options & OPTION_SACK:
        options.append((_OPTION_SACK, 0))
    if state.options & OPTION_TIMESTAMPS:
        options.append((_OPTION_TIMESTAMPS, 0))
        sock.setsockopt(_TCP, _TIMESTAMP, struct.pack("=I", state.timestamp))
    sock.setsockopt(_TCP, _REPAIR_OPTIONS, b"".join(struct.pack("=II", *option) for option in options))


def write_queues(sock: socket.socket, state: Socket, sent: bytes, received: bytes) -> None:
    """What was sent and not acknowledged, and what was received and not read; then the windows, which both move."""
    for queue, buffer, data in (
        (_RECEIVE_QUEUE, socket.SO_RCVBUF, received),
        (_SEND_QUEUE, socket.SO_SNDBUF, sent),
    ):
        sock.setsockopt(_TCP, _REPAIR_QUEUE, queue)
        _write(sock, data, buffer)
    window = _WINDOW.pack(state.snd_wl1, state.snd_wnd, state.max_window, state.rcv_wnd, state.rcv_wup)
    sock.setsockopt(_TCP, _REPAIR_WINDOW, window)
    sock.setsockopt(_TCP, _REPAIR_QUEUE, _NO_QUEUE)


def write_not_sent(sock: socket.socket, data: bytes, ended: bool) -> None:
    """What the other socket had still to send, once this one is out of repair mode; and the FIN, if it had one."""
    _write(sock, data, socket.SO_SNDBUF)
    if ended:
        sock.shutdown(socket.SHUT_WR)


def _write(sock: socket.socket, data: bytes, buffer: int) -> None:
    """The queues of a new socket are short, and grow with its connection; one that must hold more at once is widened.
    The kernel does that by itself to a receive queue, unless it is short of memory or may not make one that long."""
    left = memoryview(data)
    widened = False
    while left:
        try:
            left = left[sock.send(left[:_PIECE]) :]
        except OSError as failure:
            if failure.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
                raise
            if widened:
                raise OSError(errno.ENOBUFS, "a queue is longer than sockets may have them here") from None
            _widen(sock, buffer, 2 * len(data))
            widened = True


def _widen(sock: socket.socket, buffer: int, size: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, buffer, size)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _BUFFER_LOCK, 0)  # from here on the kernel goes on by itself
    except OSError as failure:
        if failure.errno != errno.ENOPROTOOPT:  # before Linux 5.14 it keeps this size
            raise
