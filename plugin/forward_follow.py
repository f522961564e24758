# SPDX-License-Identifier: Apache-2.0
"""Ports that follow what listens where they lead (`auto`): once a second both namespaces are looked at, for as long as
the helper lives.

Made by control.py, if there are such rules; port_scan.py reads, forward_table.py opens and closes. Adversary: the
container, which may open and close ports as fast as it likes: it is seen once a second, and what it does in between is
nothing to us. There is no event for it: the kernel tells of sockets only when they go.

Events: forwards.followed (side, opened, closed), forwards.missed (side, ports: those that cannot be had, once for each
as long as they are wanted).
"""

from __future__ import annotations

import asyncio

from lockgate.plugin import forwards, ports
from lockgate.plugin.port_scan import others

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from lockgate.plugin.clients import Emit
    from lockgate.plugin.forward_table import ForwardTable
    from lockgate.plugin.port_scan import Tables

INTERVAL_SECONDS = 1.0

_SIDES = {False: "host", True: "namespace"}  # whose ports they are, by whether they lead out


class Follower:
    """Both directions, one after the other: what is opened in one is left out in the other."""

    def __init__(self, inside: Tables, outside: Tables, table: ForwardTable, emit: Emit) -> None:
        self._inside = inside
        self._outside = outside
        self._table = table
        self._emit = emit
        self._missed: dict[bool, Set[ports.Key]] = {False: frozenset(), True: frozenset()}

    async def run(self, interval: float = INTERVAL_SECONDS) -> None:
        """For ever."""
        await self._follow()
        while True:
            await asyncio.sleep(interval)  # nothing tells who begins to listen; only with `auto` is there a look
            await self.look()

    async def look(self) -> None:
        """If nothing has changed, nothing happens; else ports that could not be had are tried again as well."""
        await self._table.settled()
        changed = [tables.look() for tables in (self._inside, self._outside)]
        if any(changed):
            await self._follow()

    async def _follow(self) -> None:
        into, out = self._table.bound(False), self._table.bound(True)  # as of the look: what is closed now was seen
        await self._follow_one(False, self._inside.seen, out)
        await self._follow_one(True, self._outside.seen, into)

    async def _follow_one(self, outward: bool, seen: Mapping[int, Set[int]], ours: Mapping[int, Set[int]]) -> None:
        now = self._table.bound(not outward)
        wanted = others(seen, {protocol: ours[protocol] | now[protocol] for protocol in ours})
        change = await self._table.follow(outward, wanted)
        if change.opened or change.closed:
            self._emit("forwards.followed", side=_SIDES[outward], opened=change.opened, closed=change.closed)
        missed = {ports.key_of(failure.rule, failure.port): failure for failure in change.failures}
        new = [failure for key, failure in missed.items() if key not in self._missed[outward]]
        self._missed[outward] = set(missed)
        if new:
            self._emit("forwards.missed", side=_SIDES[outward], ports=forwards.examples(new))
