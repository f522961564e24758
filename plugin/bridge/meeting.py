# SPDX-License-Identifier: Apache-2.0
"""Where the programs that Podman starts meet the helper that its containers share: words and sockets.

Used by meeting_server.py in the helper's control, and by those that come there: netavark_plugin.py inside the shared
namespace, at an abstract name, which belongs to the namespace; rootlessport.py on the host, by a path beside the
helper's PID file. Sans-io but for `Client`. Adversary, for the helper: whoever may connect; for the others: who else
may have bound the name. So either asks the kernel who the other one is. A record that is not whole is refused.

    HELLO                   ->  ANSWER, families, MTU of the tap, resolvers of either family (unset: none)
    PORTS, rules            ->  ANSWER; these ports of the host, in place of those that were named before, lead where
                                the rules say, until the connection ends
    CLAIM, owner, rules     ->  ANSWER; whoever else has these ports opened, they lead where the rules say, until their
                                owner claims others, or none: a container on one network, whose setup ended long ago
    anything                ->  REFUSED, a sentence; all is as before
"""

from __future__ import annotations

import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.forward_rule import ForwardRule

NAME = b"\0lockgate"  # of the socket in the shared namespace
FILE = "lockgate.sock"  # and of that on the host

HELLO, PORTS, CLAIM = b"H", b"P", b"C"
ANSWER, REFUSED = b"A", b"E"
RECORD_MAX = 32768
_TEXT_MAX = 1000
_OWNER_MAX = 255

_FACTS = struct.Struct("=c??xI")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred, unix(7)


class MeetingError(Exception):
    """Why the helper does not do it, or that there is none: one sentence."""


class Facts:
    """What a container on a bridge must know of its helper; frozen by convention."""

    __slots__ = ("ipv4", "ipv6", "mtu")

    def __init__(self, *, ipv4: bool, ipv6: bool, mtu: int) -> None:
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.mtu = mtu

    def pack(self) -> bytes:
        return _FACTS.pack(ANSWER, self.ipv4, self.ipv6, self.mtu)


def parse_facts(record: bytes) -> Facts:
    """Raises MeetingError."""
    if len(record) != _FACTS.size or record[:1] != ANSWER:
        raise MeetingError("the helper of the rootless network speaks another language; restart its containers")
    _, ipv4, ipv6, mtu = _FACTS.unpack(record)
    return Facts(ipv4=ipv4, ipv6=ipv6, mtu=mtu)


def pack_refusal(text: str) -> bytes:
    return REFUSED + text.encode("utf-8", "replace")[:_TEXT_MAX]


def pack_ports(rules: Sequence[ForwardRule]) -> bytes:
    from lockgate.plugin.contracts.pesto import pack_rule

    return PORTS + b"".join(map(pack_rule, rules))


def pack_claim(owner: str, rules: Sequence[ForwardRule]) -> bytes:
    name = owner.encode("utf-8", "replace")[:_OWNER_MAX]
    return CLAIM + bytes((len(name),)) + name + pack_ports(rules)[1:]


def split_claim(record: bytes) -> tuple[bytes, bytes]:
    """The owner, and the record of ports that is left. One that is too short has an owner without a name."""
    end = 2 + record[1] if len(record) > 1 else 0
    return record[2:end] if len(record) >= end else b"", PORTS + record[end:]


def peer_user(sock: _socket.socket) -> int:
    """As we see that user."""
    data = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(data)[1]
    return uid


class Client:
    """One connection to the helper. Each method raises MeetingError."""

    def __init__(self, where: bytes | str) -> None:
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
        self.socket = _socket.socket(_socket.AF_UNIX, kind)
        try:
            self.socket.connect(where)
            stranger = peer_user(self.socket) != os.geteuid()
        except OSError as failure:
            self.socket.close()
            raise MeetingError(f"the helper of this network is not lockgate's pasta ({failure.strerror})") from None
        if stranger:
            self.socket.close()
            raise MeetingError("the helper that is there belongs to another user")

    def ask(self, record: bytes) -> bytes:
        try:
            self.socket.send(record)
            answer = self.socket.recv(RECORD_MAX)
        except OSError as failure:
            raise MeetingError(f"the helper of the rootless network has left: {failure.strerror}") from None
        if not answer:
            raise MeetingError("the helper of the rootless network has left")
        if answer[:1] == REFUSED:
            raise MeetingError(answer[1:].decode("utf-8", "replace"))
        return answer

    def close(self) -> None:
        self.socket.close()
