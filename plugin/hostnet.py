# SPDX-License-Identifier: Apache-2.0
"""The host's network: links, addresses, routes and resolvers; and the interface that the guest's is modelled on.

Called by the wrapper before READY, since an interface that does not exist must be reported with exit 1; hence the light
imports. `read_host` looks, once; the rest are pure functions of what it saw.
Adversary: nobody. Invariant: nothing here depends on the order of links or addresses except where it says "first".
"""

from __future__ import annotations

import _socket
import os
import stat

from lockgate.plugin import address, netlink, resolvconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeVar

    Record = TypeVar("Record", netlink.Address, netlink.Route)
    Tables = tuple[Sequence[netlink.Link], Sequence[netlink.Address], Sequence[netlink.Route]]

RESOLV_CONF = "/etc/resolv.conf"
_RESOLV_CONF_MAX = 65536

REACH_NOTHING, REACH_NETWORK, REACH_ALL = range(3)  # nobody; what is on its own network; all, by a default route

_LOOPBACK_INDEX = 1  # of each namespace; created with it, and cannot be removed


class InterfaceError(ValueError):
    """An interface that was asked for does not exist."""


class HostNet:
    """What a network namespace has, as far as a guest's network can be modelled on it.

    `seen` is what there was at the last look, without what is kept of the look before.
    """

    __slots__ = ("addresses", "links", "resolvers", "routes", "seen")

    def __init__(
        self,
        links: Sequence[netlink.Link],
        addresses: Sequence[netlink.Address],
        routes: Sequence[netlink.Route],
        resolvers: resolvconf.ResolvConf,
        seen: Tables | None = None,
    ) -> None:
        self.links = links
        self.addresses = addresses
        self.routes = routes
        self.resolvers = resolvers
        self.seen = self.tables if seen is None else seen

    @property
    def tables(self) -> Tables:
        return self.links, self.addresses, self.routes


class Template:
    """An interface of the host, and what one family has on it; `address` and `gateway` may be unset.

    `on_link_default` tells a default route without a gateway (tun, WireGuard, ppp) from none at all. `others` names
    further interfaces with a default route; `further` are more addresses of this one.
    """

    __slots__ = (
        "address",
        "further",
        "gateway",
        "index",
        "interface",
        "link_local",
        "on_link_default",
        "others",
        "prefix",
    )

    def __init__(
        self,
        interface: str,
        index: int,
        address: bytes,
        prefix: int,
        link_local: bytes,
        gateway: bytes,
        on_link_default: bool,
        others: tuple[str, ...],
        further: tuple[bytes, ...],
    ) -> None:
        self.interface = interface
        self.index = index
        self.address = address
        self.prefix = prefix
        self.link_local = link_local
        self.gateway = gateway
        self.on_link_default = on_link_default
        self.others = others
        self.further = further


def read_host(resolv_conf: str = RESOLV_CONF) -> HostNet:
    """Looks at the namespace of the calling thread. Raises OSError if the kernel does not let us; no resolv.conf is
    no error."""
    return HostNet(*_read_tables(), resolvconf.parse(read_text(resolv_conf) or ""))


def read_again(before: HostNet, wanted: tuple[str, str] = ("", ""), resolv_conf: str = RESOLV_CONF) -> HostNet:
    """Looks once more. A family that has lost its network is as before: a host that moves from one to the next has
    none for a moment, and the guest keeps its addresses meanwhile. But not if the other family has moved: then the
    host has arrived where this one is not to be had. Resolvers stay while their file cannot be read.

    `wanted` are the interfaces that IPv4 and IPv6 are to be modelled on, whatever others have; empty: any."""
    now = links, addresses, routes = _read_tables()
    text = read_text(resolv_conf)
    of4, of6 = (_socket.AF_INET, wanted[0]), (_socket.AF_INET6, wanted[1])
    for this, other in ((of4, of6), (of6, of4)):
        if _own(now, *this) or not _own(before.tables, *this) or _has_moved(before.tables, now, *other):
            continue
        family = this[0]
        names = {link.index for link in links}
        links = [*links, *(link for link in before.links if link.index not in names)]
        addresses = _of_family(before.addresses, family) + _of_others(addresses, family)
        routes = _of_family(before.routes, family) + _of_others(routes, family)
    resolvers = before.resolvers if text is None else resolvconf.parse(text)
    return HostNet(links, addresses, routes, resolvers, now)


def reach(tables: Tables, family: int, wanted: str = "") -> int:
    """Whom the host reaches with this family, on interface `wanted` if there is such a wish; one of REACH_*."""
    try:
        template = choose_template(*tables, family, wanted)
    except InterfaceError:
        return REACH_NOTHING
    if template is None or template.address == address.UNSET:
        return REACH_NOTHING
    return REACH_ALL if template.on_link_default or template.gateway != address.UNSET else REACH_NETWORK


def _own(tables: Tables, family: int, wanted: str) -> bytes:
    """The host's address on the network of this family; empty: it has none."""
    try:
        template = choose_template(*tables, family, wanted)
    except InterfaceError:
        return b""
    return b"" if template is None or template.address == address.UNSET else template.address


