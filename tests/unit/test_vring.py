# SPDX-License-Identifier: Apache-2.0
"""core/datapath/vring.c against the slow device of virtqueue.py: chains, faults, indexes that wrap, who tells whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from core_pieces import EXAMPLES, ffi, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from virtqueue import (
    HIGH,
    INDIRECT,
    LEFT,
    NEXT,
    NO_INTERRUPT,
    RIGHT,
    RINGS,
    USER_SHIFT,
    WRITE,
    Buffers,
    Descriptor,
    Driver,
    Link,
    Memory,
    iovecs,
    joined,
    slow_walk,
)

INDIRECT_DESC, EVENT_IDX = 1 << lib.VIRTIO_RING_F_INDIRECT_DESC, 1 << lib.VIRTIO_RING_F_EVENT_IDX
LOG_ALL = 1 << lib.VHOST_F_LOG_ALL
SCRATCH = RINGS.guest + 0xE0000  # behind the largest ring
TABLES = (LEFT.guest + 0x100, LEFT.end - 48, RIGHT.guest + 8, SCRATCH + 4, LEFT.end - 24)


class Ring:
    """One running ring, its driver, and room for what a chain gives."""

    def __init__(
        self, size: int, start: int = 0, writable: bool = False, features: int = INDIRECT_DESC, most: int = 1024
    ) -> None:
        self.memory = Memory()
        self.link = Link(self.memory, features)
        self.driver = Driver(self.memory, size, start)
        self.queue = lib.RECEIVEQ if writable else lib.TRANSMITQ
        self.writable = writable
        self.indirect = bool(features & INDIRECT_DESC)
        assert self.link.start(self.driver.setup(self.queue)) == 0
        self.ring = self.link.ring(self.queue)
        self.iov = ffi.new("struct iovec[]", lib.LINK_PIECES)
        self.most = most

    @property
    def fault(self) -> str:
        return self.link.fault(self.queue)

    def take(self, addresses: bool = False) -> tuple[int, list[tuple[int, int]]]:
        """The head, or the error, and the pieces of the next chain."""
        guest = ffi.new("uint64_t[]", lib.LINK_PIECES) if addresses else ffi.NULL
        pieces = ffi.new("struct vring_pieces *", {"iov": self.iov, "max": self.most, "guest_addr": guest})
        head = ffi.new("uint16_t *")
        err = lib.vring_take(self.ring, pieces, head)
        found = iovecs(self.iov, pieces.count)
        assert pieces.bytes == sum(size for _, size in found)
        if addresses:
            for at, piece in enumerate(found):
                assert self.link.host(guest[at], piece[1]) == [piece], "the log must name the page that is written"
        return (err if err else head[0]), found

    def expected(self, head: int) -> Buffers | set[str]:
        return slow_walk(self.memory, self.driver, head, self.writable, self.indirect)

    def expected_pieces(self, buffers: Buffers) -> list[tuple[int, int]]:
        return [span for addr, length in buffers.parts for span in self.link.host(addr, length)]

    def close(self) -> None:
        self.link.close()


@pytest.fixture(name="rings")
def fresh_rings() -> Iterator[Any]:
    made: list[Ring] = []

    def make(*args: Any, **kwargs: Any) -> Ring:
        made.append(Ring(*args, **kwargs))
        return made[-1]

    yield make
    for ring in made:
        ring.close()


# ---- any descriptors ----

addresses = st.one_of(
    st.sampled_from([LEFT.guest, LEFT.end - 1, LEFT.end - 4, RIGHT.end - 4, RIGHT.end, HIGH.guest, HIGH.end - 1]),
    st.sampled_from([0, LEFT.guest - 1, 2**64 - 1, 2**64 - 8, RINGS.guest, LEFT.guest + USER_SHIFT]),
    st.integers(LEFT.guest, LEFT.end - 64),
)
lengths = st.one_of(st.integers(0, 40), st.sampled_from([0x2000, 0x5000, 0x5001, 2**31, 2**32 - 1]))


@st.composite
def descriptors(draw: st.DrawFn, entries: int, writable: bool, inside: bool = False) -> Descriptor:
    """Mostly what a driver could write, now and then with one field that no driver would."""
    kind = draw(st.sampled_from(["buffer"] * 8 + ["indirect"] * (1 if inside else 3) + ["any"]))
    if kind == "any":
        return Descriptor(draw(addresses), draw(lengths), draw(st.integers(0, 65535)), draw(st.integers(0, 65535)))
    following = draw(st.integers(0, entries if draw(st.integers(0, 9)) == 0 else entries - 1))
    more = NEXT if draw(st.booleans()) else 0
    if kind == "indirect":
        length = (
            16 * draw(st.integers(1, 4)) if draw(st.integers(0, 9)) else draw(st.sampled_from([0, 8, 17, 2**32 - 16]))
        )
        flags = INDIRECT | (more if draw(st.integers(0, 4)) == 0 else 0) | (WRITE if draw(st.booleans()) else 0)
        return Descriptor(draw(st.sampled_from(TABLES)), length, flags, following)
    length = draw(st.integers(0, 40)) if draw(st.integers(0, 5)) else draw(lengths)
    addr = draw(st.integers(LEFT.guest, RIGHT.end - 40)) if draw(st.integers(0, 5)) else draw(addresses)
    wrong = draw(st.integers(0, 9)) == 0
    return Descriptor(addr, length, more | (WRITE if writable != wrong else 0), following)


@st.composite
def tables(draw: st.DrawFn) -> tuple[bool, list[Descriptor], list[list[Descriptor]]]:
    """Direction, the ring's own table, and what the indirect tables hold."""
    writable = draw(st.booleans())
    size = draw(st.sampled_from([1, 2, 4, 8]))
    own = draw(st.lists(descriptors(size, writable), min_size=size, max_size=size))
    inner = st.lists(descriptors(4, writable, inside=True), min_size=4, max_size=4)
    return writable, own, [draw(inner) for _ in TABLES]


