# SPDX-License-Identifier: Apache-2.0
"""Bulk TCP between a container and its host, each way: through the tap device, and from loopback to loopback.

Called by the runner. Adversary: nobody.
Invariants: as throughput.py, with the container for the guest. Through the tap the server is at the host's address; a
bridge network has what makes it slow elsewhere, segments of 1500 bytes that are forwarded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import process_cost
import servers
import ways
from measure import Family, Measure, Settings, Side, Values, by_panel
from throughput import STREAMS, transfer
from ways import DIRECTIONS, Way, reaching


def _cases() -> list[tuple[int, str]]:
    return list(product(STREAMS, DIRECTIONS))


def _title(streams: int, direction: str) -> str:
    return f"{'1 stream' if streams == 1 else f'{streams} streams'}, {DIRECTIONS[direction]}"


def _measures(of: Sequence[Way]) -> Callable[[Settings], list[Measure]]:
    def measures(_settings: Settings) -> list[Measure]:
        rows = []
        for way, (streams, direction) in product(of, _cases()):
            key, title = f"{way.key}.{streams}.{direction}", _title(streams, direction)
            panel = f"Throughput, {way.title}"
            rows.append(Measure(f"rate.{key}", panel, title, "Gbit/s", True, way.rate_aim, steady=streams == 1))
            panel = f"Helper CPU for each gigabyte, {way.title}"
            floor = f"floor.{way.as_client(direction)}"
            rows.append(Measure(f"cpu.{key}", panel, title, "s/GB", aim=way.cpu_aim, floor=floor))
        return by_panel(rows)

    return measures


def _run(of: Sequence[Way]) -> Callable[[Side, Settings, Values], None]:
    def run(side: Side, settings: Settings, values: Values) -> None:
        for way in of:
            with reaching(side, way) as reach, servers.iperf3(reach.places[0]) as port:
                for streams, direction in _cases():
                    before = process_cost.run_seconds(reach.helper.pid)
                    done = transfer(reach.client, port, streams, way.as_client(direction), settings.seconds)
                    used = process_cost.run_seconds(reach.helper.pid) - before
                    key = f"{way.key}.{streams}.{direction}"
                    values[f"rate.{key}"] = done.gigabits_per_second
                    values[f"cpu.{key}"] = used / done.gigabytes

    return run


TAP = Family("tap", "bulk TCP, tap", _measures(ways.TAP_WAYS), _run(ways.TAP_WAYS))
LOOPBACK = Family("loopback", "bulk TCP, loopback", _measures(ways.LOOPBACK_WAYS), _run(ways.LOOPBACK_WAYS))
