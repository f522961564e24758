# SPDX-License-Identifier: Apache-2.0
"""Two files of the host that names depend on, /etc/hosts and /etc/resolv.conf, as they are at this moment.

Called by name_server.py and upstream.py, which look before each answer that depends on one. Adversary: nobody, the
files are the host's own; still, any bytes are taken. Invariants: at most what is read of them is kept; a file that
cannot be read at the moment, because an editor or a VPN is about to replace it, is as before.

They are looked at, not watched: that costs a microsecond, holds for containers that mount another file there, and there
is no moment at which the old content still counts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, TypeVar

from lockgate.plugin import address
from lockgate.plugin.hostnet import read_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockgate.plugin.resolvconf import ResolvConf

HOSTS = "/etc/hosts"
HOSTS_BYTES_MAX = 1 << 20
HOSTS_NAMES_MAX = 16384  # lists that block advertisements have more; their first ones count, for 3 MB
ADDRESSES_MAX = 8  # of one name and family: an answer with all of them fits into 512 bytes

DNS_PORT = 53

T = TypeVar("T")


class HostFile(Generic[T]):
    """A file, parsed whenever it is another than before."""

    def __init__(self, path: str, parse: Callable[[str], T], bytes_max: int) -> None:
        self._path = path
        self._parse = parse
        self._bytes_max = bytes_max
        self._seen: tuple[int, ...] = ()
        self._content = parse("")

    def current(self) -> T:
        try:
            now = os.stat(self._path)
        except OSError:
            return self._content
        seen = now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
        if seen != self._seen:
            text = read_text(self._path, self._bytes_max)
            if text is not None:
                if now.st_size > self._bytes_max:
                    text = text[: text.rfind("\n") + 1]  # the last line is cut
                self._seen, self._content = seen, self._parse(text)
        return self._content


def hosts_parse(text: str) -> dict[bytes, bytes]:
    """The names in lower case, and the addresses that each has, one behind the other (hosts(5))."""
    names: dict[bytes, bytes] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        own = address.parse(words[0].partition("%")[0]) if len(words) > 1 else None
        if own is None:
            continue
        for word in words[1:]:
            name = word.removesuffix(".").lower().encode("utf-8", "replace")
            before = names.get(name, b"")
            if not before and len(names) >= HOSTS_NAMES_MAX:
                return names
            if _has_room(before, own):
                names[name] = before + own
    return names


def _has_room(addresses: bytes, own: bytes) -> bool:
    """For one more, that is not there yet."""
    known = [addresses[at : at + 16] for at in range(0, len(addresses), 16)]
    return own not in known and sum(address.is_ipv4(one) == address.is_ipv4(own) for one in known) < ADDRESSES_MAX


def servers_of(conf: ResolvConf) -> tuple[tuple[str, int], ...]:
    """The host's resolvers, with their port. A link-local one is on the interface that the file names."""
    servers6 = zip(conf.servers6, conf.zones6, strict=True)
    texts = [address.to_text(one) for one in conf.servers4]
    texts += [f"{address.to_text(one)}%{zone}" if zone else address.to_text(one) for one, zone in servers6]
    return tuple((text, DNS_PORT) for text in texts)