@settings(max_examples=8 * EXAMPLES)
@given(tables(), st.integers(0, 8), st.booleans(), st.booleans())
def test_any_chain_is_read_as_the_slow_device_reads_it(
    table: tuple[bool, list[Descriptor], list[list[Descriptor]]], head: int, indirect: bool, addresses: bool
) -> None:
    """The same buffers in the same order, or a fault that the chain deserves; direct, indirect, and over the edges."""
    writable, own, inner = table
    ring = Ring(len(own), writable=writable, features=INDIRECT_DESC if indirect else 0)
    for at, rows in zip(TABLES, inner, strict=True):
        ring.memory.write(at, b"".join(row.packed() for row in rows))
    for index, descriptor in enumerate(own):
        ring.driver.describe(index, descriptor)
    ring.driver.offer(head)
    assert lib.vring_waiting(ring.ring) == 1
    expected = ring.expected(head)
    got, pieces = ring.take(addresses)
    if isinstance(expected, Buffers):
        assert (got, ring.fault) == (head, "none")
        assert joined(pieces) == joined(ring.expected_pieces(expected))
        assert lib.vring_waiting(ring.ring) == 0
    else:
        assert got == -22 and ring.fault in expected
        assert pieces == [] and lib.vring_waiting(ring.ring) == 0
        assert not lib.vring_usable(ring.ring)
    ring.close()


# ---- single faults, by name ----


