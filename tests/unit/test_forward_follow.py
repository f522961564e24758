# SPDX-License-Identifier: Apache-2.0
"""plugin/forward_follow.py and what it asks of plugin/forward_table.py: ports that follow what listens, both ways.

A host and a namespace that the test plays: what is opened in one shows in its list of who listens, as it does in the
kernel's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet

from forwarding import Worker
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.plugin import forward_follow, ports
from lockgate.plugin.contracts import forward_spec
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule
from lockgate.plugin.forward_table import ForwardTable
from lockgate.plugin.port_scan import Tables

INTO, OUT = False, True
BOTH = (TCP, UDP)


def rules(outward: bool, *specs: str, protocols: Sequence[int] = BOTH) -> tuple[ForwardRule, ...]:
    scope = forward_spec.Scope(
        ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=lambda: (32768, 60999), auto=True, outbound=outward
    )
    made: tuple[ForwardRule, ...] = ()
    for protocol in protocols:
        for spec in specs:
            made = forward_spec.add(made, "--ports", protocol, spec, scope)
    return made


AUTO = (*rules(INTO, "auto"), *rules(OUT, "auto"))


class Place(Tables):
    """A namespace: what programs listen on there, and we."""

    def __init__(self) -> None:
        super().__init__()
        self.theirs: set[tuple[int, int]] = set()  # protocol, port
        self.ours: dict[tuple[int, int], int] = {}  # their descriptors
        self.before: set[tuple[int, int]] = set()

    @property
    def seen(self) -> dict[int, AbstractSet[int]]:
        return {wanted: {port for protocol, port in self.before if protocol == wanted} for wanted in BOTH}

    def look(self) -> bool:
        now = self.theirs | set(self.ours)
        changed, self.before = now != self.before, now
        return changed

    def open(self, protocol: int, port: int) -> tuple[int, list[int]]:
        if (protocol, port) in self.theirs | set(self.ours):
            return errno.EADDRINUSE, []
        with socket.socket(type=socket.SOCK_DGRAM) as made:
            self.ours[protocol, port] = os.dup(made.fileno())
        return 0, [os.dup(self.ours[protocol, port])]

    def close(self) -> None:
        for fd in self.ours.values():
            os.close(fd)
        self.ours = {}


class Followed(Worker):
    """A worker that knows ports by what it is told, as its sockets are bound to none."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[int, tuple[bool, int, int]] = {}

    async def listen(
        self,
        protocol: int,
        target: bytes,
        slots: Sequence[int],
        ports: Sequence[int],
        fds: Sequence[int],
        outward: bool = False,
    ) -> None:
        for slot, port in zip(slots, ports, strict=True):
            assert slot not in self.told
            self.told[slot] = outward, protocol, port

    async def listen_close(self, first: int, count: int) -> None:
        for slot in range(first, first + count):
            self.told.pop(slot, None)


class Scene:
    """A host and a namespace, and what follows in both."""

    def __init__(self, *wanted: ForwardRule, room: int = 10000) -> None:
        self.places = {INTO: Place(), OUT: Place()}  # where ports are opened, by direction: the host; the namespace
        self.table = ForwardTable(wanted or AUTO, [], self._ask, room)
        self.host, self.inside = self.places[INTO], self.places[OUT]
        self.events: list[tuple[str, dict[str, object]]] = []
        self.asked = 0
        self.worker = Followed()
        self.follower = forward_follow.Follower(self.inside, self.host, self.table, self._emit)

    def _emit(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    async def _ask(self, kind: bytes, rule: ForwardRule, first: int, count: int) -> tuple[list[int], list[int]]:
        await asyncio.sleep(0)
        self.asked += 1
        place, results, fds = self.places[rule.outward], [], []
        for port in range(first, first + count):
            if kind == ports.OPEN:
                error, opened = place.open(rule.protocol, port)
                results.append(error)
                fds += opened
            else:
                os.close(place.ours.pop((rule.protocol, port)))
                results.append(0)
        return results, fds

    def leads(self) -> dict[tuple[bool, int], set[int]]:
        """By direction and protocol, to which ports; as the worker knows it."""
        found: dict[tuple[bool, int], set[int]] = {}
        for outward, protocol, port in self.worker.told.values():
            found.setdefault((outward, protocol), set()).add(port)
        return found

    async def look(self) -> None:
        await self.follower.look()
        assert len(self.worker.told) == sum(len(place.ours) for place in self.places.values())


def play(part: Callable[[Scene], Awaitable[None]], *wanted: ForwardRule, room: int = 10000) -> None:
    async def run() -> None:
        scene = Scene(*wanted, room=room)
        await scene.table.restore(scene.worker)
        await part(scene)
        for port in scene.table._ports.values():
            os.close(port.fd)
        for place in scene.places.values():
            place.close()

    asyncio.run(run())


def test_a_port_is_open_for_as_long_as_somebody_listens() -> None:
    """On either side; by UDP as well as by TCP, where it is TCP that listens."""

    async def part(scene: Scene) -> None:
        scene.inside.theirs = {(TCP, 80)}
        scene.host.theirs = {(TCP, 631), (UDP, 53)}
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {80}, (INTO, UDP): {80}, (OUT, TCP): {631}, (OUT, UDP): {53, 631}}
        assert scene.events == [
            ("forwards.followed", {"side": "host", "opened": 2, "closed": 0}),
            ("forwards.followed", {"side": "namespace", "opened": 3, "closed": 0}),
        ]
        scene.inside.theirs, scene.host.theirs = set(), {(UDP, 53)}
        await scene.look()
        assert scene.leads() == {(OUT, UDP): {53}}

    play(part)


