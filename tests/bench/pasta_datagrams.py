# SPDX-License-Identifier: Apache-2.0
"""UDP between a container and its host: as datagrams.py, through the tap device and from loopback to loopback.

Called by the runner. Adversary: nobody. Invariants: as there; a receiving socket's buffer is what this machine allows.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import servers
import ways
from datagrams import BUFFER_BYTES, BUFFER_LIMITS, COST_PANEL, KINDS, RATE_PANEL, Case, cost, highest_rate
from measure import Family, Measure, Settings, Side, Values, by_panel
from ways import DIRECTIONS, Way, reaching

WAYS = (ways.TAP, *ways.LOOPBACK_WAYS)
SHOWN = [kind for kind in KINDS if not kind.joined]


def _cases(way: Way) -> list[tuple[str, str, Case]]:
    """Key, title, and the case as the client sees it."""
    return [
        (
            f"{way.key}.{kind.key}.{direction}",
            f"{kind.title}, {DIRECTIONS[direction]}",
            Case(kind, way.as_client(direction)),
        )
        for kind, direction in product(SHOWN, DIRECTIONS)
    ]


def measures(_settings: Settings) -> list[Measure]:
    """A rate for each case, and its costs."""
    rows = []
    for way in WAYS:
        for key, title, case in _cases(way):
            panel = f"{RATE_PANEL}, {way.title}"
            rows.append(Measure(f"udp.rate.{key}", panel, title, "Mbit/s", True, min(way.rate_aim, 1.0)))
            panel = f"{COST_PANEL}, {way.title}"
            rows += [
                Measure(f"udp.cpu.{pace}.{key}", panel, f"{title}, {rate / 1e6:.0f} Mbit/s", "µs", aim=way.cpu_aim)
                for pace, rate in case.paces.items()
            ]
    return by_panel(rows)


def run(side: Side, settings: Settings, values: Values) -> None:
    """A visit for each way."""
    buffer = min(BUFFER_BYTES, *(int(Path(limit).read_text()) for limit in BUFFER_LIMITS))
    for way in WAYS:
        with reaching(side, way) as reach, servers.pace_datagrams(reach.places[0]) as port:
            for key, _, case in _cases(way):
                values[f"udp.rate.{key}"] = highest_rate(reach.client, port, case, buffer)
                for pace, rate in case.paces.items():
                    values[f"udp.cpu.{pace}.{key}"] = cost(
                        reach.client, port, case, rate, settings.seconds, buffer, reach.helper.pid
                    )


FAMILY = Family("udp", "UDP", measures, run)
