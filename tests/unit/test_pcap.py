# SPDX-License-Identifier: Apache-2.0
"""plugin/pcap.py: frames out of the ring as they went in, in a file that others can read; and a ring that lies."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapReader

from lockgate.core._datapath import ffi, lib
from lockgate.plugin import pcap

HEAD, RING = lib.LG_PCAP_HEAD_BYTES, lib.LG_PCAP_RING_BYTES


class Ring:
    """The writer of the other side, byte by byte as datapath.h describes it: slow, and obviously right."""

    def __init__(self, start: int = 0, pages: bytearray | None = None) -> None:
        self.pages = bytearray(HEAD + RING) if pages is None else pages
        self.written = start
        self.head = ffi.cast("struct lg_pcap_head *", ffi.from_buffer(self.pages))
        self.head.written = self.head.read = start

    def put(self, data: bytes, time_ns: int = 0, port: int = 0, to_guest: bool = False) -> None:
        record = struct.pack("=QIHH", time_ns, len(data), port, to_guest) + data
        for byte in record + bytes(-len(record) % 8):
            self.pages[HEAD + self.written % RING] = byte
            self.written += 1
        self.head.written = self.written


frames = st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 2**62), st.integers(0, 65535), st.booleans()))


@given(frames, st.integers(0, 2 * RING // 8).map(lambda n: n * 8))
def test_frames_come_out_as_they_went_in(put: list[tuple[bytes, int, int, bool]], start: int) -> None:
    """Wherever in the ring they lie, around its end too; the room is free once they are released."""
    ring = Ring(start)
    reader = pcap.RingReader(ring.pages)
    for data, time_ns, port, to_guest in put:
        ring.put(data, time_ns, port, to_guest)
    got = reader.read()
    assert [(frame.data, frame.time_ns, frame.port, frame.to_guest) for frame in got] == put
    assert ring.head.read == start
    reader.release()
    assert ring.head.read == ring.written
    assert reader.read() == []


def test_a_frame_across_the_end_of_the_ring_is_whole() -> None:
    """Its head and its bytes are put together again."""
    for before in range(8, 64, 8):
        ring = Ring(RING - before)
        reader = pcap.RingReader(ring.pages)
        ring.put(bytes(range(100)))
        assert [frame.data for frame in reader.read()] == [bytes(range(100))]


def test_one_turn_reads_no_more_than_a_slice() -> None:
    """A full ring takes several turns, between which the loop serves others; nothing is lost."""
    ring = Ring()
    reader = pcap.RingReader(ring.pages)
    for _ in range(30):
        ring.put(bytes(60000))
    counts = []
    while got := reader.read():
        counts.append(len(got))
        reader.release()
    assert len(counts) > 1 and sum(counts) == 30


@pytest.mark.parametrize(
    ("written", "length"),
    [(RING + 8, 0), (8, 0), (16, 1), (4096, 70000), (4096, 4096), (1 << 63, 0)],
)
def test_a_ring_that_contradicts_itself_is_a_fault(written: int, length: int) -> None:
    """More written than fits, half a record, a frame beyond what is there, a frame beyond any frame."""
    ring = Ring()
    ring.pages[HEAD : HEAD + 16] = struct.pack("=QIHH", 0, length, 0, 0)
    ring.head.written = written
    with pytest.raises(pcap.RingFault):
        pcap.RingReader(ring.pages).read()


def test_the_file_is_read_by_others(tmp_path: Path) -> None:
    """scapy's reader sees times in microseconds, both lengths, and frames cut at the snapshot length."""
    path = tmp_path / "capture"
    long = bytes(pcap.SNAP_LENGTH + 14)
    given = [pcap.Frame(1_700_000_000_123_456_789, 0, False, b"a" * 60), pcap.Frame(0, 0, True, long)]
    path.write_bytes(pcap.FILE_HEADER + pcap.pack_frames(given))
    with RawPcapReader(str(path)) as reader:
        packets = list(reader)
    (first, first_meta), (second, second_meta) = packets
    assert first == b"a" * 60 and (first_meta.sec, first_meta.usec) == (1_700_000_000, 123_456)
    assert len(second) == pcap.SNAP_LENGTH and second_meta.wirelen == len(long)


def run_capture(path: Path, ring: Ring, ring_fd: int, breaking: bytes = b"") -> list[str]:
    """A whole capture of what is in the ring, woken once; what it said when it ended early."""

    async def capture() -> list[str]:
        said: list[str] = []
        event_fd = os.eventfd(1, os.EFD_NONBLOCK)
        file_fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        running = pcap.Capture(asyncio.get_running_loop(), ring_fd, event_fd, file_fd, said.append)
        while running.active and os.path.getsize(path) <= len(pcap.FILE_HEADER) and not said:
            await asyncio.sleep(0)
        running.finish()
        os.close(event_fd)
        os.close(file_fd)
        return said

    return asyncio.run(capture())


def shared_ring() -> tuple[Ring, int]:
    import mmap

    fd = os.memfd_create("ring")
    os.ftruncate(fd, HEAD + RING)
    return Ring(pages=mmap.mmap(fd, HEAD + RING)), fd  # type: ignore[arg-type]


def test_a_capture_writes_what_the_worker_signals(tmp_path: Path) -> None:
    """From the event to the file; finish() brings the rest."""
    ring, fd = shared_ring()
    for number in range(100):
        ring.put(bytes([number]) * 1000)
    assert run_capture(tmp_path / "capture", ring, fd) == []
    with RawPcapReader(str(tmp_path / "capture")) as reader:
        assert [data[0] for data, _ in reader] == list(range(100))


def test_what_found_no_room_is_told_at_the_end(tmp_path: Path) -> None:
    """A capture with gaps says so: the worker counts what it left out."""
    ring, fd = shared_ring()
    ring.put(b"x" * 60)
    ring.head.dropped = 3
    assert run_capture(tmp_path / "capture", ring, fd) == [
        "Capture: 3 frames found the ring full and are missing in the file"
    ]


def test_a_damaged_ring_ends_the_capture_and_nothing_else(tmp_path: Path) -> None:
    """One sentence; the file stays readable."""
    ring, fd = shared_ring()
    ring.head.written = RING + 8
    (said,) = run_capture(tmp_path / "capture", ring, fd)
    assert "ring is damaged" in said
    assert (tmp_path / "capture").read_bytes() == pcap.FILE_HEADER


def test_a_full_disk_ends_the_capture_and_nothing_else() -> None:
    """/dev/full refuses the first byte."""
    ring, fd = shared_ring()
    (said,) = run_capture(Path("/dev/full"), ring, fd)
    assert "No space left" in said
