# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of the benchmark: what a measure is, what a family of them is, and whom they are taken of.

Imported by all the others. Adversary: nobody.
Invariants: a family fills its values in as it measures them, so that what was measured before a failure counts.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

OURS, PEER, MACHINE = "ours", "peer", "machine"  # whose a value is; the last: of no helper, but of what is under both
Values = dict[str, float]  # by a measure's key; "KEY/PART" is a detail of it, shown and not compared


@dataclass(frozen=True)
class Measure:
    """One row of the report."""

    key: str
    panel: str  # the heading that it stands under; rows under one heading share a unit
    title: str
    unit: str
    more_is_better: bool = False
    aim: float | None = None  # for the ratio: at most this, or at least if more is better
    limit: float | None = None  # for our own value: at most this
    added_limit: float | None = None  # for our own value beyond the peer's: at most this
    one_suffices: bool = False  # of those that are given, instead of all
    floor: str | None = None  # the key of a measure that says what no helper at all would cost
    has_ratio: bool = True  # not where both are next to nothing, and a ratio would compare noise
    sides: tuple[str, ...] = (OURS, PEER)  # whose values make a pair
    steady: bool = False  # the tenth percentile over the median is a claim of its own here


def by_panel(measures: Sequence[Measure]) -> list[Measure]:
    """Those under one heading together, where the first of them was."""
    panels = list(dict.fromkeys(measure.panel for measure in measures))
    return sorted(measures, key=lambda measure: panels.index(measure.panel))


@dataclass(frozen=True)
class Side:
    """One of the two helpers."""

    name: str  # OURS or PEER
    command: str  # with {socket}, behind a machine

    @property
    def runner(self) -> list[str]:
        """The leading words that only bring the helper into another root, see machine.py; mostly none."""
        words = shlex.split(os.environ.get("LOCKGATE_PEER_RUN", ""))
        return words if words and shlex.split(self.command)[: len(words)] == words else []

    @property
    def words(self) -> list[str]:
        """The helper's own command line."""
        return shlex.split(self.command)[len(self.runner) :]

    @property
    def program(self) -> str:
        """The name under which it is started, which says what it does."""
        return Path(self.words[0]).name

    def command_for(self, kind: str) -> str:
        """For that kind of guest: what does not speak vhost-user speaks frames on a stream."""
        return self.command.replace(" --vhost-user", "") if kind.endswith("-stream") else self.command


@dataclass(frozen=True)
class Settings:
    """What a person chose."""

    guest: str  # one of machine.KINDS, or of those that bench.py has without a machine
    seconds: float  # of load for each value
    idle_seconds: float  # of each window in which nothing should happen
    flows: int  # "many": 10 000, or fewer where the limit on descriptors is short
    processor: int | None = None  # that the guest is bound to, all of its processes
    peer: str = ""  # the other helper's program, where it matters what it can do; empty without one


@dataclass(frozen=True)
class Family:
    """Measures that are taken in one visit to a guest."""

    name: str
    title: str
    measures: Callable[[Settings], list[Measure]]
    run: Callable[[Side, Settings, Values], None]
    without_helper: bool = False  # taken once a pair, of this machine itself
