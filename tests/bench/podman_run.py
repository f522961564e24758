# SPDX-License-Identifier: Apache-2.0
"""A whole `podman run --rm`, which is what a person waits for.

Called by the runner, for GUEST=podman. Adversary: nobody.
Invariants: real rootless Podman of the other root, as in tests/contract, with our tree installed there; one host for
the whole run, because installing takes minutes; the peer is that root's own pasta. A first run on either side does not
count: it finds nothing in the page cache.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from image import MissingIngredient
from measure import OURS, PEER, Family, Measure, Settings, Side, Values

if TYPE_CHECKING:
    from podman_host import PodmanHost

FOLDERS = {OURS: "/opt/lockgate/libexec/podman", PEER: "/usr/bin"}  # where Podman looks first
ADDED_LIMIT_MS = 40.0


def measures(_settings: Settings) -> list[Measure]:
    """Of what a person types."""
    return [
        Measure(f"podman.{key}", "Podman", title, "ms", added_limit=ADDED_LIMIT_MS)
        for key, title in {"run": "podman run --rm --network pasta … true", "stop": "podman stop -t 0"}.items()
    ]


@functools.cache
def _host() -> PodmanHost:
    import pytest  # here: no other guest needs what the tests need
    from podman_host import PodmanHost, peer_words

    try:
        run = peer_words()
    except pytest.skip.Exception as missing:  # by which the tests say what is not there; here it ends the family
        raise MissingIngredient(str(missing)) from missing
    folder = Path(tempfile.mkdtemp(prefix="lockgate-"))
    atexit.register(shutil.rmtree, folder)
    folder.chmod(0o755)
    host = PodmanHost(folder, run)
    atexit.register(host.close)
    host.install()
    host.make_image()
    for name in FOLDERS:
        _take(host, name, {})
    return host


def _take(host: PodmanHost, name: str, values: Values) -> None:
    from podman_host import IMAGE

    chosen = (f"CONTAINERS_HELPER_BINARY_DIR={FOLDERS[name]}",)
    began = time.monotonic()
    host.podman("run", "--rm", "--network", "pasta", IMAGE, "true", environment=chosen)
    values["podman.run"] = (time.monotonic() - began) * 1e3
    container = host.podman("run", "-d", "--rm", "--network", "pasta", IMAGE, "sleep", "1000", environment=chosen)
    began = time.monotonic()
    host.podman("stop", "-t", "0", container.strip())
    values["podman.stop"] = (time.monotonic() - began) * 1e3


def run(side: Side, _settings: Settings, values: Values) -> None:
    """Two containers."""
    try:
        _take(_host(), side.name, values)
    except AssertionError as failed:  # as a test would say it
        raise ValueError(str(failed)) from failed


FAMILY = Family("podman", "podman run", measures, run)
