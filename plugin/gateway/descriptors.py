# SPDX-License-Identifier: Apache-2.0
"""The limit on open files of control's process, shared out: the last of them are kept for clients of the API's sockets.

Made by gateway.py, which asks it about every socket that somebody's wish has opened: a guest's connection to a service,
a query that goes on to the host's resolvers, a tunnel. The worker has a table, and a limit, of its own: its flows take
nothing from here but what they want of the gateway itself.
Adversary: guests, who open such sockets as fast as they like, and would leave none for accept().

Invariants: what is refused is closed. Nothing is counted: the kernel gives the lowest number that is free, so that with
descriptor n, n others are open; and the API has no more connections at once than what is kept allows.
Events: descriptors.short (limit, kept): for the first time, something was refused.
"""

from __future__ import annotations

import errno
import os
import resource
import socket

from lockgate.plugin.clients import Emit
from lockgate.plugin.gateway.http.http_server import CONNECTIONS_MAX

_OWN = 16  # for ports that the keeper hands over, another worker's channels, files that are looked at
_SHARE_OF_OWN, _SHARE = 16, 4  # where the limit is small: at most a part of so many


def limit_of_process() -> int:
    """As the start has left it."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Descriptors:
    """`places` is how many sockets there are by which the API is reached."""

    def __init__(self, limit: int, places: int, emit: Emit) -> None:
        own = min(_OWN, limit // _SHARE_OF_OWN)
        most = places * (CONNECTIONS_MAX + 1) + own  # each place has one more in hand, until there is room for it
        self._limit = limit
        self._kept = min(most, limit // _SHARE)
        self._emit = emit
        self._told = False
        self.connections = max(1, min(CONNECTIONS_MAX, (self._kept - own) // max(1, places) - 1))  # of each place

    def check(self, *opened: socket.socket) -> None:
        """Raises OSError, and closes them, where one has a descriptor that is kept."""
        if max(one.fileno() for one in opened) < self._limit - self._kept:
            return
        for one in opened:
            one.close()
        if not self._told:
            self._told = True
            self._emit("descriptors.short", limit=self._limit, kept=self._kept)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
