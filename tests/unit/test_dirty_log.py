# SPDX-License-Identifier: Apache-2.0
"""What the dirty log says, against what has become of the guest's memory: all of it is compared, byte by byte, before
and after whatever our two rings do. A page that changed without a mark would reach the other host as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from core_pieces import EXAMPLES, ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st
from virtqueue import LAYOUT, LEFT, NEXT, RINGS, WRITE, Descriptor, Driver, Link, Memory

RECEIVEQ, TRANSMITQ = lib.RECEIVEQ, lib.TRANSMITQ
MRG, LOG_ALL, EVENT_IDX = 1 << lib.VIRTIO_NET_F_MRG_RXBUF, 1 << lib.VHOST_F_LOG_ALL, 1 << lib.VIRTIO_RING_F_EVENT_IDX
PAGE = 4096
SIZE = 64  # of both rings
RECEIVE_RING, TRANSMIT_RING = RINGS.guest, RINGS.guest + 0x1FC0  # the second one's used ring begins in another page
BUFFERS = LEFT.guest - 0x2000 + 1234  # of the receiveq, one behind the other: at odd places, and across regions
FRAME = RINGS.guest + 0x80000


class Guest:
    """Both rings of a guest that is being migrated, and the log."""

    def __init__(self, features: int, vring_flags: int) -> None:
        self.memory = Memory()
        self.link = Link(self.memory, features)
        self.table = ffi.new("uint8_t[]", (1 << 22) // PAGE // 8)
        self.link.vhost.log.table, self.link.vhost.log.size = self.table, len(self.table)
        self.receiveq = Driver(self.memory, SIZE, base=RECEIVE_RING)
        self.transmitq = Driver(self.memory, SIZE, base=TRANSMIT_RING)
        self.placed = 0
        self.frames = ffi.new("struct guest_frame[]", lib.LINK_BATCH)
        for queue, driver in ((RECEIVEQ, self.receiveq), (TRANSMITQ, self.transmitq)):
            assert self.link.start(driver.setup(queue, vring_flags)) == 0

    def offer(self, size: int) -> None:
        index = self.receiveq.offered % SIZE
        self.receiveq.describe(index, Descriptor(BUFFERS + self.placed, size, WRITE))
        self.receiveq.offer(index)
        self.placed += size

    def send(self, size: int) -> None:
        """A frame in two pieces, which we read and never write."""
        index = 2 * self.transmitq.offered % SIZE
        self.transmitq.describe(index, Descriptor(FRAME, 12, NEXT, index + 1))
        self.transmitq.describe(index + 1, Descriptor(FRAME + 12, size))
        self.transmitq.offer(index)

    # ---- what the device does ----

    def take_frames(self) -> None:
        more = ffi.new("bool *")
        self.link.operations.from_guest(self.link.link, self.frames, more)
        self.link.operations.release(self.link.link)

    def give_frame(self, length: int) -> None:
        """A frame that is written byte by byte, as an engine would, where there is room."""
        room, pieces = ffi.new("struct guest_room *"), ffi.new("struct payload_pieces *")
        header, payload = 54, length - 54
        if self.link.operations.reserve(self.link.link, header, payload, pieces, room):
            self.link.operations.wait_room(self.link.link)
            return
        for piece in [*room.header[0 : room.header_count], *pieces.iov[0 : pieces.count]]:
            ffi.buffer(piece.iov_base, piece.iov_len)[:] = b"\xa5" * piece.iov_len
        self.link.operations.commit(self.link.link, header + room.payload, ffi.new("struct offload *"))

    def flush(self, now_ms: int) -> None:
        self.link.flush(now_ms)

    # ---- what became of it ----

    def image(self) -> list[bytes]:
        """All of the guest's memory, region by region."""
        return [self.memory.read(place.guest, place.end - place.guest) for place in LAYOUT]

    def changed_since(self, before: list[bytes]) -> set[int]:
        """The numbers of the pages that have other bytes now."""
        pages = set()
        for place, old, new in zip(LAYOUT, before, self.image(), strict=True):
            if old == new:  # at once, for what is mostly the case
                continue
            for page in range(place.guest // PAGE, (place.end - 1) // PAGE + 1):
                part = slice(max(page * PAGE - place.guest, 0), (page + 1) * PAGE - place.guest)
                if old[part] != new[part]:
                    pages.add(page)
        return pages

    def marks(self) -> set[int]:
        return {8 * at + bit for at, byte in enumerate(self.table) if byte for bit in range(8) if byte >> bit & 1}

    def may_be_written(self) -> set[int]:
        ours = set()
        for driver in (self.receiveq, self.transmitq):
            ours |= set(range(driver.used // PAGE, (driver.used + 6 + 8 * SIZE - 1) // PAGE + 1))
        return ours | set(range(BUFFERS // PAGE, (BUFFERS + max(self.placed, 1) - 1) // PAGE + 1))

    def close(self) -> None:
        self.link.vhost.log.table = ffi.NULL
        self.link.close()


@pytest.fixture(name="guests")
def fresh_guests() -> Iterator[Any]:
    made: list[Guest] = []

    def make(features: int, vring_flags: int = lib.LG_VRING_LOG) -> Guest:
        made.append(Guest(features, vring_flags))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


acts = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(80, 600)),
        st.tuples(st.just("send"), st.integers(60, 1500)),
        st.tuples(st.just("give"), st.integers(60, 1500)),
        st.tuples(st.sampled_from(["take", "flush"]), st.just(0)),
    ),
    max_size=25,
)


def act(guest: Guest, name: str, size: int, now_ms: int) -> None:
    if name == "offer" and guest.receiveq.offered < SIZE:
        guest.offer(size)
    elif name == "send" and guest.transmitq.offered < SIZE // 2:
        guest.send(size)
    elif name == "give":
        guest.give_frame(size)
    elif name == "take":
        guest.take_frames()
    elif name == "flush":
        guest.flush(now_ms)


@settings(max_examples=EXAMPLES)
@given(script=acts, event_idx=st.booleans(), merge=st.booleans())
def test_every_page_that_changes_is_marked_and_none_that_we_have_nothing_to_do_with(
    script: list[tuple[str, int]], event_idx: bool, merge: bool
) -> None:
    """Buffers, elements, both indexes, flags and avail_event."""
    guest = Guest(LOG_ALL | (EVENT_IDX if event_idx else 0) | (MRG if merge else 0), lib.LG_VRING_LOG)
    try:
        for step, (name, size) in enumerate([*script, ("take", 0), ("flush", 0)]):
            ffi.buffer(guest.table)[:] = bytes(len(guest.table))
            if name in ("offer", "send"):
                act(guest, name, size, step)
                assert guest.marks() == set(), "what the guest writes, its own side logs"
                continue
            before = guest.image()
            act(guest, name, size, step)
            assert guest.changed_since(before) <= guest.marks() <= guest.may_be_written()
    finally:
        guest.close()


@pytest.mark.parametrize("features", [MRG, MRG | EVENT_IDX])
def test_a_log_that_nobody_acknowledged_is_not_written(guests: Any, features: int) -> None:
    """VHOST_F_LOG_ALL turns it on, whatever is mapped."""
    guest = guests(features)
    guest.offer(2000)
    guest.send(100)
    guest.give_frame(1000)
    guest.take_frames()
    guest.flush(1)
    assert guest.marks() == set()


def test_a_used_ring_whose_flag_is_not_set_is_not_logged_but_buffers_are(guests: Any) -> None:
    """VHOST_VRING_F_LOG of SET_VRING_ADDR speaks of the used ring alone."""
    guest = guests(MRG | LOG_ALL, 0)
    guest.offer(2000)
    guest.send(100)
    guest.give_frame(1000)
    guest.take_frames()
    guest.flush(1)
    assert guest.marks() == set(range(BUFFERS // PAGE, (BUFFERS + 12 + 1000 - 1) // PAGE + 1))
