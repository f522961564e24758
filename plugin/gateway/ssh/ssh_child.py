# SPDX-License-Identifier: Apache-2.0
"""ssh as a child process: what one is to lead to, the words that it is started with, and the records about it.

Called by opened.py before READY, by the keeper (ssh_spawner.py), which starts it, and by control (ssh_forward.py),
which asks for that; hence the light imports.
Adversary: control, once a guest has broken it, and whoever may use the API: each field that becomes a word of ssh's
command line is checked here, so that none of them can be taken for an option, or for more than it is. Beyond these
there is nothing of the caller's in it: ssh runs in a folder of ours, in which key and socket have short names, with an
empty environment and without any configuration file.

Invariants: an ssh leads from NUMBER.sock in that folder to a socket in the guest, and nowhere else; it asks nobody
anything; it shows its key to nobody but what listens at a port of the host's loopback.

Control to keeper, on the keeper's channel:
    START  := "H", number                  the forward of that number, which was known before READY
    TUNNEL := "U", number, port, user, destination, path of the key file    another; its number is above all of those
    END    := "K", number                  ends the ssh
Keeper to control: one BEGUN, if there is an ssh, and one ENDED for each START and TUNNEL, in that order
    BEGUN  := "B", number                  with a descriptor, from which its standard error is read
    ENDED  := "E", number, errno, wait status              an errno: it could not be started
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

START, TUNNEL, END = b"H", b"U", b"K"
BEGUN, ENDED = b"B", b"E"

TUNNELS_MAX = 64  # beside the forwards that were known before READY

USER_BYTES_MAX = 255
DESTINATION_BYTES_MAX = 107  # sun_path, unix(7), without the NUL
KEY_PATH_BYTES_MAX = 1023
PORT_MAX = 65535

_NUMBER = struct.Struct("=cH")
_TUNNEL = struct.Struct("=cHHHHH")  # number, port, and the lengths of the three texts behind it
_ENDED = struct.Struct("=cHHi")
RECORD_MAX = _TUNNEL.size + USER_BYTES_MAX + DESTINATION_BYTES_MAX + KEY_PATH_BYTES_MAX

_PROGRAM = "ssh"
_SAFE_PATH = ("/usr/bin", "/bin", "/usr/local/bin")
ENVIRONMENT = (b"PATH=/usr/bin:/bin",)
NOT_INSTALLED = "There is no program ssh (Debian: openssh-client): sockets of -forward-sock are not served"

_OPTIONS = (
    "BatchMode=yes",
    "PreferredAuthentications=publickey",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    # First what costs a guest least whose processor is emulated: the link is within this machine, and nobody keeps it.
    "KexAlgorithms=^curve25519-sha256",
    "ExitOnForwardFailure=yes",
    "StreamLocalBindMask=0177",
    "StreamLocalBindUnlink=yes",
    "ConnectTimeout=5",
    # For a guest that has gone without a word; one that was started anew says so as soon as it is asked for anything.
    "ServerAliveInterval=60",
    "ServerAliveCountMax=3",
    "LogLevel=ERROR",
)


class TargetError(ValueError):
    """Why ssh cannot lead there; the text is one sentence, without the full stop."""


class Target:
    """Where an ssh leads to, and how it gets there; frozen by convention."""

    __slots__ = ("destination", "key", "port", "user")

    def __init__(self, user: str, destination: str, port: int, key: bytes) -> None:
        """Raises TargetError."""
        fault = fault_of(user, destination)
        if fault:
            raise TargetError(f"SSH: {fault}")
        self.user = user
        self.destination = destination  # a socket's path in the guest
        self.port = port  # of the host's loopback, which leads to the guest's sshd
        self.key = key  # a private one, as key_file.load() gives it


def fault_of(user: str, destination: str) -> str:
    """What is wrong with them, as a sentence without the full stop; empty if nothing is."""
    if not user or not all(letter.isalnum() or letter in "._+@-" for letter in user) or user[0] == "-":
        return f"{_shown(user)} is no name of a user: expected letters, digits and any of ._+@- but no - at its start"
    if len(os.fsencode(user)) > USER_BYTES_MAX:
        return f"the name of a user has at most {USER_BYTES_MAX} bytes"
    if destination[:1] != "/":
        return f"{_shown(destination)} is no path of a socket in the guest: expected one that starts with /"
    if len(os.fsencode(destination)) > DESTINATION_BYTES_MAX:
        return f"the path of a socket has at most {DESTINATION_BYTES_MAX} bytes, unlike {_shown(destination)}"
    if any(letter < " " or letter == "\x7f" for letter in destination) or "${" in destination:
        return f"{_shown(destination)} is no path that ssh takes: it may have no control characters in it, and no ${{"
    return ""


def fault_of_key_path(path: str) -> str:
    """As fault_of(). What is in the file is key_file.py's to say."""
    if path[:1] != "/" or "\0" in path or len(os.fsencode(path)) > KEY_PATH_BYTES_MAX:
        return (
            f"{_shown(path)} is no path of a key file: expected / and at most {KEY_PATH_BYTES_MAX - 1} bytes behind it"
        )
    return ""


