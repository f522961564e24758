# SPDX-License-Identifier: Apache-2.0
"""When to look at the host's network again: a subscription to rtnetlink, and the pace of the looks.

Used by host_watch.py and neighbours.py. Adversary: nobody, or whoever makes up neighbours by the thousand, and a host
that starts containers without pause. What the kernel says is not read, only that it said something: the first word
asks for a look, what follows until then wakes nobody, and a look sees everything anew, also what the kernel could not
deliver (ENOBUFS). Nothing here wakes while nothing changes.
"""

from __future__ import annotations

import _socket
import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GATHER_SECONDS = 0.2  # an interface that comes up says a dozen things within a few milliseconds
LEAST_SECONDS = 1.0  # between two looks

_DRAINED_MAX = 1024  # messages before a look, more than the socket holds by default; what is left causes another


class Pace:
    """Calls `look` a moment after it was asked for, once for all who ask meanwhile, and not more often than it may."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._looked = self._loop.time() - LEAST_SECONDS

    def ask(self) -> None:
        if self._due is None:
            wait = max(GATHER_SECONDS, self._looked + LEAST_SECONDS - self._loop.time())
            self._due = self._loop.call_later(wait, self._now)

    def _now(self) -> None:
        self._due = None
        self._looked = self._loop.time()
        self._look()


class NetlinkWatch:
    """Some groups of rtnetlink. Made while a socket may still be opened, joined to the loop by `start`."""

    def __init__(self, groups: int) -> None:
        """`groups` are RTMGRP_* of <linux/rtnetlink.h>. Raises OSError."""
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._socket = _socket.socket(_socket.AF_NETLINK, kind, _socket.NETLINK_ROUTE)
        self._socket.bind((0, groups))

    def start(self, heard: Callable[[], None]) -> None:
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._on_word)

    def _on_word(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._heard()

    def hear_again(self) -> None:
        """To be called before a look: what is said from here on is about something that it may not see."""
        for _ in range(_DRAINED_MAX):
            try:
                self._socket.recv(1)  # the kernel throws away what does not fit: nobody wants to know
            except BlockingIOError:
                break
            except OSError:
                continue  # ENOBUFS, once: more was said than the socket holds
        self._loop.add_reader(self._socket.fileno(), self._on_word)
