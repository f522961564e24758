# SPDX-License-Identifier: Apache-2.0
"""Whether the namespace that we serve is still wanted: its path is removed when it is not.

Made by the wrapper while it can still see the path, then asked by the keeper's loop. Adversary: the caller at most; the
container can reach neither a bind mount nor the folder of its first process. Invariants: nothing wakes while nothing
happens, but where the kernel tells of no removal; what is gone stays gone, even if the path comes back, since that is
another namespace's.

A path is watched in one of three ways:
- by inotify on its folder, for the removal of that name (unmounting what is on it means nothing);
- /proc/PID/ns/net by a descriptor of the process, which the kernel makes readable at its end;
- any other path of a kind of file system that tells inotify nothing, or where no inotify is left, once a second.
"""

from __future__ import annotations

import errno
import os
import select
import struct

from lockgate.core._datapath import lib

INTERVAL_MILLISECONDS = 1000

_SILENT = (b"proc", b"sysfs", b"devpts")  # file systems whose names come and go without a word
_INOTIFY = struct.Struct("=iIII")  # watch, mask, cookie, length of the name behind it
_MOVED_FROM, _DELETED, _OVERFLOW = 0x40, 0x200, 0x4000
_SELF = 0x400 | 0x800 | 0x8000  # the folder itself was removed or moved, or is not watched any more
_READ_MAX = 65536


class NamespaceWatch:
    """One path. For the loop: `fileno` to be polled for input, or -1; `interval`, after which to ask all the same, in
    milliseconds, or None; `gone` to be asked after either."""

    def __init__(self, path: str) -> None:
        """Raises OSError if the path cannot be watched in any way."""
        folder, self._name = os.path.split(path)
        self._inotify = False
        # The folder itself, whatever its path may lead to later.
        self._folder = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fd = self._open_process(path)
        if self._fd < 0:
            self._fd = self._open_inotify()
            self._inotify = self._fd >= 0
        self._gone = not self._is_there()

    def fileno(self) -> int:
        return self._fd

    @property
    def interval(self) -> int | None:
        return None if self._fd >= 0 else INTERVAL_MILLISECONDS

    def gone(self) -> bool:
        """Reads what there is to be read: the descriptor is not readable any more, unless all is over."""
        if not self._gone:
            if self._inotify:
                self._gone = self._read_events()
            elif self._fd >= 0:
                self._gone = self._has_ended()
            else:
                self._gone = not self._is_there()
        return self._gone

    def close(self) -> None:
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1

    def _open_process(self, path: str) -> int:
        """Of /proc/PID/ns/net. If /proc is that of another PID namespace, numbers are not those of processes here."""
        parts = path.split("/")
        if len(parts) != 5 or parts[:2] != ["", "proc"] or parts[3:] != ["ns", "net"] or not parts[2].isdigit():
            return -1
        try:
            if os.readlink("/proc/self") != str(os.getpid()):
                return -1
            return os.pidfd_open(int(parts[2]))
        except OSError:
            return -1  # of a thread; before Linux 5.3

    def _open_inotify(self) -> int:
        if self._is_silent():
            return -1
        fd = int(lib.lg_watch_open())
        if fd < 0:
            return -1
        if lib.lg_watch_folder(fd, b"/proc/self/fd/%d/." % self._folder, True) < 0:
            os.close(fd)
            return -1
        return fd

    def _is_silent(self) -> bool:
        """From the kind of the file system: inotify can watch these, and never says a word."""
        number = os.fstat(self._folder).st_dev
        device = b"%d:%d" % (os.major(number), os.minor(number))
        try:
            with open("/proc/self/mountinfo", "rb") as mounts:  # proc_pid_mountinfo(5)
                for line in mounts:
                    fields = line.split()
                    if fields[2] == device:
                        return fields[fields.index(b"-") + 1] in _SILENT
        except (OSError, IndexError, ValueError):
            pass
        return False

    def _has_ended(self) -> bool:
        waiting = select.poll()  # select() would not take a descriptor above 1023
        waiting.register(self._fd, select.POLLIN)
        return bool(waiting.poll(0))

    def _is_there(self) -> bool:
        """Where we may not look, it still is: so it is with processes of other users."""
        try:
            os.close(os.open(self._name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._folder))
        except OSError as failure:
            return failure.errno == errno.EACCES
        return True

    def _read_events(self) -> bool:
        while True:
            try:
                events = os.read(self._fd, _READ_MAX)
            except BlockingIOError:
                return False
            at = 0
            while at + _INOTIFY.size <= len(events):
                _, mask, _, length = _INOTIFY.unpack_from(events, at)
                name = events[at + _INOTIFY.size : at + _INOTIFY.size + length].rstrip(b"\0")
                at += _INOTIFY.size + length
                if mask & (_DELETED | _MOVED_FROM) and name == os.fsencode(self._name):
                    return True
                if mask & (_SELF | _OVERFLOW) and not self._is_there():
                    return True
