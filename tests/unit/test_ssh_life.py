# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/ssh/ssh_life.py: when an ssh is started, ended and waited for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin.gateway.ssh.ssh_life import PAUSE_MAX, STEADY_SECONDS, Do, SshLife, State


def started() -> SshLife:
    life = SshLife()
    assert life.want() is Do.START
    life.begun()
    return life


def failed(life: SshLife, now: float = 0.0) -> float:
    """The pause until it is started again."""
    assert life.ended(now) is Do.PAUSE
    pause = life.pause
    assert life.resume() is Do.START
    life.begun()
    return pause


def test_nothing_is_started_before_anybody_wants_it() -> None:
    life = SshLife()
    assert life.resume() is None and life.ended(0) is None and life.listens(0) is None and life.drop() is None
    assert life.state is State.IDLE


def test_it_serves_once_its_socket_is_there() -> None:
    life = started()
    assert life.listens(1.0) is Do.SERVE
    assert life.listens(2.0) is None, "it has been said"
    assert life.state is State.UP


def test_a_socket_without_an_ssh_means_nothing() -> None:
    """The folder is watched for all of them."""
    life = SshLife()
    life.want()
    assert life.listens(0) is None


def test_the_first_pauses_are_short_then_they_double_to_a_second_and_go_on_for_ever() -> None:
    """Short, because sshd comes up soon after the guest's address: Podman 4 waits for it."""
    life = started()
    assert [failed(life) for _ in range(11)] == [*[0.1] * 7, 0.2, 0.4, 0.8, 1.0]
    assert {failed(life) for _ in range(1000)} == {PAUSE_MAX}


def test_pauses_start_anew_after_one_that_was_up_for_a_while() -> None:
    life = started()
    for _ in range(11):
        failed(life)
    life.listens(100.0)
    assert failed(life, 100.0 + STEADY_SECONDS / 2) == PAUSE_MAX, "one that fails again and again is no success"
    life.listens(200.0)
    assert failed(life, 200.0 + STEADY_SECONDS) == 0.1


def test_pauses_start_anew_with_another_guest() -> None:
    life = started()
    for _ in range(5):
        failed(life)
    life.ended(0)
    assert life.drop() is None and life.want() is Do.START
    assert failed(life) == 0.1


def test_one_that_is_told_to_end_is_not_followed_before_it_has() -> None:
    life = started()
    assert life.drop() is Do.END
    assert life.want() is None
    assert life.drop() is None, "it has been told"
    assert life.want() is None
    assert life.ended(0) is Do.START


def test_one_that_has_ended_as_told_is_not_followed() -> None:
    life = started()
    life.drop()
    assert life.ended(0) is None and life.state is State.IDLE


def test_one_that_begins_as_it_is_told_to_end_does_not_count() -> None:
    life = SshLife()
    life.want()
    assert life.drop() is Do.END
    life.begun()
    assert life.listens(0) is None and life.ended(0) is None and life.state is State.IDLE


EVENTS = ("want", "drop", "begun", "listens", "ended", "resume")


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_whatever_happens_there_is_one_ssh_at_most(events: list[str]) -> None:
    """Asked of a keeper that begins and ends only what it was asked for."""
    life, alive, wanted = SshLife(), False, False
    for event in events:
        if event in ("begun", "listens", "ended") and not alive:
            continue
        done = getattr(life, event)(*([0.0] if event in ("listens", "ended") else []))
        alive = alive and event != "ended"
        wanted = event == "want" or (wanted and event != "drop")
        if done is Do.START:
            assert not alive and wanted
            alive = True
        assert done is not Do.END or alive
        assert alive == (life.state not in (State.IDLE, State.PAUSED))
        assert wanted or life.state in (State.IDLE, State.ENDING)
