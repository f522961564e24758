# SPDX-License-Identifier: Apache-2.0
"""made_folder: a folder of our own, and what helpers that were killed have left of theirs.

Called by made_files.py, with the caller's rights; apart from it, because few starts make one. Adversary: nobody; other
users at worst, who may have put something else in the place of what is removed.

Invariant: a folder is written down before it is made, and struck out if it was not.
"""

from __future__ import annotations

import errno
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockgate.plugin.made_files import Removable

_PLACE_BYTES_MAX = 64  # of the 107 that a socket's path may have; the rest is for names of ours


def make(places: Iterable[str], prefix: str, made: list[Removable]) -> str:
    """In the first place that allows it, and written down in `made`. Raises OSError, whose text says why there is
    none."""
    reason = "no place was named"
    for place in map(os.path.abspath, places):
        if len(os.fsencode(place)) > _PLACE_BYTES_MAX:
            reason = f"{place}: its path is too long"
            continue
        try:
            _remove_orphans(place, prefix)
            return _make(place, prefix, made)
        except OSError as failure:
            reason = f"{place}: {failure.strerror}"
    raise OSError(errno.ENOENT, reason)


def _make(place: str, prefix: str, made: list[Removable]) -> str:
    while True:
        folder = MadeFolder(os.path.join(place, prefix + os.urandom(8).hex()))
        made.append(folder)
        try:
            os.mkdir(folder.path, 0o700)
        except OSError:
            made.remove(folder)
            raise
        if folder.lock():
            return folder.path
        made.remove(folder)  # another start has taken it for an orphan


class MadeFolder:
    """A folder with files in it, under a name that nobody else would have chosen. It is locked for as long as the
    helper lives, whatever ends it."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def lock(self) -> bool:
        """Whether it is there, and nobody else's. Raises OSError."""
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return os.fstat(self._fd).st_nlink > 0

    def remove(self) -> None:
        try:
            for name in os.listdir(self.path):
                os.unlink(os.path.join(self.path, name))
            os.rmdir(self.path)
        except OSError:
            pass  # gone already, or out of reach

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _remove_orphans(place: str, prefix: str) -> None:
    """Folders of our own whose helper has ended without taking them back."""
    for name in os.listdir(place):
        if not name.startswith(prefix):
            continue
        folder = MadeFolder(os.path.join(place, name))
        try:
            if os.lstat(folder.path).st_uid == os.geteuid() and folder.lock():
                folder.remove()
        except OSError:
            pass  # somebody else's, or gone
        folder.close()
