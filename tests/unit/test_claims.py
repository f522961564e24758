# SPDX-License-Identifier: Apache-2.0
"""plugin/bridge/claims.py: to whom ports lead that somebody else has opened."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable

from forwarding import FIRST, HERE, Scene, listening, rules
from host_samples import ip
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin.bridge import claims
from lockgate.plugin.bridge.claims import ClaimedTable, resolve
from lockgate.plugin.forward_rule import UDP, ForwardRule

A, B, C = FIRST, FIRST + 1, FIRST + 2
ONE, OTHER = b"one", b"other"
NOBODY = bytes(16)


def play(part: Callable[[Scene, ClaimedTable], Awaitable[None]], *specs: str) -> None:
    async def run() -> None:
        scene = Scene(*specs)
        await scene.table.restore(scene.worker)
        try:
            await part(scene, ClaimedTable(scene.table))
        finally:
            scene.end()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before and not listening()


def leads(scene: Scene) -> dict[int, tuple[int, bytes]]:
    return {port: (guest_port, target) for port, guest_port, target in scene.worker.slots.values()}


def test_a_port_leads_to_who_has_claimed_it() -> None:
    """Whichever comes first; when the claim ends, it is as it was asked for. Nobody who reads the table sees of it."""

    async def part(scene: Scene, table: ClaimedTable) -> None:
        await table.claim(ONE, rules(f"{A}:10.0.0.5/80"))
        change = await table.replace(rules(f"{A}-{C}"))
        assert (change.opened, change.failures) == (3, [])
        opened = dict(scene.worker.sockets)
        assert leads(scene) == {A: (80, ip("10.0.0.5")), B: (B, NOBODY), C: (C, NOBODY)}
        await table.claim(OTHER, rules(f"{B}:10.0.0.6/81"))
        assert leads(scene)[B] == (81, ip("10.0.0.6"))
        assert table.rules == rules(f"{A}-{C}")
        await table.claim(ONE, ())
        assert leads(scene) == {A: (A, NOBODY), B: (81, ip("10.0.0.6")), C: (C, NOBODY)}
        assert scene.worker.sockets == opened and table.rules == rules(f"{A}-{C}")
        await table.replace(())

    play(part)


def test_the_first_claim_counts_and_the_next_comes_after_it() -> None:
    """As of a container on two networks, which leaves one of them."""

    async def part(scene: Scene, table: ClaimedTable) -> None:
        await table.replace(rules(f"{A}"))
        await table.claim(ONE, rules(f"{A}:10.0.0.5/80"))
        await table.claim(OTHER, rules(f"{A}:10.0.1.5/80"))
        assert leads(scene) == {A: (80, ip("10.0.0.5"))}
        await table.claim(ONE, ())
        assert leads(scene) == {A: (80, ip("10.0.1.5"))}

    play(part)


def test_what_others_have_in_the_table_stays() -> None:
    """Of the start, and of clients that named their targets."""

    async def part(scene: Scene, table: ClaimedTable) -> None:
        await scene.table.exchange((), rules(f"{B}:10.0.0.9/90"))
        await table.claim(ONE, rules(f"{A}:10.0.0.5/80", f"{B}:10.0.0.5/81"))
        assert leads(scene) == {A: (A, NOBODY), B: (90, ip("10.0.0.9"))}
        assert set(table.rules) == {*rules(f"{A}"), *rules(f"{B}:10.0.0.9/90")}

    play(part, f"{A}")


def test_what_cannot_be_bound_is_told_of_the_rule_that_was_asked_for() -> None:
    async def part(scene: Scene, table: ClaimedTable) -> None:
        await table.claim(ONE, rules(f"{B}:10.0.0.5/80"))
        with socket.create_server((HERE, B)):
            (wanted,) = rules(f"{A}-{B}")
            change = await table.replace([wanted])
            assert [(one.rule, one.port, one.error) for one in change.failures] == [(wanted, B, errno.EADDRINUSE)]
            assert change.failures[0].rule is wanted

    play(part)


def test_there_is_an_end_to_claims() -> None:
    """Those that are there may still be changed and ended."""

    async def part(scene: Scene, table: ClaimedTable) -> None:
        owners = [b"%d" % place for place in range(claims.OWNERS_MAX)]
        assert all([await table.claim(owner, rules(f"{A}:10.0.0.5/80")) for owner in owners])
        assert not await table.claim(ONE, rules(f"{A}:10.0.0.5/80"))
        assert await table.claim(owners[0], rules(f"{B}:10.0.0.5/80"))
        assert await table.claim(owners[0], ()) and await table.claim(ONE, rules(f"{A}:10.0.0.5/80"))

    play(part)


RULES = st.builds(
    lambda first, count, to, place: rules(f"{A + first}-{A + first + count}:10.0.0.{place}/{to}-{to + count}"),
    st.integers(0, 30),
    st.integers(0, 12),
    st.integers(1, 1000),
    st.integers(1, 250),
)


def by_port(parts: list[ForwardRule]) -> dict[int, tuple[int, bytes]]:
    """Where each port leads; none is named twice."""
    found = [(port, part) for part in parts for port in range(part.first, part.last + 1)]
    assert len({port for port, _ in found}) == len(found)
    return {port: (part.to_first + port - part.first, part.target) for port, part in found}


@given(st.lists(RULES, max_size=6))
def test_each_port_leads_where_the_first_claim_says(made: list[tuple[ForwardRule, ...]]) -> None:
    (asked,) = rules(f"{A}-{A + 40}:{A + 5000}-{A + 5040}")
    expected = {}
    for port in range(A, A + 41):
        claim = next((one for (one,) in made if one.first <= port <= one.last), asked)
        expected[port] = claim.to_first + port - claim.first, claim.target
    assert by_port(resolve(asked, made)) == expected


def test_a_claim_is_of_one_protocol_and_of_one_address() -> None:
    (asked,) = rules(f"{A}")
    elsewhere = ForwardRule(**{name: getattr(asked, name) for name in asked.__slots__} | {"listen": ip("127.0.0.9")})
    for claim in (rules(f"{A}:10.0.0.5/80", protocol=UDP), (elsewhere,)):
        assert resolve(asked, [claim]) == [asked]


def test_a_rule_that_names_its_target_is_taken_at_its_word() -> None:
    (asked,) = rules(f"{A}:10.0.0.9/90")
    assert resolve(asked, [rules(f"{A}:10.0.0.5/80")]) == [asked]
