# SPDX-License-Identifier: Apache-2.0
"""made_files: the files of a start, under names that the caller has chosen: sockets to listen on, PID file, capture;
and a folder of our own (made_folder.py).

Called by start.py and gateway/awaited.py, with the caller's rights. Adversary: nobody; other users at worst, who may
have put something else in the place of a file by the time that it is taken back.

Invariants: take_back() removes what was made here and is still there, and nothing else: a file that was there before,
and was only written to, stays. That holds too where an interrupt (^C) comes between any two steps: a file is written
down before it is made, and struck out if it was not.
"""

from __future__ import annotations

import _socket
import _stat
import errno
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import stat_result
    from typing import Protocol

    class Removable(Protocol):
        def remove(self) -> None: ...


class FileError(Exception):
    """Why a file cannot be made; the text is one sentence for the caller, without the full stop."""


class MadeFiles:
    """What has been made, until the start has succeeded or is taken back."""

    def __init__(self) -> None:
        self._made: list[Removable] = []

    def open_for_writing(self, path: str, what: str) -> int:
        """A new file that only its owner may read, or the file that is there, as it is: a start that fails has not
        emptied what another helper has written. Who writes to it empties it first."""
        import os  # gvproxy's files come before it

        flags = posix.O_CREAT | posix.O_WRONLY | posix.O_CLOEXEC
        try:
            if os.path.exists(path):
                return posix.open(path, flags, 0o600)
            place = os.path.realpath(path)  # of a link that leads to nothing: what is made there is taken back
            made = self._write_down(place)
            try:
                fd = posix.open(place, flags | posix.O_EXCL, 0o600)
            except OSError:
                self._made.remove(made)
                raise
        except OSError as failure:
            raise FileError(f"{what} {path} cannot be opened: {failure.strerror}") from None
        made.is_this(posix.fstat(fd))
        return fd

    def write_whole(self, path: str, what: str, content: bytes) -> None:
        """A file that is never there in part, in the place of what is there."""
        written = f"{path}.{posix.getpid()}"
        made = self._write_down(path)
        try:
            fd = _new_file(written)
            try:
                posix.write(fd, content)
                made.is_this(posix.fstat(fd))
                posix.rename(written, path)
            except OSError:
                posix.unlink(written)
                raise
            finally:
                posix.close(fd)
        except OSError as failure:
            self._made.remove(made)
            raise FileError(f"{what} {path} cannot be written: {failure.strerror}") from None

    def adopt(self, path: str, device: int, inode: int) -> None:
        """What was made on our behalf before we ran, and by whatever name: that file alone."""
        self._write_down(path).is_file(device, inode)

    def listen(self, path: str, what: str, backlog: int = 0, kind: int = _socket.SOCK_STREAM) -> _socket.socket:
        """What a helper that died has left there is replaced; a living one is not. One that was killed may still have
        it for a moment, of which who starts it anew (libvirt) knows nothing: it has been seen to close the link."""
        if _is_folder(path):
            raise FileError(f"{what} {path}: that is a folder; expected the path of a socket that is to be made")
        if _stays_in_use(path, what, kind):
            raise FileError(f"{what} {path} is already in use; stop the other helper, or name another path")
        return self._listen(path, what, backlog, kind)

    def replace(self, path: str, what: str, backlog: int) -> _socket.socket:
        """A socket that its owner alone may use, in the place of whatever is there: also of a living helper's."""
        if _is_folder(path):
            raise FileError(f"{what} {path}: that is a folder; expected the path of a socket that is to be made")
        before = posix.umask(0o177)
        try:
            return self._listen(path, what, backlog, _socket.SOCK_STREAM)
        finally:
            posix.umask(before)

    def _listen(self, path: str, what: str, backlog: int, kind: int) -> _socket.socket:
        hindrance = _remove(path)
        listener = _unix_socket(kind)
        made = self._write_down(path)
        try:
            listener.bind(path)
            made.is_this(posix.lstat(path))
            if kind != _socket.SOCK_DGRAM:
                listener.listen(backlog)
        except OSError as failure:
            if not made.known:
                self._made.remove(made)
            raise FileError(f"{what} {path} cannot be made: {_reason(path, failure, hindrance)}") from None
        return listener

    def private_folder(self, places: Iterable[str], prefix: str) -> str:
        """A new one that its owner alone may look into, in the first place that allows it; taken back with all that is
        in it. What helpers have left there that were killed is removed."""
        from lockgate.plugin import made_folder

        try:
            return made_folder.make(places, prefix, self._made)
        except OSError as failure:
            raise FileError(f"No folder can be made for sockets of our own ({failure.strerror})") from None

    def keep(self) -> None:
        """The start has succeeded: they stay, also when the helper ends."""
        self._made.clear()

    def take_back(self) -> None:
        """As far as the rights of now allow it."""
        while self._made:
            self._made.pop().remove()

    def _write_down(self, path: str) -> _Made:
        try:
            path = _absolute(path)  # the working folder will be another
        except OSError:
            pass  # one that has been removed holds no file either
        made = _Made(path)
        self._made.append(made)
        return made


