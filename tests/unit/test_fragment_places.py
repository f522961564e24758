# SPDX-License-Identifier: Apache-2.0
"""core/datapath/fragments.c against a slow model of the same rules, whatever the pieces are; and its limits."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from core_pieces import COUNTERS, EXAMPLES, ffi, iovec_array, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st

HEAD_MAX = lib.FRAME_HEAD_MAX
TIMEOUT_MS = lib.FRAGMENTED_TIMEOUT_MS
UDP, TCP = 17, 6
SOURCE, DESTINATION = bytes((192, 0, 2, 15)), bytes((198, 51, 100, 7))


@dataclass(frozen=True)
class Piece:
    """Of a packet whose bytes are `content`: what lies at start, in units of 8 bytes, of so many bytes."""

    start: int
    length: int
    more: bool

    @property
    def end(self) -> int:
        return 8 * self.start + self.length

    def units(self) -> set[int]:
        return set(range(self.start, self.start + (self.length + 7) // 8))

    def frame(self, content: bytes, number: int = 1, protocol: int = UDP, source: bytes = SOURCE) -> bytes:
        payload = content[8 * self.start : self.end].ljust(self.length, b"?")
        flags = self.more << 13 | self.start
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + self.length, number, flags, 64, protocol, 0)
        return bytes(12) + b"\x08\0" + head + source + DESTINATION + payload


def cut(length: int, *sizes: int) -> list[Piece]:
    """A packet cut into pieces of so many units, the last of what is left."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(Piece(at, 8 * size, True))
        at += size
    return [*pieces, Piece(at, length - 8 * at, False)]


