# SPDX-License-Identifier: Apache-2.0
"""Small exchanges between a container and its host: as request_response.py, on each way.

Called by the runner. Adversary: nobody. Invariants: as there.
"""

from __future__ import annotations

import process_cost
import servers
import ways
from measure import Family, Measure, Settings, Side, Values, by_panel
from request_response import KINDS, LATENCY_AIM, MICROSECONDS, RATE_AIM, request
from tool_output import sockperf_percentile
from ways import Way, reaching

WAYS = (ways.TAP, *ways.LOOPBACK_WAYS)
PERCENTILES = (50, 99)


def _aims(way: Way) -> tuple[float, float]:
    return min(way.rate_aim, RATE_AIM), way.cpu_aim


def measures(_settings: Settings) -> list[Measure]:
    """Latency, then rate and cost of both kinds."""
    rows = [
        Measure(
            f"latency.p{percentile}.{way.key}",
            f"TCP round trip, {percentile}th percentile",
            way.short,
            "µs",
            aim=LATENCY_AIM if percentile == PERCENTILES[0] else None,
        )
        for percentile in PERCENTILES
        for way in WAYS
    ]
    for kind, (title, _) in KINDS.items():
        for way in WAYS:
            rate, cost = _aims(way)
            rows.append(Measure(f"rate.{kind}.{way.key}", f"HTTP requests, {title}", way.short, "/s", True, rate))
            rows.append(
                Measure(f"cpu.{kind}.{way.key}", f"Helper CPU for each request, {title}", way.short, "µs", aim=cost)
            )
    return by_panel(rows)


def run(side: Side, settings: Settings, values: Values) -> None:
    """A visit for each way."""
    seconds = max(1, round(settings.seconds))
    for way in WAYS:
        with (
            reaching(side, way) as reach,
            servers.sockperf(reach.places[0]) as echo,
            servers.nginx(place=reach.places[1]) as web,
        ):
            client, pid = reach.client, reach.helper.pid
            command = f"sockperf ping-pong --tcp --full-rtt -i {client.gateway} -p {echo} -t {seconds}"
            output = client.load(command, seconds)
            for percentile in PERCENTILES:
                values[f"latency.p{percentile}.{way.key}"] = sockperf_percentile(output, percentile)
            for kind in KINDS:
                before = process_cost.run_seconds(pid)
                done = request(client, web, kind, settings.seconds)
                used = process_cost.run_seconds(pid) - before
                values[f"rate.{kind}.{way.key}"] = done.per_second
                values[f"cpu.{kind}.{way.key}"] = used / done.count * MICROSECONDS


FAMILY = Family("requests", "small exchanges", measures, run)
