# SPDX-License-Identifier: Apache-2.0
"""What changes on the host while the guest runs: links, addresses and routes (rtnetlink), and resolv.conf (inotify).

Made by control while it can still open what it needs, then joined to its loop by `start`. Adversary: nobody. Whatever
changes, everything is looked at anew, at the pace of netlink_watch.py.
"""

from __future__ import annotations

import asyncio
import os
import struct
from typing import TYPE_CHECKING

from lockgate.core._datapath import lib
from lockgate.plugin import hostnet
from lockgate.plugin.netlink_watch import NetlinkWatch, Pace

if TYPE_CHECKING:
    from collections.abc import Callable

# RTMGRP_*, <linux/rtnetlink.h>: links, addresses and routes of both families
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_INOTIFY = struct.Struct("=iIII")  # watch, mask, cookie, length of the name behind it
_READ_MAX = 65536
_READS_A_TURN = 16  # then others have theirs


def names_in(events: bytes) -> set[bytes]:
    """The names that inotify's events are about; without any, something larger happened to a folder: b""."""
    found, at = set(), 0
    while at + _INOTIFY.size <= len(events):
        *_, length = _INOTIFY.unpack_from(events, at)
        at += _INOTIFY.size
        found.add(events[at : at + length].rstrip(b"\0"))
        at += length
    return found


class FileWatch:
    """One file, by its name in its folder, and by the name in the folder that a symbolic link leads to."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.fd = lib.lg_watch_open()
        self._names: set[bytes] = set()
        self._aim()

    def _aim(self) -> None:
        """At the folders as they are now. One that cannot be watched is not: the file is then as it is at the start."""
        places = {self._path, os.path.realpath(self._path)}
        self._names = {os.fsencode(os.path.basename(place)) for place in places} | {b""}
        for place in places:
            lib.lg_watch_folder(self.fd, os.fsencode(os.path.dirname(place)))

    def touched(self) -> bool:
        """Reads what was told, and says whether it was about the file."""
        found = False
        for _ in range(_READS_A_TURN):
            try:
                events = os.read(self.fd, _READ_MAX)
            except BlockingIOError:
                break
            found = found or bool(names_in(events) & self._names)
        if found:
            self._aim()
        return found


class HostWatch:
    """Calls `changed` when it is time to look."""

    def __init__(self, resolv_conf: str = hostnet.RESOLV_CONF) -> None:
        self._netlink = NetlinkWatch(_GROUPS)
        self._file = FileWatch(resolv_conf)

    def start(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._pace = Pace(self._look)
        self._netlink.start(self._pace.ask)
        self._pace.ask()  # what happened between the first look, before READY, and the moment when this was made
        if self._file.fd >= 0:
            asyncio.get_running_loop().add_reader(self._file.fd, self._on_file)

    def _on_file(self) -> None:
        if self._file.touched():
            self._pace.ask()

    def _look(self) -> None:
        self._netlink.hear_again()
        self._changed()
