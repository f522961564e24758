# SPDX-License-Identifier: Apache-2.0
"""Time to ready: from the helper's exec to a socket that listens.

Called by the runner, and by gvproxy_rest.py for what Podman waits for. Adversary: nobody.
Invariants: a shell tells us before it becomes the helper, so that what brings a peer into another root does not count;
the value of a visit is the median of its starts.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bench_statistics
from guest import DIES_WITH_US
from helper import HelperFailed, filled, listens
from measure import Family, Measure, Settings, Side, Values

STARTS = 20
LIMIT_MS = 40.0
LOOK_SECONDS = 0.0002
PATIENCE = 20
_TELL_AND_EXEC = ["sh", "-c", 'echo && exec "$@"', "sh"]


def measures(_settings: Settings) -> list[Measure]:
    """One."""
    return [Measure("ready", "Time to ready", "exec to a listening socket", "ms", limit=LIMIT_MS)]


def _start(side: Side, socket: Path, is_ready: Callable[[Path], bool]) -> float:
    """Seconds of one start; the helper is gone afterwards."""
    process = subprocess.Popen(
        [*DIES_WITH_US, *side.runner, *_TELL_AND_EXEC, *filled(side.words, socket)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as told:
        os.read(told.fileno(), 1)
        began = time.monotonic()
        try:
            while not is_ready(socket):
                if process.poll() is not None or time.monotonic() - began > PATIENCE:
                    raise HelperFailed(f"{side.command}: is not ready on {socket}")
                select.select([], [], [], LOOK_SECONDS)
            return time.monotonic() - began
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def milliseconds(side: Side, is_ready: Callable[[Path], bool]) -> float:
    """The median of the starts, each of which ends when its socket is so."""
    seconds = []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory(prefix="lockgate-") as folder:
            seconds.append(_start(side, Path(folder, "s"), is_ready))
    return bench_statistics.median(seconds) * 1e3


def run(side: Side, _settings: Settings, values: Values) -> None:
    """Without a guest."""
    values["ready"] = milliseconds(side, listens)


FAMILY = Family("ready", "time to ready", measures, run)
