# SPDX-License-Identifier: Apache-2.0
"""core/datapath/command.c in a worker of its own: what control asks for, right, half right or at random, is answered
with 0 or an errno, and no descriptor is ever kept or lost by mistake."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from core_pieces import EXAMPLES, ffi, lib
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_child import SHAPES, SLOTS, Worker, head_of

REGION, GUEST, USER = 0x10000, 0x40000000, 0x7F0000000000
HAS_KICK, HAS_CALL, HAS_ERR = lib.LG_VRING_HAS_KICK, lib.LG_VRING_HAS_CALL, lib.LG_VRING_HAS_ERR
MANY = 253  # SCM_MAX_FD: what the kernel lets one record carry


@pytest.fixture(name="only_worker", scope="module")
def running_worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(name="worker")
def reset_worker(only_worker: Worker) -> Iterator[Worker]:
    """One worker serves all tests, as it serves one front end after the other: a reset leaves nothing in it."""
    yield only_worker
    assert only_worker.result(lib.LG_CMD_LINK_RESET) == 0
    assert only_worker.result(lib.LG_CMD_LISTEN_CLOSE, value=lib.LG_LISTEN_SLOTS << 32) == 0
    assert only_worker.fds() == only_worker.baseline


@pytest.fixture(name="memory")
def shared_memory() -> Iterator[int]:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 40)  # sparse: no region that a test makes up lies beyond its end
    yield fd
    os.close(fd)


def region(at: int = 0) -> dict[str, int]:
    return {"guest_addr": GUEST + at * REGION, "size": REGION, "user_addr": USER + at * REGION}


def ring(**fields: int) -> dict[str, Any]:
    return {"index": 1, "size": 4, "desc": USER, "avail": USER + 0x100, "used": USER + 0x200, **fields}


def eventfds(count: int) -> list[int]:
    return [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


# ---- the shape of a record ----


@pytest.mark.parametrize("kind", SHAPES)
def test_a_record_of_another_length_is_refused(worker: Worker, kind: int) -> None:
    """One byte less, one more, or so much more that the worker's buffer cuts it."""
    size, fds = ffi.sizeof(SHAPES[kind][0]), eventfds(SHAPES[kind][1].start)
    for length in (4, 16, size - 1, size + 1, 4 * ffi.sizeof("struct lg_cmd_mem")):
        if length != size:
            record = kind.to_bytes(4, "little") + (77).to_bytes(4, "little") + bytes(length)
            reply = worker.send(record[:length], fds)
            assert (reply.type, reply.result) == (kind, -errno.EBADMSG), f"{length} bytes in place of {size}"
    assert worker.fds() == worker.baseline
    close_all(fds)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_record_with_too_few_or_too_many_descriptors_is_refused(worker: Worker, kind: int) -> None:
    """And all that came with it are closed, as many as the kernel lets through."""
    allowed, fds = SHAPES[kind][1], eventfds(MANY)
    for count in (0, 1, 2, 3, 4, SLOTS + 1, MANY):
        if count not in allowed:
            assert worker.result(kind, fds[:count]) == -errno.EBADMSG, f"{count} descriptors"
    assert worker.fds() == worker.baseline
    close_all(fds)


@pytest.mark.parametrize("kind", [0, max(SHAPES) + 1, 2**32 - 1])
def test_a_type_that_nobody_knows_is_refused(worker: Worker, kind: int) -> None:
    """A newer control beside an older worker would hear of it."""
    fds = eventfds(3)
    reply = worker.send(kind.to_bytes(4, "little") + bytes(12), fds)
    assert (reply.type, reply.result) == (kind, -errno.ENOSYS)
    assert worker.fds() == worker.baseline
    close_all(fds)


# ---- memory and rings ----


def test_a_table_of_regions_is_taken_as_a_whole_or_not_at_all(worker: Worker, memory: int) -> None:
    """Two that overlap leave none of them; the descriptors are closed either way, since a mapping needs none."""
    table = {"count": 2, "region": [region(), region(1)]}
    assert worker.result(lib.LG_CMD_MEM_TABLE, [memory] * 2, **table) == 0
    assert worker.result(lib.LG_CMD_VRING_START, **ring()) == 0
    assert worker.result(lib.LG_CMD_MEM_TABLE, [memory] * 2, **table) == -errno.EBUSY
    assert worker.result(lib.LG_CMD_VRING_STOP, value=1) == 0
    assert worker.result(lib.LG_CMD_MEM_TABLE, [memory] * 2, count=2, region=[region()] * 2) == -errno.EEXIST
    assert worker.result(lib.LG_CMD_VRING_START, **ring()) == -errno.EFAULT
    assert (
        worker.result(lib.LG_CMD_MEM_TABLE, [memory] * SLOTS, count=SLOTS, region=[region(n) for n in range(SLOTS)])
        == 0
    )
    assert worker.fds() == worker.baseline


