# SPDX-License-Identifier: Apache-2.0
"""What the interface of a network namespace is to be: name, addresses and routes, from what was asked for and what the
host has.

Called by the wrapper before READY, and by control each time that the host's network has changed; agent.py does what is
planned here. Adversary: nobody. Invariants: `plan` is pure; a Plan is never changed, and holds what is to be added in
the order in which it must be added. Records are those of netlink.py, with interface 0: the number inside is another.

All that the template interface has is copied, so that what a container says about itself is true outside: addresses
without labels and lifetimes, unicast routes of the main table without preferred sources. Not copied is what is good
for the host alone (addresses of link or host scope, deprecated ones), nor the route to a network that an address
brings along by itself.

Where this differs from pasta, on purpose:
- Of a multipath route, the next hops on the template interface are kept; pasta drops the route if there are others,
  and with it perhaps the only default route.
- A host with IPv4 alone gives no default route of IPv6: programs would try it first, and wait. One with no network at
  all gives both, so that the host itself can be reached.
- A router that no address of the interface leads to (--gateway) is made reachable by the route itself.
- Where no default route leads to them, what stands for the host and its resolver gets routes of its own: a container
  that podman told to ask 169.254.1.1 goes on asking there while the host has no way out.
"""

from __future__ import annotations

import _socket

from lockgate.plugin import address, hostnet, netlink, netview
from lockgate.plugin.address import UNSET
from lockgate.plugin.spec import NamespaceSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockgate.plugin.spec import FamilySpec, NetworkSpec

NAME_WITHOUT_TEMPLATE = "tap0"
ADDRESSES_MAX = 256  # of a plan
ROUTES_MAX = 1024  # half for each family; the kernel lists default routes first: a limit loses none of them
HOPS_MAX = 32  # of a route

_PROTOCOL_KERNEL, _PROTOCOL_BOOT = 2, 3  # RTPROT_*: a route that an address brings along; one that is just set
_METRIC6 = 256, 1024  # of the route that an address of IPv6 brings along; of one that does not say
_UNUSABLE = netlink.ADDRESS_DEPRECATED | netlink.ADDRESS_DAD_FAILED


class Plan:
    """`mtu` 0: the kernel's own."""

    __slots__ = ("addresses", "mtu", "routes")

    def __init__(self, mtu: int, addresses: tuple[netlink.Address, ...], routes: tuple[netlink.Route, ...]) -> None:
        self.mtu = mtu
        self.addresses = addresses
        self.routes = routes


class _Family:
    """What one family gets; `local` says that the host had nothing to be copied."""

    __slots__ = ("addresses", "local", "number", "routes", "template", "wanted")

    def __init__(self, number: int, wanted: FamilySpec, template: hostnet.Template | None) -> None:
        self.number = number
        self.wanted = wanted
        self.template = template
        self.local = template is None
        self.addresses: list[netlink.Address] = []
        self.routes: list[netlink.Route] = []


def name(spec: NetworkSpec, host: hostnet.HostNet) -> str:
    """What the interface is called if the caller has not said: as on the host, IPv4 first.

    Raises hostnet.InterfaceError.
    """
    families = _families(spec, host)
    return next((one.template.interface for one in families if one.template is not None), NAME_WITHOUT_TEMPLATE)


