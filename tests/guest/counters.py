# SPDX-License-Identifier: Apache-2.0
"""The counters of our own helper while it runs, read from the page that its worker shares.

Called by the tests about stalls and losses. Adversary: nobody.
Invariants: only reads. The page outlives a worker, so that a replaced one counts on; it is found by the name of its
memory file among the descriptors of the process that the caller knows, which are ours to see as its user or as root.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import Counter
from pathlib import Path

from lockgate.core._datapath import ffi, lib

MEMORY_FILE = "/memfd:lockgate-counters"
NAMES = [ffi.string(lib.lg_counter_name(index)).decode() for index in range(lib.lg_counter_count())]


class NoCounters(Exception):
    """The process shares no page of counters: it is another's helper."""


class Counters:
    """The page of one helper, by the process that its caller knows."""

    def __init__(self, pid: int) -> None:
        with open(_page_of(pid), "rb") as file:
            self._page = mmap.mmap(file.fileno(), lib.LG_COUNTER_BYTES, prot=mmap.PROT_READ)

    def read(self) -> dict[str, int]:
        """All of them, by name, as they are now."""
        return dict(zip(NAMES, struct.unpack_from(f"={len(NAMES)}Q", self._page), strict=True))

    def since(self, before: dict[str, int]) -> Counter[str]:
        """By how much each has grown; only those that have are shown, the others are 0."""
        return Counter({name: value - before[name] for name, value in self.read().items() if value != before[name]})

    def close(self) -> None:
        """Lets go of the page."""
        self._page.close()


def _page_of(pid: int) -> Path:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith(MEMORY_FILE):
            return entry
    raise NoCounters(f"process {pid} has no {MEMORY_FILE} among its descriptors")
