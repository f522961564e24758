# SPDX-License-Identifier: Apache-2.0
"""Who holds a UNIX socket that is in the way of a start, and whether that helper is ending.

Called by made_files.py before READY, where somebody listens at a path that we were told. Adversary: as of
port_holder.py. Invariants: nobody is disturbed: who listens there would take a connection for its guest's.
"""

from __future__ import annotations

import os

from lockgate.plugin import ending, native_text, port_holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Columns of /proc/net/unix, of which the last may have spaces in it.
_FLAGS, _KIND, _INODE, _PATH = 3, 4, 6, 7
_ACCEPTS = 1 << 16  # __SO_ACCEPTCON, <linux/net.h>: its connections have the same path
_DATAGRAMS = b"0002"


def is_leaving(path: str, proc: str = "/proc") -> bool:
    """Whether the socket will be closed in a moment."""
    for inode in _inodes(path, proc):
        folder = port_holder.process_with(b"socket:[" + inode + b"]", proc)
        if folder:
            return ending.is_ending(int(os.path.basename(folder)), proc)
    return ending.helper_is_ending(proc)


def is_listed(path: str, proc: str = "/proc") -> bool:
    """Whether a socket is open there, which may be another user's."""
    return any(True for _ in _inodes(path, proc))


def _inodes(path: str, proc: str) -> Iterator[bytes]:
    """Of the sockets that are reached by the path, as those wrote it who made them."""
    try:
        with open(f"{proc}/net/unix", "rb") as file:
            rows = [columns for columns in (line.rstrip(b"\n").split(None, _PATH) for line in file)]
    except OSError:
        return
    for columns in rows[1:]:
        if len(columns) > _PATH and columns[_PATH] == native_text.encode(path):
            if columns[_KIND] == _DATAGRAMS or int(columns[_FLAGS], 16) & _ACCEPTS:
                yield columns[_INODE]