@pytest.mark.parametrize(
    ("table", "head", "fault"),
    [
        ([Descriptor(LEFT.guest, 8, NEXT, 1), Descriptor(LEFT.guest, 8, NEXT, 0)], 0, "loop"),
        ([Descriptor(LEFT.guest, 0, NEXT, 0)], 0, "loop"),
        ([Descriptor(LEFT.guest, 8)], 2, "head_range"),
        ([Descriptor(LEFT.guest, 8)], 65535, "head_range"),
        ([Descriptor(LEFT.guest, 8, NEXT, 2)], 0, "next_range"),
        ([Descriptor(LEFT.guest, 8, WRITE)], 0, "direction"),
        ([Descriptor(LEFT.guest, 8, NEXT, 1), Descriptor(LEFT.guest, 8, WRITE)], 0, "direction"),
        ([Descriptor(0, 1)], 0, "address"),
        ([Descriptor(RIGHT.end - 1, 2)], 0, "address"),
        ([Descriptor(2**64 - 1, 2)], 0, "address"),
        ([Descriptor(LEFT.guest + USER_SHIFT, 1)], 0, "address"),
        ([Descriptor(SCRATCH, 0, INDIRECT)], 0, "indirect"),
        ([Descriptor(SCRATCH, 24, INDIRECT)], 0, "indirect"),
        ([Descriptor(RIGHT.guest, 16, INDIRECT | NEXT, 1)], 0, "indirect"),  # alone, the table of zeros is a good one
        (
            [Descriptor(RIGHT.guest, 16 * 32769, INDIRECT)],
            0,
            "indirect",
        ),  # longer than any ring, though its first is good
        ([Descriptor(SCRATCH, 16, INDIRECT)], 0, "indirect"),  # whose one entry, zeros and INDIRECT, is nested
        ([Descriptor(0, 16, INDIRECT)], 0, "address"),
        ([Descriptor(SCRATCH + 4, 16, INDIRECT)], 0, "address"),
    ],
)
def test_what_no_driver_may_write_stops_the_ring(rings: Any, table: list[Descriptor], head: int, fault: str) -> None:
    """Each rule has its own name, so that a person can say what the guest did."""
    ring = rings(2)
    ring.memory.write(SCRATCH, Descriptor(SCRATCH, 16, INDIRECT).packed())
    for index, descriptor in enumerate(table):
        ring.driver.describe(index, descriptor)
    ring.driver.offer(head)
    assert lib.vring_waiting(ring.ring) == 1
    assert ring.take() == (-22, [])
    assert ring.fault == fault
    ring.driver.offer(0)
    assert lib.vring_waiting(ring.ring) == 0, "it stays stopped"


def test_a_buffer_that_may_not_be_written_stops_the_receiveq(rings: Any) -> None:
    """Alone, or behind one that may."""
    for table in ([Descriptor(LEFT.guest, 8)], [Descriptor(LEFT.guest, 8, WRITE | NEXT, 1), Descriptor(LEFT.guest, 8)]):
        ring = rings(2, writable=True)
        for index, descriptor in enumerate(table):
            ring.driver.describe(index, descriptor)
        ring.driver.offer(0)
        assert lib.vring_waiting(ring.ring) == 1
        assert ring.take() == (-22, []) and ring.fault == "direction"


def test_an_indirect_table_that_was_not_negotiated_stops_the_ring(rings: Any) -> None:
    """The flag has a meaning only with the feature."""
    ring = rings(1, features=0)
    ring.memory.write(SCRATCH, Descriptor(LEFT.guest, 8).packed())
    ring.driver.describe(0, Descriptor(SCRATCH, 16, INDIRECT))
    ring.driver.offer(0)
    assert lib.vring_waiting(ring.ring) == 1
    assert ring.take()[0] == -22 and ring.fault == "indirect"


@pytest.mark.parametrize("size", [1, 2, 256, 32768])
def test_an_index_that_jumps_beyond_the_ring_stops_it(rings: Any, size: int) -> None:
    """A ring can hold as many chains as it has descriptors; one more is a guest that has lost its mind."""
    full, broken, late = rings(size), rings(size), rings(size)
    full.driver.jump(size)
    assert lib.vring_waiting(full.ring) == size and full.fault == "none"
    broken.driver.jump(size + 1)
    assert lib.vring_waiting(broken.ring) == 0 and broken.fault == "avail_index"
    late.driver.jump(65535)
    assert not lib.vring_ask_kick(late.ring)
    assert late.fault == "avail_index"


