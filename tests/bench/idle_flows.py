# SPDX-License-Identifier: Apache-2.0
"""What open connections cost that nobody uses: memory, and CPU over a stretch of silence.

Called by the runner. Adversary: nobody.
Invariants: memory is PSS of the helper's whole tree without the guest's; connections are real ones of the guest, with
nginx at their other end.
"""

from __future__ import annotations

import servers
from measure import Family, Measure, Settings, Side, Values
from visit import Visit, visiting

FEW = 1000
MEGABYTE, KILOBYTE = 1e6, 1e3
REST_LIMIT_MB = 20.0
FLOW_LIMIT_KB = 1.5
CPU_LIMIT_MS = 1.0  # added by many flows in the whole window: none
SETTLE_SECONDS = 1.0  # delayed ACKs of the last connections


def levels(settings: Settings) -> dict[str, int]:
    """How many connections are open when, in this order."""
    return {"none": 0, "few": FEW, "many": settings.flows}


def measures(settings: Settings) -> list[Measure]:
    """Memory and CPU at each level, and what one flow adds."""
    titles = {key: f"{count:,} idle flows".replace(",", " ") for key, count in levels(settings).items()}
    rows = [
        Measure(f"idle.{key}.pss", "Memory", title, "MB", limit=REST_LIMIT_MB if key == "none" else None)
        for key, title in titles.items()
    ]
    rows.append(Measure("idle.flow", "Memory that one idle flow adds", titles["many"], "KB", limit=FLOW_LIMIT_KB))
    window = f"CPU in {settings.idle_seconds:g} s of silence"
    rows += [Measure(f"idle.{key}.cpu", window, title, "ms", has_ratio=False) for key, title in titles.items()]
    added = f"added by {titles['many']}"
    rows.append(Measure("idle.added_cpu", window, added, "ms", limit=CPU_LIMIT_MS, has_ratio=False))
    return rows


def _note(key: str, visit: Visit, settings: Settings, values: Values) -> None:
    visit.helper.watch(SETTLE_SECONDS)
    values[f"idle.{key}.cpu"] = visit.window(settings.idle_seconds).cpu_seconds * 1e3
    values[f"idle.{key}.pss"] = visit.own_pss_bytes() / MEGABYTE


def run(side: Side, settings: Settings, values: Values) -> None:
    """One visit; connections are added up."""
    with visiting(side, settings) as visit, servers.nginx(settings.flows) as web:
        opened = 0
        for key, count in levels(settings).items():
            if count > opened:
                visit.load(f"hold_connections {count - opened} {visit.gateway} {web}", count / 100)
                opened = count
            _note(key, visit, settings, values)
    values["idle.flow"] = (values["idle.many.pss"] - values["idle.none.pss"]) * MEGABYTE / KILOBYTE / settings.flows
    values["idle.added_cpu"] = max(0.0, values["idle.many.cpu"] - values["idle.none.cpu"])


FAMILY = Family("idle", "idle flows", measures, run)
