# SPDX-License-Identifier: Apache-2.0
"""core/datapath/link_vhost.c, frames from the guest: whatever shape their chains have, each arrives as it was sent, or
is dropped and counted; all buffers go back in order."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import pytest
from core_pieces import EXAMPLES, ffi, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st
from virtqueue import INDIRECT, LEFT, NEXT, RINGS, Descriptor, Driver, Link, Memory

TRANSMITQ, BATCH, HEAD = lib.TRANSMITQ, lib.LINK_BATCH, lib.FRAME_HEAD_MAX
INDIRECT_DESC, EVENT_IDX = 1 << lib.VIRTIO_RING_F_INDIRECT_DESC, 1 << lib.VIRTIO_RING_F_EVENT_IDX
HOST_USO = 1 << lib.VIRTIO_NET_F_HOST_USO
NET_HEADER = 12
TABLES = RINGS.guest + 0x20000  # indirect tables, 8 KiB for each chain
DATA = RINGS.guest + 0x90000
EDGE = LEFT.guest - 300  # data from here on lies in two regions, a longer row of frames in three


class Chain(NamedTuple):
    """Bytes of one chain, where they are cut into buffers, and how many of these are behind an indirect descriptor."""

    data: bytes
    cuts: list[int]
    indirect: int

    def parts(self) -> list[bytes]:
        ends = sorted({min(cut, len(self.data)) for cut in self.cuts} | {len(self.data)})
        return [self.data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


bodies = st.one_of(
    st.binary(max_size=40), st.builds(lambda n, b: bytes([b]) * n, st.integers(0, 1600), st.integers(0, 255))
)
chains = st.builds(Chain, bodies, st.lists(st.integers(0, 60), max_size=6), st.integers(0, 8))


class Guest:
    """A driver that puts chains into its ring one behind the other."""

    def __init__(self, size: int = 512, start: int = 0, at: int = DATA, features: int = INDIRECT_DESC) -> None:
        self.memory = Memory()
        self.link = Link(self.memory, features)
        self.driver = Driver(self.memory, size, start)
        assert self.link.start(self.driver.setup(TRANSMITQ)) == 0
        self.at = at
        self.free = 0
        self.heads: list[int] = []
        self.frames = ffi.new("struct guest_frame[]", BATCH)
        self._more = ffi.new("bool *")

    def put(self, chain: Chain) -> None:
        """Writes a chain: its first buffers directly, the last `indirect` of them in a table."""
        buffers = []
        for part in chain.parts():
            self.memory.write(self.at, part)
            buffers.append(Descriptor(self.at, len(part)))
            self.at += len(part) + 1
        inner = buffers[len(buffers) - min(chain.indirect, len(buffers)) :]
        direct = buffers[: len(buffers) - len(inner)]
        if inner:
            table = TABLES + 8192 * (len(self.heads) % 50)
            linked = [d._replace(flags=NEXT, next=at + 1) for at, d in enumerate(inner)]
            linked[-1] = inner[-1]
            self.memory.write(table, b"".join(d.packed() for d in linked))
            direct.append(Descriptor(table, 16 * len(inner), INDIRECT))
        self.heads.append(self.free)
        for at, descriptor in enumerate(direct):
            last = at + 1 == len(direct)
            flags = descriptor.flags | (0 if last else NEXT)
            self.driver.describe(self.free, descriptor._replace(flags=flags, next=self.free + 1))
            self.free += 1
        self.driver.offer(self.heads[-1])

    def batch(self) -> tuple[list[bytes], bool]:
        """One batch of frames, as the engine sees them, and whether there may be more."""
        count = self.link.operations.from_guest(self.link.link, self.frames, self._more)
        got = []
        for frame in self.frames[0:count]:
            pieces = [bytes(ffi.buffer(p.iov_base, p.iov_len)) for p in frame.iov[0 : frame.iov_count]]
            whole = b"".join(pieces)
            assert frame.length == len(whole)
            assert bytes(frame.head)[: frame.head_length] == whole[:HEAD]
            got.append(whole)
        return got, bool(self._more[0])

    def release(self) -> list[tuple[int, int]]:
        """Gives the batch back; what the driver then sees as used."""
        self.link.operations.release(self.link.link)
        assert self.driver.take_back() == [], "nothing is shown before the flush"
        self.link.flush()
        return self.driver.take_back()

    def everything(self) -> list[bytes]:
        got, more = [], True
        while more:
            frames, more = self.batch()
            got += frames
            self.release()
        return got

    def close(self) -> None:
        self.link.close()


@pytest.fixture(name="guest")
def fresh_guest() -> Any:
    guest = Guest()
    yield guest
    guest.close()


@settings(max_examples=3 * EXAMPLES)
@given(st.lists(chains, min_size=1, max_size=8), st.sampled_from([DATA, EDGE]), st.booleans(), st.booleans())
@example(
    [Chain(bytes(12), [], 0), Chain(bytes(11), [3], 0), Chain(b"", [], 0), Chain(bytes(13), [12], 2)], DATA, True, True
)
def test_each_frame_arrives_as_it_was_sent_or_is_counted(
    rows: list[Chain], at: int, event_idx: bool, capture: bool
) -> None:
    """Cut anywhere, the net header too; direct, indirect or both; over the edges of regions."""
    guest = Guest(at=at, features=INDIRECT_DESC | (EVENT_IDX if event_idx else 0))
    reader = guest.link.capture() if capture else None
    for row in rows:
        guest.put(row)
    got, more = guest.batch()
    expected = [row.data[NET_HEADER:] for row in rows if len(row.data) >= NET_HEADER]
    assert got == expected and not more
    assert guest.release() == [(head, 0) for head in guest.heads]
    assert guest.link.count("drop_short") == len(rows) - len(expected)
    assert guest.link.count("frames_from_guest") == len(expected)
    assert guest.link.count("bytes_from_guest") == sum(map(len, expected))
    if reader is not None:
        assert [(frame.data, frame.to_guest) for frame in reader.read()] == [(data, False) for data in expected]
    guest.close()


@pytest.mark.parametrize("length", [lib.FRAME_BYTES_MAX, lib.FRAME_BYTES_MAX + 1])
def test_the_largest_frame_passes_and_one_byte_more_is_dropped(guest: Guest, length: int) -> None:
    """65535 bytes of IPv6 payload behind its header and Ethernet's."""
    data = bytes(NET_HEADER) + bytes(range(256)) * 300
    guest.put(Chain(data[: NET_HEADER + length], [12, 4096, 40000], 0))
    got, _ = guest.batch()
    assert [len(frame) for frame in got] == ([length] if length <= lib.FRAME_BYTES_MAX else [])
    assert guest.link.count("drop_length") == (length > lib.FRAME_BYTES_MAX)
    assert guest.release() == [(0, 0)]