@pytest.mark.parametrize(("count", "fds"), [(1, 2), (2, 1), (SLOTS + 1, SLOTS), (2**32 - 1, 1), (0, 1)])
def test_a_table_whose_count_is_not_that_of_its_descriptors_is_refused(
    worker: Worker, memory: int, count: int, fds: int
) -> None:
    """Nothing beyond the record's own array is looked at."""
    assert worker.result(lib.LG_CMD_MEM_TABLE, [memory] * fds, count=count, region=[region()]) == -errno.EINVAL


@pytest.mark.parametrize("count", [0, 2, 2**32 - 1])
def test_one_region_is_added_or_removed_at_a_time(worker: Worker, memory: int, count: int) -> None:
    """The protocol's own messages name one."""
    assert worker.result(lib.LG_CMD_MEM_ADD, [memory], count=count, region=[region()]) == -errno.EINVAL
    assert worker.result(lib.LG_CMD_MEM_REMOVE, count=count, region=[region()]) == -errno.EINVAL


def test_a_region_that_a_ring_lies_in_cannot_be_removed(worker: Worker, memory: int) -> None:
    """Others can."""
    assert worker.result(lib.LG_CMD_MEM_ADD, [memory], count=1, region=[region()]) == 0
    assert worker.result(lib.LG_CMD_MEM_ADD, [memory], count=1, region=[region(1)]) == 0
    assert worker.result(lib.LG_CMD_VRING_START, **ring()) == 0
    assert worker.result(lib.LG_CMD_MEM_REMOVE, count=1, region=[region()]) == -errno.EBUSY
    assert worker.result(lib.LG_CMD_MEM_REMOVE, count=1, region=[region(1)]) == 0
    assert worker.result(lib.LG_CMD_VRING_STOP, value=1) == 0
    assert worker.result(lib.LG_CMD_MEM_REMOVE, count=1, region=[region()]) == 0


@pytest.mark.parametrize(
    ("flags", "count"),
    [(0, 1), (HAS_KICK, 0), (HAS_KICK, 2), (HAS_KICK | HAS_ERR, 1), (HAS_KICK | HAS_CALL | HAS_ERR, 2)],
)
def test_a_start_names_the_descriptors_that_it_brings(worker: Worker, memory: int, flags: int, count: int) -> None:
    """A kick in the place of a call would never be noticed."""
    fds = eventfds(3)
    assert worker.result(lib.LG_CMD_MEM_ADD, [memory], count=1, region=[region()]) == 0
    assert worker.result(lib.LG_CMD_VRING_START, fds[:count], **ring(flags=flags)) == -errno.EINVAL
    assert worker.fds() == worker.baseline
    close_all(fds)


def test_descriptors_stay_with_the_worker_only_as_long_as_their_ring(worker: Worker, memory: int) -> None:
    """Kept by a start that works, replaced by the next, closed by a start that fails, by stop and by reset."""
    fds = eventfds(3)
    every = HAS_KICK | HAS_CALL | HAS_ERR
    assert worker.result(lib.LG_CMD_MEM_ADD, [memory], count=1, region=[region()]) == 0
    assert worker.result(lib.LG_CMD_VRING_START, fds, **ring(flags=every, size=3)) == -errno.EINVAL
    assert worker.fds() == worker.baseline
    for _ in range(3):
        assert worker.result(lib.LG_CMD_VRING_START, fds, **ring(flags=every)) == 0
        assert worker.fds() == worker.baseline + 3
    assert worker.result(lib.LG_CMD_VRING_CALL, value=1) == 0
    assert worker.fds() == worker.baseline + 2
    assert worker.result(lib.LG_CMD_VRING_ERR, fds[:1], value=1) == 0
    assert worker.result(lib.LG_CMD_VRING_ERR, value=1) == 0
    assert worker.fds() == worker.baseline + 1
    assert worker.result(lib.LG_CMD_VRING_STOP, value=1) == 0
    assert worker.fds() == worker.baseline
    assert worker.result(lib.LG_CMD_VRING_START, fds, **ring(flags=every)) == 0
    assert worker.result(lib.LG_CMD_VRING_CALL, fds[:1], value=0) == 0  # of a ring that does not run yet
    assert worker.result(lib.LG_CMD_DIRTY_LOG, [memory, fds[0]], size=4096) == 0
    assert worker.fds() == worker.baseline + 5
    assert worker.result(lib.LG_CMD_LINK_RESET) == 0
    assert worker.fds() == worker.baseline
    close_all(fds)


