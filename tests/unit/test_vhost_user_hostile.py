# SPDX-License-Identifier: Apache-2.0
"""Thousands of random and half-right front ends against the real server: none of them is the last one.

A session is made by a generator from a number; a failure names the number, and `hostile_session(number)` makes the same
session again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

from vhost_user_front_end import (
    GUEST,
    GUEST_SIZE,
    RING_SIZE,
    USER_ADDR,
    Events,
    FakeWorker,
    Script,
    Served,
    open_descriptors,
    play_whole,
    run,
    served,
    turn,
)

from lockgate.plugin.vhost_user.messages import HEADER, PAYLOAD_MAX, REQUESTS, VERSION, MemRegion, Request
from lockgate.plugin.vhost_user.worker import WorkerGone

SESSIONS = 3000
SESSIONS_WITH_DYING_WORKERS = 400

# Numbers at which something changes its meaning: edges of memory and rings, and where a sum wraps.
EDGES = [
    *(0, 1, 2, 3, 0x80, 0xFF, 0x100, 0x101, RING_SIZE, 32768, 65535, 65536, 2**31, 2**32 - 1),
    *(GUEST_SIZE, GUEST_SIZE - 1, USER_ADDR, USER_ADDR + GUEST_SIZE, USER_ADDR + GUEST_SIZE - 16, 2**63, 2**64 - 1),
]

Frame = tuple[int, int, bytes, tuple[int, ...]]  # request, flags, payload, descriptors
Piece = tuple[bytes, tuple[int, ...]]


def some_payload(rng: random.Random, size: int) -> bytes:
    if rng.random() < 0.3:
        return rng.randbytes(size)
    words = b"".join(rng.choice(EDGES).to_bytes(8, "little") for _ in range(size // 8 + 1))
    return words[:size]


def some_frame(rng: random.Random, fds: list[int]) -> Frame:
    request = rng.choice([rng.randrange(50), rng.choice(list(REQUESTS))])
    rule = REQUESTS.get(request)
    size = rule.payload.sizes[0] if rule is not None and rng.random() < 0.8 else rng.choice([0, 4, 8, 16, 40, 72, 268])
    count = rule.fds[1] if rule is not None and rng.random() < 0.6 else rng.choice([0, 0, 1, 2, 8])
    flags = rng.choice([VERSION, VERSION, 9, 9, 9, 0, 5, rng.getrandbits(32)] if rng.random() < 0.2 else [VERSION, 9])
    return request, flags, some_payload(rng, size), tuple(rng.choice(fds) for _ in range(min(count, 8)))


def bend(rng: random.Random, frames: list[Frame], fds: list[int]) -> None:
    """One thing wrong more."""
    i, j = rng.randrange(len(frames)), rng.randrange(len(frames))
    request, flags, payload, carried = frames[i]
    match rng.randrange(9):
        case 0:
            if len(frames) > 1:
                del frames[i]
        case 1:
            frames.insert(j, frames[i])
        case 2:
            frames[i], frames[j] = frames[j], frames[i]
        case 3:
            frames.insert(i, some_frame(rng, fds))
        case 4:
            frames[i] = (request, flags, payload, carried[1:])
        case 5:
            frames[i] = (request, flags, payload, (*carried, rng.choice(fds)))
        case 6:
            frames[i] = (request, flags, payload[: rng.randrange(len(payload) + 1)], carried)
        case 7 if payload:
            at = rng.randrange(0, len(payload), 8) if len(payload) >= 8 else 0
            frames[i] = (request, flags, payload[:at] + some_payload(rng, len(payload) - at), carried)
        case _:
            frames[i] = (request, flags ^ rng.choice([8, 8, 8, 1, 4]), payload, carried)


def hostile_session(number: int, script: Script) -> Iterator[Piece]:
    """What front end `number` sends, in the pieces in which it does."""
    rng = random.Random(number)
    fds = [script.memory, script.memory, *script.kick, *script.call]
    style = number % 4
    if style == 0:
        yield rng.randbytes(rng.randrange(300)), tuple(rng.choice(fds) for _ in range(rng.randrange(4)))
        return
    if style == 1:
        frames = [some_frame(rng, fds) for _ in range(rng.randrange(1, 30))]
    else:
        frames = [
            (request, rng.choice([VERSION, VERSION, 9]), payload, carried)
            for request, payload, carried in (script.up() if rng.random() < 0.3 else script.whole())
        ]
        if rng.random() < 0.5:
            frames.append((Request.REM_MEM_REG, VERSION, MemRegion(GUEST).pack(), ()))
            frames.append((Request.ADD_MEM_REG, VERSION, MemRegion(GUEST).pack(), (script.memory,)))
        for _ in range(rng.randrange(1, 5)):
            bend(rng, frames, fds)
    yield from in_pieces(rng, frames)


def in_pieces(rng: random.Random, frames: list[Frame]) -> Iterator[Piece]:
    """Now and then with a wrong size, cut in two, or not to the end."""
    last = rng.randrange(len(frames)) if rng.random() < 0.3 else None
    for i, (request, flags, payload, carried) in enumerate(frames):
        size = rng.choice([len(payload), rng.randrange(PAYLOAD_MAX * 2)]) if rng.random() < 0.02 else len(payload)
        data = HEADER.pack(request, flags & 0xFFFFFFFF, size) + payload
        if i == last:
            yield data[: rng.randrange(len(data))], carried
            return
        cut = rng.randrange(len(data)) if rng.random() < 0.1 else 0
        if cut:
            yield data[:cut], carried
        yield data[cut:], () if cut else carried


async def be_hostile(service: Served, script: Script, number: int) -> None:
    front_end = await service.connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was shown the door in the middle
        for data, fds in hostile_session(number, script):
            if data:
                await front_end.send_bytes(data, fds)
            if number % 5 == 0:
                await turn()
    await front_end.leave()


async def be_correct(service: Served, script: Script) -> None:
    """A whole session, all sent at once; its rings run, stop, and tell where they stood."""
    service.events.all.clear()
    front_end = await service.connect()
    await play_whole(front_end, script)
    await front_end.leave()
    names = [name for name in service.events.names() if name != "link.resume"]  # of a worker that died just before
    assert names == ["link.attach", "link.detach"], service.events.all


def assert_clean(worker: FakeWorker) -> None:
    assert (worker.features, worker.regions, worker.rings, worker.log) == (None, [], {}, None)


def test_after_any_front_end_a_correct_one_is_served(tmp_path: Path) -> None:
    """3000 of them, on one server: the worker is left clean, no descriptor stays open, the next session succeeds."""
    script = Script()

    async def conversation() -> int:
        worker = FakeWorker()
        refused = 0
        async with served(worker, tmp_path) as service:
            await be_correct(service, script)
            before = open_descriptors()
            for number in range(SESSIONS):
                try:
                    service.events.all.clear()
                    await be_hostile(service, script, number)
                    refused += bool(service.events.of("link.refused"))
                    assert_clean(worker)
                    assert open_descriptors() == before
                    await be_correct(service, script)
                    assert_clean(worker)
                    assert open_descriptors() == before
                    worker.calls.clear()
                except AssertionError as error:
                    raise AssertionError(f"session {number}: {error}") from error
        return refused

    refused = run(conversation())
    assert SESSIONS * 0.6 < refused < SESSIONS, "most of them are wrong somewhere, and some are not"
    script.close()


def test_front_ends_may_be_hostile_while_workers_die(tmp_path: Path) -> None:
    """A worker dies over a random command of each session; the next one, and the next front end, are as good as new."""
    script = Script()

    async def conversation() -> int:
        rng = random.Random(1)
        workers = [FakeWorker()]
        deaths = 0

        async with served(workers[0], tmp_path) as service:

            async def keep() -> None:
                nonlocal deaths
                while True:
                    await workers[-1].lost.wait()
                    deaths += 1
                    workers.append(FakeWorker())
                    with contextlib.suppress(WorkerGone):
                        await service.server.resume(workers[-1])

            keeper = asyncio.create_task(keep())
            await be_correct(service, script)
            before = open_descriptors()
            for number in range(SESSIONS_WITH_DYING_WORKERS):
                try:
                    workers[-1].dies_at = workers[-1].count + rng.randrange(1, 15)
                    await be_hostile(service, script, number * 4 + 2 + number % 2)
                    workers[-1].dies_at = 0
                    await be_correct(service, script)
                    assert_clean(workers[-1])
                    assert open_descriptors() == before
                except AssertionError as error:
                    raise AssertionError(f"session {number}: {error}") from error
            keeper.cancel()
            await asyncio.wait([keeper])
        return deaths

    assert run(conversation()) > SESSIONS_WITH_DYING_WORKERS // 4
    script.close()


def test_of_a_hundred_connections_at_once_one_is_served(tmp_path: Path) -> None:
    """The others are sent away, each with a line, and none of them disturbs the one."""
    script = Script()

    async def conversation() -> Events:
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.attach(script)
            others = [await service.connect() for _ in range(100)]
            for other in others:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    await other.send_bytes(b"\x01" * 12, (script.memory,))
                await other.leave()
            await front_end.fence()
            await front_end.leave()
            return service.events

    before = open_descriptors()
    assert len(run(conversation()).of("link.refused")) == 100
    assert open_descriptors() == before
    script.close()
