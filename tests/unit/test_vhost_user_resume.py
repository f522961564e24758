# SPDX-License-Identifier: Apache-2.0
"""A worker dies under a vhost-user session: the next one is told everything, and the front end notices nothing."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from vhost_user_front_end import (
    GUEST,
    NET_FEATURES,
    RING_SIZE,
    FakeWorker,
    FrontEnd,
    Script,
    Served,
    memory_file,
    open_descriptors,
    play,
    run,
    served,
)

from lockgate.plugin.vhost_user.messages import Log, MemTable, Request, VringState
from lockgate.plugin.vhost_user.worker import WorkerGone

USED = (41, 42)  # where the guest's memory says that the rings stand


@pytest.fixture
def script() -> Script:
    return Script()


async def base(front_end: FrontEnd, index: int) -> int:
    await front_end.send(Request.GET_VRING_BASE, VringState(index, 0))
    answer = await front_end.receive()
    assert answer is not None, "closed"
    state = VringState.unpack(answer[1])
    assert state.index == index
    return state.num


async def replace_worker(service: Served, old: FakeWorker, new: FakeWorker) -> None:
    """As control does: the old worker is seen dead, then the new one is ready."""
    old.kill()
    await service.server.resume(new)


def test_a_new_worker_is_told_features_memory_log_and_rings(tmp_path: Path, script: Script) -> None:
    """In this order, the rings from used->idx on; both ends of each ring are signalled once."""

    async def conversation() -> FakeWorker:
        old, new = FakeWorker(), FakeWorker(USED)
        log = memory_file(8192)
        async with served(old, tmp_path) as service:
            front_end = await service.attach(script)
            await front_end.ask(Request.SET_LOG_BASE, Log(8192, 0), (log,))
            await replace_worker(service, old, new)
            assert [os.eventfd_read(fd) for fd in (*script.kick, *script.call)] == [1, 1, 1, 1]
            assert service.events.of("link.resume") == [{"rings": [0, 1]}]
            assert service.events.names().count("link.attach") == 1, "the link was never gone"
            assert [await base(front_end, index) for index in (0, 1)] == list(USED)
            await front_end.leave()
        os.close(log)
        return new

    assert run(conversation()).calls == [
        f"link_features {NET_FEATURES:#x}",
        "mem_table 0x0+0x100000",
        "dirty_log 8192@0 ",
        "vring_start 0 size=256 base=0 enabled base_from_used",
        "vring_start 1 size=256 base=0 enabled base_from_used",
        "vring_stop 0",
        "vring_stop 1",
        "link_reset",
    ]
    script.close()


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_worker_may_die_over_any_command(tmp_path: Path, script: Script, acknowledged: bool) -> None:
    """Each in turn: the same answers come, the new worker ends with the same memory and rings, nothing leaks."""

    async def conversation(dies_at: int) -> bool:
        old, new = FakeWorker(dies_at=dies_at), FakeWorker(USED)
        async with served(old, tmp_path) as service:

            async def control() -> None:
                await old.lost.wait()
                await service.server.resume(new)

            keeper = asyncio.create_task(control())
            front_end = await service.connect()
            steps = [*script.up(), *script.share()]
            await play(front_end, steps[:2])
            for request, payload, fds in steps[2:]:
                if acknowledged:
                    assert await front_end.acknowledged(request, payload, fds) == 0
                else:
                    await front_end.send(request, payload, fds)
            await front_end.fence()
            died = old.dead
            if died:
                assert new.regions == [GUEST]
                assert {index: ring.size for index, ring in new.rings.items()} == {0: RING_SIZE, 1: RING_SIZE}
            bases = [await base(front_end, index) for index in (0, 1)]
            if died:
                assert bases == [USED[index] if index in old.touched else 0 for index in (0, 1)]
            await front_end.leave()
            keeper.cancel()
            await asyncio.wait([keeper])
            if not old.dead:
                return False
            assert service.events.names().count("link.attach") == 1
            assert not service.events.of("link.refused")
            assert not new.rings
        return True

    before = open_descriptors()
    dies_at = 1
    while run(conversation(dies_at)):
        assert open_descriptors() == before
        dies_at += 1
    assert dies_at > 12, "every command of the session was tried"
    script.close()


@pytest.mark.parametrize("disabled", [False, True])
def test_get_vring_base_is_answered_from_the_guests_memory_when_the_worker_died(
    tmp_path: Path, script: Script, disabled: bool
) -> None:
    """Over it, or before it; also of a ring that was disabled first, as front ends do when they stop."""

    async def conversation() -> list[int]:
        old, new = FakeWorker(), FakeWorker(USED)
        async with served(old, tmp_path) as service:
            front_end = await service.attach(script)
            if disabled:
                for index in (0, 1):
                    await front_end.send(Request.SET_VRING_ENABLE, VringState(index, 0))
                await front_end.fence()
            old.dies_at = old.count + 1
            first = asyncio.create_task(base(front_end, 0))
            await old.lost.wait()
            await service.server.resume(new)
            bases = [await first, await base(front_end, 1)]
            await front_end.leave()
            return bases

    assert run(conversation()) == list(USED)
    script.close()


def test_a_disabled_ring_is_not_started_by_a_new_worker(tmp_path: Path, script: Script) -> None:
    """Its memory may be anything by now; enabling it starts it, from used->idx."""

    async def conversation() -> FakeWorker:
        old, new = FakeWorker(), FakeWorker(USED)
        async with served(old, tmp_path) as service:
            front_end = await service.attach(script)
            await front_end.send(Request.SET_VRING_ENABLE, VringState(1, 0))
            await front_end.fence()
            await replace_worker(service, old, new)
            assert list(new.rings) == [0]
            await front_end.send(Request.SET_VRING_ENABLE, VringState(1, 1))
            await front_end.fence()
            assert service.events.names() == ["link.attach", "link.detach", "link.resume", "link.attach"]
            await front_end.leave()
        return new

    assert "vring_start 1 size=256 base=0 enabled base_from_used" in run(conversation()).calls
    script.close()


def test_a_base_that_is_set_counts_more_than_what_a_dead_worker_left(tmp_path: Path, script: Script) -> None:
    """SET_VRING_BASE over which the worker dies is what the next one starts from."""

    async def conversation() -> FakeWorker:
        old, new = FakeWorker(), FakeWorker(USED)
        async with served(old, tmp_path) as service:
            front_end = await service.attach(script)
            old.dies_at = old.count + 1
            await play(front_end, script.ring(0, base=7))
            await old.lost.wait()
            await service.server.resume(new)
            await front_end.fence()
            await front_end.leave()
        return new

    calls = run(conversation()).calls
    # SET_VRING_NUM finds the ring running; the worker dies over stopping it, and the base comes after.
    assert "vring_start 0 size=256 base=7 enabled" in calls
    script.close()


def test_a_new_worker_that_dies_too_is_replaced_again(tmp_path: Path, script: Script) -> None:
    """At each command of the resume; the front end waits, and its request is answered in the end."""

    async def conversation(dies_at: int) -> None:
        old, middle, new = FakeWorker(), FakeWorker(dies_at=dies_at), FakeWorker(USED)
        async with served(old, tmp_path) as service:
            front_end = await service.attach(script)
            old.dies_at = old.count + 1
            asked = asyncio.create_task(base(front_end, 0))
            await old.lost.wait()
            with pytest.raises(WorkerGone):
                await service.server.resume(middle)
            assert not asked.done()
            await service.server.resume(new)
            assert await asked == USED[0]
            await front_end.leave()

    for dies_at in (1, 2, 3, 4):
        run(conversation(dies_at))
    script.close()


def test_a_front_end_that_leaves_while_no_worker_lives_makes_room_for_the_next(tmp_path: Path, script: Script) -> None:
    """There is nothing left to detach from; the next one waits for the new worker, not for the old."""

    async def conversation() -> None:
        old, new = FakeWorker(), FakeWorker()
        async with served(old, tmp_path) as service:
            front_end = await service.attach(script)
            old.kill()
            await front_end.leave()
            second = await service.connect()
            await play(second, script.up())
            fence = asyncio.create_task(second.fence())
            await old.lost.wait()
            await service.server.resume(new)
            await fence
            assert set(new.rings) == {0, 1}
            await second.leave()

    before = open_descriptors()
    run(conversation())
    assert open_descriptors() == before
    script.close()


def test_a_worker_replaced_while_nobody_is_connected_serves_the_next_front_end(tmp_path: Path, script: Script) -> None:
    """It is told nothing until then."""

    async def conversation() -> None:
        old, new = FakeWorker(), FakeWorker()
        async with served(old, tmp_path) as service:
            await replace_worker(service, old, new)
            assert not new.calls
            front_end = await service.attach(script)
            assert set(new.rings) == {0, 1}
            await front_end.leave()

    run(conversation())
    script.close()


def test_a_new_worker_that_refuses_ends_the_connection_and_not_the_helper(tmp_path: Path, script: Script) -> None:
    """The front end sees the end of the connection and may come back; the line says why."""

    async def conversation() -> None:
        old, new = FakeWorker(), FakeWorker(refuses={"mem_table": errno.ENOMEM})
        async with served(old, tmp_path) as service:
            front_end = await service.attach(script)
            await replace_worker(service, old, new)
            assert await front_end.receive() is None
            front_end.sock.close()
            assert service.events.refusal() == (
                "resume",
                "the new worker refused: ENOMEM: Cannot allocate memory",
            )
            new.refuses = {}
            while not new.rings:
                again = await service.connect()
                try:
                    await play(again, script.up())
                    await again.fence()
                except (OSError, AssertionError):  # sent away: the first is still being cleared up
                    again.sock.close()
            await again.leave()

    run(conversation())
    script.close()


def test_memory_that_was_added_over_a_dying_worker_is_there_in_the_next(tmp_path: Path, script: Script) -> None:
    """The request was taken into the model before the worker was asked: it is done, and acknowledged as done."""

    async def conversation() -> FakeWorker:
        old, new = FakeWorker(), FakeWorker()
        async with served(old, tmp_path) as service:
            front_end = await service.connect()
            await play(front_end, script.negotiate())
            await front_end.fence()
            old.dies_at = old.count + 1
            added = asyncio.create_task(
                front_end.acknowledged(Request.SET_MEM_TABLE, MemTable(1, (GUEST,)), (script.memory,))
            )
            await old.lost.wait()
            await service.server.resume(new)
            assert await added == 0
            await front_end.leave()
        return new

    assert "mem_table 0x0+0x100000" in run(conversation()).calls
    script.close()