def _has_moved(before: Tables, now: Tables, family: int, wanted: str) -> bool:
    """Whether it has a network, and no longer the address on the one before."""
    return bool(_own(now, family, wanted)) and _own(before, family, wanted) not in [one.address for one in now[1]]


def _of_family(records: Sequence[Record], family: int) -> list[Record]:
    return [record for record in records if record.family == family]


def _of_others(records: Sequence[Record], family: int) -> list[Record]:
    return [record for record in records if record.family != family]


def _read_tables() -> tuple[list[netlink.Link], list[netlink.Address], list[netlink.Route]]:
    links = _dump(netlink.link_request(1)).links
    addresses = _dump(netlink.address_request(2)).addresses
    routes = [
        route
        for seq, family in ((3, _socket.AF_INET), (4, _socket.AF_INET6))
        for route in _dump(netlink.route_request(seq, family)).routes
        if route.family == family  # an absent family is answered with the others
    ]
    return links, addresses, routes


def _dump(request: bytes) -> netlink.Dump:
    socket = netlink.open_socket()
    try:
        return netlink.dump(socket, request)
    finally:
        socket.close()


def read_text(path: str, bytes_max: int = _RESOLV_CONF_MAX) -> str | None:
    """The beginning of a file; None: it cannot be read. Only an ordinary file is: a FIFO would hold up all that control
    does, for ever."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return os.read(fd, bytes_max).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def choose_template(
    links: Iterable[netlink.Link],
    addresses: Iterable[netlink.Address],
    routes: Iterable[netlink.Route],
    family: int,
    wanted: str = "",
    keep: bytes = address.UNSET,
) -> Template | None:
    """The interface `wanted`, or else the first with a default route, or else the first with any, or else None.

    Of its addresses, `keep` if it is (still) there: a host that makes itself a new address each day (RFC 8981) gives
    its guest none. First means the kernel's order, in which the default route with the lowest metric leads.
    Raises InterfaceError if `wanted` does not exist.
    """
    names = {link.index: link.name for link in links}
    only = _index_of(names, wanted) if wanted else 0
    defaults: list[netlink.NextHop] = []
    anything: list[netlink.NextHop] = []
    for route in routes:
        if route.family != family or not _counts(route):
            continue
        hop = _heaviest(route.hops, only)
        if hop is not None and hop.index in names:
            (anything if route.prefix else defaults).append(hop)
    chosen = next(iter(defaults + anything), None)
    if chosen is None:
        return _template(names, addresses, family, only, keep, None, ()) if wanted else None
    others = tuple(dict.fromkeys(names[hop.index] for hop in defaults if hop.index != chosen.index))
    return _template(names, addresses, family, chosen.index, keep, defaults[0] if defaults else None, others)


def _index_of(names: dict[int, str], wanted: str) -> int:
    for index, name in names.items():
        if name == wanted:
            return index
    raise InterfaceError(f"interface {wanted!r} does not exist; this network namespace has {', '.join(names.values())}")


def _counts(route: netlink.Route) -> bool:
    """Whether a route says where its interface leads: not to link-local neighbours only, and not to nowhere."""
    return (
        route.table == netlink.TABLE_MAIN
        and route.kind == netlink.ROUTE_UNICAST
        and not (route.prefix and address.is_link_local(route.destination))
    )


def _heaviest(hops: tuple[netlink.NextHop, ...], only: int) -> netlink.NextHop | None:
    """The first among those with the highest weight; of interface `only`, or (0) of any but loopback."""
    alive = [
        hop
        for hop in hops
        if not hop.flags & netlink.HOP_DEAD and (hop.index == only if only else hop.index != _LOOPBACK_INDEX)
    ]
    return max(alive, key=lambda hop: hop.weight, default=None)


def _template(
    names: dict[int, str],
    addresses: Iterable[netlink.Address],
    family: int,
    index: int,
    keep: bytes,
    default: netlink.NextHop | None,
    others: tuple[str, ...],
) -> Template:
    unusable = netlink.ADDRESS_DEPRECATED | netlink.ADDRESS_DAD_FAILED
    link_locals: list[netlink.Address] = []
    candidates: list[netlink.Address] = []
    for own in addresses:
        if own.index != index or own.family != family or address.is_loopback(own.address):
            continue
        if own.flags & unusable and own.address != keep:
            continue
        narrow = family == _socket.AF_INET6 and own.scope >= netlink.SCOPE_LINK
        (link_locals if narrow else candidates).append(own)
    best = max(candidates, key=lambda own: (own.address == keep, own.prefix), default=None)  # the first among equals
    return Template(
        names[index],
        index,
        best.address if best else address.UNSET,
        best.prefix if best else 0,
        link_locals[0].address if link_locals else address.UNSET,
        default.gateway if default else address.UNSET,
        default is not None and default.gateway == address.UNSET,
        others,
        tuple(own.address for own in candidates if own is not best),
    )
