# SPDX-License-Identifier: Apache-2.0
"""What a `pasta` does while the container holds its peers back: as stalls.py, through the tap device.

Called by the runner. Adversary: nobody. Invariants: as there.
"""

from __future__ import annotations

import time
from itertools import product

import servers
import ways
from measure import OURS, Family, Measure, Settings, Side, Values, by_panel
from stalls import LOOK_SECONDS, LOOKS, PACE, PEERS, QUIET_BYTES, RAMP_SECONDS, WAKEUP_LIMITS
from visit import window
from ways import Reach, Way, reaching

SCENARIOS = {"stopped": "16 peers, no reader", "paced": "16 chunks at once, 20 MB/s"}
CPU_AIM = {"stopped": None, "paced": 0.5}


def measures(_settings: Settings) -> list[Measure]:
    """CPU and wake-ups of both."""
    rows = []
    for way, (key, what) in product(ways.TAP_WAYS, SCENARIOS.items()):
        name, title = f"stall.{way.key}.{key}", f"{what}, {way.short}"
        limit = WAKEUP_LIMITS[key]
        rows += [
            Measure(
                f"{name}.cpu", "Helper CPU in a stall", title, "% of a core", aim=CPU_AIM[key], has_ratio=limit is None
            ),
            Measure(f"{name}.waits", "Wake-ups in a stall", title, "/s", limit=limit, has_ratio=limit is None),
            Measure(
                f"{name}.wakeups",
                "Our worker's own count of its wake-ups",
                title,
                "/s",
                limit=WAKEUP_LIMITS[key],
                sides=(OURS,),
            ),
        ]
        if key == "paced":
            rows.append(Measure(f"{name}.rate", "What the paced download got", title, "MB/s", True))
    return by_panel(rows)


def _note(name: str, reach: Reach, seconds: float, values: Values) -> None:
    seen = window(reach.helper, seconds)
    values[f"{name}.cpu"] = seen.cpu_seconds / seconds * 100
    values[f"{name}.waits"] = seen.waits_per_second
    if seen.wakeups_per_second is not None:
        values[f"{name}.wakeups"] = seen.wakeups_per_second


def _received(way: Way, reach: Reach) -> int:
    return reach.inside.received_bytes("eth0" if way == ways.BRIDGE else "cable")


def _wait_quiet(way: Way, reach: Reach) -> None:
    before = _received(way, reach)
    for _ in range(LOOKS):
        reach.helper.watch(LOOK_SECONDS)
        now = _received(way, reach)
        if now - before < QUIET_BYTES:
            return
        before = now


def _stopped(side: Side, way: Way, settings: Settings, values: Values) -> None:
    with reaching(side, way) as reach, servers.nginx(place=reach.places[1]) as web:
        reader = f"curl -s -o - http://{reach.client.gateway}:{web}/{servers.FILE_NAME} | sleep 3600"
        with reach.client.started(f"for peer in $(seq {PEERS}); do ({reader}) & done; wait"):
            _wait_quiet(way, reach)
            _note(f"stall.{way.key}.stopped", reach, settings.idle_seconds, values)


def _paced(side: Side, way: Way, settings: Settings, values: Values) -> None:
    name = f"stall.{way.key}.paced"
    with reaching(side, way) as reach, servers.nginx(place=reach.places[1]) as web:
        options = f"-q -x{PEERS} -s{PEERS} -k1M --max-overall-download-limit={PACE} --file-allocation=none -d /mnt"
        url = f"http://{reach.client.gateway}:{web}/{servers.FILE_NAME}"
        with reach.client.started(f"exec aria2c {options} {url}"):
            reach.helper.watch(RAMP_SECONDS)
            began, before = time.monotonic(), _received(way, reach)
            _note(name, reach, settings.idle_seconds, values)
            values[f"{name}.rate"] = (_received(way, reach) - before) / (time.monotonic() - began) / 1e6


def run(side: Side, settings: Settings, values: Values) -> None:
    """Each scenario in a visit of its own."""
    for way in ways.TAP_WAYS:
        _stopped(side, way, settings, values)
        _paced(side, way, settings, values)


FAMILY = Family("stalls", "stalls", measures, run)
