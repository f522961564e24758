# SPDX-License-Identifier: Apache-2.0
"""Small exchanges: the latency of one, how many a second over kept connections and over new ones, and what each costs.

Called by the runner. Adversary: nobody. Invariants: sockperf and wrk in the guest, their servers on this machine's
loopback; percentiles are of full round trips.
"""

from __future__ import annotations

import process_cost
import servers
from measure import Family, Measure, Settings, Side, Values
from tool_output import Requests, sockperf_percentile
from visit import Client, visiting

CONNECTIONS = 8
MICROSECONDS = 1e6
RATE_AIM, CPU_AIM, LATENCY_AIM = 1.0, 0.65, 1.05
KINDS = {
    "keep_alive": ("kept connections", ""),
    "connect": ("connect, request, close", "-H 'Connection: close'"),
}


def measures(_settings: Settings) -> list[Measure]:
    """Latency, then rate and cost of both kinds."""
    rows = [
        Measure("latency.p50", "TCP round trip, 50th percentile", "one message at a time", "µs", aim=LATENCY_AIM),
        Measure("latency.p99", "TCP round trip, 99th percentile", "one message at a time", "µs"),
    ]
    for kind, (title, _) in KINDS.items():
        rows.append(Measure(f"rate.{kind}", "HTTP requests", title, "/s", more_is_better=True, aim=RATE_AIM))
    for kind, (title, _) in KINDS.items():
        rows.append(Measure(f"cpu_per_request.{kind}", "Helper CPU for each request", title, "µs", aim=CPU_AIM))
    return rows


def request(client: Client, port: int, kind: str, seconds: float) -> Requests:
    """wrk takes whole seconds only."""
    header = KINDS[kind][1]
    command = f"wrk -t1 -c{CONNECTIONS} -d{max(1, round(seconds))}s {header} http://{client.gateway}:{port}/"
    return Requests.parse(client.load(command, seconds))


def run(side: Side, settings: Settings, values: Values) -> None:
    """All in one visit, at the MTU that DHCP gave."""
    with visiting(side, settings) as visit, servers.sockperf() as echo, servers.nginx() as web:
        seconds = max(1, round(settings.seconds))
        output = visit.load(f"sockperf ping-pong --tcp --full-rtt -i {visit.gateway} -p {echo} -t {seconds}", seconds)
        for percentile in (50, 99):
            values[f"latency.p{percentile}"] = sockperf_percentile(output, percentile)
        for kind in KINDS:
            before = process_cost.run_seconds(visit.helper.pid)
            done = request(visit, web, kind, settings.seconds)
            used = process_cost.run_seconds(visit.helper.pid) - before
            values[f"rate.{kind}"] = done.per_second
            values[f"cpu_per_request.{kind}"] = used / done.count * MICROSECONDS


FAMILY = Family("requests", "small exchanges", measures, run)