def test_a_batch_ends_at_its_limit_and_the_next_goes_on(guest: Guest) -> None:
    """Also when every frame of it was dropped."""
    for at in range(2 * BATCH + 5):
        guest.put(Chain(bytes(20) if at >= BATCH else b"short", [], 0))
    got, more = guest.batch()
    assert got == [] and more
    assert len(guest.release()) == BATCH
    got, more = guest.batch()
    assert len(got) == BATCH and more
    guest.release()
    got, more = guest.batch()
    assert len(got) == 5 and not more
    guest.release()


def test_chains_of_many_pieces_are_spread_over_batches(guest: Guest) -> None:
    """All that one sendmsg() takes is the limit of a batch; a chain without room is taken first in the next."""
    for at in range(4):
        guest.put(Chain(bytes([at]) * 400, list(range(12, 400)), 390))
    batches = []
    more = True
    while more:
        got, more = guest.batch()
        batches.append([frame[0] for frame in got])
        guest.release()
    assert [at for batch in batches for at in batch] == [0, 1, 2, 3]
    assert len(batches) == 2 and guest.link.fault(TRANSMITQ) == "none"


def test_a_chain_of_more_pieces_than_any_frame_stops_the_ring(guest: Guest) -> None:
    """Each one byte, none of which continues another."""
    pieces = lib.LINK_PIECES + 1
    table = b"".join(Descriptor(DATA + 2 * at, 1, NEXT, at + 1).packed() for at in range(pieces - 1))
    guest.memory.write(TABLES, table + Descriptor(DATA, 1).packed())
    guest.put(Chain(bytes(20), [], 0))
    guest.driver.describe(1, Descriptor(TABLES, 16 * pieces, INDIRECT))
    guest.driver.offer(1)
    got, more = guest.batch()
    assert len(got) == 1 and more, "it does not fit behind the first, and may fit alone"
    guest.release()
    assert guest.batch() == ([], False)
    assert guest.link.fault(TRANSMITQ) == "too_long"


