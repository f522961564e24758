# SPDX-License-Identifier: Apache-2.0
"""Who holds a port of the host: a process's name and number, for the message that says why it cannot be forwarded.

Called by forwards.py after bind() has failed, by taken_ports.py and by socket_holder.py, so never where things go well:
it reads as much of /proc as the caller may, which is the wrapper before READY and control later. Adversary: the holder,
which chose its own name. Invariants: what cannot be read is left out, and never an exception; the answer may be a
moment old.
"""

from __future__ import annotations

import _socket
import os
import sys

from lockgate.plugin import ending
from lockgate.plugin.address import IPV4_MAPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TABLES = {_socket.IPPROTO_TCP: ("tcp", "tcp6"), _socket.IPPROTO_UDP: ("udp", "udp6")}

# Columns of /proc/net/tcp and its like, which proc_pid_net(5) describes.
_LOCAL, _STATE, _UID, _INODE = 1, 3, 7, 9
_LISTENING = b"0A"

_HELPERS = ("pasta", "passt")
_ALL_USERS = [(0, 0, (1 << 32) - 1)]  # user_namespaces(7): the map of the first namespace


def find(protocol: int, port: int, matters: Callable[[bytes], bool], proc: str = "/proc") -> str:
    """As the end of "held by"; empty if nobody is found. `matters` says of a socket's address whether it is in the way.

    A listener is named rather than one of its connections, which have the same port.
    """
    folder, uid = _holder(protocol, port, matters, proc)
    if folder:
        return f"{_name(folder)} (process {os.path.basename(folder).decode()})"
    return "" if uid is None else f"a process of {_user(uid, proc)}, into which we may not look"


def is_leaving(protocol: int, port: int, matters: Callable[[bytes], bool], proc: str = "/proc") -> bool | None:
    """Whether the port will be free in a moment: its holder is ending, or is a helper's like us whose namespace is
    gone. None: nobody is seen to hold it, since it is free by now, or since that cannot be seen.

    A container that is started anew can be faster than the end of its helper, and so is a monitor that starts a killed
    one anew; what serves a namespace that is there, or is no helper, stays.
    """
    folder, uid = _holder(protocol, port, matters, proc)
    if not folder:
        return None if uid is None else uid == os.geteuid() and (ending.helper_is_ending(proc) or None)
    if ending.is_ending(int(os.path.basename(folder)), proc):
        return True
    if not _name(folder).startswith(_HELPERS):
        return False
    path = _namespace_of(folder)
    return bool(path) and not os.path.lexists(path)


def _holder(protocol: int, port: int, matters: Callable[[bytes], bool], proc: str) -> tuple[bytes, int | None]:
    """Its folder in /proc, which is empty if we may not look, and its user; None: there is no holder."""
    found = [
        (state != _LISTENING, inode, uid)
        for local, state, inode, uid in _sockets(protocol, port, proc)
        if inode != b"0" and matters(local)  # 0: a connection that has outlived its process
    ]
    for _, inode, uid in sorted(found):
        return process_with(b"socket:[" + inode + b"]", proc), uid
    return b"", None


def _user(uid: int, proc: str) -> str:
    """As it is known outside of our user namespace: in Podman's, the kernel shows 0 for the user that made it, and one
    number, which may be mapped as well, for all who are not mapped. (Of namespaces in one another it tells the next
    only.)"""
    try:
        with open(f"{proc}/self/uid_map", "rb") as file:
            rows = [tuple(map(int, line.split())) for line in file]
        with open(f"{proc}/sys/kernel/overflowuid", "rb") as file:
            nobody = int(file.read())
    except OSError:
        return f"user {uid}"
    if uid == nobody and rows != _ALL_USERS:
        return "another user"
    for inside, outside, count in rows:
        if inside <= uid < inside + count:
            return f"user {outside + uid - inside}"
    return "another user"


def _namespace_of(folder: bytes) -> bytes:
    """The path that --netns names on the command line, which is how podman starts helpers."""
    try:
        with open(folder + b"/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return b""
    return words[words.index(b"--netns") + 1] if b"--netns" in words[:-1] else b""


def _sockets(protocol: int, port: int, proc: str) -> Iterator[tuple[bytes, bytes, bytes, int]]:
    """Address, state, inode and user of each socket that has the port."""
    suffix = b":%04X" % port
    for table in _TABLES[protocol]:
        try:
            with open(f"{proc}/net/{table}", "rb") as file:
                rows = [columns for columns in map(bytes.split, file) if len(columns) > _INODE]
        except OSError:
            continue  # no IPv6 here, or no /proc
        for columns in rows:
            if columns[_LOCAL].endswith(suffix):
                address = _address(columns[_LOCAL][: -len(suffix)])
                yield address, columns[_STATE], columns[_INODE], int(columns[_UID])


def _address(digits: bytes) -> bytes:
    """The kernel prints each four bytes as one number, as they lie in its memory."""
    words = (digits[at : at + 8] for at in range(0, len(digits), 8))
    raw = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return IPV4_MAPPED + raw if len(raw) == 4 else raw


def process_with(link: bytes, proc: str) -> bytes:
    """The folder of the first process that has a descriptor of this kind; empty if none is seen to."""
    for pid in _listed(proc.encode()):
        if not pid.isdigit():
            continue
        folder = os.path.join(proc.encode(), pid)
        for fd in _listed(folder + b"/fd"):
            try:
                if os.readlink(folder + b"/fd/" + fd) == link:
                    return folder
            except OSError:
                continue  # closed meanwhile
    return b""


def _listed(folder: bytes) -> list[bytes]:
    try:
        return os.listdir(folder)
    except OSError:
        return []  # not ours to see, or ended meanwhile


def _name(folder: bytes) -> str:
    try:
        with open(folder + b"/comm", "rb", buffering=0) as file:
            text = file.read(64).decode("utf-8", "replace").removesuffix("\n")
    except OSError:
        return "a process that has ended"
    return "".join(letter if letter.isprintable() else "?" for letter in text)
