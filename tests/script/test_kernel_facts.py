# SPDX-License-Identifier: Apache-2.0
"""Every fact of kernel_facts.py and splice_facts.py, against the real kernel (TCP over loopback) and the fake one.

Adversary: nobody. Invariant: both kernels answer the same assertions; where a fact is asked of the real kernel, what
the peer did has arrived before (poll() and SIOCINQ say so), so that nothing is timed.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterator

import kernel_facts
import pytest
import splice_facts  # noqa: F401 - further rows of the same table
from fake_core import ffi, lib
from kernel_facts import ET, FACTS, LOOKS, NEEDS_PEEK_OFF, Kernel

SO_PEEK_OFF, SO_MEMINFO = 42, 55  # asm-generic/socket.h; not in Python's socket module
MSG_TRUNC = 0x20
WMEM_QUEUED, SNDBUF, RCVBUF = 5, 3, 1  # words of SO_MEMINFO, linux/sock_diag.h
EPOLL_CTL_ADD, EPOLL_CTL_MOD = 1, 3  # sys/epoll.h
SOCKET_TYPE = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
LINGER_HARD = struct.pack("ii", 1, 0)
PATIENCE = 30  # seconds until something that must come has failed to
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.recv.restype = ctypes.c_ssize_t
LIBC.recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _result(call: Callable[[], int]) -> int:
    try:
        return call()
    except OSError as error:
        return -(error.errno or errno.EIO)


class RealKernel(Kernel):
    """TCP over loopback. Ours has a small send buffer, the peer a small receive buffer: both fill fast."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.listener.bind(("127.0.0.1", 0))
        self.epoll = select.epoll()
        self.ours = socket.socket()
        self.peer = socket.socket()
        self.more: list[socket.socket] = []
        self.pipe_ends: tuple[int, ...] = ()
        self.has_peek_off = not _result(lambda: self.peer.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0) or 0)

    def _socket(self) -> None:
        self.ours.setblocking(False)
        self.ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 262144)

    def _until_polled(self, events: int) -> None:
        poll = select.poll()
        poll.register(self.ours, events)
        assert poll.poll(PATIENCE * 1000), "it never arrived"

    def _queued_in(self) -> int:
        count = array.array("i", [0])
        fcntl.ioctl(self.ours, termios.FIONREAD, count)
        return count[0]

    def connect(self) -> None:
        self.listener.listen(1)
        self._socket()
        assert self.ours.connect_ex(self.listener.getsockname()) == errno.EINPROGRESS

    def accepted(self) -> None:
        self.peer, _ = self.listener.accept()
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer.settimeout(PATIENCE)
        self._until_polled(select.POLLOUT)

    def connect_refused(self) -> None:
        self._socket()  # the listener does not listen yet, and its port is nobody else's
        assert self.ours.connect_ex(self.listener.getsockname()) == errno.EINPROGRESS
        self._until_polled(0)

    def connect_to_silence(self) -> None:
        """To a listener whose backlog is full, which drops the SYN."""
        self._socket()
        self.listener.listen(0)
        self.more = [socket.create_connection(self.listener.getsockname(), PATIENCE)]
        assert self.ours.connect_ex(self.listener.getsockname()) == errno.EINPROGRESS

    def pipe(self, length: int) -> None:
        self.pipe_ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self.pipe_ends[1], fcntl.F_SETPIPE_SZ, length)

    def splice_in(self, length: int) -> int:
        return _result(lambda: os.splice(self.ours.fileno(), self.pipe_ends[1], length, flags=os.SPLICE_F_NONBLOCK))

    def splice_out(self, length: int) -> int:
        return _result(lambda: os.splice(self.pipe_ends[0], self.ours.fileno(), length, flags=os.SPLICE_F_NONBLOCK))

    def peek(self, length: int) -> int:
        return _result(lambda: len(self.ours.recv(length, socket.MSG_PEEK | socket.MSG_DONTWAIT)))

    def read(self, length: int) -> int:
        return _result(lambda: len(self.ours.recv(length, socket.MSG_DONTWAIT)))

    def discard(self, length: int) -> int:
        # recv() without a buffer, which Python's own does not offer
        n = int(LIBC.recv(self.ours.fileno(), None, length, MSG_TRUNC | socket.MSG_DONTWAIT))
        return -ctypes.get_errno() if n < 0 else n

    def write(self, length: int) -> int:
        return _result(lambda: self.ours.send(bytes(length), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL))

    def peek_off(self, offset: int) -> None:
        self.ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)

    def congestion(self, name: bytes) -> int:
        return _result(lambda: self.ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name) or 0)

    def shutdown(self) -> None:
        self.ours.shutdown(socket.SHUT_WR)

    def close(self, hard: bool = False) -> None:
        if hard:
            self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_HARD)
        self.ours.close()

    def so_error(self) -> int:
        return self.ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _memory(self) -> tuple[int, ...]:
        return struct.unpack("9I", self.ours.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))

    def send_memory(self) -> tuple[int, int]:
        words = self._memory()
        return words[WMEM_QUEUED], words[SNDBUF]

    def low_water(self, length: int) -> None:
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, length)

    def low_water_taken(self) -> int:
        return self.ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    def receive_limit(self) -> int:
        return self._memory()[RCVBUF]

    def answer_at_leisure(self) -> None:
        self.ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    def peer_waits_for_ack(self) -> bool:
        unanswered = array.array("i", [0])
        for _ in range(20):  # who is kept from the processor for as long as an ACK waits would see none
            self.peer_sends(1)
            fcntl.ioctl(self.peer, termios.TIOCOUTQ, unanswered)
            if unanswered[0]:
                return True
        return False

    def peer_sends(self, length: int, urgent: bool = False) -> None:
        before = self._queued_in()
        assert self.peer.send(bytes(length), socket.MSG_OOB if urgent else 0) == length
        for _ in range(LOOKS):
            if self._queued_in() >= before + length:
                return
            os.sched_yield()
        raise AssertionError("it never arrived")

    def peer_takes(self, length: int) -> None:
        if _result(lambda: len(self.peer.recv(length, socket.MSG_DONTWAIT))) < 0:
            os.sched_yield()

    def peer_closes(self) -> None:
        self.peer.shutdown(socket.SHUT_WR)
        self._until_polled(select.POLLRDHUP)

    def peer_resets(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_HARD)
        self.peer.close()
        self._until_polled(0)  # ERR and HUP belong to every poll()

    def peer_sees(self) -> str:
        try:
            while self.peer.recv(65536):
                pass
            return "FIN"
        except ConnectionResetError:
            return "RST"

    def watch(self, events: int) -> None:
        self.epoll.register(self.ours, events)

    def rewatch(self, events: int) -> None:
        self.epoll.modify(self.ours, events)

    def woken(self) -> int:
        events = self.epoll.poll(0, 1)
        return events[0][1] if events else 0

    def eventfd_outlives_one_of_two_descriptors(self) -> bool:
        first = os.eventfd(0, os.EFD_NONBLOCK)
        second = os.dup(first)
        self.epoll.register(first, select.EPOLLIN | ET)
        os.close(first)
        os.eventfd_write(second, 1)
        events = self.epoll.poll(0, 1)
        os.close(second)
        return events == [(first, select.EPOLLIN)]

    def end(self) -> None:
        self.epoll.close()
        for thing in (self.listener, self.ours, self.peer, *self.more):
            thing.close()
        for end in self.pipe_ends:
            os.close(end)


