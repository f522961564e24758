# SPDX-License-Identifier: Apache-2.0
"""core/datapath/list.h against Python's list."""

from __future__ import annotations

from core_pieces import EXAMPLES, ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st

MEMBERS = 6
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "leave", "pop", "move"]), st.integers(0, MEMBERS - 1)), max_size=60
)


@settings(max_examples=3 * EXAMPLES)
@given(STEPS)
def test_a_list_is_a_queue_that_any_member_can_leave(steps: list[tuple[str, int]]) -> None:
    """First in, first out; a second append changes nothing; leaving is allowed at any time, also twice."""
    nodes = ffi.new("struct node[]", MEMBERS)
    queue, other = ffi.new("struct list *"), ffi.new("struct list *")
    lib.list_init(queue)
    model: list[int] = []
    for step, member in steps:
        if step == "append":
            lib.list_append(queue, nodes + member)
            if member not in model:
                model.append(member)
        elif step == "leave":
            lib.node_leave(nodes + member)
            if member in model:
                model.remove(member)
        elif step == "pop":
            popped = lib.list_pop(queue)
            assert popped == (nodes + model.pop(0) if model else ffi.NULL)
        else:
            lib.list_move(queue, other)
            assert lib.list_empty(queue)
            queue, other = other, queue
        assert lib.list_empty(queue) == (not model)
        assert [at for at in range(MEMBERS) if lib.node_listed(nodes + at)] == sorted(model)
    drained = [lib.list_pop(queue) for _ in model]
    assert drained == [nodes + member for member in model]
    assert lib.list_pop(queue) == ffi.NULL