class _Made:
    """One file, about to be made where nothing is, or made."""

    __slots__ = ("_file", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None  # device and inode, once they are known

    @property
    def known(self) -> bool:
        return self._file is not None

    def is_this(self, made: stat_result) -> None:
        self.is_file(made.st_dev, made.st_ino)

    def is_file(self, device: int, inode: int) -> None:
        self._file = device, inode

    def remove(self) -> None:
        try:
            there = posix.lstat(self.path)
            if self._file in (None, (there.st_dev, there.st_ino)):
                posix.unlink(self.path)
        except OSError:
            pass  # gone already, or out of reach


def in_use(path: str, what: str, kind: int = _socket.SOCK_STREAM) -> bool:
    """Whether somebody accepts connections there, who is not to notice: a helper that serves one client would end with
    us. A socket that is connected already is asked to connect, which the kernel refuses for that reason last of all."""
    probe, other = _socket.socketpair(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    try:
        probe.connect(path)
        return True  # by datagrams, which can be for somebody else
    except OSError as failure:
        if failure.errno in (errno.EISCONN, errno.EAGAIN, errno.EPERM):
            return True  # it listens; and its backlog is full; and it hears one other alone (datagrams)
        if failure.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return False
        if failure.errno == errno.EACCES:
            from lockgate.plugin import socket_holder

            return socket_holder.is_listed(path)
        raise FileError(f"{what} {path} cannot be used: {_reason(path, failure, '')}") from None
    finally:
        probe.close()
        other.close()


def _stays_in_use(path: str, what: str, kind: int) -> bool:
    if not in_use(path, what, kind):
        return False
    from lockgate.plugin import ending, socket_holder  # hardly anybody needs them

    patience = ending.Patience()
    while True:
        is_leaving = socket_holder.is_leaving(path)
        if not in_use(path, what, kind):
            return False  # perhaps since before that look, which has found nobody then
        if not patience.waits([is_leaving]):
            return True


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"{posix.getcwd()}/{path}"


def _new_file(path: str) -> int:
    """Of our own number, which somebody killed here may have had before: in a container each start has the same."""
    flags = posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC
    try:
        return posix.open(path, flags, 0o666)
    except FileExistsError:
        posix.unlink(path)
        return posix.open(path, flags, 0o666)


def _unix_socket(kind: int) -> _socket.socket:
    return _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)


def _is_folder(path: str) -> bool:
    """Not through a symbolic link: that would be replaced like any other file."""
    try:
        return _stat.S_ISDIR(posix.lstat(path).st_mode)
    except OSError:
        return False


def _remove(path: str) -> str:
    """Why what is there stays; empty if nothing is there any more."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as failure:
        return failure.strerror or str(failure)
    return ""


def _reason(path: str, failure: OSError, hindrance: str) -> str:
    import os

    folder = os.path.dirname(path) or "."
    if failure.errno == errno.ENOENT:
        return f"there is no folder {folder}"
    if failure.errno == errno.ENOTDIR:
        return f"{folder} is not a folder"
    if failure.errno == errno.EADDRINUSE and hindrance:
        return f"the file that is there cannot be removed ({hindrance})"
    return failure.strerror or str(failure)