def test_stopping_answers_the_next_chain(worker: Worker, memory: int) -> None:
    """Sixteen bits of it; a ring that does not run has none."""
    assert worker.result(lib.LG_CMD_MEM_ADD, [memory], count=1, region=[region()]) == 0
    os.pwrite(memory, (65535).to_bytes(2, "little"), 0x102)  # the guest's own index: nothing is waiting
    assert worker.result(lib.LG_CMD_VRING_START, **ring(base=0x1FFFF)) == 0
    reply = worker.call(lib.LG_CMD_VRING_STOP, value=1)
    assert (reply.result, reply.value) == (0, 0xFFFF)
    assert worker.result(lib.LG_CMD_VRING_STOP, value=1) == -errno.EINVAL


@pytest.mark.parametrize(
    "kind", [lib.LG_CMD_VRING_STOP, lib.LG_CMD_VRING_ENABLE, lib.LG_CMD_VRING_CALL, lib.LG_CMD_VRING_ERR]
)
@pytest.mark.parametrize("index", [2, 31, 2**31])
def test_a_ring_that_there_is_not_is_refused(worker: Worker, kind: int, index: int) -> None:
    """There is one pair. The index is checked before it is used, however large."""
    fds = eventfds(1) if 1 in SHAPES[kind][1] else []
    assert worker.result(kind, fds, value=index) == -errno.EINVAL
    if kind != lib.LG_CMD_VRING_ENABLE:
        assert worker.result(kind, fds, value=index << 32) == -errno.EINVAL
    assert worker.result(lib.LG_CMD_VRING_START, index=index) == -errno.EINVAL
    assert worker.fds() == worker.baseline
    close_all(fds)


def test_a_new_call_descriptor_is_called_at_once(worker: Worker, memory: int) -> None:
    """A call on the old one may have been missed; one too many does no harm."""
    (call,) = eventfds(1)
    assert worker.result(lib.LG_CMD_MEM_ADD, [memory], count=1, region=[region()]) == 0
    assert worker.result(lib.LG_CMD_VRING_START, **ring()) == 0
    assert worker.result(lib.LG_CMD_VRING_CALL, [call], value=1) == 0
    assert os.eventfd_read(call) == 1
    os.close(call)


# ---- the other commands ----


@pytest.mark.parametrize(
    ("mtu", "result"), [(0, -errno.EINVAL), (67, -errno.EINVAL), (68, 0), (65535, 0), (65536, -errno.EINVAL)]
)
def test_a_view_needs_an_mtu_that_an_ip_packet_can_have(worker: Worker, mtu: int, result: int) -> None:
    """RFC 791, 3.2 says the least; the length field says the most."""
    assert worker.result(lib.LG_CMD_NET_VIEW, view={"mtu": mtu}) == result


@pytest.mark.parametrize(("count", "result"), [(0, 0), (1, 0), (2, -errno.EINVAL), (513, -errno.EINVAL)])
def test_neighbours_come_in_order_and_not_too_many(worker: Worker, count: int, result: int) -> None:
    """The same address twice could not be searched; what follows the table is not read."""
    assert worker.result(lib.LG_CMD_NEIGHBOURS, table={"count": count}) == result


