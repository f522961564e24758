# SPDX-License-Identifier: Apache-2.0
"""A guest that sends datagrams one way is not to kick for each: when the engine expects more of them, and when not."""

from __future__ import annotations

import pytest
from fake_core import lib
from test_datagrams import Datagrams
from world import World

STEPS, FRAMES = 16, 16


@pytest.fixture(name="talk")
def fresh_talk(world: World, family: int) -> Datagrams:
    return Datagrams(world, family)


def stream(talk: Datagrams, steps: int) -> None:
    """So many datagrams, each in a batch of its own, within a millisecond of each other."""
    for _ in range(steps):
        talk.sends(b"x" * 1000)


def test_a_stream_of_datagrams_is_expected_to_go_on(talk: Datagrams) -> None:
    stream(talk, STEPS)
    assert lib.script_expected() == 0, "the first had nothing before it"
    stream(talk, 1)
    assert lib.script_expected() == FRAMES


@pytest.mark.parametrize(("size", "frames"), [(1000, 16), (8000, 8), (30000, 2), (50000, 0)])
def test_large_datagrams_are_expected_in_small_numbers(talk: Datagrams, size: int, frames: int) -> None:
    """Once 12 of 8000 bytes filled the guest's socket, so that it slept until the helper looked by itself."""
    for _ in range(STEPS + 1):
        talk.sends(b"x" * size)
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


@pytest.mark.parametrize(("pause", "in_one_look"), [(0.001, 1), (0.002, 4)])
def test_a_slow_stream_is_served_one_by_one(talk: Datagrams, world: World, pause: float, in_one_look: int) -> None:
    stream(talk, STEPS + 1)
    world.advance(pause)
    talk.sends(*[b"x"] * in_one_look)
    assert lib.script_expected() == 0


def test_a_look_that_finds_enough_goes_on_expecting(talk: Datagrams, world: World) -> None:
    stream(talk, STEPS + 1)
    world.advance(0.001)
    talk.sends(*[b"x"] * 4)
    assert lib.script_expected() == FRAMES
