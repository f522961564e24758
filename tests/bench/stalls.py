# SPDX-License-Identifier: Apache-2.0
"""What a helper does while the guest holds its peers back: the scenarios in which one spins that tells no stalls apart.

Called by the runner. Adversary: nobody.
  stopped   sixteen peers send, and their readers in the guest have stopped; measured once nothing moves any more
  paced     a download in sixteen connections and chunks of 1 MiB, held at 20 MB/s by the guest
Wake-ups are the kernel's count of waits of all tasks of the helper, and for ours also the worker's own count.
"""

from __future__ import annotations

import time

import servers
from measure import OURS, Family, Measure, Settings, Side, Values
from visit import Visit, visiting

PEERS = 16
PACE = "20M"
RAMP_SECONDS = 3  # until the download runs at its pace
QUIET_BYTES = 20_000  # in a look: probes of closed windows, but no data
LOOK_SECONDS = 0.5
LOOKS = 60
SCENARIOS = {"stopped": "16 peers, the guest does not read", "paced": "16 chunks at once, held at 20 MB/s"}
CPU_LIMITS = {"stopped": None, "paced": 5.0}  # per cent of a core
WAKEUP_LIMITS = {"stopped": 2.0, "paced": None}  # a second


def measures(_settings: Settings) -> list[Measure]:
    """CPU and wake-ups of both."""
    cpu, waits, wakeups = "Helper CPU in a stall", "Wake-ups in a stall", "Our worker's own count of its wake-ups"
    rows = [
        Measure(f"stall.{key}.cpu", cpu, title, "% of a core", aim=1.0, limit=CPU_LIMITS[key])
        for key, title in SCENARIOS.items()
    ]
    rows += [
        Measure(f"stall.{key}.waits", waits, title, "/s", limit=WAKEUP_LIMITS[key]) for key, title in SCENARIOS.items()
    ]
    rows += [
        Measure(f"stall.{key}.wakeups", wakeups, title, "/s", limit=WAKEUP_LIMITS[key], sides=(OURS,))
        for key, title in SCENARIOS.items()
    ]
    rows.append(Measure("stall.paced.rate", "What the paced download got", SCENARIOS["paced"], "MB/s", True))
    return rows


def _note(key: str, visit: Visit, seconds: float, values: Values) -> None:
    window = visit.window(seconds)
    values[f"stall.{key}.cpu"] = window.cpu_seconds / seconds * 100
    values[f"stall.{key}.waits"] = window.waits_per_second
    if window.wakeups_per_second is not None:
        values[f"stall.{key}.wakeups"] = window.wakeups_per_second


def _wait_quiet(visit: Visit) -> None:
    """Until hardly a byte arrives; or not at all, and then the window shows what still moves."""
    before = visit.received_bytes()
    for _ in range(LOOKS):
        visit.helper.watch(LOOK_SECONDS)
        now = visit.received_bytes()
        if now - before < QUIET_BYTES:
            return
        before = now


def _stopped(side: Side, settings: Settings, values: Values) -> None:
    with visiting(side, settings) as visit, servers.nginx() as web:
        url = f"http://{visit.gateway}:{web}/{servers.FILE_NAME}"
        reader = f"wget -q -O - {url} | sleep 3600"  # the pipe fills, and wget reads no more
        visit.guest.output(f"for peer in $(seq {PEERS}); do ({reader}) >/dev/null 2>&1 & done")
        _wait_quiet(visit)
        _note("stopped", visit, settings.idle_seconds, values)


def _paced(side: Side, settings: Settings, values: Values) -> None:
    with visiting(side, settings) as visit, servers.nginx() as web:
        url = f"http://{visit.gateway}:{web}/{servers.FILE_NAME}"
        options = f"-q -x{PEERS} -s{PEERS} -k1M --max-overall-download-limit={PACE} --file-allocation=none -d /tmp"
        visit.guest.output(f"aria2c {options} {url} >/tmp/aria2c.log 2>&1 & echo $! >/tmp/aria2c.pid")
        visit.helper.watch(RAMP_SECONDS)
        began, before = time.monotonic(), visit.received_bytes()
        _note("paced", visit, settings.idle_seconds, values)
        values["stall.paced.rate"] = (visit.received_bytes() - before) / (time.monotonic() - began) / 1e6
        visit.guest.output("kill $(cat /tmp/aria2c.pid) || cat /tmp/aria2c.log")


def run(side: Side, settings: Settings, values: Values) -> None:
    """Each scenario in a visit of its own: stalled flows do not end by themselves."""
    _stopped(side, settings, values)
    _paced(side, settings, values)


FAMILY = Family("stalls", "stalls", measures, run)
