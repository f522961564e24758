# SPDX-License-Identifier: Apache-2.0
"""plugin/forward_table.py: what becomes of each port when a table takes the place of another."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable

import pytest
from forwarding import FIRST, HERE, Scene, Worker, listening, rules
from host_samples import ip
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.plugin import ports
from lockgate.plugin.forward_rule import UDP, ForwardRule
from lockgate.plugin.forward_table import Change, ConflictError

A, B, C = FIRST, FIRST + 1, FIRST + 2


def play(part: Callable[[Scene], Awaitable[None]], *specs: str) -> None:
    async def run() -> None:
        scene = Scene(*specs)
        await scene.table.restore(scene.worker)
        try:
            await part(scene)
        finally:
            scene.end()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before and not listening()


def failed(change: Change) -> dict[int, int]:
    return {failure.port: failure.error for failure in change.failures}


def test_a_worker_is_told_what_was_bound_at_the_start() -> None:
    """In records that are as full as can be."""

    async def part(scene: Scene) -> None:
        assert scene.worker.leads() == {port: port + 1000 for port in range(A, A + 150)}

    play(part, f"{A}-{A + 149}:{A + 1000}-{A + 1149}")


def test_ports_that_stay_are_the_same_sockets() -> None:
    """Neither closed nor opened, wherever they stand in the new table; those beside them go and come."""

    async def part(scene: Scene) -> None:
        before = dict(scene.worker.sockets)
        change = await scene.table.replace(rules(f"{B}-{C}"))
        assert (change.opened, change.closed, change.kept) == (1, 1, 1) and not change.failures
        assert scene.worker.sockets[B] == before[B]
        assert set(scene.worker.leads()) == listening() == {B, C}
        assert scene.keeper.asked == [(ports.CLOSE, A, 1), (ports.OPEN, C, 1)]

    play(part, f"{A}-{B}")


def test_nobody_who_connects_meanwhile_is_refused() -> None:
    """A connection that waits in the queue of a port that stays is still there afterwards."""

    async def part(scene: Scene) -> None:
        waiting = socket.create_connection((HERE, A))
        await scene.table.replace(rules(f"{A}:80", f"{B}"))
        with waiting, socket.socket(fileno=os.dup(scene.table._ports[ports.key_of(rules(f"{A}")[0], A)].fd)) as copy:
            accepted, _ = copy.accept()
            assert accepted.getpeername() == waiting.getsockname()
            accepted.close()

    play(part, f"{A}", f"{C}")


def test_a_port_that_stays_may_lead_elsewhere() -> None:
    """To another port, to an address; what stays as it was is not mentioned."""

    async def part(scene: Scene) -> None:
        scene.worker.calls_left = 1
        await scene.table.replace(rules(f"{A}:10.0.0.1/81", f"{B}"))
        assert scene.worker.slots == {0: (A, 81, ip("10.0.0.1")), 1: (B, B, bytes(16))}
        assert scene.worker.calls_left == 0 and not scene.keeper.asked

    play(part, f"{A}-{B}")


def test_the_old_table_makes_room_for_the_new_one() -> None:
    """Every address of the port wants the socket that one address had."""

    async def part(scene: Scene) -> None:
        (old,) = scene.table.rules
        anywhere = ForwardRule(
            **{name: getattr(old, name) for name in old.__slots__}
            | {"listen": bytes(16), "dual_stack": True}  # as in -t PORT
        )
        change = await scene.table.replace([anywhere])
        assert not change.failures and scene.table.rules == (anywhere,)
        await scene.table.replace(rules(f"{A}"))
        assert listening() == {A}

    play(part, f"{A}")


def test_what_cannot_be_bound_is_told_and_the_rest_is_there() -> None:
    """A rule of which nothing could be had stands in the table all the same: to be taken back, and tried again."""

    async def part(scene: Scene) -> None:
        with socket.create_server((HERE, B)), socket.create_server((HERE, C)):
            wanted = rules(f"{A}-{B}", f"{C}", f"{C + 1}")
            change = await scene.table.replace(wanted)
            assert failed(change) == {B: errno.EADDRINUSE, C: errno.EADDRINUSE}
            assert scene.table.rules == wanted
            assert set(scene.worker.leads()) == {A, C + 1}
        again = await scene.table.replace(wanted)
        assert (again.opened, again.kept) == (2, 2) and scene.table.rules == wanted

    play(part, f"{A}")


def test_what_the_worker_refuses_is_closed_again() -> None:
    """With all that was in its record, since some of it may have been taken."""

    async def part(scene: Scene) -> None:
        scene.worker.refuses = {B}
        change = await scene.table.replace(rules(f"{A}-{B}", f"{C}"))
        assert failed(change) == {A: errno.EMFILE, B: errno.EMFILE} and change.opened == 1
        assert listening() == set(scene.worker.leads()) == {C}

    play(part)


def test_a_request_that_the_keeper_refuses_is_a_failure() -> None:
    """Which does not happen while both check the same things."""

    async def part(scene: Scene) -> None:
        async def refuse(*_: object) -> tuple[list[int], list[int]]:
            return [], []

        scene.table._ask = refuse
        assert failed(await scene.table.replace(rules(f"{A}"))) == {A: errno.EINVAL}

    play(part)


@pytest.mark.parametrize("calls", range(5))
def test_a_worker_may_die_at_any_moment_of_a_change(calls: int) -> None:
    """The change is carried out to its end, and the next worker is told all of it."""

    async def part(scene: Scene) -> None:
        scene.worker.calls_left = calls
        change = await scene.table.replace(rules(f"{B}:81", f"{C}:82", f"{C + 1}:83"))
        assert (change.opened, change.closed, change.kept) == (2, 1, 1) and not change.failures
        new = Worker()
        await scene.table.restore(new)
        assert new.leads() == {B: 81, C: 82, C + 1: 83}

    play(part, f"{A}-{B}")


def test_a_new_worker_waits_for_the_end_of_a_change() -> None:
    """It would else be told one half of either table."""

    async def part(scene: Scene) -> None:
        new = Worker()
        change = asyncio.create_task(scene.table.replace(rules(f"{B}")))
        await asyncio.sleep(0)  # it begins
        await scene.table.restore(new)
        assert change.done() and new.leads() == {B: B}

    play(part, f"{A}")


def test_the_ports_of_a_guest_that_has_moved_away_are_kept_for_it_alone() -> None:
    """Nobody reaches them, whatever becomes of the table and of the worker, until the guest comes back."""

    async def part(scene: Scene) -> None:
        await scene.table.leave()
        assert not listening() and not scene.worker.slots
        new = Worker()
        await scene.table.restore(new)
        change = await scene.table.replace((*rules(f"{B}", f"{C}"), *rules(f"{A}", protocol=UDP)))
        assert (change.opened, change.kept) == (2, 1) and not change.failures
        assert not listening() and not new.slots
        await scene.table.come_back(new)
        assert listening() == {B, C} and set(new.leads()) == {A, B, C}

    play(part, f"{A}", f"{B}")


def test_one_clients_ports_take_the_place_of_its_others_alone() -> None:
    """A port that stays is the same socket, wherever it leads now."""

    async def part(scene: Scene) -> None:
        mine = rules(f"{B}:10.0.0.1/80")
        assert await scene.table.exchange((), mine) == []
        socket_of_b = scene.worker.sockets[B]
        moved = rules(f"{B}:10.0.0.2/81", f"{C}")
        assert await scene.table.exchange(mine, moved) == []
        assert scene.worker.slots == {0: (A, A, bytes(16)), 1: (B, 81, ip("10.0.0.2")), 2: (C, C, bytes(16))}
        assert scene.worker.sockets[B] == socket_of_b
        assert await scene.table.exchange(moved, ()) == []
        assert set(scene.worker.leads()) == listening() == {A}

    play(part, f"{A}")


def test_a_clients_ports_are_had_all_or_not_at_all() -> None:
    """What it had stays."""

    async def part(scene: Scene) -> None:
        before = rules(f"{B}")
        await scene.table.exchange((), before)
        with socket.create_server((HERE, C)):
            (failure,) = await scene.table.exchange(before, rules(f"{C + 1}", f"{C}"))
            assert (failure.port, failure.error) == (C, errno.EADDRINUSE)
        assert set(scene.worker.leads()) == listening() == {A, B}
        assert set(scene.table.rules) == {*rules(f"{A}"), *before}

    play(part, f"{A}")


def test_what_could_not_be_had_before_hinders_no_client() -> None:
    """A claim on ports of which one is taken moves the others."""

    async def part(scene: Scene) -> None:
        with socket.create_server((HERE, B)):
            await scene.table.replace(rules(f"{A}", f"{B}"))
            claimed = rules(f"{A}:10.0.0.2/81", f"{B}:10.0.0.2/82")
            assert await scene.table.exchange(rules(f"{A}", f"{B}"), claimed) == []
        assert scene.worker.slots == {0: (A, 81, ip("10.0.0.2"))}

    play(part, f"{A}")


def test_a_port_of_best_effort_may_be_missing() -> None:
    async def part(scene: Scene) -> None:
        (rule,) = rules(f"{B}")
        rule.best_effort = True
        (other,) = rules(f"{A}:80")  # which is another client's
        other.best_effort = True
        with socket.create_server((HERE, B)):
            assert await scene.table.exchange((), [rule, other, *rules(f"{C}")]) == []
        assert scene.worker.leads() == {A: A, C: C}

    play(part, f"{A}")


def test_nobody_gets_the_port_of_another_client() -> None:
    async def part(scene: Scene) -> None:
        with pytest.raises(ConflictError) as caught:
            await scene.table.exchange((), rules(f"{B}", f"{A}:80"))
        assert (caught.value.rule, caught.value.other) == (*rules(f"{A}:80"), *rules(f"{A}"))
        assert scene.table.rules == rules(f"{A}") and set(scene.worker.leads()) == {A}

    play(part, f"{A}")


def test_datagrams_have_ports_of_their_own() -> None:
    async def part(scene: Scene) -> None:
        await scene.table.replace((*rules(f"{A}"), *rules(f"{A}", protocol=UDP)))
        assert sorted(scene.table._ports)[1][0] == UDP and len(scene.worker.slots) == 2

    play(part, f"{A}")


specs = st.lists(
    st.tuples(st.integers(A, A + 9), st.integers(0, 9), st.sampled_from([0, 500])), max_size=3, unique_by=lambda s: s[0]
)


@settings(max_examples=60)
@given(tables=st.lists(specs, min_size=1, max_size=4), busy=st.integers(A, A + 9))
def test_after_any_changes_all_three_agree(tables: list[list[tuple[int, int, int]]], busy: int) -> None:
    """What listens, what the worker has and what the table says; and slots are used again."""

    async def part(scene: Scene) -> None:
        with socket.create_server((HERE, busy)):
            for table in tables:
                starts = sorted(table)
                wanted: dict[int, int] = {}
                texts = []
                for at, (first, length, shift) in enumerate(starts):
                    end = min(first + length, starts[at + 1][0] - 1 if at + 1 < len(starts) else A + 9)
                    texts.append(f"{first}-{end}:{first + shift}-{end + shift}")
                    wanted |= {port: port + shift for port in range(first, end + 1)}
                change = await scene.table.replace(rules(*texts))
                assert scene.worker.leads() == {port: to for port, to in wanted.items() if port != busy}
                assert listening() == set(scene.worker.leads()) | {busy}
                assert set(failed(change)) == wanted.keys() & {busy}
                assert all(slot < 20 for slot in scene.worker.slots)

    play(part)