def test_an_index_that_goes_back_stops_the_ring(rings: Any) -> None:
    """To us it is the same as one that jumped nearly all the way round."""
    ring = rings(4, start=7)
    ring.driver.jump(-1)
    assert lib.vring_waiting(ring.ring) == 0 and ring.fault == "avail_index"


def chain_of(ring: Ring, parts: list[tuple[int, int]]) -> None:
    """Offers one chain of many descriptors."""
    for at, (addr, length) in enumerate(parts):
        last = at + 1 == len(parts)
        ring.driver.describe(
            at, Descriptor(addr, length, WRITE * ring.writable | (0 if last else NEXT), 0 if last else at + 1)
        )
    ring.driver.offer(0)


@pytest.mark.parametrize("size", [1, 4, 1024, 32768])
def test_a_chain_may_use_every_descriptor_of_its_ring(rings: Any, size: int) -> None:
    """The limit against loops lets the longest honest chain pass; most of these have no bytes."""
    ring = rings(size)
    parts = [(LEFT.guest, 0)] * (size - 1) + [(LEFT.guest, 64)]
    chain_of(ring, parts)
    assert lib.vring_waiting(ring.ring) == 1
    assert ring.take() == (0, ring.link.host(LEFT.guest, 64))


@settings(max_examples=3 * EXAMPLES)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 8), st.integers(0, 4), st.booleans())
def test_a_chain_without_room_stays_and_one_that_never_fits_stops_the_ring(
    lengths: list[int], most: int, before: int, addresses: bool
) -> None:
    """Every second byte of memory, so that no two pieces become one."""
    ring = Ring(8, most=most)
    chain_of(ring, [(LEFT.guest + 4 * at, length) for at, length in enumerate(lengths)])
    assert lib.vring_waiting(ring.ring) == 1
    guest = ffi.new("uint64_t[]", 16) if addresses else ffi.NULL
    before = min(before, most)
    pieces = ffi.new("struct vring_pieces *", {"iov": ring.iov, "guest_addr": guest, "max": most, "count": before})
    pieces.bytes = 77
    err = lib.vring_take(ring.ring, pieces, ffi.new("uint16_t *"))
    if sum(map(bool, lengths)) <= most - before:
        assert (err, pieces.count, pieces.bytes) == (0, before + sum(map(bool, lengths)), 77 + sum(lengths))
    else:
        assert (pieces.count, pieces.bytes) == (before, 77)
        assert (err, ring.fault) == ((-11, "none") if before else (-22, "too_long"))
        assert lib.vring_waiting(ring.ring) == (1 if before else 0)
    ring.close()


# ---- a life of a ring ----

starts = st.one_of(st.just(0), st.integers(65530, 65535), st.integers(0, 65535))