def test_nothing_follows_our_own_ports() -> None:
    """Whatever leads in does not lead out again; nothing changes any more once all is open."""

    async def part(scene: Scene) -> None:
        scene.inside.theirs, scene.host.theirs = {(TCP, 80)}, {(UDP, 53)}
        await scene.look()
        before = scene.leads()
        for _ in range(3):
            await scene.look()
        assert scene.leads() == before and scene.asked == 3

    play(part)


def test_a_port_that_is_there_on_both_sides_leads_nowhere_and_is_told_once() -> None:
    """Until one side ends: then it leads to the other. No datagrams are joined with each other meanwhile."""

    async def part(scene: Scene) -> None:
        scene.inside.theirs = scene.host.theirs = {(TCP, 80), (UDP, 80)}
        await scene.look()
        assert scene.leads() == {}
        told = {"ports": "TCP 80 (Address already in use), UDP 80 (Address already in use)"}
        missed = [("forwards.missed", {"side": side} | told) for side in ("host", "namespace")]
        assert scene.events == missed
        scene.inside.theirs = scene.inside.theirs | {(TCP, 81)}
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {81}, (INTO, UDP): {81}}
        scene.host.theirs = set()
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {80, 81}, (INTO, UDP): {80, 81}}
        assert [event for event in scene.events if event[0] == "forwards.missed"] == missed

    play(part)


def test_tcp_on_both_sides_joins_no_datagrams_in_a_circle() -> None:
    """Nobody has the port of UDP: the first direction gets it, and the other does not follow that."""

    async def part(scene: Scene) -> None:
        scene.inside.theirs = scene.host.theirs = {(TCP, 80)}
        await scene.look()
        await scene.look()
        assert scene.leads() == {(INTO, UDP): {80}}

    play(part)


def test_ports_that_are_left_out_do_not_follow() -> None:
    """Those that were excluded, and those from which the kernel chooses; others may lead to another number."""

    async def part(scene: Scene) -> None:
        scene.inside.theirs = {(TCP, port) for port in (22, 80, 40000, 61000)}
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {80, 61000}}
        assert set(scene.host.ours) == {(TCP, 80), (TCP, 61000)}

    play(part, *rules(INTO, "auto,~22", protocols=[TCP]))

    async def mapped(scene: Scene) -> None:
        scene.inside.theirs = {(TCP, 80), (TCP, 82), (TCP, 8080)}
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {80}} and set(scene.host.ours) == {(TCP, 8080)}

    play(mapped, *rules(INTO, "auto,8080-8081:80-81", protocols=[TCP]))


def test_ports_that_were_named_stay_beside_those_that_follow() -> None:
    """They are not followed in the other direction either."""

    async def part(scene: Scene) -> None:
        await scene.table.replace(scene.table.rules)
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {80}}
        scene.inside.theirs = {(TCP, 90)}
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {80, 90}}

    play(part, *rules(INTO, "8080:80", "auto,~8080", protocols=[TCP]), *rules(OUT, "auto", protocols=[TCP]))


def test_another_table_leaves_the_way_out_alone() -> None:
    """What follows goes on to follow if it stands in the new table."""

    async def part(scene: Scene) -> None:
        scene.inside.theirs, scene.host.theirs = {(TCP, 80)}, {(TCP, 631)}
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {80}, (OUT, TCP): {631}}
        into = scene.table.rules
        change = await scene.table.replace([])
        assert (change.closed, change.kept, scene.leads()) == (1, 0, {(OUT, TCP): {631}})
        change = await scene.table.replace(into)
        assert (change.opened, change.kept, scene.table.rules) == (1, 0, into)
        assert scene.leads() == {(INTO, TCP): {80}, (OUT, TCP): {631}}

    play(part, *rules(INTO, "auto", protocols=[TCP]), *rules(OUT, "auto", protocols=[TCP]))


def test_there_are_never_more_ports_than_there_is_room_for() -> None:
    """Both directions together."""

    async def part(scene: Scene) -> None:
        scene.inside.theirs = {(TCP, port) for port in (80, 90, 100)}
        scene.host.theirs = {(TCP, port) for port in (631, 632, 700)}
        await scene.look()
        assert scene.leads() == {(INTO, TCP): {80, 90, 100}, (OUT, TCP): {631}}
        (event, fields) = scene.events[-1]
        missed = "TCP 632 (Too many open files), TCP 700 (Too many open files)"
        assert (event, fields["ports"]) == ("forwards.missed", missed)

    play(part, *rules(INTO, "auto", protocols=[TCP]), *rules(OUT, "auto", protocols=[TCP]), room=4)


def test_it_looks_for_as_long_as_it_runs() -> None:
    """At once, for what has not been told at the start; then again and again."""

    async def part(scene: Scene) -> None:
        scene.inside.theirs = {(TCP, 80)}
        running = asyncio.create_task(scene.follower.run(0))
        while not scene.leads():
            await asyncio.sleep(0)
        scene.inside.theirs = set()
        while scene.leads():
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    play(part, *rules(INTO, "auto", protocols=[TCP]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(BOTH), st.integers(80, 83)), max_size=30))
def test_whatever_comes_and_goes_no_circle_is_made(moves: list[tuple[bool, int, int]]) -> None:
    """No port of a protocol leads both ways; what is followed is there, at the latest a look later."""

    async def part(scene: Scene) -> None:
        for side, protocol, port in moves:
            place = scene.places[side]
            if (protocol, port) not in place.ours:
                place.theirs ^= {(protocol, port)}
            await scene.look()
            await scene.look()
            leads = scene.leads()
            for wanted in BOTH:
                into, out = leads.get((INTO, wanted), set()), leads.get((OUT, wanted), set())
                assert not into & out
                for ends, target in ((into, scene.inside), (out, scene.host)):
                    assert all({(wanted, one), (TCP, one)} & target.theirs for one in ends)

    play(part)
