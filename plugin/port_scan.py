# SPDX-License-Identifier: Apache-2.0
"""Which ports somebody listens on in a network namespace, from the kernel's own tables of its sockets.

Called by link_namespace.py before READY, hence the light imports, and by forward_follow.py once a second from then on.
Adversary: the container, which may open as many sockets as it can. So no more of a table is read than _BYTES_MAX, and
of TCP's, where those that listen come first, no more than has any of these.

Invariants: `listening` and `others` are pure. What cannot be read is taken for empty. The files were opened once, in
their namespace: reading them anew needs nobody there, and a table that is as it was costs nothing but that.
"""

from __future__ import annotations

import os

from lockgate.plugin.contracts.forward_spec import TCP, UDP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

# What a socket of no connection is in there: of TCP it listens, of UDP it is bound to a port.
_STATES = {TCP: b"0A", UDP: b"07"}
_FILES = {"/proc/net/tcp": TCP, "/proc/net/tcp6": TCP, "/proc/net/udp": UDP, "/proc/net/udp6": UDP}

# Columns of these files, which proc_pid_net(5) describes.
_LOCAL, _STATE = 1, 3
_BYTES_MAX = 1 << 20  # six thousand sockets or more
_READ_MAX = 65536  # the kernel gives a page of whole lines at a time, or as many as fit


def listening(protocol: int, text: bytes) -> set[int]:
    """Ports, whatever their address."""
    found = set()
    for line in text.splitlines():
        columns = line.split(None, _STATE + 1)
        if len(columns) > _STATE and columns[_STATE] == _STATES[protocol]:
            found.add(int(columns[_LOCAL].rpartition(b":")[2], 16))
    return found


def others(seen: Mapping[int, AbstractSet[int]], ours: Mapping[int, AbstractSet[int]]) -> dict[int, AbstractSet[int]]:
    """Where other programs listen, `ours` being our own ports there: they lead away, and nothing must lead to them.

    Where one listens by TCP, datagrams are welcome too: there are programs that open their port for these only when
    they have agreed on it by TCP.
    """
    tcp = seen[TCP] - ours[TCP]
    return {TCP: tcp, UDP: (seen[UDP] | tcp) - ours[UDP]}


def files_of_host() -> list[str]:
    """Those that this kernel has. None: nothing can be followed."""
    return [path for path in _FILES if os.access(path, os.R_OK)]


def opened_here(paths: Iterable[str]) -> Tables:
    """Of the namespace that we are in. Raises OSError."""
    return Tables({path: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths})


class Tables:
    """The files of one namespace."""

    def __init__(self, files: Mapping[str, int]) -> None:
        """By path; their descriptors are ours from now on."""
        self._protocols = {fd: _FILES[path] for path, fd in files.items()}
        self._texts = dict.fromkeys(self._protocols, b"")
        self._ports: dict[int, AbstractSet[int]] = dict.fromkeys(self._protocols, frozenset())

    @property
    def descriptors(self) -> Sequence[int]:
        return list(self._protocols)

    @property
    def seen(self) -> dict[int, AbstractSet[int]]:
        """Ports by protocol, as of the last look."""
        found: dict[int, set[int]] = {TCP: set(), UDP: set()}
        for fd, protocol in self._protocols.items():
            found[protocol] |= self._ports[fd]
        return dict(found)

    def look(self) -> bool:
        """Whether ports have come or gone since the last look."""
        changed = False
        for fd, protocol in self._protocols.items():
            text = _read(fd, protocol)
            if text == self._texts[fd]:
                continue
            self._texts[fd] = text
            ports = listening(protocol, text)
            changed = changed or ports != self._ports[fd]
            self._ports[fd] = ports
        return changed

    def close(self) -> None:
        for fd in self._protocols:
            os.close(fd)


def _read(fd: int, protocol: int) -> bytes:
    text = b""
    try:
        while len(text) < _BYTES_MAX and (piece := os.pread(fd, _READ_MAX, len(text))):
            text += piece
            if protocol == TCP and not _all_listen(piece):
                break
    except OSError:
        pass
    return text


def _all_listen(piece: bytes) -> bool:
    """As long as only these have come, there may be more of them. A line may be cut off at the end."""
    columns = piece.rpartition(b"\n")[0].rpartition(b"\n")[2].split(None, _STATE + 1)
    return len(columns) <= _STATE or columns[_STATE] in (_STATES[TCP], b"st")
