# SPDX-License-Identifier: Apache-2.0
"""Where to listen, as gvproxy's callers write it: a URL, taken apart as Go's package net/url does, and made a Place.

Called by the contract gvproxy and by gvproxy_config.py, before READY: light imports; and while the network runs by the
API, whose requests have URLs, too (gateway/http/http_server.py, exposed.py). The standard library's
urllib.parse lost: it takes what Go refuses, and costs 5 ms. Adversary: whoever wrote the URL. Invariants: pure; what is
wrong is an exception of here, with Go's words where callers could have seen them; a path has no NUL, and fits in a
socket's address.
"""

from __future__ import annotations

from lockgate.plugin import native_text
from lockgate.plugin.gateway.virtual_network import TCP, UNIX, UNIXGRAM, UNIXPACKET, VSOCK, Place
from lockgate.plugin.logrus import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

LISTENING = (UNIX, TCP, VSOCK, UNIXPACKET)  # schemes of what is listened at, guests of a datagram socket aside

SOCKET_PATH_MAX = 107  # bytes: sun_path of unix(7) holds 108 with the closing NUL
PORT_MAX = 65535
_VSOCK_MAX = (1 << 32) - 1  # of both numbers, <linux/vm_sockets.h>

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = "0123456789"
_HEX = "0123456789abcdefABCDEF"
_HOST = frozenset(_LETTERS + _DIGITS + "-_.~!$&'()*+,;=:[]<>\"")  # beside what is not ASCII


class UrlError(ValueError):
    """What is no URL, in the words of Go."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"parse {quote(text)}: {reason}")


class PlaceError(ValueError):
    """What is a URL, but nowhere to listen."""


class Url:
    """The parts that say where, and what else belongs to it."""

    __slots__ = ("_query", "host", "path", "scheme", "text", "user")

    def __init__(self, text: str) -> None:
        """Raises UrlError."""
        self.text = text
        self.scheme = self.host = self.path = self.user = self._query = ""
        whole, _, fragment = text.partition("#")
        try:
            self._take(whole)
            _unescape(fragment)
        except _Reason as reason:
            raise UrlError(whole, str(reason)) from None

    def _take(self, whole: str) -> None:
        if any(letter < " " or letter == "\x7f" for letter in whole):
            raise _Reason("net/url: invalid control character in URL")
        self.scheme, rest = _split_scheme(whole)
        rest, _, self._query = rest.partition("?")
        if not rest.startswith("/"):
            if not self.scheme and ":" in rest.partition("/")[0]:
                raise _Reason("first path segment in URL cannot contain colon")
            self.path = "" if self.scheme else _unescape(rest)
            return
        if rest.startswith("//") and (self.scheme or not rest.startswith("///")):
            authority, slash, path = rest[2:].partition("/")
            user, _, host = authority.rpartition("@")
            self.user = _unescape(user.partition(":")[0])
            self.host = _host(host)
            rest = slash + path
        self.path = _unescape(rest)


    def values(self) -> dict[str, str]:
        """What stands behind the question mark: of each name the first value. Pairs that cannot be read are left
        out."""
        found: dict[str, str] = {}
        for pair in filter(None, self._query.replace("+", " ").split("&")):
            name, _, value = pair.partition("=")
            try:
                found.setdefault(_unescape(name), _unescape(value))
            except _Reason:
                pass
        return found


class _Reason(Exception):
    """The last part of a UrlError."""


def _split_scheme(text: str) -> tuple[str, str]:
    for at, letter in enumerate(text):
        if letter == ":":
            if not at:
                raise _Reason("missing protocol scheme")
            return text[:at].lower(), text[at + 1 :]
        if letter not in _LETTERS and (not at or letter not in f"{_DIGITS}+-."):
            break
    return "", text


def _host(text: str) -> str:
    """With its port, which is a number, if it is anything."""
    if text.startswith("["):
        end = text.rfind("]")
        if end < 0:
            raise _Reason("missing ']' in host")
        port = text[end + 1 :]
    else:
        port = text[text.rfind(":") :] if ":" in text else ""
    if port and (port[0] != ":" or port[1:].strip(_DIGITS)):
        raise _Reason(f"invalid port {quote(port)} after host")
    for letter in text:
        if letter < "\x80" and letter not in _HOST and letter != "%":
            raise _Reason(f"invalid character {quote(letter)} in host name")
    return _unescape(text, host=True)


def _unescape(text: str, host: bool = False) -> str:
    """%xx are bytes of a file's name, of any encoding. In a host's name they stand for what is not ASCII alone."""
    raw, at = b"", 0
    while (percent := text.find("%", at)) >= 0:
        code = text[percent + 1 : percent + 3]
        if len(code) < 2 or code.strip(_HEX) or (host and code[0] < "8" and code != "25"):
            raise _Reason(f"invalid URL escape {quote(text[percent : percent + 3])}")
        raw += native_text.encode(text[at:percent]) + bytes.fromhex(code)
        at = percent + 3
    return native_text.decode(raw + native_text.encode(text[at:]))


def place(url: Url, schemes: Collection[str] = LISTENING) -> Place:
    """Where to listen. Raises PlaceError."""
    if url.scheme not in schemes:
        raise PlaceError("unexpected scheme")
    if url.scheme in (UNIX, UNIXPACKET, UNIXGRAM):
        check_path(url.scheme, url.path)
        return Place(url.scheme, url.text, path=url.path)
    host, port = _split_port(url)
    if url.scheme == VSOCK and (host.strip(_DIGITS) or len(host) > 10 or int(host or 0) > _VSOCK_MAX):
        raise PlaceError(f"listen vsock: CID {host}: expected a decimal number, or nothing for any")
    most = PORT_MAX if url.scheme == TCP else _VSOCK_MAX
    if port.strip(_DIGITS) or len(port) > 10 or int(port or 0) > most:
        raise PlaceError(f"listen {url.scheme}: address {port}: invalid port")
    return Place(url.scheme, url.text, host=host, port=int(port or 0))


def check_path(scheme: str, path: str) -> None:
    """Raises PlaceError unless a socket can have it."""
    if not path:
        raise PlaceError(f"listen {scheme}: no path is given; expected one, as in {scheme}:///run/gvproxy.sock")
    if "\0" in path or len(native_text.encode(path)) > SOCKET_PATH_MAX:
        raise PlaceError(f"listen {scheme} {path}: expected a path of at most {SOCKET_PATH_MAX} bytes, without NUL")


def _split_port(url: Url) -> tuple[str, str]:
    host, colon, port = url.host.rpartition(":")
    if not colon or port.endswith("]"):
        raise PlaceError(f"listen {url.scheme}: address {url.host}: missing port in address")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare and bare == host:
        raise PlaceError(f"listen {url.scheme}: address {url.host}: too many colons in address")
    return bare, port