class Life(RuleBasedStateMachine):
    """A driver and our device on one ring, in any order of steps that either may take."""

    def __init__(self) -> None:
        super().__init__()
        self.ring: Ring | None = None
        self.driver: Driver
        self.event_idx = False
        self.free: list[int] = []
        self.heads: list[int] = []  # in the avail ring, not taken
        self.taken: list[int] = []
        self.finished: list[tuple[int, int]] = []
        self.known = 0  # chains that waiting() or ask_kick() has told of, ever
        self.asked: int | None = None  # the chain that we want to be told of; None: none
        self.published = 0
        self.called, self.called_before = 0, False  # the second: what was called before the start, nobody knows

    @initialize(
        size=st.sampled_from([1, 2, 4, 8, 256, 32768]), start=starts, event_idx=st.booleans(), writable=st.booleans()
    )
    def begin(self, size: int, start: int, event_idx: bool, writable: bool) -> None:
        self.event_idx = event_idx
        self.ring = Ring(size, start, writable, EVENT_IDX if event_idx else 0)
        self.driver = self.ring.driver
        self.free = list(range(min(size, 12)))
        for head in self.free:
            self.driver.describe(head, Descriptor(LEFT.guest + 16 * head, 8, WRITE * writable))
        self.known = self.published = self.called = start
        # Before anybody asks: an event index of 0, or flags of 0, which want every kick.
        self.asked = None if event_idx else start

    def teardown(self) -> None:
        if self.ring is not None:
            self.ring.close()

    @property
    def vring(self) -> Any:
        assert self.ring is not None
        return self.ring.ring

    @property
    def next_avail(self) -> int:
        return self.driver.offered - len(self.heads)

    @precondition(lambda self: self.free)
    @rule(count=st.integers(1, 5), pick=st.randoms(use_true_random=False))
    def offer(self, count: int, pick: Any) -> None:
        chosen = [self.free.pop(pick.randrange(len(self.free))) for _ in range(min(count, len(self.free)))]
        since = self.driver.offered
        self.driver.offer(*chosen)
        self.heads += chosen
        kicks = self.driver.must_kick(since, self.event_idx)
        if self.asked is not None and since <= self.asked < self.driver.offered:
            assert kicks, "what we asked to be told of, we are told of"
        if self.event_idx and self.asked is not None and self.driver.offered <= self.asked:
            assert not kicks

    @rule()
    def wait(self) -> None:
        waiting = lib.vring_waiting(self.vring)
        assert (waiting == 0) == (not self.heads)
        assert waiting <= len(self.heads)
        self.known = max(self.known, self.next_avail + waiting)

    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        assert self.ring is not None
        for _ in range(count):
            self.wait()
            if not self.heads:
                return
            head, pieces = self.ring.take()
            assert head == self.heads.pop(0), "first offered, first taken"
            assert pieces == self.ring.link.host(LEFT.guest + 16 * head, 8)
            self.taken.append(head)

    @precondition(lambda self: self.taken)
    @rule(count=st.integers(1, 5))
    def give_back(self, count: int) -> None:
        count = min(count, len(self.taken))
        lib.vring_untake(self.vring, count)
        self.heads = self.taken[-count:] + self.heads
        del self.taken[-count:]

    @precondition(lambda self: self.taken)
    @rule(count=st.integers(1, 5), written=st.integers(0, 2**32 - 1))
    def finish(self, count: int, written: int) -> None:
        for head in self.taken[:count]:
            lib.vring_finish(self.vring, head, written)
            self.finished.append((head, written))
        del self.taken[:count]

    @rule(settle=st.booleans())
    def publish(self, settle: bool) -> None:
        assert lib.vring_publish(self.vring) == bool(self.finished)
        self.published += len(self.finished)
        assert self.driver.used_index() == self.published
        assert self.driver.take_back() == self.finished, "each element was there before the index"
        self.free += [head for head, _ in self.finished]
        self.finished.clear()
        assert lib.vring_wants_call(self.vring) == self._wants_call()
        if settle:
            lib.vring_called(self.vring)
            self.called, self.called_before = self.published, True

    def _wants_call(self) -> bool:
        uncalled = range(self.called, self.published)
        if not uncalled or not self.event_idx:
            return bool(uncalled) and not self.flags & NO_INTERRUPT
        return not self.called_before or any(index % 65536 == self.event for index in uncalled)

    flags, event = 0, 0

    @rule(flags=st.integers(0, 1), ahead=st.integers(-3, 4), event=st.none() | st.integers(0, 65535))
    def driver_says_when_to_call(self, flags: int, ahead: int, event: int | None) -> None:
        self.flags = flags
        self.event = (self.driver.taken_back + ahead if event is None else event) % 65536
        self.driver.want_calls(self.flags, self.event)

    @rule()
    def ask_kick(self) -> None:
        news = lib.vring_ask_kick(self.vring)
        assert news == (self.driver.offered > self.known), "sleep only if all that is there was seen"
        self.asked = self.known
        self.known = self.driver.offered

    @rule()
    def spare_kick(self) -> None:
        lib.vring_spare_kick(self.vring)
        if not self.event_idx:
            self.asked = None
            assert not self.driver.must_kick(self.driver.offered, False)


