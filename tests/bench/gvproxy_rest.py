# SPDX-License-Identifier: Apache-2.0
"""What a `gvproxy` costs that has nothing to do, and how long a start of it takes.

Called by the runner. Adversary: nobody.
Invariants: memory is that of all its processes, with a guest that has its address and is silent. A start is ready when
the link's socket is there, because Podman looks for nothing else before it starts the machine.
"""

from __future__ import annotations

from pathlib import Path

import readiness
from container import SETTLE_SECONDS
from machine_visit import visiting
from measure import Family, Measure, Settings, Side, Values
from pasta_rest import MEGABYTE

PSS_LIMIT_MB = 30.0
READY_AIM = 1.2


def rest_measures(settings: Settings) -> list[Measure]:
    """Memory, and CPU in a silence."""
    silence = f"CPU in {settings.idle_seconds:g} s of silence"
    return [
        Measure("rest.pss", "Memory at rest", "PSS of all processes", "MB", limit=PSS_LIMIT_MB),
        Measure("rest.cpu", silence, "a machine that is idle", "ms", has_ratio=False),
    ]


def run_rest(side: Side, settings: Settings, values: Values) -> None:
    """One visit."""
    with visiting(side, settings) as visit:
        visit.helper.watch(SETTLE_SECONDS)
        values["rest.cpu"] = visit.window(settings.idle_seconds).cpu_seconds * 1e3
        values["rest.pss"] = visit.own_pss_bytes() / MEGABYTE


def ready_measures(settings: Settings) -> list[Measure]:
    """One."""
    aim = None if settings.peer == "passt" else READY_AIM
    return [Measure("ready", "Time to ready", "exec to the link's socket", "ms", aim=aim)]


def run_ready(side: Side, _settings: Settings, values: Values) -> None:
    """Without a guest."""
    values["ready"] = readiness.milliseconds(side, Path.exists)


REST = Family("rest", "at rest", rest_measures, run_rest)
READY = Family("ready", "time to ready", ready_measures, run_ready)
