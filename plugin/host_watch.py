# SPDX-License-Identifier: Apache-2.0
"""What changes on the host while the guest runs: links, addresses and routes (rtnetlink), and resolv.conf (inotify).

Made by control while it can still open what it needs, then joined to its loop by `start`. Adversary: nobody. Whatever
changes, everything is looked at anew, at the pace of netlink_watch.py.
"""

from __future__ import annotations

import asyncio
import os
import struct

from lockgate.core._datapath import lib
from lockgate.plugin import hostnet
from lockgate.plugin.netlink_watch import NetlinkWatch, Pace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# RTMGRP_*, <linux/rtnetlink.h>: links, addresses and routes of both families
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_INOTIFY = struct.Struct("=iIII")  # watch, mask, cookie, length of the name behind it
_LOST = -1  # for a watch: events were lost
_READ_MAX = 65536
_READS_A_TURN = 16  # then others have theirs
_LINKS_MAX = 40  # Linux follows no more on the way to one file (path_resolution(7))


class Outage:
    """Whether the host has lost its network, which is told once, and that it is back. Pure.

    Lost is what leads further than what is left: a host that never had a default route misses its addresses alone.
    """

    def __init__(self, reach: int) -> None:
        self._had = reach
        self._lost = False

    def look(self, reach: int) -> tuple[str, dict[str, str]]:
        """`reach` is one of hostnet.REACH_*. The event that this is, with its fields; an empty name: none."""
        was, self._lost = self._lost, reach < self._had
        self._had = max(self._had, reach)
        if was == self._lost:
            return "", {}
        if not self._lost:
            return "network.found", {}
        return "network.lost", {"reason": "no default route" if reach == hostnet.REACH_NETWORK else "no address"}


def changes_in(events: bytes) -> set[tuple[int, bytes]]:
    """The watches and names that inotify's events are about; without a name, something happened to the folder."""
    found, at = set(), 0
    while at + _INOTIFY.size <= len(events):
        watch, _, _, length = _INOTIFY.unpack_from(events, at)
        at += _INOTIFY.size
        found.add((watch, events[at : at + length].rstrip(b"\0")))
        at += length
    return found


class FileWatch:
    """What a path leads to: the file itself, each symbolic link on the way to it, and each folder.

    Of a folder that holds a link, the file, or the first name that is missing, the names are watched; of the others
    only whether they are still there under their name, so that what else happens in / or /run wakes nobody. The file
    is watched by itself as well: mounted here from elsewhere, it may be written there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.fd = lib.lg_watch_open()
        self._names: dict[int, set[bytes]] = {}  # by watch, those that the file depends on
        self._aim()

    def _aim(self) -> None:
        """Along the path as it is now. A folder that cannot be watched is not."""
        before, self._names = self._names, {}
        folder, rest, links = "/", _parts(self._path), 0
        self._watch(folder)
        while rest:
            name = rest.pop()
            if name == "..":
                folder = os.path.dirname(folder)
                continue
            place = os.path.join(folder, name)
            if rest and self._watch(place):
                folder = place
                continue
            self._watch(folder, name)  # before the look at what it is: what changes afterwards is told
            target = _link_target(place)
            if target:
                links += 1
                folder = "/" if target.startswith("/") else folder
                rest += _parts(target)
            else:
                self._note(lib.lg_watch_file(self.fd, os.fsencode(place)), "")
                folder = place
            if links > _LINKS_MAX:
                break
        for watch in before.keys() - self._names.keys():
            lib.lg_watch_end(self.fd, watch)

    def _watch(self, folder: str, name: str = "") -> bool:
        """A folder, and with `name` also that in it. Whether it can be: not if it is a link."""
        return self._note(lib.lg_watch_folder(self.fd, os.fsencode(folder), bool(name)), name)

    def _note(self, watch: int, name: str) -> bool:
        if watch >= 0:
            self._names.setdefault(watch, {b""}).add(os.fsencode(name))
        return watch >= 0

    def touched(self) -> bool:
        """Reads what was told, and says whether it was about the file."""
        found = False
        for _ in range(_READS_A_TURN):
            try:
                events = os.read(self.fd, _READ_MAX)
            except BlockingIOError:
                break
            for watch, name in changes_in(events):
                found = found or watch == _LOST or name in self._names.get(watch, ())
        if found:
            self._aim()
        return found


def _parts(path: str) -> list[str]:
    """The names in a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _link_target(place: str) -> str:
    """Empty: it is no symbolic link."""
    try:
        return os.readlink(place)
    except OSError:
        return ""


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
