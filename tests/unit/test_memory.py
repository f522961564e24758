# SPDX-License-Identifier: Apache-2.0
"""core/datapath/memory.c against a list of regions, and the dirty log against a set of pages."""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any

import pytest
from core_pieces import EXAMPLES, ffi, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

PAGE = 4096
UNIT = 0x800  # regions start at half pages, too: nothing in the protocol forbids it
Spec = tuple[int, int, int, int]  # guest_addr, size, user_addr, mmap_offset

grid = st.integers(0, 12)
specs = st.builds(
    lambda guest, size, user, offset: (guest * UNIT, size * UNIT, 0x7F0000000000 + user * UNIT, offset * UNIT),
    grid,
    st.integers(0, 5),
    grid,
    st.integers(0, 3),
)


def region_of(spec: Spec) -> Any:
    return ffi.new("struct lg_mem_region *", spec)


def overlap(a: int, b: int, a_size: int, b_size: int) -> bool:
    return bool(set(range(a // UNIT, (a + a_size) // UNIT)) & set(range(b // UNIT, (b + b_size) // UNIT)))


class Regions(RuleBasedStateMachine):
    """Adds and removes regions of one file, whose every word says where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.fd = os.memfd_create("memory", os.MFD_CLOEXEC)
        self.content = b"".join(at.to_bytes(4, "little") for at in range(0, 16 * UNIT, 4))
        os.write(self.fd, self.content)
        self.memory = ffi.new("struct guest_memory *")
        self.model: list[Spec] = []

    def teardown(self) -> None:
        lib.memory_clear(self.memory)
        os.close(self.fd)

    @rule(spec=specs)
    def add(self, spec: Spec) -> None:
        guest, size, user, _ = spec
        taken = [s for s in self.model if overlap(guest, s[0], size, s[1]) or overlap(user, s[2], size, s[1])]
        expected = -errno.EINVAL if not size else -errno.EEXIST if taken else 0
        assert lib.memory_add(self.memory, region_of(spec), self.fd) == expected
        if not expected:
            self.model.append(spec)

    @precondition(lambda self: self.model)
    @rule(pick=st.randoms(use_true_random=False), other_offset=st.booleans())
    def remove(self, pick: Any, other_offset: bool) -> None:
        spec = self.model.pop(pick.randrange(len(self.model)))
        named = (*spec[:3], 0x123000 if other_offset else spec[3])  # the offset does not name a region
        assert lib.memory_remove(self.memory, region_of(named)) == 0

    @rule(spec=specs)
    def remove_one_that_is_not_there(self, spec: Spec) -> None:
        if any(spec[:3] == known[:3] for known in self.model):
            return
        assert lib.memory_remove(self.memory, region_of(spec)) == -errno.ENOENT

    @rule()
    def clear(self) -> None:
        lib.memory_clear(self.memory)
        self.model.clear()

    @rule(unit=st.integers(0, 20), step=st.sampled_from([0, 1, UNIT - 1]), length=st.integers(1, 6 * UNIT))
    def look_up_from_the_guest(self, unit: int, step: int, length: int) -> None:
        addr = unit * UNIT + step
        cut = ffi.new("size_t *", length)
        at = lib.memory_from_guest(self.memory, addr, cut)
        found = [s for s in self.model if s[0] <= addr < s[0] + s[1]]
        assert (at == ffi.NULL) == (not found)
        if found:
            (guest, size, _, offset) = found[0]
            assert cut[0] == min(length, guest + size - addr), "only what lies side by side for us, too"
            self._expect(at, offset + addr - guest, cut[0])

    @rule(unit=st.integers(0, 20), step=st.sampled_from([0, 1, UNIT - 1]), length=st.integers(0, 6 * UNIT))
    def look_up_from_the_front_end(self, unit: int, step: int, length: int) -> None:
        addr = 0x7F0000000000 + unit * UNIT + step
        at = lib.memory_from_user(self.memory, addr, length)
        found = [s for s in self.model if s[2] <= addr < s[2] + s[1] and addr + length <= s[2] + s[1]]
        assert (at == ffi.NULL) == (not found)
        if found:
            self._expect(at, found[0][3] + addr - found[0][2], length)

    def _expect(self, at: Any, offset: int, length: int) -> None:
        assert bytes(ffi.buffer(at, length)) == self.content[offset : offset + length]

    @invariant()
    def as_many_as_the_model_has(self) -> None:
        assert self.memory.count == len(self.model)


RegionsTest = Regions.TestCase
RegionsTest.settings = settings(max_examples=EXAMPLES, stateful_step_count=40)


@pytest.mark.parametrize(
    "spec",
    [
        (0, 0, 0, 0),
        (2**64 - PAGE, 2 * PAGE, 0, 0),
        (0, 2 * PAGE, 2**64 - PAGE, 0),
        (0, PAGE, 0, 2**64 - PAGE + 1),
        (0, PAGE, 0, 2**63),
        (2**64 - 1, 1, 0, 0),
    ],
    ids=["no size", "guest wraps", "user wraps", "offset wraps", "offset too far", "touches the end"],
)
def test_a_region_that_wraps_is_refused_before_anything_is_mapped(spec: Spec) -> None:
    """Additions of what a VMM says are checked, all three."""
    memory = ffi.new("struct guest_memory *")
    fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    assert lib.memory_add(memory, region_of(spec), fd) == -errno.EINVAL
    assert memory.count == 0
    os.close(fd)


def test_there_are_as_many_slots_as_the_header_says_and_no_more() -> None:
    """And what cannot be mapped takes none."""
    memory = ffi.new("struct guest_memory *")
    fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE)
    pipe, other = os.pipe()
    assert lib.memory_add(memory, region_of((0, PAGE, 0, 0)), pipe) < 0
    for at in range(lib.LG_MEM_SLOTS):
        assert lib.memory_add(memory, region_of((at * PAGE, PAGE, at * PAGE, 0)), fd) == 0
    assert lib.memory_add(memory, region_of((2**40, PAGE, 2**40, 0)), fd) == -errno.ENOSPC
    lib.memory_clear(memory)
    for each in (fd, pipe, other):
        os.close(each)


# ---- the dirty log ----


@settings(max_examples=3 * EXAMPLES)
@given(
    st.lists(st.tuples(st.integers(0, 80 * PAGE), st.integers(0, 20 * PAGE)), max_size=8),
    st.sampled_from([0, 1, 3, 8, 10]),
)
@example([(PAGE - 1, 2)], 8)
@example([(2 * PAGE, PAGE)], 8)
@example([(63 * PAGE, 2 * PAGE)], 8)
def test_marking_sets_the_bits_of_the_pages_that_were_written(writes: list[tuple[int, int]], size: int) -> None:
    """Bit n of byte p is page 8p + n; beyond a table that is too short nothing is touched."""
    table = ffi.new("uint8_t[]", size + 1)
    table[size] = 0xAA
    log = ffi.new("struct dirty_log *", {"table": table, "size": size, "event_fd": -1})
    pages: set[int] = set()
    for addr, length in writes:
        lib.dirty_log_mark(log, addr, length)
        pages |= set(range(addr // PAGE, (addr + length - 1) // PAGE + 1)) if length else set()
    marked = {8 * at + bit for at in range(size) for bit in range(8) if table[at] >> bit & 1}
    assert marked == {page for page in pages if page < 8 * size}
    assert table[size] == 0xAA
    assert log.dirtied == bool(marked)


@pytest.mark.parametrize("addr", [2**64 - 1, 2**64 - PAGE, 2**63])
def test_an_address_at_the_end_of_the_space_marks_nothing(addr: int) -> None:
    """The front end chooses where its used ring is said to be."""
    table = ffi.new("uint8_t[]", 64)
    log = ffi.new("struct dirty_log *", {"table": table, "size": 64, "event_fd": -1})
    lib.dirty_log_mark(log, addr, 2 * PAGE)
    assert bytes(ffi.buffer(table)) == bytes(64)


def test_without_a_table_nothing_is_marked() -> None:
    """Off is the usual state."""
    log = ffi.new("struct dirty_log *", {"event_fd": -1})
    lib.dirty_log_mark(log, 0, PAGE)
    assert not log.dirtied


def test_a_mark_is_one_atomic_step_on_memory_that_others_change() -> None:
    """The front end clears bits while we set others: a plain load and store would bring a cleared bit back."""
    pages = mmap.mmap(-1, PAGE)
    table = ffi.from_buffer("uint8_t[]", pages)
    log = ffi.new("struct dirty_log *", {"table": table, "size": 1, "event_fd": -1})
    rounds = 200_000
    child = os.fork()
    if not child:
        for _ in range(rounds):
            lib.dirty_log_mark(log, 0, 1)
        os._exit(0)
    other = ffi.new("struct dirty_log *", {"table": table, "size": 1, "event_fd": -1})
    lost = 0
    for _ in range(rounds):
        table[0] = 0
        lib.dirty_log_mark(other, PAGE, 1)
        lost += not table[0] & 2
    os.waitpid(child, 0)
    assert lost == 0
