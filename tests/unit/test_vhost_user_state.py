# SPDX-License-Identifier: Apache-2.0
"""SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE: who gets the descriptor, and what the front end is told, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from vhost_user_front_end import (
    CLOSED,
    PROTOCOL,
    Bench,
    ack,
    bench_of_one_test,
    run,
)

from lockgate.plugin.vhost_user.messages import DeviceState, ProtocolFeature, Request, mask

SAVE, LOAD = 0, 1
REFUSED, NO_DESCRIPTOR = 0x101, 0x100
WITH_STATE = PROTOCOL | mask(ProtocolFeature.DEVICE_STATE)


class FakeTransfer:
    """Keeps the descriptors that it is given, for the test to close."""

    def __init__(self, fault: str | None = None, outcome: int = 0) -> None:
        self.fault = fault
        self.outcome = outcome
        self.began: list[tuple[int, int]] = []
        self.starts = 0

    def begin(self, direction: int, fd: int) -> str | None:
        if self.fault is None:
            self.began.append((direction, fd))
        return self.fault

    async def result(self) -> int:
        return self.outcome

    def abandon(self) -> None:
        pass

    async def link_starts(self) -> None:
        self.starts += 1

    async def session_ended(self) -> None:
        pass

    def close(self) -> None:
        for _, fd in self.began:
            os.close(fd)


@pytest.fixture(name="bench")
def fresh_bench() -> Iterator[Bench]:
    yield from bench_of_one_test()


@pytest.fixture(name="pipe")
def pipe_end() -> Iterator[int]:
    here, there = os.pipe()
    yield there
    os.close(here)
    os.close(there)


def parameters(direction: int, phase: int = 0) -> bytes:
    return DeviceState(direction, phase).pack()


@pytest.mark.parametrize("direction", [SAVE, LOAD])
def test_the_descriptor_is_handed_over_and_none_comes_back(bench: Bench, pipe: int, direction: int) -> None:
    """At once; how it went is the answer to another question."""
    transfer = bench.session.transfer = FakeTransfer(outcome=5)

    async def conversation() -> None:
        await bench.play(bench.script.negotiate(protocol=WITH_STATE))
        out = await bench.say(Request.SET_DEVICE_STATE_FD, parameters(direction), (pipe,))
        assert out == ack(Request.SET_DEVICE_STATE_FD, NO_DESCRIPTOR)
        assert await bench.say(Request.CHECK_DEVICE_STATE) == ack(Request.CHECK_DEVICE_STATE, 5)

    run(conversation())
    assert [began for began, _ in transfer.began] == [direction]
    transfer.close()


@pytest.mark.parametrize("wrong", [(2, 0), (SAVE, 1), (LOAD, 2**32 - 1)])
def test_a_direction_or_phase_that_there_is_not_is_refused(bench: Bench, pipe: int, wrong: tuple[int, int]) -> None:
    """In the answer, which has a place for it; the connection goes on."""
    transfer = bench.session.transfer = FakeTransfer()

    async def conversation() -> None:
        await bench.play(bench.script.negotiate(protocol=WITH_STATE))
        out = await bench.say(Request.SET_DEVICE_STATE_FD, parameters(*wrong), (pipe,))
        assert out == ack(Request.SET_DEVICE_STATE_FD, REFUSED)

    run(conversation())
    assert transfer.began == []
    assert "are expected" in str(bench.events.refusal()[1])


def test_the_state_of_a_device_that_runs_is_refused(bench: Bench, pipe: int) -> None:
    """There is no other phase than the one in which it has stopped."""
    transfer = bench.session.transfer = FakeTransfer()

    async def conversation() -> None:
        await bench.play([*bench.script.negotiate(protocol=WITH_STATE), *bench.script.up()[3:]])
        assert transfer.starts == 2, "it is told before a ring starts"
        out = await bench.say(Request.SET_DEVICE_STATE_FD, parameters(SAVE), (pipe,))
        assert out == ack(Request.SET_DEVICE_STATE_FD, REFUSED)
        await bench.play(bench.script.stop())
        out = await bench.say(Request.SET_DEVICE_STATE_FD, parameters(SAVE), (pipe,))
        assert out == ack(Request.SET_DEVICE_STATE_FD, NO_DESCRIPTOR)

    run(conversation())
    transfer.close()


@pytest.mark.parametrize("transfer", [None, FakeTransfer("busy")])
def test_what_cannot_be_begun_is_refused(bench: Bench, pipe: int, transfer: FakeTransfer | None) -> None:
    """And its descriptor is closed with the message."""
    bench.session.transfer = transfer

    async def conversation() -> None:
        await bench.play(bench.script.negotiate(protocol=WITH_STATE))
        out = await bench.say(Request.SET_DEVICE_STATE_FD, parameters(SAVE), (pipe,))
        assert out == ack(Request.SET_DEVICE_STATE_FD, REFUSED)

    run(conversation())


def test_neither_request_is_known_without_its_protocol_feature(bench: Bench, pipe: int) -> None:
    """A front end would wait for its answer: the connection is closed."""

    async def conversation() -> None:
        await bench.play(bench.script.negotiate())
        assert await bench.say(Request.SET_DEVICE_STATE_FD, parameters(SAVE), (pipe,)) == CLOSED
        assert await bench.say(Request.CHECK_DEVICE_STATE) == CLOSED

    run(conversation())