def test_the_dirty_log_is_mapped_replaced_and_put_away(worker: Worker, memory: int) -> None:
    """Its descriptor is not kept, the eventfd is; a log of no bytes, or one that cannot be mapped, changes nothing."""
    fds = eventfds(2)
    (pipe, other) = os.pipe()
    assert worker.result(lib.LG_CMD_DIRTY_LOG, [memory, fds[0]], size=4096) == 0
    assert worker.result(lib.LG_CMD_DIRTY_LOG, [memory, fds[1]], size=8192, offset=4096) == 0
    assert worker.fds() == worker.baseline + 1
    assert worker.result(lib.LG_CMD_DIRTY_LOG, [memory, fds[1]], size=0) == -errno.EINVAL
    assert worker.result(lib.LG_CMD_DIRTY_LOG, [memory], size=2**64 - 1) == -errno.EINVAL
    assert worker.result(lib.LG_CMD_DIRTY_LOG, [pipe], size=4096) < 0
    assert worker.fds() == worker.baseline + 1
    assert worker.result(lib.LG_CMD_DIRTY_LOG, [memory], size=4096) == 0
    assert worker.fds() == worker.baseline
    assert worker.result(lib.LG_CMD_DIRTY_LOG, [memory, fds[0]], size=4096) == 0
    assert worker.result(lib.LG_CMD_DIRTY_LOG) == 0
    assert worker.fds() == worker.baseline
    close_all([*fds, pipe, other])


def test_a_capture_needs_a_ring_to_write_to() -> None:
    """Given at the start, or never."""
    for pcap in (True, False):
        worker = Worker(pcap)
        assert worker.result(lib.LG_CMD_PCAP, value=1) == (0 if pcap else -errno.ENODEV)
        worker.close()


def test_without_flows_a_snapshot_is_one_empty_page(worker: Worker) -> None:
    """Whatever the cursor."""
    for cursor in (0, 5, 2**32 - 1, 2**64 - 1):
        page = worker.call(lib.LG_CMD_FLOWS, value=cursor)
        assert (page.reply.result, page.reply.value, page.count) == (0, 0, 0)


# ---- ports of the host ----


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_ports_are_kept_in_their_slots_until_these_are_closed(worker: Worker) -> None:
    """As many as the record has room for; closing slots that are empty, or beyond all, does nothing."""
    with listening() as port:
        full = {"count": lib.LG_LISTEN_MAX, "protocol": socket.IPPROTO_TCP}
        same = [port.fileno()] * lib.LG_LISTEN_MAX
        slots = [lib.LG_LISTEN_SLOTS - 1 - 2 * n for n in range(lib.LG_LISTEN_MAX)]
        # The very same socket is in epoll once only, by each of its descriptors.
        assert worker.result(lib.LG_CMD_LISTEN, same, slot=slots, **full) == 0
        assert worker.fds() == worker.baseline + lib.LG_LISTEN_MAX
        assert worker.result(lib.LG_CMD_LISTEN, same, slot=slots, **full) == -errno.EEXIST
        assert worker.result(lib.LG_CMD_LISTEN_TARGET, slot=slots, **full) == 0
        assert worker.result(lib.LG_CMD_LISTEN_CLOSE, value=slots[5] | 3 << 32) == 0  # two of three have a socket
        assert worker.fds() == worker.baseline + lib.LG_LISTEN_MAX - 2
        assert worker.result(lib.LG_CMD_LISTEN_TARGET, slot=slots, **full) == -errno.ENOENT
        assert worker.result(lib.LG_CMD_LISTEN_CLOSE, value=2**64 - 1) == 0
        assert worker.result(lib.LG_CMD_LISTEN_CLOSE, value=(2**32 - 1) << 32) == 0
    assert worker.fds() == worker.baseline


@pytest.mark.parametrize("slot", [lib.LG_LISTEN_SLOTS, 2**31, 2**32 - 1])
def test_a_slot_that_there_is_not_is_refused(worker: Worker, slot: int) -> None:
    with listening() as port:
        one: dict[str, Any] = {"count": 1, "protocol": socket.IPPROTO_TCP, "slot": [slot]}
        assert worker.result(lib.LG_CMD_LISTEN, [port.fileno()], **one) == -errno.EINVAL
        assert worker.result(lib.LG_CMD_LISTEN_TARGET, **one) == -errno.ENOENT


def test_a_target_is_for_ports_of_its_protocol(worker: Worker) -> None:
    """And for as many as the record can name."""
    with listening() as port:
        assert worker.result(lib.LG_CMD_LISTEN, [port.fileno()], count=1, protocol=socket.IPPROTO_TCP) == 0
        assert worker.result(lib.LG_CMD_LISTEN_TARGET, count=1, protocol=socket.IPPROTO_UDP) == -errno.ENOENT
        many = lib.LG_LISTEN_MAX + 1
        assert worker.result(lib.LG_CMD_LISTEN_TARGET, count=many, protocol=socket.IPPROTO_TCP) == -errno.EINVAL