class Fragments:
    """The code under test, and the time."""

    def __init__(self) -> None:
        self.counters = ffi.new("uint64_t[]", len(COUNTERS))
        self.raw = ffi.new("struct fragments *")
        self.now_ms = 1000
        assert lib.fragments_init(self.raw, self.counters) == 0

    def counter(self, name: str) -> int:
        return int(self.counters[COUNTERS.index(name)])

    def take(self, frame: bytes, parts: int = 1) -> bytes | None:
        """The whole packet, as its frame's pieces of memory hold it, if this piece made it whole."""
        made, packet = ffi.new("struct guest_frame *"), ffi.new("struct packet *")
        made.length, made.head_length = len(frame), min(len(frame), HEAD_MAX)
        ffi.memmove(made.head, frame, made.head_length)
        step = -(-len(frame) // parts)
        array, _kept = iovec_array([frame[at : at + step] for at in range(0, len(frame), step)])
        made.iov = array
        made.iov_count = -(-len(frame) // step)
        assert COUNTERS[lib.packet_parse(made, packet)] == "fragments"
        whole = lib.fragments_take(self.raw, made, packet, self.now_ms)
        if whole == ffi.NULL:
            return None
        found = b"".join(bytes(ffi.buffer(v.iov_base, v.iov_len)) for v in ffi.unpack(whole.iov, whole.iov_count))
        assert len(found) == whole.length
        assert bytes(whole.head[0 : whole.head_length]) == found[:HEAD_MAX]
        assert lib.packet_parse(whole, packet) == 0 and not packet.fragmented
        assert packet.l4_offset + packet.l4_length == len(found)
        lib.fragments_release(self.raw)
        return found[packet.l4_offset :]

    def kept(self) -> int:
        return int(self.raw.used).bit_count()

    def late(self) -> list[Any]:
        """The packets whose time is over, which are dropped."""
        found = []
        while (packet := lib.fragments_late(self.raw, self.now_ms)) != ffi.NULL:
            found.append((packet.identification, bool(packet.begun), bool(packet.spoiled)))
            lib.fragments_drop(self.raw, packet)
        return found


@pytest.fixture(name="fragments")
def fresh() -> Iterator[Fragments]:
    made = Fragments()
    yield made
    lib.fragments_free(made.raw)


# ---- the slow model ----


@dataclass
class Model:
    """What is here of one packet: a list of pieces, each compared with each."""

    pieces: list[Piece] = field(default_factory=list)
    spoiled: bool = False

    def take(self, new: Piece) -> bool:
        """Whether it is whole with this one."""
        if new.more and new.length % 8 or not new.length or 20 + new.end > 65535 or self.spoiled:
            return False
        last = [piece for piece in self.pieces if not piece.more]
        furthest = max((piece.end for piece in self.pieces), default=0)
        if last and (new.end > last[0].end or (not new.more and new.end != last[0].end)):
            self.spoiled = True
        elif not last and not new.more and new.end < furthest:
            self.spoiled = True
        elif any((piece.start, piece.end) == (new.start, new.end) for piece in self.pieces):
            return False
        elif any(piece.units() & new.units() for piece in self.pieces):
            self.spoiled = True
        else:
            self.pieces.append(new)
            ends = [piece.end for piece in self.pieces if not piece.more]
            return bool(ends) and sum(piece.length for piece in self.pieces) == ends[0]
        return False


wild_pieces = st.builds(
    Piece, st.integers(0, 12), st.one_of(st.integers(1, 40), st.sampled_from([8, 16, 24])), st.booleans()
).filter(lambda piece: piece.start or piece.more)
near_the_end = st.builds(Piece, st.integers(8180, 8191), st.integers(0, 90), st.booleans())


@settings(max_examples=20 * EXAMPLES)
@given(st.lists(st.one_of(wild_pieces, wild_pieces, near_the_end), max_size=12), st.integers(1, 9))
@example([Piece(0, 8, True), Piece(1, 9, False), Piece(1, 10, False)], 1)
@example([Piece(1, 8, True), Piece(1, 8, False), Piece(0, 8, True)], 1)
def test_any_pieces_come_to_what_the_slow_model_says(pieces: list[Piece], parts: int) -> None:
    """Pieces that overlap, repeat, contradict each other or lie about the size: whole at the same piece, or never."""
    fragments, model = Fragments(), Model()
    content = random.Random(1).randbytes(65536)
    try:
        for piece in pieces:
            whole = fragments.take(piece.frame(content), parts)
            assert (whole is not None) == model.take(piece)
            if whole is not None:
                assert whole == content[: len(whole)]
                model = Model()
    finally:
        lib.fragments_free(fragments.raw)


@settings(max_examples=2 * EXAMPLES)
@given(st.randoms(use_true_random=False), st.integers(9, 65515))
def test_a_packet_of_any_size_is_whole_in_any_order(order: random.Random, length: int) -> None:
    """Cut anywhere, and shuffled: with the last piece and not before."""
    content = order.randbytes(length)
    sizes: list[int] = []
    while 8 * sum(sizes) < length - 8 and len(sizes) < 60:
        sizes.append(min(order.choice([1, 2, 185, 2000]), (length - 1) // 8 - sum(sizes)))
    pieces = cut(length, *sizes)
    order.shuffle(pieces)
    fragments = Fragments()
    try:
        results = [fragments.take(piece.frame(content), order.choice([1, 3, 100])) for piece in pieces]
    finally:
        lib.fragments_free(fragments.raw)
    assert results == [None] * (len(pieces) - 1) + [content]
    assert fragments.kept() == 0 and fragments.counter("fragments_joined") == 1


# ---- its rules, one by one ----


def test_pieces_of_many_packets_do_not_mix(fragments: Fragments) -> None:
    """Told apart by number, protocol and source."""
    kinds = [
        (number, protocol, source) for number in (1, 2) for protocol in (UDP, 1) for source in (SOURCE, DESTINATION)
    ]
    pieces = cut(2000, 100, 100)
    results = []
    for piece in pieces:
        for at, kind in enumerate(kinds):
            results.append(fragments.take(piece.frame(bytes([at]) * 2000, *kind)))
    assert results[-len(kinds) :] == [bytes([at]) * 2000 for at in range(len(kinds))]
    assert not any(results[: -len(kinds)])


def test_a_tcp_header_that_is_not_in_the_first_piece_is_not_waited_for(fragments: Fragments) -> None:
    """RFC 3128: its port numbers in one piece and its flags in another are meant for some filter."""
    assert fragments.take(Piece(0, 16, True).frame(bytes(100), protocol=TCP)) is None
    assert fragments.kept() == 0 and fragments.counter("drop_fragment") == 1


def test_a_packet_that_was_spoiled_stays_so(fragments: Fragments) -> None:
    """RFC 5722: with all pieces that still come, until its time is over."""
    content = bytes(range(64))
    for piece in (Piece(0, 16, True), Piece(1, 16, True), *cut(64, 2, 2)):
        assert fragments.take(piece.frame(content)) is None
    assert fragments.counter("drop_fragment") == 4
    fragments.now_ms += TIMEOUT_MS
    assert fragments.late() == [(1, True, True)]
    assert [fragments.take(piece.frame(content)) for piece in cut(64, 2, 2)] == [None, None, content]


def test_what_does_not_come_in_time_is_given_up_by_its_first_piece(fragments: Fragments) -> None:
    """Later pieces win no time, and what became whole needs none."""
    assert lib.fragments_next_ms(fragments.raw) == 2**64 - 1
    pieces = cut(64, 2, 2)
    fragments.take(pieces[1].frame(bytes(64), number=1))
    fragments.now_ms += 10
    fragments.take(pieces[0].frame(bytes(64), number=1))
    fragments.take(pieces[0].frame(bytes(64), number=2))
    assert lib.fragments_next_ms(fragments.raw) == 1000 + TIMEOUT_MS
    fragments.now_ms = 1000 + TIMEOUT_MS - 1
    assert fragments.late() == []
    fragments.now_ms += 1
    assert fragments.late() == [(1, True, False)]
    for piece in pieces[1:]:
        fragments.take(piece.frame(bytes(64), number=2))
    assert fragments.kept() == 0 and lib.fragments_next_ms(fragments.raw) == 2**64 - 1


def test_one_source_has_half_of_the_places_and_loses_its_oldest(fragments: Fragments) -> None:
    other = DESTINATION
    fragments.take(Piece(0, 8, True).frame(bytes(8), number=9, source=other))
    for number in range(200):
        fragments.take(Piece(1, 8, True).frame(bytes(16), number=number))
    assert fragments.kept() == 1 + lib.FRAGMENTED_PER_SOURCE
    assert fragments.counter("fragments_evicted") == 200 - lib.FRAGMENTED_PER_SOURCE
    assert fragments.take(Piece(1, 8, False).frame(bytes(16), number=9, source=other)) == bytes(16)
    fragments.now_ms += TIMEOUT_MS
    assert [number for number, *_ in fragments.late()] == list(range(200 - lib.FRAGMENTED_PER_SOURCE, 200))


def test_all_sources_together_have_all_places(fragments: Fragments) -> None:
    """The oldest of all goes, whoever sent it."""
    for number in range(200):
        fragments.take(Piece(1, 8, True).frame(bytes(16), number=number, source=bytes((192, 0, 2, number))))
    assert fragments.kept() == lib.FRAGMENTED_MAX
    assert fragments.counter("fragments_evicted") == 200 - lib.FRAGMENTED_MAX


def test_nothing_is_kept_of_a_piece_that_cannot_be_one(fragments: Fragments) -> None:
    """Of no bytes, beyond the end of all packets, or of an odd length though more follow."""
    for piece in (Piece(5, 0, True), Piece(5, 0, False), Piece(8189, 8, True), Piece(3, 9, True), Piece(0, 12, True)):
        assert fragments.take(piece.frame(bytes(65536))) is None
    assert fragments.kept() == 0 and fragments.counter("drop_fragment") == 5
