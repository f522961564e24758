# SPDX-License-Identifier: Apache-2.0
"""core/datapath/ranges.c against a set of numbers."""

from __future__ import annotations

from core_pieces import EXAMPLES, ffi, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st

SPAN = 120
bases = st.sampled_from([0, 1, 2**31 - 60, 2**32 - 60, 2**32 - 1])
spans = st.tuples(st.integers(0, SPAN), st.integers(1, 12))
steps = st.lists(
    st.one_of(st.tuples(st.just("add"), spans), st.tuples(st.just("drop"), st.tuples(st.integers(0, SPAN), st.just(0))))
)


def runs(numbers: set[int]) -> list[tuple[int, int]]:
    """The set as (start, end) of its runs, in order."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


class Ranges:
    def __init__(self, base: int) -> None:
        self.base = base
        self.ranges = ffi.new("struct ranges *")

    def seq(self, number: int) -> int:
        return (self.base + number) % 2**32

    def add(self, start: int, end: int) -> bool:
        return bool(lib.ranges_add(self.ranges, self.seq(start), self.seq(end), lib.RANGES_MAX))

    def content(self) -> list[tuple[int, int]]:
        found = [self.ranges.range[at] for at in range(self.ranges.count)]
        return [((r.start - self.base) % 2**32, (r.end - self.base) % 2**32) for r in found]


@settings(max_examples=5 * EXAMPLES)
@given(bases, steps, st.integers(0, SPAN))
@example(0, [("add", (10, 5)), ("add", (20, 5)), ("add", (15, 5))], 0)
def test_a_list_of_ranges_is_a_set_of_numbers(base: int, steps: list[tuple[str, tuple[int, int]]], probe: int) -> None:
    """Whatever is added or dropped, also where sequence numbers wrap; a full list takes nothing more, and says so."""
    ranges, model = Ranges(base), set[int]()
    for what, (start, length) in steps:
        if what == "drop":
            lib.ranges_drop_before(ranges.ranges, ranges.seq(start))
            model = {number for number in model if number >= start}
        else:
            grown = model | set(range(start, start + length))
            fits = len(runs(grown)) <= lib.RANGES_MAX
            assert ranges.add(start, start + length) == fits
            model = grown if fits else model
        assert ranges.content() == runs(model)
        assert lib.ranges_bytes(ranges.ranges) == len(model)
    end = next(number for number in range(probe, 3 * SPAN) if number not in model)
    assert lib.ranges_end_of(ranges.ranges, ranges.seq(probe)) == ranges.seq(end)
    behind = [start for start, _ in runs(model) if start > end]
    gap = ffi.new("struct range *")
    assert lib.ranges_gap(ranges.ranges, ranges.seq(probe), gap) == bool(behind)
    if behind:
        assert (gap.start, gap.end) == (ranges.seq(end), ranges.seq(behind[0]))


def test_a_full_list_still_takes_what_touches_one_of_its_ranges() -> None:
    """It grows or joins then, and needs no place."""
    ranges = Ranges(2**32 - 30)
    for at in range(lib.RANGES_MAX):
        assert ranges.add(4 * at, 4 * at + 2)
    assert not ranges.add(1000, 1001)
    assert ranges.add(2, 3) and ranges.add(3, 4)
    assert ranges.content()[0] == (0, 6)
    assert ranges.add(1000, 1001)


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_the_order_of_sequence_numbers_is_that_of_rfc_9293(number: int, distance: int) -> None:
    """Up to half of the space ahead is after, whatever wraps."""
    later = (number + distance) % 2**32
    assert lib.seq_before(number, later) and lib.seq_after(later, number)
    assert not lib.seq_before(later, number) and not lib.seq_after(number, later)
    assert not lib.seq_before(number, number) and not lib.seq_after(number, number)