LifeTest = Life.TestCase
LifeTest.settings = settings(max_examples=2 * EXAMPLES, stateful_step_count=50)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("size", [1, 2, 16, 32768])
def test_the_sixteen_bit_indexes_wrap_around(rings: Any, size: int, event_idx: bool) -> None:
    """Chains go through each ring in order across 65535, with one call and one kick a batch as each side asks."""
    ring = rings(size, start=65535 - 3 * min(size, 20), features=EVENT_IDX if event_idx else 0)
    batch = min(size, 7)
    for head in range(batch):
        ring.driver.describe(head, Descriptor(LEFT.guest + head, 1))
    for turn in range(20):
        since = ring.driver.offered
        ring.driver.offer(*range(batch))
        assert turn == 0 or ring.driver.must_kick(since, event_idx)
        assert lib.vring_waiting(ring.ring) == batch
        for head in range(batch):
            assert ring.take()[0] == head
            lib.vring_finish(ring.ring, head, turn)
        ring.driver.want_calls(0, ring.driver.offered - 1)
        assert lib.vring_publish(ring.ring) and lib.vring_wants_call(ring.ring)
        lib.vring_called(ring.ring)
        assert ring.driver.take_back() == [(head, turn) for head in range(batch)]
        assert not lib.vring_ask_kick(ring.ring)
    assert ring.driver.offered > 65536


def test_an_event_index_at_the_wrap_is_not_missed(rings: Any) -> None:
    """The driver asks to be called for the element 65535: it is, and for the next one, 0, it is not."""
    ring = rings(4, start=65534, features=EVENT_IDX)
    ring.driver.describe(0, Descriptor(LEFT.guest, 1))
    answers = []
    for _ in range(4):
        ring.driver.offer(0)
        ring.driver.want_calls(0, 65535)
        assert lib.vring_waiting(ring.ring) == 1
        lib.vring_finish(ring.ring, ring.take()[0], 0)
        lib.vring_publish(ring.ring)
        answers.append(lib.vring_wants_call(ring.ring))
        lib.vring_called(ring.ring)
    assert answers == [True, True, False, False]  # the first: nobody knows what was called before


# ---- what the dirty log hears ----


@settings(max_examples=EXAMPLES)
@given(st.sampled_from([1, 8, 1024, 32768]), st.integers(0, 65535), st.booleans(), st.integers(1, 3))
@example(1024, 509, True, 2)
def test_writes_to_a_used_ring_are_logged_page_by_page(size: int, start: int, event_idx: bool, count: int) -> None:
    """Exactly the pages of the elements, the index, and the word that asks for kicks or spares them."""
    ring = Ring(size, start, features=LOG_ALL | (EVENT_IDX if event_idx else 0))
    table = ffi.new("uint8_t[]", (RINGS.end // 4096 + 7) // 8)
    ring.link.vhost.log.table, ring.link.vhost.log.size = table, len(table)
    setup = ring.driver.setup(ring.queue, lib.LG_VRING_LOG)
    assert ring.link.start(setup) == 0

    def logged() -> set[int]:
        pages = {at * 8 + bit for at, byte in enumerate(table) for bit in range(8) if byte >> bit & 1}
        ffi.buffer(table)[:] = bytes(len(table))
        return pages

    count = min(count, size)
    ring.driver.jump(count)
    for index in range(start, start + count):
        lib.vring_finish(ring.ring, 0, 1)
        first = ring.driver.used + 4 + 8 * (index % size)
        assert logged() == {first // 4096, (first + 7) // 4096}
    lib.vring_publish(ring.ring)
    assert logged() == {(ring.driver.used + 2) // 4096}
    lib.vring_ask_kick(ring.ring)
    assert logged() == {(ring.driver.used + 4 + 8 * size if event_idx else ring.driver.used) // 4096}
    lib.vring_spare_kick(ring.ring)
    assert logged() == (set() if event_idx else {ring.driver.used // 4096})
    assert ring.link.vhost.log.dirtied
    ring.link.vhost.log.table = ffi.NULL
    ring.close()
