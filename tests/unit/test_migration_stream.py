# SPDX-License-Identifier: Apache-2.0
"""plugin/migration/stream.py: what passt itself has written is read as it was meant, what is written is read back, and
whatever else comes is refused or loses one flow, never more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.flow_records import TcpFlow
from lockgate.plugin.address import UNSET, parse
from lockgate.plugin.migration import stream
from lockgate.plugin.migration.move import LOAD, Mover
from lockgate.plugin.migration.repair import RepairHelper
from lockgate.plugin.migration.stream import End, Flow, Malformed, Seen, Socket

# What passt 0.0~git20261002 wrote when its guest, 10.7.0.50 with the MAC address 52:54:00:12:34:56, left with one
# connection to 10.8.0.1, of which 5 bytes had gone out and 100 had come in.
RECORDED = bytes.fromhex(
    "b1bb1d1b0bb1d1b00000000200000002"
    "00000000000000000000000000000000000000000000000000000000000000000a0700325254001234560000000102010000"
    "0000000000000000ffff0a08000100000000000000000000ffff0a070032b315409c00000000000000000000ffff0a080001"
    "00000000000000000000ffff0a0800013886b31500070004000005b40000010e0200ffff0ffb4f212b384f212b38000003ee"
    "000003ee000003e8efd3e6720f05e00f000000000000000000000000000005b4d9cbf9740f05dfab00000ffb000010000000"
    "fc000f05e00f000a0107"
)
LITTLE = struct.pack("=H", 1) == b"\1\0"


def addresses(*texts: str) -> list[bytes]:
    return [raw for raw in map(parse, texts) if raw is not None]


def cut(state: bytes) -> tuple[Seen, list[tuple[Flow, Socket]]]:
    """All of a state whose queues are empty."""
    at = stream.HEADER.size
    stream.check_header(state[:at])
    seen = stream.unpack_seen(state[at : at + stream.SEEN.size])
    at += stream.SEEN.size
    count = stream.unpack_count(state[at : at + stream.COUNT.size])
    at += stream.COUNT.size
    flows = [stream.unpack_flow(state[at + i * stream.FLOW_SIZE :][: stream.FLOW_SIZE]) for i in range(count)]
    at += count * stream.FLOW_SIZE
    sockets = [stream.unpack_socket(state[at + i * stream.SOCKET_SIZE :][: stream.SOCKET_SIZE]) for i in range(count)]
    assert at + count * stream.SOCKET_SIZE == len(state)
    return seen, list(zip(flows, sockets, strict=True))


@pytest.mark.skipif(not LITTLE, reason="ports are in the byte order of the machine that wrote them")
def test_what_passt_wrote_is_read_as_it_was_meant() -> None:
    """Field by field, as far as the conversation that was recorded tells them."""
    guest, remote = addresses("10.7.0.50", "10.8.0.1")
    seen, [(flow, socket)] = cut(RECORDED)
    assert seen == Seen(UNSET, UNSET, guest, bytes.fromhex("525400123456"))
    assert (flow.local, flow.peer, flow.fault) == (End(remote, 34360), End(remote, 5555), "")
    assert flow.guest == TcpFlow(
        guest_addr=guest,
        remote_addr=remote,
        guest_port=40000,
        remote_port=5555,
        mss=1460,
        guest_scale=7,
        our_scale=0,
        inbound=0,
        sack_allowed=0,
        snd_una=0x4F212B38,
        snd_nxt=0x4F212B38,
        snd_window=0xFFFF << 7,
        rcv_nxt=1006,
        rcv_acked=1006,
        rcv_edge=1006 + 0xFFB,
        irs=1000,
    )
    assert (socket.snd_seq, socket.rcv_seq) == (0xEFD3E672, 0x0F05E00F)
    assert (socket.send_queue, socket.not_sent, socket.receive_queue) == (0, 0, 0)
    assert (socket.mss, socket.timestamp) == (1460, 0xD9CBF974)
    windows = socket.snd_wl1, socket.snd_wnd, socket.max_window, socket.rcv_wnd, socket.rcv_wup
    assert windows == (0x0F05DFAB, 0xFFB, 0x1000, 0xFC00, 0x0F05E00F)
    assert (socket.snd_scale, socket.rcv_scale, socket.state, socket.options) == (0, 10, 1, 7)
    assert socket.fault() == stream.mismatch(flow, socket) == ""


u32, u16, scale = st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1), st.integers(0, 14)
address6 = st.binary(min_size=16, max_size=16).filter(lambda raw: not raw.startswith(stream.MAPPED_PREFIX))
address4 = st.binary(min_size=4, max_size=4).map(lambda raw: stream.MAPPED_PREFIX + raw)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    """Flows as a worker has them, but for what the format has no place for."""
    guest_scale, our_scale, rcv_acked = draw(scale), draw(scale), draw(u32)
    untold, offered = draw(st.integers(0, 1 << 20)), draw(u16)
    address = draw(st.sampled_from((address4, address6)))
    edge = max(offered << our_scale, untold)
    guest = TcpFlow(
        guest_addr=draw(address),
        remote_addr=draw(address),
        guest_port=draw(u16),
        remote_port=draw(u16),
        mss=draw(st.integers(88, 65535)),
        guest_scale=guest_scale,
        our_scale=our_scale,
        inbound=int(draw(st.booleans())),
        sack_allowed=0,
        snd_una=draw(u32),
        snd_nxt=draw(u32),
        snd_window=draw(u16) << guest_scale,
        rcv_nxt=(rcv_acked + untold) & 0xFFFFFFFF,
        rcv_acked=rcv_acked,
        rcv_edge=(rcv_acked + edge) & 0xFFFFFFFF,
        irs=draw(u32),
        guest_ended=draw(st.integers(0, 1)),
        peer_ended=draw(st.integers(0, 2)),
    )
    return Flow(guest, End(draw(address), draw(u16)), End(draw(address), draw(u16)))


@given(flows(), u32)
def test_a_flow_that_was_written_is_read_back(flow: Flow, send_buffer: int) -> None:
    """But that a window is told in units of its scale: the edge may lie a unit lower, and never behind what came."""
    there = stream.unpack_flow(stream.pack_flow(flow, send_buffer))
    unit = 1 << flow.guest.our_scale
    offered = stream.difference(flow.guest.rcv_edge, flow.guest.rcv_acked)
    edge = stream.difference(there.guest.rcv_edge, flow.guest.rcv_nxt)
    assert edge < 1 << 31
    told = min(offered // unit, 0xFFFF) * unit
    assert edge == max(told - stream.difference(flow.guest.rcv_nxt, flow.guest.rcv_acked), 0)
    same = {name: getattr(flow.guest, name) for name in TcpFlow.__slots__ if name != "rcv_edge"}
    assert same == {name: getattr(there.guest, name) for name in same}
    assert (there.local, there.peer, there.fault) == (flow.local, flow.peer, "")


@given(st.builds(Socket, *[u32] * 2, *[st.integers(0, 1 << 20)] * 3, *[u32] * 7, *[st.integers(0, 255)] * 4))
def test_a_socket_that_was_written_is_read_back(socket: Socket) -> None:
    """Whatever it says, if its sizes can be."""
    if socket.not_sent <= socket.send_queue:
        assert stream.unpack_socket(stream.pack_socket(socket)) == socket


counts = st.integers(0, stream.FLOWS_MAX)


@given(address6, address6, st.integers(1, 2**32 - 1), st.binary(min_size=6, max_size=6), counts)
def test_the_head_that_was_written_is_read_back(addr6: bytes, local: bytes, ipv4: int, mac: bytes, count: int) -> None:
    """With an IPv4 address or without one."""
    for addr4 in (UNSET, stream.MAPPED_PREFIX + ipv4.to_bytes(4, "big")):
        seen = Seen(addr6, local, addr4, mac)
        head = stream.pack_head(seen, count)
        stream.check_header(head[:16])
        assert stream.unpack_seen(head[16:58]) == seen
        assert stream.unpack_count(head[58:]) == count


@pytest.mark.parametrize(
    ("version", "readable_by", "good"), [(2, 2, True), (3, 2, True), (2, 1, True), (3, 3, False), (1, 1, False)]
)
def test_a_later_version_is_read_if_it_says_that_this_one_can(version: int, readable_by: int, good: bool) -> None:
    """And an earlier one never."""
    header = struct.pack(">QII", stream.MAGIC, version, readable_by)
    with contextlib.nullcontext() if good else pytest.raises(Malformed):
        stream.check_header(header)


@pytest.mark.parametrize(
    ("offset", "value", "fault"),
    [
        (0, b"\3", "between interfaces 3 and 1"),
        (1, b"\2", "between interfaces 2 and 2"),
        (77, b"\5", "in the middle of something"),
        (77, b"\x24", "in the middle of something"),  # the guest's FIN has come, and was not sent on
        (77, b"\xc4", "in the middle of something"),  # the guest has a FIN that nobody sent
        (75, b"\x0f", "scaled by 15"),
        (76, b"\xff", "scaled by 7 and 255"),
        (78, b"\0\0\0\1", "segments have 1 bytes"),
        (78, b"\1\0\0\0", "segments have 16777216 bytes"),
        (2, b"\1", "of IPv4 and of IPv6"),
        (18, b"\1", "of IPv4 and of IPv6"),
        (38, b"\1", "of IPv4 and of IPv6"),
        (54, b"\1", "of IPv4 and of IPv6"),
    ],
)
def test_what_is_wrong_with_a_flow_is_said_of_it(offset: int, value: bytes, fault: str) -> None:
    """And the others are not touched: it has its length all the same."""
    flow = bytearray(RECORDED[62 : 62 + stream.FLOW_SIZE])
    flow[offset : offset + len(value)] = value
    assert fault in stream.unpack_flow(bytes(flow)).fault


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("state", 7, "state 7"),
        ("snd_scale", 15, "larger than TCP has them"),
        ("rcv_wnd", 1 << 31, "larger than TCP has them"),
        ("mss", 0, "segments have 0 bytes"),
    ],
)
def test_what_is_wrong_with_a_socket_is_said_of_it(field: str, value: int, fault: str) -> None:
    """As far as the kernel would not say it."""
    _, [(_, socket)] = cut(RECORDED)
    changed = Socket(**{**{name: getattr(socket, name) for name in Socket.__slots__}, field: value})
    assert fault in changed.fault()


def test_more_bytes_in_flight_than_in_the_queue_are_no_connection() -> None:
    """The guest would wait for bytes that nobody has."""
    _, [(flow, socket)] = cut(RECORDED)
    ahead = Flow(
        TcpFlow(**{**{name: getattr(flow.guest, name) for name in TcpFlow.__slots__}, "snd_nxt": 0x4F212B39}),
        flow.local,
        flow.peer,
    )
    assert "1 bytes are under way" in stream.mismatch(ahead, socket)


class FakeWorker:
    """That takes what it is given."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def seen(self, seen: bytes) -> None:
        self.calls.append("seen")

    async def freeze(self, cursor: int) -> tuple[list[tuple[TcpFlow, int]], int]:
        return [], 0

    async def thaw(self, flow: int = 0) -> None:
        self.calls.append("thaw")

    async def forget(self, flow: int = 0) -> None:
        self.calls.append("forget")

    async def adopt(self, flow: TcpFlow, fd: int) -> None:
        self.calls.append("adopt")


