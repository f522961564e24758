# SPDX-License-Identifier: Apache-2.0
"""Sockets under names in the host's folders, made while a virtual network runs, for clients on the host.

Called by exposed.py. made_files.py has those of the start, which never take the place of a helper that lives; these do
take the place of any socket, as callers of gvproxy's API expect.
Adversary: whoever may ask for them, which guests may not unless the host's user said so.

Invariants: nothing but a socket is ever removed (gvproxy removes whatever is there), and at the end only what was made
here; the mode is what the umask leaves.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from lockgate.plugin.forwards import BACKLOG


class SocketFile:
    """One that listens. A name that begins with @ is one of Linux's abstract names, without a file."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._made: tuple[int, int] | None = None  # device and inode
        self._path = path
        if not path or "\0" in path:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
            self.listener.listen(BACKLOG)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Nobody can connect any more."""
        self.listener.close()
        if self._made is None:
            return
        try:
            if _identity(self._path) == self._made:
                os.unlink(self._path)
        except OSError:
            pass  # gone already, or out of reach

    def _bind(self) -> None:
        if self._path.startswith("@"):
            self._bind_to("\0" + self._path[1:])
            return
        try:
            if stat.S_ISSOCK(os.lstat(self._path).st_mode):
                os.unlink(self._path)
        except FileNotFoundError:
            pass
        self._bind_to(self._path)
        self._made = _identity(self._path)

    def _bind_to(self, name: str) -> None:
        try:
            self.listener.bind(os.fsencode(name))
        except OSError as failure:
            if failure.errno is None:  # Python's own word for a name that is too long
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
            raise


def _identity(path: str) -> tuple[int, int]:
    there = os.lstat(path)
    return there.st_dev, there.st_ino
