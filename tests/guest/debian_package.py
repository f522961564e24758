# SPDX-License-Identifier: Apache-2.0
"""A Debian package, unpacked and not installed: a server that would start by itself is in the way of whoever tests.

Called by http3.py and by tests/bench. Adversary: nobody. What was unpacked once stays under build/.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from image import OUTPUT, MissingIngredient


def unpacked(package: str, folder: str, run: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Path:
    """The package's files, under a folder of that name; `run` is what runs a command in another root, with its
    environment. MissingIngredient: it cannot be had."""
    place = OUTPUT / folder
    if place.is_dir():
        return place
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUT) as scratch:
        fetch = f"cd {scratch} && apt-get -q -o APT::Sandbox::User=root download {package}"
        there = {**os.environ, **(environment or {})}
        fetched = subprocess.run([*run, "sh", "-c", fetch], capture_output=True, text=True, env=there)
        found = next(Path(scratch).glob(f"{package}_*.deb"), None)
        if found is None:
            raise MissingIngredient(f"apt-get download {package}: {fetched.stderr.strip()}")
        subprocess.run(["dpkg", "-x", found, Path(scratch, "root")], check=True)
        Path(scratch, "root").rename(place)
    return place
