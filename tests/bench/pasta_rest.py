# SPDX-License-Identifier: Apache-2.0
"""What a `pasta` costs that has nothing to do, and how long a start of it takes.

Called by the runner. Adversary: nobody.
Invariants: memory is that of all its processes, with one published port, as most containers have; a start is ready
when it has exited and nobody holds its output, which is what Podman waits for, and each has a network of its own.
"""

from __future__ import annotations

from pathlib import Path

import bench_statistics
import process_cost
import process_tree
from container import container_of, hosting, start, visiting
from measure import Family, Measure, Settings, Side, Values
from visit import window

PORTS = {"-t": "8080-8080:80-80"}
MEGABYTE = 1e6
PSS_LIMIT_MB = 20.0
STARTS = 20
READY_LIMIT_MS = 40.0


def _bytes(pid: int, of: str) -> int:
    lines = [
        line
        for member in process_tree.tree(pid)
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
    ]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{of}:"))


def rest_measures(settings: Settings) -> list[Measure]:
    """Memory, the CPU that a start takes, and that of a silence."""
    silence = f"CPU in {settings.idle_seconds:g} s of silence"
    return [
        Measure("rest.pss", "Memory at rest", "PSS of all processes", "MB", limit=PSS_LIMIT_MB),
        Measure("rest.rss", "Memory at rest", "RSS of all processes", "MB"),
        Measure("rest.start", "CPU of a start", "of the processes that stay", "ms", has_ratio=False),
        Measure("rest.cpu", silence, "no flow", "ms", has_ratio=False),
    ]


def run_rest(side: Side, settings: Settings, values: Values) -> None:
    """One visit."""
    with visiting(side, PORTS) as visit:
        visit.helper.settle()
        values["rest.start"] = process_cost.run_seconds(visit.helper.pid) * 1e3
        values["rest.cpu"] = window(visit.helper, settings.idle_seconds).cpu_seconds * 1e3
        for key, of in {"rest.pss": "Pss", "rest.rss": "Rss"}.items():
            values[key] = _bytes(visit.helper.pid, of) / MEGABYTE


def ready_measures(_settings: Settings) -> list[Measure]:
    """One."""
    return [Measure("ready", "Time to ready", "exec to exit", "ms", limit=READY_LIMIT_MS)]


def run_ready(side: Side, _settings: Settings, values: Values) -> None:
    """One host for all starts."""
    seconds = []
    with hosting() as host:
        for _ in range(STARTS):
            with container_of(host) as container:
                started = start(side, host, container, PORTS)
                started.helper.close()
                seconds.append(started.seconds)
    values["ready"] = bench_statistics.median(seconds) * 1e3


REST = Family("rest", "at rest", rest_measures, run_rest)
READY = Family("ready", "time to ready", ready_measures, run_ready)
