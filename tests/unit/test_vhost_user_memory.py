# SPDX-License-Identifier: Apache-2.0
"""The guest's memory in a vhost-user session: which regions and logs are refused, and what rings do when it changes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from vhost_user_front_end import (
    CLOSED,
    GUEST,
    GUEST_SIZE,
    PROTOCOL,
    USER_ADDR,
    Bench,
    ack,
    bench_of_one_test,
    event_file,
    memory_file,
    run,
)

from lockgate.plugin.vhost_user.messages import (
    U64,
    Log,
    MemRegion,
    MemTable,
    Region,
    Request,
    pack_message,
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield from bench_of_one_test()


# ---- Memory ----


def region(**changed: int) -> Region:
    return GUEST._replace(**changed)


BAD_REGIONS = {
    "empty": (region(size=0), "is empty"),
    "guest addresses that wrap": (region(guest_addr=2**64 - 4096), "ends beyond 64 bits"),
    "user addresses that wrap": (region(user_addr=2**64 - 4096), "ends beyond 64 bits"),
    "an offset that wraps": (region(mmap_offset=2**63 - 4096), "ends beyond 64 bits"),
    "a file that is too short": (region(size=GUEST_SIZE + 1), "a file that has only 1048576 bytes"),
    "an offset into the end of the file": (region(mmap_offset=4096), "a file that has only 1048576 bytes"),
}


@pytest.mark.parametrize("which", BAD_REGIONS)
@pytest.mark.parametrize("request_", [Request.SET_MEM_TABLE, Request.ADD_MEM_REG], ids=lambda request: request.name)
def test_a_region_that_cannot_be_is_refused(bench: Bench, which: str, request_: Request) -> None:
    """Either way it comes; nothing reaches the worker."""
    at, reason = BAD_REGIONS[which]
    payload = MemTable(1, (at,)).pack() if request_ is Request.SET_MEM_TABLE else MemRegion(at).pack()
    run(bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack()))
    assert run(bench.say(request_, payload, (bench.script.memory,), ack=True)) == ack(request_, 1)
    assert reason in bench.reason()
    assert not bench.worker.calls


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (region(user_addr=USER_ADDR + GUEST_SIZE, guest_addr=GUEST_SIZE - 1), "overlaps the region of 1048576 bytes"),
        (region(user_addr=USER_ADDR - 4096, guest_addr=GUEST_SIZE), "in the front end's addresses"),
        (GUEST, "overlaps the region of 1048576 bytes"),
    ],
)
def test_regions_that_overlap_are_refused(bench: Bench, other: Region, reason: str) -> None:
    """In guest addresses or in the front end's, in one table or one after the other."""

    async def conversation() -> None:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        fds = (bench.script.memory, bench.script.memory)
        await bench.say(Request.SET_MEM_TABLE, MemTable(2, (GUEST, other)).pack(), fds, ack=True)
        assert reason in bench.reason()
        await bench.say(Request.ADD_MEM_REG, MemRegion(GUEST).pack(), fds[:1], ack=True)
        await bench.say(Request.ADD_MEM_REG, MemRegion(other).pack(), fds[:1], ack=True)
        assert reason in bench.reason()

    run(conversation())
    assert bench.worker.regions == [GUEST]


def test_regions_that_touch_do_not_overlap(bench: Bench) -> None:
    """The end of one may be the start of the next; the last byte of 64 bits may be used."""
    low = region(size=4096)
    table = (low, region(guest_addr=4096, user_addr=USER_ADDR + 4096), region(guest_addr=2**64 - 4096, user_addr=0))
    table = (*table[:2], table[2]._replace(size=4096))
    run(bench.say(Request.SET_MEM_TABLE, MemTable(3, table).pack(), (bench.script.memory,) * 3))
    assert bench.worker.regions == list(table)


@pytest.mark.parametrize("kind", ["socket", "eventfd", "folder"])
def test_memory_that_cannot_be_mapped_is_refused(bench: Bench, kind: str) -> None:
    """A descriptor of anything but a file or a device is no memory."""
    if kind == "socket":
        fd = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
    else:
        fd = event_file() if kind == "eventfd" else os.open("/", os.O_RDONLY)
    run(bench.say(Request.SET_MEM_TABLE, MemTable(1, (GUEST,)).pack(), (fd,)))
    assert "cannot be mapped" in bench.reason()
    os.close(fd)