def test_frames_before_a_fault_are_served(guest: Guest) -> None:
    """The ring stops at the chain that is broken, not before it; what was taken goes back."""
    guest.put(Chain(bytes(12) + b"good", [], 0))
    guest.driver.offer(511, 600)  # descriptor 511 is all zeros: a buffer of no bytes, which is no frame
    got, more = guest.batch()
    assert got == [b"good"] and not more
    assert guest.release() == [(0, 0), (511, 0)]
    assert guest.link.fault(TRANSMITQ) == "head_range" and guest.link.count("ring_faults") == 1
    guest.driver.offer(0)
    assert guest.batch() == ([], False)


def test_a_head_is_a_copy_that_the_guest_cannot_change(guest: Guest) -> None:
    """What was checked stays as it was checked, whatever the guest writes meanwhile."""
    guest.put(Chain(bytes(12) + b"honest frame", [12], 0))
    got, _ = guest.batch()
    assert got == [b"honest frame"]
    guest.memory.write(DATA + 13, b"changed later")
    assert bytes(guest.frames[0].head)[:12] == b"honest frame"


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_guest_is_asked_for_a_kick_only_when_all_was_taken(event_idx: bool) -> None:
    """While a batch is out the guest may add frames without a system call; then the next one kicks."""
    guest = Guest(features=EVENT_IDX if event_idx else 0)
    driver = guest.driver
    for turn in range(3):
        since = driver.offered
        for _ in range(BATCH):
            guest.put(Chain(bytes(20), [], 0))
        assert turn == 0 or driver.must_kick(since, event_idx), "we slept"
        _, more = guest.batch()
        assert more
        since = driver.offered
        guest.put(Chain(bytes(20), [], 0))
        if not event_idx or turn:
            assert not driver.must_kick(since, event_idx), "we are awake and look by ourselves"
        guest.release()
        guest.everything()
        assert driver.used_index() == driver.offered
        guest.heads.clear()
        guest.free = 0
    guest.close()


def test_a_disabled_ring_is_not_looked_at(guest: Guest) -> None:
    """VHOST_USER_SET_VRING_ENABLE 0: frames wait, and are not lost."""
    guest.put(Chain(bytes(12) + b"waits", [], 0))
    ring = guest.link.ring(TRANSMITQ)
    ring.enabled = False
    assert guest.batch() == ([], False)
    guest.release()
    ring.enabled = True
    assert guest.batch() == ([b"waits"], False)


def test_the_offload_header_of_the_guest_changes_nothing(guest: Guest) -> None:
    """Checksums of the guest's TCP payload end here, and the kernel makes segments of its own."""
    header = struct.pack("<BBHHHHH", 0xFF, 0x81, 65535, 1, 65535, 65535, 65535)
    guest.put(Chain(header + b"frame", [], 0))
    assert guest.batch() == ([b"frame"], False)


@pytest.mark.parametrize(
    ("features", "gso_type", "datagram"),
    [(HOST_USO, 5, 1200), (HOST_USO, 0x85, 1200), (HOST_USO, 1, 0), (HOST_USO, 0, 0), (0, 5, 0)],
)
@pytest.mark.parametrize("cut", [[], [3], [4, 5]])
def test_several_datagrams_in_a_frame_are_told_by_its_header(
    features: int, gso_type: int, datagram: int, cut: list[int]
) -> None:
    """UDP_L4 (virtio 1.3, 5.1.6), with or without the bit of ECN, and only where it was negotiated."""
    guest = Guest(features=INDIRECT_DESC | features)
    guest.put(Chain(struct.pack("<BBHHHHH", 1, gso_type, 42, 1200, 34, 6, 0) + bytes(60), cut, 0))
    guest.put(Chain(bytes(12) + bytes(60), [], 0))
    assert guest.batch()[0] == [bytes(60)] * 2
    assert [guest.frames[at].datagram for at in range(2)] == [datagram, 0]
    guest.close()
