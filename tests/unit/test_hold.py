# SPDX-License-Identifier: Apache-2.0
"""core/datapath/hold.c against a dictionary of sequence number to byte."""

from __future__ import annotations

from typing import Any

from core_pieces import EXAMPLES, ffi, iovec_array, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st

ROOM, LARGE = lib.HOLD_BYTES, lib.HOLD_BYTES_LARGE
bases = st.sampled_from([0, ROOM - 20, LARGE - 20, 2**31 - 20, 2**32 - 20, 2**32 - ROOM])
offsets = st.one_of(st.integers(0, 60), st.integers(ROOM - 30, ROOM + 30), st.integers(LARGE - 30, LARGE + 30))
puts = st.tuples(offsets, st.lists(st.binary(max_size=9), max_size=4))
moves = st.tuples(st.none(), st.integers(0, 40))


def new_pool() -> Any:
    pool = ffi.new("struct hold_pool *")
    assert lib.hold_pool_init(pool) == 0
    return ffi.gc(pool, lib.hold_pool_free)


def run_at(hold: Any, seq: int) -> bytes:
    iov = ffi.new("struct iovec[2]")
    count = lib.hold_pieces(hold, seq, iov)
    return b"".join(bytes(ffi.buffer(iov[at].iov_base, iov[at].iov_len)) for at in range(count))


def grown(pool: Any, byte: bytes) -> Any:
    """A hold that has become large for this byte."""
    hold = lib.hold_take(pool)
    array, _ = iovec_array([byte])
    assert lib.hold_put(pool, hold, 0, ROOM, array, 1)
    return hold


@settings(max_examples=5 * EXAMPLES)
@given(st.booleans(), bases, st.lists(st.one_of(puts, puts, moves), max_size=12))
@example(True, 2**32 - 20, [(10, [b"behind"]), (0, [b"0123456789"])])
@example(False, 0, [(ROOM - 3, [b"cut off"])])
@example(True, ROOM - 20, [(10, [b"around the end"]), (ROOM - 3, [b"not cut off"])])
@example(True, 0, [(LARGE - 3, [b"cut off"])])
def test_what_was_put_is_there_up_to_the_first_gap(grows: bool, base: int, steps: list[tuple[Any, Any]]) -> None:
    """Segments in any order, overlapping, around all ends; a None moves on, as the kernel takes bytes."""
    pool = new_pool()
    if not grows:
        for _ in range(lib.HOLDS_LARGE):
            grown(pool, b"x")
    room = LARGE if grows else ROOM
    hold = lib.hold_take(pool)
    model: dict[int, int] = {}
    taken = 0  # bytes that the kernel has, from base on
    for offset, what in steps:
        if offset is None:
            taken += what
            lib.ranges_drop_before(ffi.addressof(hold, "ranges"), (base + taken) % 2**32)
            model = {at: byte for at, byte in model.items() if at >= taken}
            continue
        data = b"".join(what)
        start = taken + offset
        fits = data[: max(0, taken + room - start)]
        array, kept = iovec_array(what)
        before = dict(model)
        model.update({start + at: byte for at, byte in enumerate(fits)})
        got = lib.hold_put(pool, hold, (base + taken) % 2**32, (base + start) % 2**32, array, len(kept))
        assert got == (start <= taken + room and len(fits) == len(data)) or len(before) >= lib.RANGES_MAX - 1
        for probe in {taken, start, *list(model)[:3]}:
            expected = bytearray()
            while probe + len(expected) in model:
                expected.append(model[probe + len(expected)])
            assert run_at(hold, (base + probe) % 2**32) == bytes(expected)


def test_a_segment_that_finds_no_range_is_refused() -> None:
    """Then the guest must send it again: nothing of it may count as held, nor be told to the guest."""
    pool = new_pool()
    hold = lib.hold_take(pool)
    array, _ = iovec_array([b"x"])
    for at in range(lib.RANGES_MAX - 1):
        assert lib.hold_put(pool, hold, 0, 10 + 2 * at, array, 1)
    recent = hold.recent
    assert not lib.hold_put(pool, hold, 0, 1000, array, 1)
    assert run_at(hold, 1000) == b""
    assert hold.recent == recent, "SACK's first block must be one that exists (RFC 2018, 4)"
    assert lib.hold_put(pool, hold, 0, 0, array, 1), "what comes next ends a gap, and is never refused"


def test_each_hold_has_its_own_bytes_and_the_pool_ends() -> None:
    """As many as there are, the lowest that is free first, and then none until one is given back."""
    pool = new_pool()
    holds = [lib.hold_take(pool) for _ in range(lib.HOLDS)]
    assert lib.hold_take(pool) == ffi.NULL
    for at, hold in enumerate(holds):
        array, _ = iovec_array([bytes([at]) * 100])
        assert lib.hold_put(pool, hold, ROOM - 50, ROOM - 50, array, 1)
    assert [run_at(hold, ROOM - 50) for hold in holds] == [bytes([at]) * 100 for at in range(lib.HOLDS)]
    lib.hold_give(pool, holds[7])
    again = lib.hold_take(pool)
    assert again == holds[7] and again.ranges.count == 0
    for hold in holds:
        lib.hold_give(pool, hold)
    assert pool.used == 0


def test_few_holds_are_large_at_once() -> None:
    """Each has bytes of its own, and one that finds none stays as it is until another is given back."""
    pool = new_pool()
    holds = [grown(pool, bytes([at])) for at in range(lib.HOLDS_LARGE)]
    assert [run_at(hold, ROOM) for hold in holds] == [bytes([at]) for at in range(lib.HOLDS_LARGE)]
    late = lib.hold_take(pool)
    array, _ = iovec_array([b"late"])
    assert not lib.hold_put(pool, late, 0, ROOM - 2, array, 1)
    assert run_at(late, ROOM - 2) == b"la"
    lib.hold_give(pool, holds.pop(3))
    assert lib.hold_put(pool, late, 0, ROOM - 2, array, 1)
    assert run_at(late, ROOM - 2) == b"late"
    assert [run_at(hold, ROOM) for hold in holds] == [bytes([at]) for at in range(lib.HOLDS_LARGE) if at != 3]
    for hold in [*holds, late]:
        lib.hold_give(pool, hold)
    assert pool.used == pool.used_large == 0
