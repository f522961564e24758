# SPDX-License-Identifier: Apache-2.0
"""Claims: to which container a port of the host leads, on networks whose addresses nobody translates.

Since 6.1, Podman may have `pesto` open the ports of all bridge networks in the shared helper (--conf-path), to the same
port of the namespace; on netavark's own bridges, nftables send that on. Our plugin says instead where it leads, here.

Called by control.py, in the place of the table of forwards, for --conf-path; by meeting_server.py for the claims.
Adversary: clients, whose rules are checked where they come in. Invariants: whoever reads the table finds the rules that
were asked for, and never what became of them; with the same claims, one rule always becomes the same ones.
"""

from __future__ import annotations

import asyncio

from lockgate.plugin.address import UNSET
from lockgate.plugin.forward_rule import ForwardRule
from lockgate.plugin.forward_table import Change, ForwardTable
from lockgate.plugin.forwards import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OWNERS_MAX = 4096  # containers on networks


class ClaimedTable:
    """The table of forwards, as those see it who know nothing of claims."""

    def __init__(self, table: ForwardTable) -> None:
        self._table = table
        self._turn = asyncio.Lock()
        self._claims: dict[bytes, tuple[ForwardRule, ...]] = {}  # by container and network, first come first
        self._asked: dict[ForwardRule, ForwardRule] = {}  # what was asked for, by what became of it

    @property
    def rules(self) -> tuple[ForwardRule, ...]:
        return tuple(dict.fromkeys(self._asked.get(rule, rule) for rule in self._table.rules))

    @property
    def outward_rules(self) -> tuple[ForwardRule, ...]:
        return self._table.outward_rules

    async def replace_outward(self, rules: Sequence[ForwardRule]) -> Change:
        """As ForwardTable.replace_outward(): nobody claims these."""
        return await self._table.replace_outward(rules)

    async def replace(self, rules: Sequence[ForwardRule]) -> Change:
        """As ForwardTable.replace()."""
        async with self._turn:
            change = await self._table.replace(self._resolved(rules))
            change.failures = [Failure(self._asked[one.rule], one.port, one.error) for one in change.failures]
            return change

    async def claim(self, owner: bytes, rules: Sequence[ForwardRule]) -> bool:
        """From now on these are the owner's, if they are nobody's yet; without any, it has none. False: there are too
        many owners."""
        async with self._turn:
            before = self._claims.pop(owner, ())
            if rules and len(self._claims) >= OWNERS_MAX:
                return False
            if rules:
                self._claims[owner] = tuple(rules)
            old = [rule for rule in self._table.rules if rule in self._asked]
            if old and (before or rules):
                await self._table.exchange(old, self._resolved(dict.fromkeys(self._asked[rule] for rule in old)))
            return True

    def _resolved(self, rules: Iterable[ForwardRule]) -> list[ForwardRule]:
        self._asked = {part: rule for rule in rules for part in resolve(rule, self._claims.values())}
        return list(self._asked)


def resolve(rule: ForwardRule, claims: Iterable[Sequence[ForwardRule]]) -> list[ForwardRule]:
    """The same ports, where the claims say that they lead. A rule with a target of its own is taken at its word."""
    fit = [one for claim in claims for one in claim if _fits(one, rule)]
    if not fit or rule.target != UNSET:
        return [rule]
    parts: list[ForwardRule] = []
    first = rule.first
    while first <= rule.last:
        claim = next((one for one in fit if one.first <= first <= one.last), None)
        if claim is None:
            last = min([rule.last, *(one.first - 1 for one in fit if one.first > first)])
            parts.append(_part(rule, first, last, rule.to_first + first - rule.first, UNSET))
        else:
            earlier = fit[: fit.index(claim)]
            last = min([rule.last, claim.last, *(one.first - 1 for one in earlier if one.first > first)])
            parts.append(_part(rule, first, last, claim.to_first + first - claim.first, claim.target))
        first = last + 1
    return parts


def _fits(claim: ForwardRule, rule: ForwardRule) -> bool:
    """Podman says of a port in the same words where it listens, to whomever it speaks."""
    same = claim.protocol == rule.protocol and claim.listen == rule.listen and not rule.dual_stack
    return same and claim.first <= rule.last and rule.first <= claim.last


def _part(rule: ForwardRule, first: int, last: int, to_first: int, target: bytes) -> ForwardRule:
    return ForwardRule(
        protocol=rule.protocol,
        listen=rule.listen,
        dual_stack=rule.dual_stack,
        interface=rule.interface,
        first=first,
        last=last,
        to_first=to_first,
        target=target,
        best_effort=rule.best_effort,
    )
