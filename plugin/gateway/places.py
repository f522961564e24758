# SPDX-License-Identifier: Apache-2.0
"""Sockets that listen where a URL of `gvproxy` says: for its API, and for its guests' links.

Called by gateway/awaited.py before READY, with the caller's rights, hence the light imports. Adversary: nobody; what
the URL may be was checked by the contract. Invariants: raises FileError or OSError, and leaves nothing open then. A
file that a helper left behind when it died is replaced, one of a living helper is not (made_files.py).
"""

from __future__ import annotations

import _socket
import _stat
import errno
import posix

from lockgate.plugin import address, native_text
from lockgate.plugin.gateway.virtual_network import TCP, UNIX, UNIXGRAM, UNIXPACKET, VSOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lockgate.plugin.gateway.virtual_network import Place
    from lockgate.plugin.made_files import MadeFiles

BACKLOG = 4096  # as far as net.core.somaxconn allows
_KINDS = {UNIX: _socket.SOCK_STREAM, UNIXPACKET: _socket.SOCK_SEQPACKET, UNIXGRAM: _socket.SOCK_DGRAM}
_ANY = ("", "0.0.0.0", "::")
_VSOCK_ANY = 0xFFFFFFFF  # VMADDR_CID_ANY, vsock(7)


def listen(place: Place, what: str, made: MadeFiles) -> _socket.socket:
    """Listening, or with datagrams bound; `what` names the option, for messages."""
    if place.scheme in _KINDS:
        if not _is_free(place.path):
            raise OSError(errno.EADDRINUSE, "there is a file in the place of the socket", place.path)
        return made.listen(place.path, what, BACKLOG, _KINDS[place.scheme])
    try:
        return _listen_at(*_address(place))
    except OSError as failure:
        raise OSError(failure.errno, failure.strerror, place.text) from None


def _address(place: Place) -> tuple[int, tuple[Any, ...]]:
    """Family and address. Raises OSError."""
    if place.scheme == VSOCK:
        return _socket.AF_VSOCK, (int(place.host) if place.host else _VSOCK_ANY, place.port)
    assert place.scheme == TCP, f"a place of the scheme {place.scheme}"
    # Any address is of both families, whichever was written, as Go has it.
    host = "::" if place.host in _ANY and address.has_ipv6() else place.host
    # As bytes: of a text, Python would make another name (IDNA), or find that there is none.
    asked = native_text.encode(host) or None, place.port, 0, _socket.SOCK_STREAM, 0, _socket.AI_PASSIVE
    family, _, _, _, sockaddr = _socket.getaddrinfo(*asked)[0]
    return family, sockaddr


def _is_free(path: str) -> bool:
    """Whether there is nothing, or a socket, which may be a dead helper's."""
    try:
        return _stat.S_ISSOCK(posix.lstat(path).st_mode)
    except OSError:
        return True


def _listen_at(family: int, sockaddr: tuple[Any, ...]) -> _socket.socket:
    """A helper that was killed may still have the port for a moment."""
    try:
        return _listen(family, sockaddr)
    except OSError as failure:
        ip = None if family == _socket.AF_VSOCK else address.parse(sockaddr[0].partition("%")[0])
        if failure.errno != errno.EADDRINUSE or ip is None:
            raise
    from lockgate.plugin import taken_ports  # hardly anybody needs it

    return taken_ports.listen(lambda: _listen(family, sockaddr), ip, sockaddr[1])


def _listen(family: int, sockaddr: tuple[Any, ...]) -> _socket.socket:
    sock = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    try:
        if family != _socket.AF_VSOCK:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
