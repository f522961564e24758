# SPDX-License-Identifier: Apache-2.0
"""The end of a link that the engine and the worker have: one link of core/datapath, with its counters and its epoll.

Called by the tests of the links. Adversary: nobody. Invariant: a link hears of an event as the worker has it, and of
nothing else.
"""

from __future__ import annotations

import select
import socket
from typing import Any

from core_pieces import COUNTERS, ffi, lib


class EngineEnd:
    """Of a `struct link_KIND`, which is `whole`; its epoll carries `source`."""

    def __init__(self, kind: str, source: int, *more: Any) -> None:
        self.source = source
        self.epoll = select.epoll()
        self.counters = ffi.new("uint64_t[]", len(COUNTERS))
        self.pcap: Any = ffi.new("struct pcap_ring *")
        self.whole: Any = ffi.new(f"struct link_{kind} *")
        init = getattr(lib, f"link_{kind}_init")
        assert init(self.whole, self.counters, self.pcap, self.epoll.fileno(), source, *more) == 0
        self.link = ffi.cast("struct link *", self.whole)  # the first member
        self.operations = self.link.operations
        self.frames, self.more = ffi.new("struct guest_frame[]", lib.LINK_BATCH), ffi.new("bool *")

    def lent(self) -> list[tuple[bytes, int]]:
        """One batch of frames, and how many bytes each of the datagrams in one has."""
        count = self.operations.from_guest(self.link, self.frames, self.more)
        got = []
        for frame in self.frames[0:count]:
            whole = bytes(ffi.buffer(frame.iov[0].iov_base, frame.iov[0].iov_len))
            assert frame.length == len(whole) and frame.iov_count == 1
            assert bytes(frame.head)[: frame.head_length] == whole[: lib.FRAME_HEAD_MAX]
            got.append((whole, int(frame.datagram)))
        self.operations.release(self.link)
        return got

    def batch(self) -> list[bytes]:
        return [frame for frame, _ in self.lent()]

    def reserve(self, header: int, payload: int) -> tuple[int, Any, Any]:
        pieces, room = ffi.new("struct payload_pieces *"), ffi.new("struct guest_room *")
        return int(self.operations.reserve(self.link, header, payload, pieces, room)), pieces, room

    def queue(self, frame: bytes, offload: Any = None) -> int:
        """Commits one frame, of which all but 14 bytes are payload; what reserve() said."""
        err, pieces, room = self.reserve(14, len(frame) - 14)
        if err:
            return err
        ffi.memmove(room.header[0].iov_base, frame[:14], 14)
        if len(frame) > 14:
            ffi.memmove(pieces.iov[0].iov_base, frame[14:], len(frame) - 14)
        self.operations.commit(self.link, len(frame), offload or ffi.new("struct offload *"))
        return 0

    def flush(self) -> None:
        self.operations.flush(self.link, 0)

    def count(self, name: str) -> int:
        return int(self.counters[COUNTERS.index(name)])


class SocketEnd(EngineEnd):
    """Of a link over a socket, with the monitor that it is connected to."""

    def __init__(self, kind: str, source: int, monitor: socket.socket) -> None:
        super().__init__(kind, source)
        self.socket = self.whole.socket
        self.monitor = monitor

    def everything(self) -> list[bytes]:
        """What an event brings; without one, nothing is there."""
        self.events()
        got = self.batch()
        while self.more[0]:
            got += self.batch()
        return got

    def events(self) -> int:
        """Of the link's socket, since the last time; the link hears of them."""
        seen = 0
        for source, mask in self.epoll.poll(0):
            assert source == self.source
            seen |= mask
            lib.link_socket_event(ffi.addressof(self.socket), mask)
        return seen

    def detach(self) -> None:
        lib.link_socket_detach(ffi.addressof(self.socket))

    def close(self) -> None:
        self.detach()
        self.monitor.close()
        self.epoll.close()