def plan(spec: NetworkSpec, host: hostnet.HostNet, keep: tuple[bytes, bytes] = (UNSET, UNSET)) -> Plan:
    """`keep` are the addresses of IPv4 and IPv6 by which it was known until now: it stays known by them as long as the
    host has them, as netview.follow has it. Raises hostnet.InterfaceError."""
    families = _families(spec, host, keep)
    alone = all(family.local for family in families)
    copies = spec.namespace or NamespaceSpec()
    for family in families:
        _plan_addresses(family, host, copies.copy_addrs)
        _plan_routes(family, host, alone, copies.copy_routes)
        family.routes[:0] = _routes_to_stand_ins(family)  # first, so that no limit loses them
    addresses = [one for family in families for one in family.addresses]
    routes = [one for family in families for one in family.routes[: ROUTES_MAX // 2]]
    return Plan(spec.mtu, tuple(addresses[:ADDRESSES_MAX]), tuple(routes))


def _families(
    spec: NetworkSpec, host: hostnet.HostNet, keep: tuple[bytes, bytes] = (UNSET, UNSET)
) -> list[_Family]:
    """Those that are wanted; without a template if the host's network is of no use to the namespace, which netview.py
    decides likewise."""
    families = []
    both = (_socket.AF_INET, spec.ipv4, keep[0]), (_socket.AF_INET6, spec.ipv6, keep[1])
    for number, wanted, kept_address in both:
        if wanted.enabled:
            named = spec.interface or wanted.outbound_interface
            template = hostnet.choose_template(*host.tables, number, named, kept_address)
            kept = bool(named) and number == _socket.AF_INET
            if template is not None and template.address == wanted.address == UNSET and not kept:
                template = None
            families.append(_Family(number, wanted, template))
    return families


# ---- addresses ----


def _plan_addresses(family: _Family, host: hostnet.HostNet, copy_all: bool) -> None:
    wanted, template = family.wanted, family.template
    if wanted.address != UNSET:
        family.addresses = [_own(family.number, wanted.address, _wanted_prefix(family))]
    elif template is not None:
        copied = _copied_addresses(family, host.addresses, template)
        family.addresses = [one for one in copied if copy_all or one.address == template.address]
        if family.number == _socket.AF_INET6:
            family.addresses.reverse()  # the kernel puts the newest first
    elif family.number == _socket.AF_INET:
        family.addresses = [_own(family.number, netview.LOCAL_GUEST4, netview.LOCAL_PREFIX4)]


def _wanted_prefix(family: _Family) -> int:
    if family.number == _socket.AF_INET6:
        return 64
    return family.wanted.prefix_length or address.class_prefix_length(family.wanted.address)


def _copied_addresses(
    family: _Family, addresses: Iterable[netlink.Address], template: hostnet.Template
) -> list[netlink.Address]:
    """A --netmask is about the address that the guest is known by. If all are of link scope, that one is copied."""
    copied = []
    for one in addresses:
        known = one.address == template.address
        if one.index != template.index or one.family != family.number or (one.flags & _UNUSABLE and not known):
            continue
        if address.is_loopback(one.address) or (one.scope >= netlink.SCOPE_LINK and not known):
            continue
        prefix = one.prefix
        if known and family.wanted.prefix_length and family.number == _socket.AF_INET:
            prefix = family.wanted.prefix_length
        copied.append(_own(family.number, one.address, prefix, one.scope, one.peer))
    return copied


def _own(family: int, own: bytes, prefix: int, scope: int = 0, peer: bytes = UNSET) -> netlink.Address:
    return netlink.Address(family, 0, own, prefix, scope, 0, peer)


# ---- routes ----


def _plan_routes(family: _Family, host: hostnet.HostNet, alone: bool, copy_all: bool) -> None:
    """`alone`: the host has no network of any family. Unless all are to be copied, there is the way out."""
    wanted = family.wanted
    if wanted.gateway != UNSET:
        family.routes = [_default(family, wanted.gateway)]
    elif family.template is not None and not copy_all:
        gateway, on_link = family.template.gateway, family.template.on_link_default
        family.routes = [_default(family, gateway)] if on_link or gateway != UNSET else []
    elif family.template is not None:
        copied = _copied_routes(family, host.routes, family.template.index)
        # Those on the link itself first, as the others lead through them; beyond that, the host's order.
        family.routes = sorted(copied, key=_leads_through_others)
    elif family.number == _socket.AF_INET:
        family.routes = [_default(family, netview.LOCAL_GATEWAY4)]
    elif alone or family.addresses:
        family.routes = [_default(family, netview.LOCAL_LINK_LOCAL)]


def _routes_to_stand_ins(family: _Family) -> list[netlink.Route]:
    if not family.addresses or any(not one.prefix for one in family.routes):
        return []
    wanted, hop = family.wanted, netlink.NextHop(0, UNSET, 1, 0)
    names = {wanted.dns_forward, wanted.map_guest, wanted.map_host_loopback or UNSET} - {UNSET}
    whole, metric = (128, _METRIC6[1]) if family.number == _socket.AF_INET6 else (32, 0)
    here = {one.destination for one in family.routes if one.prefix == whole}
    routes = [_route(family.number, one, whole, metric, (hop,), _PROTOCOL_BOOT) for one in sorted(names - here)]
    for one in routes:
        one.scope = netlink.SCOPE_LINK if family.number == _socket.AF_INET else 0
    return routes


def _leads_through_others(route: netlink.Route) -> bool:
    return any(hop.gateway != UNSET or hop.via != UNSET for hop in route.hops)


def _default(family: _Family, gateway: bytes) -> netlink.Route:
    """`gateway` unset: all are on the link itself."""
    on_link = gateway == UNSET or (family.number == _socket.AF_INET6 and address.is_link_local(gateway))
    near = on_link or any(
        _network(gateway, family.number, one.prefix) == _network(one.address, family.number, one.prefix)
        for one in family.addresses
    )
    hop = netlink.NextHop(0, gateway, 1, 0 if near else netlink.HOP_ON_LINK)
    metric = _METRIC6[1] if family.number == _socket.AF_INET6 else 0
    return _route(family.number, UNSET, 0, metric, (hop,), _PROTOCOL_BOOT)


def _copied_routes(family: _Family, routes: Iterable[netlink.Route], index: int) -> list[netlink.Route]:
    copied = []
    for one in routes:
        if one.family != family.number or one.table != netlink.TABLE_MAIN or one.kind != netlink.ROUTE_UNICAST:
            continue
        hops = tuple(
            netlink.NextHop(0, hop.gateway, hop.weight, hop.flags & netlink.HOP_ON_LINK, hop.via)
            for hop in one.hops
            if hop.index == index and not hop.flags & netlink.HOP_DEAD
        )
        if not hops or _comes_by_itself(one, family.addresses):
            continue
        route = _route(one.family, one.destination, one.prefix, one.priority, hops[:HOPS_MAX], one.protocol)
        route.scope, route.tos, route.mtu, route.preference = one.scope, one.tos, one.mtu, one.preference
        copied.append(route)
    return copied


def _comes_by_itself(route: netlink.Route, addresses: Iterable[netlink.Address]) -> bool:
    """Whether an address brings this route along, or (of link-local ones) the interface itself."""
    six = route.family == _socket.AF_INET6
    plain = route.protocol == _PROTOCOL_KERNEL and route.priority == (_METRIC6[0] if six else 0)
    if not plain or _leads_through_others(route):
        return False
    if six and route.prefix == 64 and address.is_link_local(route.destination):
        return True
    return any(
        one.prefix == route.prefix
        and _network(one.address if one.peer == UNSET else one.peer, route.family, one.prefix)
        == _network(route.destination, route.family, route.prefix)
        for one in addresses
    )


def _route(
    family: int, destination: bytes, prefix: int, priority: int, hops: tuple[netlink.NextHop, ...], protocol: int
) -> netlink.Route:
    table, kind = netlink.TABLE_MAIN, netlink.ROUTE_UNICAST
    return netlink.Route(family, table, kind, destination, prefix, priority, hops, protocol)


def _network(one: bytes, family: int, prefix: int) -> int:
    return int.from_bytes(one, "big") >> (32 if family == _socket.AF_INET else 128) - prefix