@pytest.mark.parametrize(("count", "fds"), [(1, 0), (1, 2), (2, 1), (0, 1)])
def test_a_table_and_its_descriptors_must_be_of_one_number(bench: Bench, count: int, fds: int) -> None:
    """One descriptor for each region."""
    table = MemTable(count, (GUEST, region(guest_addr=GUEST_SIZE, user_addr=0)))
    run(bench.say(Request.SET_MEM_TABLE, table.pack(), (bench.script.memory,) * fds))
    assert bench.reason() == f"{fds} descriptors for {count} regions: one for each is expected"


def test_a_count_beyond_the_payload_is_refused(bench: Bench) -> None:
    """The count is a number from outside: it is compared with what came."""
    run(bench.say(Request.SET_MEM_TABLE, MemTable(2**32 - 1, (GUEST,)).pack(), (bench.script.memory,)))
    assert bench.reason() == "4294967295 regions are announced, and 1 are in the payload"


def test_room_for_more_regions_than_are_meant_is_accepted(bench: Bench) -> None:
    """User-mode Linux always sends room for two."""
    run(bench.play([(Request.SET_MEM_TABLE, MemTable(1, (GUEST, Region(0, 0, 0, 0))).pack(), (bench.script.memory,))]))
    assert bench.worker.regions == [GUEST]


def test_regions_are_added_up_to_the_slots_that_are_told(bench: Bench) -> None:
    """64 fit, the next is refused, and after one was removed it fits."""

    def at(i: int) -> bytes:
        return MemRegion(Region(i * 4096, 4096, USER_ADDR + i * 4096, i * 4096)).pack()

    async def conversation() -> None:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        out = await bench.say(Request.GET_MAX_MEM_SLOTS)
        assert out.reply is not None and U64.unpack(out.reply[12:]).value == 64
        for i in range(64):
            assert await bench.say(Request.ADD_MEM_REG, at(i), (bench.script.memory,), ack=True) == ack(37, 0)
        assert await bench.say(Request.ADD_MEM_REG, at(64), (bench.script.memory,), ack=True) == ack(37, 1)
        assert "one too many: 64 regions are the most" in bench.reason()
        assert await bench.say(Request.REM_MEM_REG, at(7), ack=True) == ack(38, 0)
        assert await bench.say(Request.ADD_MEM_REG, at(64), (bench.script.memory,), ack=True) == ack(37, 0)

    run(conversation())
    assert len(bench.worker.regions) == 64


def test_a_region_is_removed_by_its_addresses_and_size(bench: Bench) -> None:
    """The offset is ignored, and a descriptor that came along is closed; another size is another region."""

    async def conversation() -> None:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        await bench.play(bench.script.share())
        await bench.say(Request.REM_MEM_REG, MemRegion(region(size=4096)).pack(), ack=True)
        assert bench.reason() == "the region of 4096 bytes at guest address 0x0 was never added"
        out = await bench.say(
            Request.REM_MEM_REG, MemRegion(region(mmap_offset=5)).pack(), (bench.script.memory,), ack=True
        )
        assert out == ack(Request.REM_MEM_REG, 0)

    run(conversation())
    assert bench.worker.regions == []


def test_a_new_memory_table_under_running_rings_stops_them_for_its_time(bench: Bench) -> None:
    """They go on where they stood, and both sides are signalled: nothing that came in between is slept through."""
    bench.worker.used = (7, 9)
    run(bench.play(bench.script.up()))
    bench.worker.bases.update({0: 41, 1: 42})
    bench.worker.calls.clear()
    for fd in (*bench.script.kick, *bench.script.call):
        assert not os.get_blocking(fd)
    run(bench.play(bench.script.share()))
    assert bench.worker.calls == [
        "vring_stop 0",
        "vring_stop 1",
        "mem_table 0x0+0x100000",
        "vring_start 0 size=256 base=41 enabled",
        "vring_start 1 size=256 base=42 enabled",
    ]
    assert [os.eventfd_read(fd) for fd in (*bench.script.kick, *bench.script.call)] == [1, 1, 1, 1]
    assert bench.events.names() == ["link.attach"]


