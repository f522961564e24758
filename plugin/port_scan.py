# SPDX-License-Identifier: Apache-2.0
"""Which ports somebody listens on in a network namespace, from the kernel's own lists of its sockets.

Called by link_namespace.py before READY, hence the light imports, and by forward_follow.py once a second from then on.
Adversary: the container, which may open as many sockets as it can: a look costs a bounded piece of work all the same.

Two ways lead there. sock_diag(7) gives sockets in one state, in hundredths of a millisecond. /proc/net/tcp, for kernels
without that, goes through all that the machine's table of connections has room for: milliseconds on any larger one,
each second, of each family and namespace.

Invariants: `heard`, `listening` and `others` are pure. The socket, or the files, were opened once in their namespace:
to ask anew needs nobody there.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from lockgate.plugin.forward_rule import TCP, UDP
from lockgate.plugin.namespace.agent_records import SOCK_DIAG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

# What a socket of no connection is in there: of TCP it listens, of UDP it is bound to a port.
_STATES = {TCP: b"0A", UDP: b"07"}

_QUERIES = [(family, protocol) for protocol in (TCP, UDP) for family in (_socket.AF_INET, _socket.AF_INET6)]
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_QUERY = struct.Struct("=BBxxI48x")  # struct inet_diag_req_v2: family, protocol, states, any socket
_PORT = struct.Struct("!4xH")  # of struct inet_diag_msg: the local one
_ERROR = struct.Struct("=i")
_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _FAILED, _DONE = 20, 2, 3  # SOCK_DIAG_BY_FAMILY, NLMSG_ERROR, NLMSG_DONE
_LEAST = {_BY_FAMILY: _PORT.size, _FAILED: _ERROR.size, _DONE: _ERROR.size}
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_PIECES_MAX = 32  # of a list, of some hundred sockets each, at one look

_FILES = {"/proc/net/tcp": TCP, "/proc/net/tcp6": TCP, "/proc/net/udp": UDP, "/proc/net/udp6": UDP}

# Columns of these files, which proc_pid_net(5) describes.
_LOCAL, _STATE = 1, 3
_BYTES_MAX = 1 << 20  # of a file: six thousand sockets or more, and of TCP's those that listen come first
_READ_MAX = 65536  # the kernel gives less at a time: whole records, whole lines


class Heard:
    """What one piece of netlink's answer adds; frozen by convention."""

    __slots__ = ("error", "over", "ports")

    def __init__(self, ports: AbstractSet[int], over: bool, error: int) -> None:
        self.ports = ports
        self.over = over  # this was the last one
        self.error = error  # an errno; 0: none


def query(family: int, protocol: int) -> bytes:
    """For sock_diag: the sockets of no connection."""
    body = _QUERY.pack(family, protocol, 1 << int(_STATES[protocol], 16))
    return _HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST_DUMP, 0, 0) + body


def heard(piece: bytes) -> Heard:
    ports: set[int] = set()
    at = 0
    while at + _HEADER.size <= len(piece):
        length, kind, _, _, _ = _HEADER.unpack_from(piece, at)
        body = at + _HEADER.size
        if at + length > len(piece) or length < _HEADER.size + _LEAST.get(kind, 0):
            return Heard(ports, True, errno.EBADMSG)
        if kind in (_DONE, _FAILED):
            return Heard(ports, True, -_ERROR.unpack_from(piece, body)[0])
        if kind == _BY_FAMILY:
            ports.add(_PORT.unpack_from(piece, body)[0])
        at += length + 3 & ~3
    return Heard(ports, not piece, 0)


def listening(protocol: int, text: bytes) -> set[int]:
    """Ports in the text of a file, whatever their address."""
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


def ways() -> list[str]:
    """By what name they are to be opened, here and by the agent. None: nothing can be followed."""
    diag = Diag.opened_here()
    if diag is not None:
        diag.close()
        return [SOCK_DIAG]
    return [path for path in _FILES if os.access(path, os.R_OK)]


def opened(names: Sequence[str], fds: Sequence[int]) -> Tables:
    """What became of them; the descriptors are ours from now on."""
    return Diag(fds[0]) if SOCK_DIAG in names else Files(dict(zip(names, fds, strict=True)))


def opened_here(names: Sequence[str]) -> Tables:
    """Of the namespace that we are in. Raises OSError."""
    return opened(names, [open_one(name) for name in names])


def open_one(name: str) -> int:
    """Of the namespace that we are in. Raises OSError."""
    if name != SOCK_DIAG:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    return _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG).detach()


class Tables:
    """Who listens in one namespace."""

    descriptors: Sequence[int] = ()

    def __init__(self) -> None:
        self._ports: dict[tuple[int, int], AbstractSet[int]] = {}  # by protocol, and which list

    @property
    def seen(self) -> dict[int, AbstractSet[int]]:
        """Ports by protocol, as of the last look."""
        found: dict[int, set[int]] = {TCP: set(), UDP: set()}
        for (protocol, _), ports in self._ports.items():
            found[protocol] |= ports
        return dict(found)

    def look(self) -> bool:
        """Whether ports have come or gone since the last look."""
        raise NotImplementedError  # abstract: each of the two ways to look is a class below

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)

    def _replace(self, protocol: int, which: int, ports: AbstractSet[int]) -> bool:
        before = self._ports.get((protocol, which), frozenset())
        self._ports[protocol, which] = ports
        return ports != before


class Diag(Tables):
    """By sock_diag. A list that is too long for one look goes on at the next."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.descriptors = [fd]
        self._at = 0  # in _QUERIES
        self._asked = False
        self._found: set[int] = set()  # of the list that has begun
        self.error = 0  # of the last query that failed, an errno

    @classmethod
    def opened_here(cls) -> Diag | None:
        """If this kernel has all of it; perhaps it loads a module now."""
        try:
            diag = cls(open_one(SOCK_DIAG))
        except OSError:
            return None
        diag.look()
        if not diag.error:
            return diag
        diag.close()
        return None

    def look(self) -> bool:
        changed = False
        for _ in range(_PIECES_MAX):
            family, protocol = _QUERIES[self._at]
            more = self._hear(query(family, protocol))
            self._found |= more.ports
            if not more.over:
                continue
            self.error = more.error or self.error
            if not more.error:
                changed = self._replace(protocol, family, frozenset(self._found)) or changed
            self._asked, self._found, self._at = False, set(), (self._at + 1) % len(_QUERIES)
            if self._at == 0:
                break
        return changed

    def _hear(self, request: bytes) -> Heard:
        sock = _socket.socket(fileno=self.descriptors[0])
        try:
            if not self._asked:
                sock.send(request)
            self._asked = True
            return heard(sock.recv(_READ_MAX))
        except OSError as failure:
            return Heard(frozenset(), True, failure.errno or 1)
        finally:
            sock.detach()


class Files(Tables):
    """By the files of /proc/net; one that is as it was costs nothing but to read it."""

    def __init__(self, files: Mapping[str, int]) -> None:
        """Descriptors by path."""
        super().__init__()
        self.descriptors = list(files.values())
        self._protocols = {fd: _FILES[path] for path, fd in files.items()}
        self._texts = dict.fromkeys(self.descriptors, b"")

    def look(self) -> bool:
        changed = False
        for fd, protocol in self._protocols.items():
            text = _read(fd, protocol)
            if text == self._texts[fd]:
                continue
            self._texts[fd] = text
            changed = self._replace(protocol, fd, listening(protocol, text)) or changed
        return changed


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
