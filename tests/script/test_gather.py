# SPDX-License-Identifier: Apache-2.0
"""A slow guest's stream is let gather while the worker sleeps: when the engine asks for that sleep, and when not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_core import lib
from model_guest import ModelGuest
from test_datagrams import Datagrams
from world import World

STEPS, AGAIN = 32, 1024
SLEEP_NS = 100_000
MSS = 1400


class Upload:
    """A guest that sends one way: what comes in a step, and how much later the next comes."""

    def __init__(self, world: World, family: int) -> None:
        self.world = world
        self.guest = ModelGuest(world, family=family)
        self.guest.open()
        self.plain(1)  # the first of a stream has a pause before it

    def step(self, size: int, gap_us: int) -> bool:
        """Whether the loop was to sleep after it."""
        lib.script_pass(gap_us * 1000)
        lib.script_gather_ns()
        self.guest.send(size)
        self.world.settle()
        lib.fake_peer_take(self.guest.fd, 1 << 40)
        self.world.settle()
        self.guest.take_frames()
        asked = lib.script_gather_ns()
        assert asked in (0, SLEEP_NS)
        return bool(asked)

    def plain(self, steps: int, size: int = 6 * MSS, gap_us: int = 130) -> list[bool]:
        return [self.step(size, gap_us) for _ in range(steps)]

    def gathered(self, steps: int, size: int = 24 * MSS, gap_us: int = 450) -> list[bool]:
        """As it comes behind sleeps that pay."""
        return self.plain(steps, size, gap_us)


@pytest.fixture(name="upload")
def fresh_upload(world: World, family: int) -> Upload:
    return Upload(world, family)


def test_a_slow_stream_gathers_once_it_has_been_seen_for_a_while(upload: Upload) -> None:
    assert upload.plain(STEPS) == [False] * (STEPS - 1) + [True]
    assert upload.gathered(4 * STEPS) == [True] * 4 * STEPS


@pytest.mark.parametrize(
    ("size", "gap_us"),
    [(MSS, 300), (60000, 560), (20000, 100), (2 * MSS, 10)],
    ids=["rare pieces", "rare large frames", "faster than one sleep's share", "a fast guest"],
)
def test_other_streams_are_taken_as_they_come(upload: Upload, size: int, gap_us: int) -> None:
    assert not any(upload.plain(3 * STEPS, size, gap_us))


def answer(upload: Upload) -> None:
    assert lib.fake_peer_send(upload.guest.fd, 100) == 100
    upload.world.settle()
    upload.guest.take_frames()
    upload.guest.acknowledge()


def datagram(upload: Upload) -> None:
    Datagrams(upload.world, 4).sends(b"question")


def connection(upload: Upload) -> None:
    ModelGuest(upload.world, port=40001, family=4).open()


def pause(upload: Upload) -> None:
    lib.script_pass(4_100_000)


@pytest.mark.parametrize("other", [answer, datagram, connection, pause])
def test_whatever_else_happens_ends_it(upload: Upload, other: Callable[[Upload], None]) -> None:
    """Somebody may wait for an answer, or the stream is at its end."""
    upload.plain(STEPS)
    assert upload.step(6 * MSS, 130)
    other(upload)
    assert not any(upload.plain(STEPS - 1))
    assert any(upload.plain(2))


def test_questions_and_answers_never_gather(upload: Upload) -> None:
    for _ in range(3 * STEPS):
        assert not upload.step(1000, 60)
        answer(upload)


def test_sleeps_that_bring_no_more_at_a_time_end(upload: Upload) -> None:
    """A sender whose window is full waits for us: its next bytes come only once we have looked."""
    upload.plain(STEPS)
    assert upload.plain(STEPS, gap_us=250) == [True] * (STEPS - 1) + [False]
    assert not any(upload.plain(AGAIN - 1, gap_us=130)), "it is seen again after a while only"


def test_sleeps_that_cost_a_third_of_the_rate_end(upload: Upload) -> None:
    """A window of 16 KB behind a round trip of 50 us or so."""
    assert upload.plain(STEPS, size=8000, gap_us=50)[-1]
    assert not all(upload.plain(STEPS, size=16000, gap_us=150))


def test_sleeps_in_vain_are_not_tried_again_at_each_datagram(upload: Upload) -> None:
    """Cause: a question for a name in 64 steps made half of all steps sleep in vain."""
    asked = 0
    for _ in range(20):
        asked += sum(upload.plain(2 * STEPS))
        datagram(upload)
    assert asked < 3 * STEPS


def test_a_guest_that_has_become_fast_is_not_slept_on(upload: Upload) -> None:
    """More comes in one sleep than would be worth one."""
    assert upload.plain(STEPS)[-1]
    assert upload.plain(4 * STEPS, size=60000, gap_us=170)[STEPS:] == [False] * 3 * STEPS


def test_what_there_is_without_sleeps_is_seen_now_and_then(upload: Upload) -> None:
    """A guest that has become fast meanwhile."""
    upload.plain(STEPS)
    assert upload.gathered(AGAIN) == [True] * (AGAIN - 1) + [False]
    assert not any(upload.plain(2 * STEPS, size=60000, gap_us=50))


def test_a_timer_between_two_pieces_changes_nothing(upload: Upload) -> None:
    upload.plain(STEPS)
    lib.script_look()
    assert lib.script_gather_ns() == 0
    assert upload.gathered(1) == [True]
