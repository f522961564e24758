# SPDX-License-Identifier: Apache-2.0
"""A guest that sends datagrams one way is not to kick for each: when the engine expects more of them, and when not."""

from __future__ import annotations

import pytest
from fake_core import lib
from test_datagrams import Datagrams
from test_several import queue_several
from world import World

STEPS, FRAMES = 16, 16


@pytest.fixture(name="talk")
def fresh_talk(world: World, family: int) -> Datagrams:
    return Datagrams(world, family)


def stream(talk: Datagrams, steps: int, size: int = 1000, gap_us: int = 40) -> None:
    """So many datagrams, each in a batch of its own, that come as fast as 200 Mbit/s or as is said."""
    for _ in range(steps):
        lib.script_pass(gap_us * 1000)
        talk.sends(b"x" * size)


def test_a_stream_of_datagrams_is_expected_to_go_on(talk: Datagrams) -> None:
    stream(talk, STEPS)
    assert lib.script_expected() == 0, "the first had nothing before it"
    stream(talk, 1)
    assert lib.script_expected() == FRAMES


@pytest.mark.parametrize(("size", "frames"), [(1000, 16), (8000, 8), (30000, 2), (50000, 0)])
def test_large_datagrams_are_expected_in_small_numbers(talk: Datagrams, size: int, frames: int) -> None:
    """Once 12 of 8000 bytes filled the guest's socket, so that it slept until the helper looked by itself."""
    stream(talk, STEPS + 1, size, 200)
    assert lib.script_expected() == frames


def test_an_answer_ends_it(talk: Datagrams) -> None:
    """A program that asks and waits is never kept waiting."""
    stream(talk, STEPS + 1)
    talk.peer_sends(b"answer")
    stream(talk, 1)
    assert lib.script_expected() == 0


def test_questions_and_answers_in_turn_are_no_stream(talk: Datagrams) -> None:
    for _ in range(3 * STEPS):
        stream(talk, 1)
        talk.peer_sends(b"answer")
        assert lib.script_expected() == 0


def test_a_slow_stream_is_served_one_by_one(talk: Datagrams) -> None:
    stream(talk, 3 * STEPS, gap_us=300)
    assert lib.script_expected() == 0


def test_a_stream_that_has_become_slow_is_served_one_by_one(talk: Datagrams) -> None:
    stream(talk, STEPS + 1)
    stream(talk, STEPS, gap_us=1000)
    assert lib.script_expected() == 0


@pytest.mark.parametrize("pause_us", [4100, 3600 * 1000 * 1000])
def test_a_pause_ends_it(talk: Datagrams, pause_us: int) -> None:
    stream(talk, STEPS + 1)
    stream(talk, 1, gap_us=pause_us)
    assert lib.script_expected() == 0


def test_bursts_are_a_stream_by_their_average(talk: Datagrams) -> None:
    """A sender at a pace has six in a millisecond: the first wakes the helper, the others come with the next look."""
    for _ in range(STEPS):
        stream(talk, 1, gap_us=900)
        lib.script_pass(100_000)
        talk.sends(*[b"x" * 1000] * 5)
    assert lib.script_expected() == FRAMES


def test_a_look_between_two_bursts_asks_to_be_told_of_the_next_and_ends_nothing(talk: Datagrams) -> None:
    """Once it began all over, so that each second burst woke the helper for its first datagram and for the others."""
    stream(talk, STEPS + 1)
    lib.script_look()
    assert lib.script_expected() == 0
    stream(talk, 1, gap_us=900)
    assert lib.script_expected() == FRAMES


@pytest.mark.parametrize(("size", "gap_us"), [(8000, 20), (1000, 2)])
def test_what_comes_faster_than_a_helper_wakes_up_is_not_waited_for(talk: Datagrams, size: int, gap_us: int) -> None:
    """Its datagrams gather by themselves; the guest went on only when those that the helper had waited for were out."""
    stream(talk, 3 * STEPS, size, gap_us)
    assert lib.script_expected() == 0


def test_a_look_that_finds_enough_goes_on_expecting(talk: Datagrams, world: World) -> None:
    stream(talk, STEPS + 1)
    world.advance(0.001)
    talk.sends(*[b"x" * 1000] * 4)
    assert lib.script_expected() == FRAMES


def test_frames_of_several_datagrams_are_as_rare_as_they_are(talk: Datagrams, world: World) -> None:
    """Cause: four in a frame each millisecond counted as four, so that each waited for others in vain."""
    for _ in range(3 * STEPS):
        lib.script_pass(1000 * 1000)
        queue_several(talk, b"x" * 4000, 1000)
        world.settle()
    assert lib.script_expected() == 0