def test_a_ring_whose_memory_goes_away_waits_for_it(bench: Bench) -> None:
    """QEMU takes a region away and adds its parts back: the ring stops before, and runs again when all is there."""

    async def conversation() -> None:
        await bench.play(bench.script.up())
        bench.worker.bases[0] = 5
        bench.worker.calls.clear()
        await bench.play([(Request.REM_MEM_REG, MemRegion(GUEST).pack(), ())])
        assert bench.events.names()[-3:] == ["link.parked", "link.parked", "link.detach"]
        half = GUEST_SIZE // 2
        low, high = region(size=half), Region(half, half, USER_ADDR + half, half)
        await bench.play([(Request.ADD_MEM_REG, MemRegion(at).pack(), (bench.script.memory,)) for at in (high, low)])

    run(conversation())
    assert bench.worker.calls == [
        "vring_stop 0",
        "vring_stop 1",
        "mem_remove 0x0+0x100000",
        "mem_add 0x80000+0x80000",
        "mem_add 0x0+0x80000",
        "vring_start 0 size=256 base=5 enabled",
        "vring_start 1 size=256 base=0 enabled",
    ]
    assert bench.events.names()[-1] == "link.attach"


def test_a_removed_region_without_rings_disturbs_none(bench: Bench) -> None:
    """Unplugged memory is nobody's ring."""
    other = region(guest_addr=GUEST_SIZE, user_addr=USER_ADDR + GUEST_SIZE)
    run(bench.play([*bench.script.up(), (Request.ADD_MEM_REG, MemRegion(other).pack(), (bench.script.memory,))]))
    bench.worker.calls.clear()
    run(bench.play([(Request.REM_MEM_REG, MemRegion(other).pack(), ())]))
    assert bench.worker.calls == ["mem_remove 0x100000+0x100000"]


def test_a_worker_that_refuses_memory_ends_the_connection(bench: Bench) -> None:
    """Told where that is possible; but what is shared is no longer sure, so that the front end must begin anew."""
    bench.worker.refuses = {"mem_table": errno.ENOMEM}
    run(bench.play(bench.script.negotiate()))
    out = run(bench.say(*bench.script.share()[0], ack=True))
    assert out == replace(ack(Request.SET_MEM_TABLE, 1), close=True)
    assert bench.reason() == "the worker refused: ENOMEM: Cannot allocate memory"


# ---- The dirty log ----


def test_the_dirty_log_and_its_eventfd_reach_the_worker(bench: Bench) -> None:
    """SET_LOG_BASE is answered, SET_LOG_FD repeats what is known; each replaces the one before."""
    log, event = memory_file(8192), event_file()

    async def conversation() -> None:
        await bench.play(bench.script.negotiate())
        bench.worker.calls.clear()
        await bench.play([(Request.SET_LOG_FD, b"", (event,))])
        out = await bench.say(Request.SET_LOG_BASE, Log(4096, 4096).pack(), (log,))
        assert out.reply == pack_message(Request.SET_LOG_BASE, U64(0).pack())
        await bench.play([(Request.SET_LOG_FD, b"", (event,))])
        await bench.say(Request.SET_LOG_BASE, Log(8192, 0).pack(), (log,))

    run(conversation())
    assert bench.worker.calls == ["dirty_log 4096@4096 event"] * 2 + ["dirty_log 8192@0 event"]
    os.close(log)
    os.close(event)


@pytest.mark.parametrize(
    ("size", "offset", "reason"),
    [
        (0, 0, "the dirty log is empty"),
        (8193, 0, "a file that has only 8192 bytes"),
        (4096, 4097, "a file that has only 8192 bytes"),
        (2**63, 4096, "ends beyond 63 bits"),
    ],
)
def test_a_log_that_is_not_in_its_file_is_refused(bench: Bench, size: int, offset: int, reason: str) -> None:
    """The front end waits for an answer of its own here: the connection ends."""
    log = memory_file(8192)
    run(bench.play(bench.script.negotiate()))
    assert run(bench.say(Request.SET_LOG_BASE, Log(size, offset).pack(), (log,), ack=True)) == CLOSED
    assert reason in bench.reason()
    os.close(log)