def _shown(text: str) -> str:
    return ascii(text[:100])


def arguments(number: int, target: Target) -> list[bytes]:
    """Words of the command line. ssh's folder has the key, and gets the socket."""
    options = [word for option in _OPTIONS for word in ("-o", option)]
    forward = f"./{socket_name(number)}:{_escaped(target.destination)}"
    way = ["-p", str(target.port), "-l", target.user, "-i", f"./{key_name(number)}", "-L", forward]
    return [os.fsencode(word) for word in (_PROGRAM, "-F", "none", "-N", "-T", *options, *way, "127.0.0.1")]


def _escaped(path: str) -> str:
    """ssh takes a colon for the end of a path, unless a backslash is before it; and then a % for something to fill in,
    unless another is behind it."""
    for letter, meant in (("\\", "\\\\"), (":", "\\:"), ("%", "%%")):
        path = path.replace(letter, meant)
    return path


def socket_name(number: int) -> str:
    return f"{number}.sock"


def key_name(number: int) -> str:
    return f"{number}.key"


def find_program(path: str) -> str:
    """With its folder; empty if there is none. `path` is the caller's PATH, for systems that keep it elsewhere."""
    for folder in (*_SAFE_PATH, *path.split(":")):
        program = os.path.join(folder, _PROGRAM)
        if folder[:1] == "/" and os.path.isfile(program) and os.access(program, os.X_OK):
            return program
    return ""


# ---- records ----


class Request:
    """What control asks for. Of a TUNNEL the rest is filled in."""

    __slots__ = ("destination", "key_path", "kind", "number", "port", "user")

    def __init__(self, kind: bytes, number: int, port: int = 0, texts: Sequence[str] = ("", "", "")) -> None:
        self.kind = kind
        self.number = number
        self.port = port
        self.user, self.destination, self.key_path = texts


def pack_request(kind: bytes, number: int) -> bytes:
    """START or END."""
    return _NUMBER.pack(kind, number)


def pack_tunnel(number: int, port: int, user: str, destination: str, key_path: str) -> bytes:
    """Of texts that fault_of() has nothing against, and a path of KEY_PATH_BYTES_MAX at most."""
    texts = [os.fsencode(text) for text in (user, destination, key_path)]
    return _TUNNEL.pack(TUNNEL, number, port, *map(len, texts)) + b"".join(texts)


def is_request(record: bytes) -> bool:
    return record[:1] in (START, TUNNEL, END)


def parse_request(record: bytes) -> Request | None:
    """None if it is not one that may be made, whoever makes it."""
    if record[:1] in (START, END):
        return Request(*_NUMBER.unpack(record)) if len(record) == _NUMBER.size else None
    if record[:1] != TUNNEL or len(record) < _TUNNEL.size:
        return None
    kind, number, port, *lengths = _TUNNEL.unpack_from(record)
    if len(record) != _TUNNEL.size + sum(lengths):
        return None
    texts, at = [], _TUNNEL.size
    for length in lengths:
        texts.append(os.fsdecode(record[at : at + length]))
        at += length
    user, destination, key_path = texts
    if not 0 < port <= PORT_MAX or fault_of(user, destination) or fault_of_key_path(key_path):
        return None
    return Request(kind, number, port, texts)


def pack_begun(number: int) -> bytes:
    return _NUMBER.pack(BEGUN, number)


def pack_ended(number: int, error: int, status: int = 0) -> bytes:
    """An errno if it could not be started; else 0 and the wait status."""
    return _ENDED.pack(ENDED, number, error, status)


def parse_begun(record: bytes) -> int | None:
    return int(_NUMBER.unpack(record)[1]) if record[:1] == BEGUN and len(record) == _NUMBER.size else None


def parse_ended(record: bytes) -> tuple[int, int, int] | None:
    """Number, errno and wait status."""
    if record[:1] != ENDED or len(record) != _ENDED.size:
        return None
    _, number, error, status = _ENDED.unpack(record)
    return number, error, status
