# SPDX-License-Identifier: Apache-2.0
"""core/datapath/counters.h and the other lists of names: complete, each name once, and an end."""

from __future__ import annotations

import re
from typing import Any

import pytest
from core_pieces import COUNTERS, DATAPATH, ffi, lib


def entries(header: str, macro: str) -> list[str]:
    """The names of an X-macro list, as a person reads them in the header."""
    text = (DATAPATH / header).read_text()
    body = re.search(rf"#define {macro}\(apply\)(.*?[^\\])\n", text, re.DOTALL)
    assert body is not None, f"{header} has no list {macro}"
    return re.findall(r"apply\((\w+)\)", body.group(1))


def names(function: Any) -> list[str]:
    """What the function names from 0 up to its first NULL."""
    found: list[str] = []
    while (name := function(len(found))) != ffi.NULL:
        found.append(ffi.string(name).decode())
    return found


def test_every_counter_has_one_name_of_its_own() -> None:
    """The page's layout is the header's list, in its order, without a gap or a name that comes twice."""
    assert entries("counters.h", "COUNTERS") == COUNTERS
    assert len(set(COUNTERS)) == len(COUNTERS) == lib.lg_counter_count()


def test_all_counters_fit_their_page() -> None:
    """Control maps LG_COUNTER_BYTES and no more."""
    assert len(COUNTERS) * 8 <= lib.LG_COUNTER_BYTES


def test_every_counter_is_counted_somewhere() -> None:
    """A counter that no line of C names would show 0 for ever."""
    sources = "".join(path.read_text() for path in DATAPATH.glob("*.[ch]"))
    assert [name for name in COUNTERS if not re.search(rf"\bC_{name}\b", sources)] == []


@pytest.mark.parametrize(
    ("function", "header", "macro"),
    [
        (lib.lg_counter_name, "counters.h", "COUNTERS"),
        (lib.lg_half_name, "tcp_state.h", "HALF_STATES"),
        (lib.lg_stall_name, "tcp_state.h", "STALLS"),
        (lib.lg_close_name, "tcp_state.h", "CLOSE_REASONS"),
        (lib.lg_fault_name, "vring.h", "VRING_FAULTS"),
    ],
    ids=["counters", "halves", "stalls", "close reasons", "ring faults"],
)
def test_names_are_the_list_and_then_null(function: Any, header: str, macro: str) -> None:
    """Every value has the name that its header says, and past the end there is none, however far."""
    found = names(function)
    assert found == entries(header, macro)
    assert len(set(found)) == len(found)
    for beyond in (len(found), len(found) + 1, 2**31, 2**32 - 1):
        assert function(beyond) == ffi.NULL


def test_every_layer_of_the_isolation_has_a_name() -> None:
    """LG_LAYER_COUNT of them, told apart."""
    found = names(lib.lg_layer_name)
    assert len(found) == lib.LG_LAYER_COUNT == len(set(found))
    assert lib.lg_layer_name(2**32 - 1) == ffi.NULL
