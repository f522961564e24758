# SPDX-License-Identifier: Apache-2.0
"""core/datapath/flow.c against a dictionary."""

from __future__ import annotations

from typing import Any

from core_pieces import EXAMPLES, ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

# Few enough keys that each is added, found and removed many times.
keys = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.sampled_from([6, 17]))
Key = tuple[int, int, int, int, int]


def key_of(key: Key) -> Any:
    guest, remote, guest_port, remote_port, protocol = key
    made = ffi.new("struct flow_key *")
    made.guest.byte = bytes(15) + bytes([guest])
    made.remote.byte = bytes(15) + bytes([remote])
    made.guest_port, made.remote_port, made.protocol = guest_port, remote_port, protocol
    return made


def new_table(limit: int, secret: tuple[int, int] = (1, 2)) -> Any:
    table = ffi.new("struct flow_table *")
    assert lib.flow_table_init(table, limit, {"word": secret}) == 0
    return table


def snapshot(table: Any, page: int) -> list[int]:
    """The indexes of all flows, read in pages as control reads them."""
    found: list[int] = []
    cursor = ffi.new("uint32_t *")
    while True:
        for _ in range(page):
            flow = lib.flow_next(table, cursor)
            if flow == ffi.NULL:
                return found
            found.append(flow.index)


class Table(RuleBasedStateMachine):
    """A table of flows beside a dict of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Any = None
        self.model: dict[Key, int] = {}  # key -> handle
        self.gone: list[int] = []  # handles of flows that ended
        self.limit = 0

    @initialize(limit=st.sampled_from([1, 2, 5, 40]), secret=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 9)))
    def begin(self, limit: int, secret: tuple[int, int]) -> None:
        self.limit = limit
        self.table = new_table(limit, secret)

    @rule(key=keys)
    def add(self, key: Key) -> None:
        if key in self.model:
            return
        flow = lib.flow_add(self.table, key_of(key))
        assert (flow == ffi.NULL) == (len(self.model) == self.limit), "full, and only then"
        if flow == ffi.NULL:
            return
        assert flow.fd == -1 and flow.index < self.limit
        handle = lib.flow_handle(flow)
        assert handle >> 32, "the upper half tells flows from the loop's own descriptors"
        assert handle not in self.gone and handle not in self.model.values()
        self.model[key] = handle

    @rule(key=keys)
    def remove(self, key: Key) -> None:
        if key not in self.model:
            return
        lib.flow_remove(self.table, lib.flow_find(self.table, key_of(key)))
        self.gone.append(self.model.pop(key))

    @precondition(lambda self: self.model)
    @rule()
    def remove_the_oldest(self) -> None:
        oldest = next(iter(self.model))
        head = self.table.by_age.head.next
        flow = ffi.cast("struct flow *", ffi.cast("char *", head) - ffi.offsetof("struct flow", "age"))
        assert lib.flow_handle(flow) == self.model[oldest]
        lib.flow_remove(self.table, flow)
        self.gone.append(self.model.pop(oldest))

    @rule(key=keys)
    def find(self, key: Key) -> None:
        flow = lib.flow_find(self.table, key_of(key))
        assert (flow == ffi.NULL) == (key not in self.model)
        if flow != ffi.NULL:
            assert lib.flow_handle(flow) == self.model[key]

    @rule(page=st.integers(1, 4))
    def take_a_snapshot(self, page: int) -> None:
        assert sorted(snapshot(self.table, page)) == sorted(handle & 0xFFFFFFFF for handle in self.model.values())

    @invariant()
    def a_handle_finds_its_flow_for_as_long_as_it_lives(self) -> None:
        if self.table is None:
            return
        assert self.table.count == len(self.model)
        for handle in self.model.values():
            flow = lib.flow_from_handle(self.table, handle)
            assert flow != ffi.NULL and lib.flow_handle(flow) == handle
        for handle in self.gone[-20:]:
            assert lib.flow_from_handle(self.table, handle) == ffi.NULL

    def teardown(self) -> None:
        if self.table is not None:
            lib.flow_table_free(self.table)


TableTest = Table.TestCase
TableTest.settings = settings(max_examples=EXAMPLES, stateful_step_count=60)


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 2**64 - 1))
def test_a_handle_from_nowhere_finds_nobody(handle: int) -> None:
    """Whatever epoll gives back is looked up by index and generation."""
    table = new_table(4)
    flow = lib.flow_add(table, key_of((1, 1, 1, 1, 6)))
    assert lib.flow_from_handle(table, handle) == (flow if handle == lib.flow_handle(flow) else ffi.NULL)
    lib.flow_table_free(table)


def test_a_slot_never_gives_out_generation_zero() -> None:
    """Its handle would look like one of the loop's own descriptors."""
    table = new_table(1)
    flow = lib.flow_add(table, key_of((0, 0, 0, 0, 6)))
    flow.generation = 2**32 - 1
    lib.flow_remove(table, flow)
    again = lib.flow_add(table, key_of((0, 0, 0, 0, 6)))
    assert again == flow and again.generation == 1
    lib.flow_table_free(table)


def test_a_full_table_finds_every_flow_and_none_after_the_last_is_gone() -> None:
    """Long probe chains, closed again from the middle, the front and the end."""
    table = new_table(512)
    everyone = [(g, r, p, q, 6) for g in range(8) for r in range(8) for p in range(4) for q in range(2)]
    for key in everyone:
        assert lib.flow_add(table, key_of(key)) != ffi.NULL
    assert lib.flow_add(table, key_of((9, 9, 9, 9, 6))) == ffi.NULL
    for gone in (everyone[1::3], everyone[::3], everyone[2::3]):
        for key in gone:
            lib.flow_remove(table, lib.flow_find(table, key_of(key)))
            everyone.remove(key)
            assert lib.flow_find(table, key_of(key)) == ffi.NULL
        for key in everyone:
            assert lib.flow_find(table, key_of(key)) != ffi.NULL
    assert table.count == 0 and snapshot(table, 7) == []
    lib.flow_table_free(table)


def test_a_snapshot_goes_on_where_its_cursor_stands_though_flows_come_and_go() -> None:
    """Between two pages a flow before the cursor may end: no flow that stays is shown twice or left out."""
    table = new_table(8)
    flows = [lib.flow_add(table, key_of((1, 1, port, 1, 6))) for port in range(6)]
    cursor = ffi.new("uint32_t *")
    seen = [lib.flow_next(table, cursor).key.guest_port for _ in range(3)]
    lib.flow_remove(table, flows[0])
    lib.flow_remove(table, flows[4])
    while (flow := lib.flow_next(table, cursor)) != ffi.NULL:
        seen.append(flow.key.guest_port)
    assert seen == [0, 1, 2, 3, 5]
    assert lib.flow_next(table, ffi.new("uint32_t *", 2**32 - 1)) == ffi.NULL
    lib.flow_table_free(table)


def test_a_flow_that_goes_is_on_no_list_any_more() -> None:
    """Neither the run list nor the link's wait list may hold a slot that another flow will have."""
    table = new_table(2)
    ready, waiting = ffi.new("struct list *"), ffi.new("struct list *")
    lib.list_init(ready)
    lib.list_init(waiting)
    flow = lib.flow_add(table, key_of((0, 0, 0, 0, 6)))
    lib.list_append(ready, ffi.addressof(flow, "ready"))
    lib.list_append(waiting, ffi.addressof(flow, "waiting"))
    lib.flow_remove(table, flow)
    assert lib.list_empty(ready) and lib.list_empty(waiting)
    assert lib.list_empty(ffi.addressof(table, "by_age"))
    lib.flow_table_free(table)