class FakeKernel(Kernel):
    """tests/script/fake_kernel.c, without a core."""

    has_peek_off = True

    def __init__(self) -> None:
        lib.fake_kernel_reset()
        lib.fake_defaults(262144, 1 << 20, 0, True)
        lib.fake_pipe_limits(256, 1)
        self.epoll = lib.fake_epoll()
        self.fd = -1

    def connect(self) -> None:
        self.fd = int(lib.sys_socket(socket.AF_INET, SOCKET_TYPE, 0))
        where = struct.pack("=HH12x", socket.AF_INET, 80)
        assert lib.sys_connect(self.fd, where, len(where)) == -errno.EINPROGRESS
        one = ffi.new("int *", 1)
        assert lib.sys_setsockopt(self.fd, socket.SOL_SOCKET, socket.SO_OOBINLINE, one, 4) == 0

    def accepted(self) -> None:
        assert lib.fake_peer_accept(self.fd) == 0

    def connect_to_silence(self) -> None:
        self.connect()

    def pipe(self, length: int) -> None:
        ends = ffi.new("int *"), ffi.new("int *")
        assert lib.fake_pipe(*ends, length) == 0
        self.pipe_ends = [int(end[0]) for end in ends]

    def splice_in(self, length: int) -> int:
        return int(lib.sys_splice(self.fd, self.pipe_ends[1], length))

    def splice_out(self, length: int) -> int:
        return int(lib.sys_splice(self.pipe_ends[0], self.fd, length))

    def connect_refused(self) -> None:
        self.connect()
        assert lib.fake_peer_refuse(self.fd, errno.ECONNREFUSED) == 0

    def _recv(self, length: int, flags: int) -> int:
        return int(lib.fake_recv(self.fd, ffi.new("char[]", length), length, flags | socket.MSG_DONTWAIT))

    def peek(self, length: int) -> int:
        return self._recv(length, socket.MSG_PEEK)

    def read(self, length: int) -> int:
        return self._recv(length, 0)

    def discard(self, length: int) -> int:
        return int(lib.sys_discard(self.fd, length))

    def write(self, length: int) -> int:
        view = lib.fake_socket_at(self.fd)
        payload = ffi.new("char[]", length)
        lib.fake_pattern_fill(view.stream_out, view.sent, payload, length)
        return int(lib.fake_send(self.fd, payload, length))

    def peek_off(self, offset: int) -> None:
        value = ffi.new("int *", offset)
        assert lib.sys_setsockopt(self.fd, socket.SOL_SOCKET, SO_PEEK_OFF, value, 4) == 0

    def congestion(self, name: bytes) -> int:
        return int(lib.sys_setsockopt(self.fd, socket.IPPROTO_TCP, socket.TCP_CONGESTION, name, len(name)))

    def shutdown(self) -> None:
        assert lib.sys_shutdown(self.fd, socket.SHUT_WR) == 0

    def close(self, hard: bool = False) -> None:
        if hard:
            assert lib.sys_setsockopt(self.fd, socket.SOL_SOCKET, socket.SO_LINGER, LINGER_HARD, len(LINGER_HARD)) == 0
        assert lib.sys_close(self.fd) == 0

    def so_error(self) -> int:
        value, length = ffi.new("int *"), ffi.new("uint32_t *", 4)
        assert lib.sys_getsockopt(self.fd, socket.SOL_SOCKET, socket.SO_ERROR, value, length) == 0
        return int(value[0])

    def _memory(self) -> list[int]:
        words = ffi.new("uint32_t[9]")
        assert lib.sys_getsockopt(self.fd, socket.SOL_SOCKET, SO_MEMINFO, words, ffi.new("uint32_t *", 36)) == 0
        return list(words)

    def send_memory(self) -> tuple[int, int]:
        words = self._memory()
        return words[WMEM_QUEUED], words[SNDBUF]

    def low_water(self, length: int) -> None:
        value = ffi.new("int *", length)
        assert lib.sys_setsockopt(self.fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, value, 4) == 0

    def low_water_taken(self) -> int:
        value = ffi.new("int *")
        length = ffi.new("uint32_t *", 4)
        assert lib.sys_getsockopt(self.fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, value, length) == 0
        return int(value[0])

    def receive_limit(self) -> int:
        return self._memory()[RCVBUF]

    def answer_at_leisure(self) -> None:
        value = ffi.new("int *", 0)
        assert lib.sys_setsockopt(self.fd, socket.IPPROTO_TCP, socket.TCP_QUICKACK, value, 4) == 0

    def peer_waits_for_ack(self) -> bool:
        return not lib.fake_socket_at(self.fd).quick_ack

    def peer_sends(self, length: int, urgent: bool = False) -> None:
        send = lib.fake_peer_send_urgent if urgent else lib.fake_peer_send
        assert send(self.fd, length) == length

    def peer_takes(self, length: int) -> None:
        assert lib.fake_peer_take(self.fd, length) >= 0

    def peer_closes(self) -> None:
        assert lib.fake_peer_fin(self.fd) == 0

    def peer_resets(self) -> None:
        assert lib.fake_peer_reset(self.fd) == 0

    def peer_sees(self) -> str:
        view = lib.fake_socket_at(self.fd)
        assert view.closed
        return "RST" if view.aborted else "FIN"

    def watch(self, events: int) -> None:
        assert lib.sys_epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.fd, events, 0) == 0

    def rewatch(self, events: int) -> None:
        assert lib.sys_epoll_ctl(self.epoll, EPOLL_CTL_MOD, self.fd, events, 0) == 0

    def woken(self) -> int:
        events, data = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        return int(events[0]) if lib.fake_epoll_wait_one(self.epoll, events, data) else 0

    def eventfd_outlives_one_of_two_descriptors(self) -> bool:
        first = lib.fake_eventfd()
        second = lib.fake_dup(first)
        assert lib.sys_epoll_ctl(self.epoll, EPOLL_CTL_ADD, first, kernel_facts.IN | ET, 0) == 0
        assert lib.sys_close(first) == 0
        assert lib.sys_eventfd_signal(second) == 0
        return self.woken() == kernel_facts.IN

    def end(self) -> None:
        violation = ffi.string(lib.fake_violation()).decode()
        lib.fake_kernel_reset()
        assert not violation, violation


@pytest.fixture(params=[RealKernel, FakeKernel], ids=["real", "fake"])
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    made: RealKernel | FakeKernel = request.param()
    yield made
    made.end()


@pytest.mark.parametrize("sentence", FACTS)
def test_fact(sentence: str, kernel: Kernel) -> None:
    """What kernel_facts.py says in this sentence is so."""
    if sentence in NEEDS_PEEK_OFF and not kernel.has_peek_off:
        pytest.skip("this kernel's TCP has no SO_PEEK_OFF (Linux has it since 6.9)")
    FACTS[sentence](kernel)
