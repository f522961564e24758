# SPDX-License-Identifier: Apache-2.0
"""A guest's stream is let gather while the worker sleeps: when the engine asks for that sleep, and when not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_core import lib
from model_guest import ModelGuest
from test_datagrams import Datagrams
from world import World

STEPS, AGAIN, DOUBTS, DOUBLED = 32, 1024, 2, 4
LONGEST_NS = 100_000  # of a sleep
MSS = 1400


class Upload:
    """A guest that sends one way: what comes in a step, and how much later the next comes."""

    def __init__(self, world: World, family: int) -> None:
        self.world = world
        self.guest = ModelGuest(world, family=family)
        self.guest.open()
        self.plain(1)  # the first of a stream has a pause before it

    def sleep_ns(self, size: int, gap_us: int) -> int:
        """For how long the loop was to sleep after a step."""
        lib.script_pass(gap_us * 1000)
        lib.script_gather_ns()
        self.guest.send(size)
        self.world.settle()
        lib.fake_peer_take(self.guest.fd, 1 << 40)
        self.world.settle()
        self.guest.take_frames()
        return int(lib.script_gather_ns())

    def step(self, size: int, gap_us: int) -> bool:
        """Whether it was to sleep."""
        asked = self.sleep_ns(size, gap_us)
        assert asked <= LONGEST_NS
        return bool(asked)

    def plain(self, steps: int, size: int = 6 * MSS, gap_us: int = 130) -> list[bool]:
        return [self.step(size, gap_us) for _ in range(steps)]

    def seen(self) -> bool:
        """Twice the same rate: from now on it gathers, as long as it pays."""
        return self.plain(2 * STEPS) == [False] * (2 * STEPS - 1) + [True]

    def gathered(self, steps: int, size: int = 24 * MSS, gap_us: int = 450) -> list[bool]:
        """As it comes behind sleeps that pay."""
        return self.plain(steps, size, gap_us)


@pytest.fixture(name="upload")
def fresh_upload(world: World, family: int) -> Upload:
    return Upload(world, family)


def test_a_stream_gathers_once_it_has_been_seen_twice_at_one_rate(upload: Upload) -> None:
    assert upload.seen()
    assert upload.gathered(4 * STEPS) == [True] * 4 * STEPS


@pytest.mark.parametrize(
    ("size", "gap_us"),
    [(MSS, 300), (60000, 560), (20000, 100), (2 * MSS, 10)],
    ids=["rare pieces", "rare large frames", "faster than one sleep's share", "a fast guest"],
)
def test_other_streams_are_taken_as_they_come(upload: Upload, size: int, gap_us: int) -> None:
    assert not any(upload.plain(4 * STEPS, size, gap_us))


@pytest.mark.parametrize(("size", "gap_us", "sleep_us"), [(8000, 130, 100), (60000, 80, 87), (60000, 20, 21)])
def test_a_tap_devices_stream_gathers_at_any_rate_for_a_large_frames_time(
    upload: Upload, size: int, gap_us: int, sleep_us: int
) -> None:
    """There a guest has its memory back at once, and waits for no look of ours."""
    upload.world.set_link(copies=True)
    for _ in range(2 * STEPS - 1):
        assert not upload.step(size, gap_us)
    assert upload.sleep_ns(size, gap_us) // 1000 == sleep_us


def test_a_stream_that_still_grows_is_not_slept_on(upload: Upload) -> None:
    """A sender that measures its round trips (BBR) would be kept from its rate."""
    upload.world.set_link(copies=True)
    size = 2 * MSS
    for _ in range(12):
        assert not any(upload.plain(STEPS, size))
        size += size // 5
    assert upload.plain(2 * STEPS, size) == [False] * (2 * STEPS - 1) + [True]


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
    assert upload.seen()
    assert upload.step(6 * MSS, 130)
    other(upload)
    assert not any(upload.plain(2 * STEPS - 1))
    assert any(upload.plain(2))


def test_questions_and_answers_never_gather(upload: Upload) -> None:
    for _ in range(4 * STEPS):
        assert not upload.step(1000, 60)
        answer(upload)


def test_sleeps_that_bring_no_more_at_a_time_end(upload: Upload) -> None:
    """A sender whose window is full waits for us: its next bytes come only once we have looked."""
    assert upload.seen()
    assert upload.plain(DOUBTS * STEPS, gap_us=250) == [True] * (DOUBTS * STEPS - 1) + [False]


def test_sleeps_that_cost_a_sixth_of_the_rate_end(upload: Upload) -> None:
    """A window of 16 KB behind a round trip of 50 us or so."""
    upload.world.set_link(copies=True)
    assert upload.plain(2 * STEPS, size=8000, gap_us=50)[-1]
    assert not upload.plain(DOUBTS * STEPS, size=20000, gap_us=150)[-1]


def test_one_look_in_which_the_machine_was_elsewhere_ends_nothing(upload: Upload) -> None:
    assert upload.seen()
    for _ in range(3):
        assert all(upload.plain(STEPS, gap_us=2000))
        assert all(upload.gathered(STEPS))


def test_sleeps_in_vain_are_tried_again_after_ever_longer_times(upload: Upload) -> None:
    """Each try costs such a sender some of its rate."""
    for time in [*range(DOUBLED + 1), DOUBLED]:
        assert upload.seen()
        assert not upload.plain(DOUBTS * STEPS, gap_us=250)[-1]
        assert not any(upload.plain(AGAIN << time))


def test_sleeps_in_vain_are_not_tried_again_at_each_datagram(upload: Upload) -> None:
    """Cause: a question for a name in 64 steps made half of all steps sleep in vain."""
    asked = 0
    for _ in range(20):
        asked += sum(upload.plain(3 * STEPS))
        datagram(upload)
    assert 0 < asked < 5 * STEPS


def test_what_there_is_without_sleeps_is_seen_now_and_then(upload: Upload) -> None:
    """A guest that has become fast meanwhile."""
    assert upload.seen()
    assert upload.gathered(AGAIN) == [True] * (AGAIN - 1) + [False]
    assert not any(upload.plain(3 * STEPS, size=60000, gap_us=50))


def test_a_guest_that_has_become_fast_is_not_slept_on(upload: Upload) -> None:
    """More comes in one sleep than would be worth one."""
    assert upload.seen()
    assert upload.plain(4 * STEPS, size=60000, gap_us=170)[STEPS:] == [False] * 3 * STEPS


def test_a_timer_between_two_pieces_changes_nothing(upload: Upload) -> None:
    assert upload.seen()
    lib.script_look()
    assert lib.script_gather_ns() == 0
    assert upload.gathered(1) == [True]
