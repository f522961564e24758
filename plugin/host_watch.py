# SPDX-License-Identifier: Apache-2.0
"""What changes on the host while the guest runs: links, addresses and routes (rtnetlink), and resolv.conf (inotify).

Made by control while it can still open what it needs, then joined to its loop by `start`. Adversary: nobody, but a host
that starts containers without pause says thousands of things a second: what they say is not read, only that something
was said. After a moment of quiet, and not more often than each second, everything is looked at anew; that also makes
good what the kernel could not deliver (ENOBUFS). Nothing here wakes while nothing changes.
"""

from __future__ import annotations

import _socket
import asyncio
import os
import struct
from typing import TYPE_CHECKING

from lockgate.core._datapath import lib
from lockgate.plugin import hostnet

if TYPE_CHECKING:
    from collections.abc import Callable

GATHER_SECONDS = 0.2  # an interface that comes up says a dozen things within a few milliseconds
LEAST_SECONDS = 1.0  # between two looks

# RTMGRP_*, <linux/rtnetlink.h>: links, addresses and routes of both families
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_INOTIFY = struct.Struct("=iIII")  # watch, mask, cookie, length of the name behind it
_READ_MAX = 65536
_READS_A_TURN = 16  # then others have theirs
_DRAINED_MAX = 1024  # messages before a look, more than the socket holds; what is left causes another


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
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._netlink = _socket.socket(_socket.AF_NETLINK, kind, _socket.NETLINK_ROUTE)
        self._netlink.bind((0, _GROUPS))
        self._file = FileWatch(resolv_conf)

    def start(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._looked = self._loop.time() - LEAST_SECONDS
        self._loop.add_reader(self._netlink.fileno(), self._on_netlink)
        self._note()  # what happened between the first look, before READY, and the moment when this was made
        if self._file.fd >= 0:
            self._loop.add_reader(self._file.fd, self._on_file)

    def _on_netlink(self) -> None:
        """The first word is enough: what else is said until the look wakes nobody."""
        self._loop.remove_reader(self._netlink.fileno())
        self._note()

    def _drain(self) -> None:
        for _ in range(_DRAINED_MAX):
            try:
                self._netlink.recv(1)  # the kernel throws away what does not fit: nobody wants to know
            except BlockingIOError:
                break
            except OSError:
                continue  # ENOBUFS: more was said than the socket holds
        self._loop.add_reader(self._netlink.fileno(), self._on_netlink)

    def _on_file(self) -> None:
        if self._file.touched():
            self._note()

    def _note(self) -> None:
        if self._due is None:
            wait = max(GATHER_SECONDS, self._looked + LEAST_SECONDS - self._loop.time())
            self._due = self._loop.call_later(wait, self._look)

    def _look(self) -> None:
        self._due = None
        self._looked = self._loop.time()
        self._drain()
        self._changed()