def load(state: bytes) -> tuple[int, list[str], list[str]]:
    """The result, the events and what the worker was asked."""
    worker, events = FakeWorker(), list[str]()

    def emit(event: str, /, **fields: object) -> None:
        events.append(event)

    async def transfer() -> int:
        mover = Mover(worker, RepairHelper(None, emit), emit, 0, True)
        here, there = os.pipe()
        os.write(there, state)
        os.close(there)
        assert mover.begin(LOAD, here) is None
        async with asyncio.timeout(60):
            return await mover.result()

    return asyncio.run(transfer()), events, worker.calls


mutations = st.lists(st.tuples(st.integers(0, len(RECORDED) - 1), st.integers(0, 255)), max_size=4)


@given(mutations, st.integers(0, len(RECORDED)), st.binary(max_size=200))
def test_whatever_comes_is_loaded_or_refused(changes: list[tuple[int, int]], length: int, more: bytes) -> None:
    """With one word to the monitor, and one event; the worker hears of nothing that was refused."""
    state = bytearray(RECORDED)
    for at, value in changes:
        state[at] = value
    descriptors = len(os.listdir("/proc/self/fd"))
    result, events, calls = load(bytes(state[:length]) + more)
    if result == 0:
        assert (events, calls) == (["migration.loaded"], ["seen"])
    else:
        assert (events, calls) == (["migration.failed"], [])
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_whole_state_without_a_repair_helper_is_loaded_and_loses_its_flows() -> None:
    """The guest itself has moved."""
    assert load(RECORDED) == (0, ["migration.loaded"], ["seen"])
