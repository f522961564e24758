# SPDX-License-Identifier: Apache-2.0
"""core/channel.py: what is packed is what the C structures say, and what does not fit one is None."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core import channel
from lockgate.core._datapath import ffi, lib

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


@given(u32, u64, u32, u32)
def test_a_value_command_is_a_header_and_a_number(kind: int, number: int, port: int, seq: int) -> None:
    """The bytes are those of struct lg_cmd_value, spelled out here once by hand."""
    record = channel.value(kind, number, port).numbered(seq)
    assert record == struct.pack("=IIIIQ", kind, seq, port, 0, number)


def test_a_command_can_be_numbered_again() -> None:
    """A command that is repeated to the next worker gets a new number and is otherwise the same."""
    command = channel.value(lib.LG_CMD_EVENTS, 1)
    assert command.numbered(1)[8:] == command.numbered(2)[8:]


def test_a_bare_command_is_its_header() -> None:
    """LG_CMD_LINK_RESET has nothing to say but its name."""
    assert len(channel.bare(lib.LG_CMD_LINK_RESET).numbered(1)) == ffi.sizeof("struct lg_cmd_header")


@given(st.lists(st.tuples(u64, u64, u64, u64), max_size=lib.LG_MEM_SLOTS))
def test_memory_regions_keep_their_order(regions: list[tuple[int, int, int, int]]) -> None:
    """The count is right, and each region is where the structure has it."""
    record = channel.memory(lib.LG_CMD_MEM_TABLE, regions).numbered(1)
    packed = channel.copied("lg_cmd_mem", record)
    assert packed.count == len(regions)
    for at, region in zip(packed.region, regions, strict=False):
        assert (at.guest_addr, at.size, at.user_addr, at.mmap_offset) == region


def test_more_regions_than_the_structure_has_are_refused() -> None:
    """The session checks that; here it is an error and never a write beyond the end."""
    with pytest.raises(IndexError):
        channel.memory(lib.LG_CMD_MEM_TABLE, [(0, 0, 0, 0)] * (lib.LG_MEM_SLOTS + 1))


def test_a_net_view_is_taken_whole() -> None:
    """It comes packed; a piece of another length is refused."""
    view = bytes(at % 251 for at in range(ffi.sizeof("struct lg_net_view")))
    assert channel.net_view(view).numbered(1)[ffi.sizeof("struct lg_cmd_header") :] == view
    with pytest.raises(ValueError):
        channel.net_view(view[:-1])


@given(st.integers(-200, 0), u64, u32)
def test_a_reply_is_read_back(result: int, number: int, seq: int) -> None:
    """The result is signed."""
    reply = channel.parse_reply(struct.pack("=IIiIQ", lib.LG_CMD_VRING_STOP, seq, result, 0, number))
    assert reply is not None
    assert (reply.kind, reply.seq, reply.result, reply.value) == (lib.LG_CMD_VRING_STOP, seq, result, number)


@given(st.binary(max_size=200))
def test_a_reply_of_another_length_is_none(record: bytes) -> None:
    """Whatever it says."""
    if len(record) != ffi.sizeof("struct lg_reply"):
        assert channel.parse_reply(record) is None


@given(u32, u32, st.binary(max_size=2000))
def test_what_goes_up_comes_up(kind: int, port: int, payload: bytes) -> None:
    """Kind, port and bytes; the length is the record's own."""
    up = channel.parse_up(channel.pack_up(kind, payload, port))
    assert up is not None and (up.kind, up.port, up.payload) == (kind, port, payload)


@given(st.binary(max_size=100), st.binary(min_size=1, max_size=20))
def test_an_up_record_that_lies_about_its_length_is_none(payload: bytes, extra: bytes) -> None:
    """Too short, too long, or without even a head."""
    record = channel.pack_up(lib.LG_UP_PUNT, payload)
    assert channel.parse_up(record + extra) is None
    assert channel.parse_up(record[:-1]) is None


def test_what_the_worker_has_seen_is_read_by_name() -> None:
    """MAC address and the three addresses."""
    parts = [b"\1\2\3\4\5\6", bytes(2), b"4" * 16, b"6" * 16, b"l" * 16]
    seen = channel.parse_seen(b"".join(parts))
    assert seen is not None
    assert [seen.mac, seen.addr4, seen.addr6, seen.link_local] == [parts[0], *parts[2:]]
    assert channel.parse_seen(b"".join(parts)[:-1]) is None


def test_an_event_of_another_length_is_none() -> None:
    """And one of the right length keeps its memory for as long as it is used."""
    size = ffi.sizeof("struct lg_event")
    assert channel.parse_event(bytes(size - 1)) is None
    events = [channel.parse_event(struct.pack("=I", kind) + bytes(size - 4)) for kind in range(50)]
    assert [event.kind for event in events if event is not None] == list(range(50))
