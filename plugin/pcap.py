# SPDX-License-Identifier: Apache-2.0
"""The capture file: frames out of the ring that the worker fills, into pcap 2.4 with microseconds.

Called by control: `RingReader` and `pack_frames` are sans-io, `Capture` is their thin shell on the event loop.
Adversary: a worker that the guest has broken. It can write anything into the ring and its head, so that lengths are
checked against what is there, on a copy; a ring that contradicts itself ends the capture and nothing else.

Invariants: the ring's `read` moves only after its frames are in the file; work per wake-up is bounded by _SLICE.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from lockgate.core._datapath import ffi, lib

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

SNAP_LENGTH = 65535
LINKTYPE_ETHERNET = 1

# libpcap's savefile format (pcap-savefile(5)): magic, version, zone, accuracy, snapshot length, link type.
FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP_LENGTH, LINKTYPE_ETHERNET)
_FRAME_HEADER = struct.Struct("<IIII")

_RECORD_SIZE = ffi.sizeof("struct lg_pcap_record")
_FRAME_MAX = lib.LG_UP_BYTES_MAX
_SLICE = 256 * 1024  # of ring a wake-up: some milliseconds of Python, between which the loop serves others


class RingFault(Exception):
    """The ring contradicts itself; the text says how."""


class Frame(NamedTuple):
    time_ns: int
    port: int
    to_guest: bool
    data: bytes


class RingReader:
    """Reads frames from the shared pages, which are given as any writable buffer of their size."""

    def __init__(self, pages: Any) -> None:
        self._head = ffi.cast("struct lg_pcap_head *", ffi.from_buffer(pages, require_writable=True))
        self._data = memoryview(pages)[lib.LG_PCAP_HEAD_BYTES :]
        self._pages = pages  # the two above do not keep it
        self._read = self._at = int(self._head.read)  # ours from here on: the shared word is only told

    @property
    def dropped(self) -> int:
        """Frames that found no room."""
        return int(self._head.dropped)

    def read(self) -> list[Frame]:
        """The next frames, at most a slice of them. They stay in the ring until release()."""
        used = int(self._head.written) - self._read
        if not 0 <= used <= lib.LG_PCAP_RING_BYTES:
            raise RingFault(f"{used} bytes written but not read in a ring of {lib.LG_PCAP_RING_BYTES}")
        frames = []
        self._at = self._read
        end = self._at + min(used, _SLICE)
        limit = self._at + used
        while self._at < end:
            frames.append(self._frame(limit - self._at))
        return frames

    def release(self) -> None:
        """Gives the room of what read() returned back to the worker. The system call that stored the frames, made in
        between, orders this store after the reads on any processor."""
        self._head.read = self._read = self._at

    def _frame(self, available: int) -> Frame:
        if available < _RECORD_SIZE:
            raise RingFault(f"{available} bytes left where a record of {_RECORD_SIZE} should start")
        record = ffi.new("struct lg_pcap_record *")
        ffi.memmove(record, self._bytes(self._at, _RECORD_SIZE), _RECORD_SIZE)
        length = int(record.length)
        size = -(-(_RECORD_SIZE + length) // 8) * 8
        if length > _FRAME_MAX or size > available:
            raise RingFault(f"a frame of {length} bytes in the {available} bytes that are left")
        data = self._bytes(self._at + _RECORD_SIZE, length)
        self._at += size
        return Frame(int(record.time_ns), int(record.port), bool(record.to_guest), data)

    def _bytes(self, at: int, length: int) -> bytes:
        start = at % lib.LG_PCAP_RING_BYTES
        piece = bytes(self._data[start : start + length])
        return piece + bytes(self._data[: length - len(piece)])  # what wrapped around the end


def pack_frames(frames: Iterable[Frame]) -> bytes:
    """Records of a savefile. The snapshot length cuts what only TSO makes longer than it."""
    parts = []
    for frame in frames:
        seconds, nanoseconds = divmod(frame.time_ns, 1_000_000_000)
        data = frame.data[:SNAP_LENGTH]
        parts.append(_FRAME_HEADER.pack(seconds & 0xFFFFFFFF, nanoseconds // 1000, len(data), len(frame.data)))
        parts.append(data)
    return b"".join(parts)


class Capture:
    """Moves frames from the ring to the file whenever the worker signals, until a fault ends it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, ring_fd: int, event_fd: int, file_fd: int, ended: Callable[[str], None]
    ) -> None:
        size = lib.LG_PCAP_HEAD_BYTES + lib.LG_PCAP_RING_BYTES
        self._reader = RingReader(mmap.mmap(ring_fd, size))
        self._loop = loop
        self._event_fd = event_fd
        self._file_fd = file_fd
        self._ended = ended
        self.active = True
        loop.add_reader(event_fd, self._signalled)
        self._store(FILE_HEADER)

    def finish(self) -> None:
        """Writes what is left, on quitting; at most a full ring, whatever a worker still adds."""
        for _ in range(lib.LG_PCAP_RING_BYTES // _SLICE + 1):
            if not self.active or not self._move():
                break
        self._stop()
        if dropped := self._reader.dropped:
            self._ended(f"Capture: {dropped} frames found the ring full and are missing in the file")

    def _signalled(self) -> None:
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            return
        self._continue()

    def _continue(self) -> None:
        if self.active and self._move():
            self._loop.call_soon(self._continue)

    def _move(self) -> bool:
        """One slice; true if there may be more."""
        try:
            frames = self._reader.read()
        except RingFault as fault:
            self._fail(f"Capture stopped, the ring is damaged: {fault}")
            return False
        if not frames or not self._store(pack_frames(frames)):
            return False
        self._reader.release()
        return True

    def _store(self, data: bytes) -> bool:
        try:
            _write_all(self._file_fd, data)
        except OSError as failure:
            self._fail(f"Capture stopped, the file cannot be written: {failure.strerror}")
            return False
        return True

    def _fail(self, why: str) -> None:
        self._stop()
        self._ended(why)

    def _stop(self) -> None:
        if self.active:
            self.active = False
            self._loop.remove_reader(self._event_fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