# ---- the end ----


@pytest.mark.parametrize("channel", ["cmd", "keeper"])
def test_the_worker_ends_by_itself_when_control_or_the_keeper_is_gone(channel: str) -> None:
    """With 0: it is no failure of its own."""
    worker = Worker()
    getattr(worker, channel).close()
    assert os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1]) == 0, worker.last_words()
    worker.pid = 0
    worker.close()


# ---- anything ----

numbers = st.one_of(
    st.integers(0, 8),
    st.sampled_from([2**16, 2**32 - 1, 2**63, 2**64 - 1, GUEST, USER, USER + 0x100, USER + 0x200, REGION]),
)
words = st.lists(numbers, max_size=24).map(lambda values: b"".join(value.to_bytes(8, "little") for value in values))
kinds = st.sampled_from([*SHAPES, 0, 99, 2**32 - 1])
fd_kinds = st.lists(st.sampled_from(["eventfd", "memory", "socket", "pipe", "null", "file"]), max_size=4)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A header of some type and words behind it, as long as that type wants it or as long as it happens to be."""
    kind = draw(kinds)
    header = kind.to_bytes(4, "little") + bytes(12)
    body = draw(st.one_of(words, st.binary(max_size=100)))
    if kind in SHAPES and draw(st.integers(0, 3)):
        return (header + body).ljust(ffi.sizeof(SHAPES[kind][0]), b"\0")[: ffi.sizeof(SHAPES[kind][0])]
    return (header + body)[: draw(st.integers(1, 200))]


@st.composite
def likely_records(draw: st.DrawFn) -> bytes:
    """Memory and rings that may fit each other."""
    kind = draw(
        st.sampled_from([lib.LG_CMD_MEM_TABLE, lib.LG_CMD_MEM_ADD, lib.LG_CMD_VRING_START, lib.LG_CMD_VRING_START])
    )
    record = ffi.new(SHAPES[kind][0] + " *")
    record.header.type = kind
    if kind == lib.LG_CMD_VRING_START:
        fields = ring(index=draw(st.integers(0, 2)), flags=draw(st.integers(0, 63)), base=draw(st.integers(0, 3)))
        fields["size"] = draw(st.sampled_from([1, 4, 8, 3]))
        for name, value in fields.items():
            setattr(record, name, value)
    else:
        record.count = draw(st.integers(0, 2))
        record.region = [region(), region(draw(st.integers(0, 2)))]
    return bytes(ffi.buffer(record))


class Bag:
    """One open descriptor of each kind."""

    def __init__(self, memory: int) -> None:
        pair, self.other = socket.socketpair()
        pipe, self.writer = os.pipe()
        self.fds = {
            "eventfd": os.eventfd(0, os.EFD_NONBLOCK),
            "memory": memory,
            "socket": pair.detach(),
            "pipe": pipe,
            "null": os.open("/dev/null", os.O_RDWR),
            "file": os.open(__file__, os.O_RDONLY),
        }

    def close(self) -> None:
        self.other.close()
        os.close(self.writer)
        close_all([fd for name, fd in self.fds.items() if name != "memory"])


@settings(max_examples=8 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.one_of(records(), likely_records()), fd_kinds), max_size=12))
def test_whatever_control_sends_is_answered_and_leaks_nothing(
    worker: Worker, memory: int, steps: list[tuple[bytes, list[str]]]
) -> None:
    """One reply each, with the record's type and number; after a reset the worker holds what it held at first."""
    bag = Bag(memory)
    for record, names in steps:
        reply = worker.send(record, [bag.fds[name] for name in names])
        kind, seq = (int.from_bytes(record[at : at + 4], "little") for at in (0, 4))
        head = head_of(reply)
        assert (head.type, head.seq) == (kind, seq)
        known = SHAPES.get(kind)
        if known is None:
            assert head.result == -errno.ENOSYS
        elif len(record) != ffi.sizeof(known[0]) or len(names) not in known[1]:
            assert head.result == -errno.EBADMSG
        else:
            assert -4096 < head.result <= 0
    assert worker.result(lib.LG_CMD_LINK_RESET) == 0
    bag.close()
    worker.fds()  # by its end, an agent that was one of these is known to have gone
    assert worker.fds() == worker.baseline
