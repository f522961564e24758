# SPDX-License-Identifier: Apache-2.0
"""Two ends of one TCP connection over the host's loopback: one for a service here, one for the worker, whose flows are
of TCP sockets (a pair of unix sockets knows neither its queues nor its resets).

Called by gateway.py. Adversary: others on the host, who may connect to the port in the moment that it listens: they are
told apart by their port, and sent away.
"""

from __future__ import annotations

import errno
import os
import socket

_LOOPBACK = "127.0.0.1"
_STRANGERS_MAX = 16


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Neither end blocks. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind((_LOOPBACK, 0))
        listener.listen(_STRANGERS_MAX)
        ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            ours.connect(listener.getsockname())  # complete at once: a loopback's handshake is done within the call
            own = ours.getsockname()
            for _ in range(_STRANGERS_MAX):
                theirs, peer = listener.accept()
                if peer == own:
                    for end in (ours, theirs):
                        end.setblocking(False)
                        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return ours, theirs
                theirs.close()
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except BaseException:
            ours.close()
            raise
