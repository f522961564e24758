# SPDX-License-Identifier: Apache-2.0
"""What is assigned to the guest: addresses, routers, resolvers, MTU; from what was asked for and what the host has.

Called by the wrapper before READY (hence the light imports), which hands the result to control: that gives it to the
services (dhcp.py, ra.py) and, packed as struct lg_net_view, to the worker.
Adversary: nobody. Invariants: `assign` is pure; an `Assignments` is never changed, only replaced by one with a higher
version. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d, all zeros where there is none.

The guest gets the host's own address and router of each family, so that what it says about itself is true outside.
A family for which the host has nothing to copy is in local mode: made-up addresses, with which the guest still reaches
the host and, through ordinary sockets, whatever the host reaches.

Where this differs from passt, on purpose:
- A default route without gateway (WireGuard, tun, ppp) gives an IPv4 guest the local-mode router; passt leaves it
  without DHCP. With no default route at all there is none here either, as --gateway can say.
- An interface with a global IPv6 address but no link-local one gives the guest that address, and fe80::1 as router.
- A resolver at the guest's own address is the host, like one at a loopback address.
- What stands for such a resolver is the address of --dns-forward if there is one, since that alone is then redirected;
  passt names the mapping, where only a resolver at 127.0.0.1 itself would answer.
- A link-local resolver counts only on the interface that the guest's link-local packets take.
"""

from __future__ import annotations

import _socket
import struct

from lockgate.plugin import address, hostnet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.gateway.virtual_network import VirtualNetwork
    from lockgate.plugin.resolvconf import ResolvConf
    from lockgate.plugin.spec import FamilySpec, NetworkSpec

# datapath.h, LG_VIEW_*
VIEW_IPV4 = 1
VIEW_IPV6 = 2
VIEW_TCP = 4
VIEW_UDP = 8
VIEW_ICMP = 16
VIEW_NDP = 32
VIEW_DHCP = 64
VIEW_RA = 128
VIEW_DHCPV6 = 256
VIEW_MAP_ROUTER = 512
VIEW_FIXED4 = 1024
VIEW_FIXED6 = 2048
VIEW_FREEBIND = 4096
VIEW_SPLICE = 8192
VIEW_SPLICE_LOOPBACK = 16384
VIEW_PLACED = 262144

_ALL_OF_IPV6 = VIEW_IPV6 | VIEW_NDP | VIEW_RA | VIEW_DHCPV6 | VIEW_MAP_ROUTER | VIEW_FIXED6

# datapath.h, struct lg_net_view: version, flags, mtu, scope_id, our_mac, guest4, guest6, gateway4, gateway6,
# our_link_local, map_host4, map_host6, dns_match4, dns_host4, dns_match6, dns_host6, map_guest4, map_guest6, outbound4,
# outbound6, outbound_if4, outbound_if6, shared; and what gateway/view.py packs
_NET_VIEW = struct.Struct("=IIII6s2x" + 17 * "16s" + "256s820s")

PREFIX6_BYTES = 8  # a /64: the only one with which SLAAC works (RFC 4862 §5.5.3 d, RFC 7421)
WITHDRAWN_MAX = 4  # prefixes; a host that roams all day leaves none of them in use for so long

MTU_MIN = 68  # that packets are made for, whatever is advertised: the worker has no room for headers below (RFC 791)
MTU_UNKNOWN = 1500  # of an Ethernet interface to which nobody advertises one

LOCAL_GUEST4 = address.IPV4_MAPPED + bytes((169, 254, 2, 1))
LOCAL_PREFIX4 = 16
LOCAL_GATEWAY4 = address.IPV4_MAPPED + bytes((169, 254, 2, 2))
LOCAL_LINK_LOCAL = b"\xfe\x80" + bytes(13) + b"\1"  # fe80::1


class _Family:
    """What one family has; all of it unset if the family is switched off."""

    __slots__ = (
        "dns",
        "dns_host",
        "dns_match",
        "gateway",
        "guest",
        "interface",
        "map_guest",
        "map_host",
        "outbound",
        "outbound_interface",
        "prefix",
        "scope_id",
        "shared",
    )

    def __init__(self) -> None:
        self.interface = ""
        self.scope_id = 0
        self.guest = address.UNSET
        self.prefix = 0
        self.gateway = address.UNSET
        self.map_host = self.map_guest = self.outbound = address.UNSET
        self.outbound_interface = ""
        self.shared: tuple[bytes, ...] = ()
        self.dns: tuple[bytes, ...] = ()
        self.dns_match = address.UNSET
        self.dns_host = address.UNSET


class _Names:
    """What is not of one family."""

    __slots__ = ("dhcp_dns", "dhcp_search", "fqdn", "hostname", "search")

    def __init__(self, spec: NetworkSpec, resolvers: ResolvConf) -> None:
        self.hostname, self.fqdn = spec.hostname, spec.fqdn
        self.search = resolvers.search if spec.search is None else spec.search
        self.dhcp_dns, self.dhcp_search = not spec.no_dhcp_dns, not spec.no_dhcp_search


class Assignments:
    """All that is assigned. `notes` and `warnings` are sentences for the log of the contract."""

    __slots__ = (
        "advertised_mtu",  # 0: none is advertised
        "dhcp_dns",  # whether dns4 and dns6 are handed out, by DHCP, DHCPv6 or advertisements
        "dhcp_search",  # the same of search
        "dns4",  # the guest's resolvers
        "dns6",
        "dns_host4",  # the host's resolver that answers what the guest asks at dns_match4, by TCP or UDP
        "dns_host6",  # likewise; a link-local one is meant on scope_id
        "dns_match4",  # whose ports 53 and 853 are redirected, before anything else is mapped; unset with dns_host4
        "dns_match6",
        "flags",  # VIEW_*
        "fqdn",  # the guest's name with its domain, without a dot at the end; empty: none
        "gateway4",
        "gateway6",
        "guest4",
        "guest6",
        "hostname",  # the guest's; empty: none
        "interface4",  # of the host; empty in local mode
        "interface6",
        "map_guest4",  # what means the host's own address, which the guest has too
        "map_guest6",
        "map_host4",
        "map_host6",
        "mtu",  # never 0
        "notes",
        "our_link_local",
        "our_mac",
        "outbound4",  # the address of the host that connections come from, and the interface that they leave by
        "outbound6",
        "outbound_if4",
        "outbound_if6",
        "prefix4",
        "scope_id",  # the number of interface6; 0 in local mode
        "search",
        "shared",  # further addresses that the guest has in common with the host
        "virtual",  # of a virtual network, packed
        "warnings",
        "withdrawn6",  # prefixes of IPv6 that were the guest's before, the latest first
    )

    def __init__(
        self,
        *,
        flags: int,
        mtu: int,
        our_mac: bytes,
        family4: _Family,
        family6: _Family,
        our_link_local: bytes,
        names: _Names,
        notes: tuple[str, ...],
        warnings: tuple[str, ...],
        virtual: bytes = b"",
    ) -> None:
        self.flags = flags
        self.advertised_mtu = mtu
        self.mtu = max(mtu, MTU_MIN) if mtu else MTU_UNKNOWN
        self.our_mac = our_mac
        self.interface4 = family4.interface
        self.guest4 = family4.guest
        self.prefix4 = family4.prefix
        self.gateway4 = family4.gateway
        self.map_host4, self.map_guest4 = family4.map_host, family4.map_guest
        self.outbound4, self.outbound_if4 = family4.outbound, family4.outbound_interface
        self.dns4, self.dns_match4, self.dns_host4 = family4.dns, family4.dns_match, family4.dns_host
        self.interface6 = family6.interface
        self.guest6 = family6.guest
        self.gateway6 = family6.gateway
        self.map_host6, self.map_guest6 = family6.map_host, family6.map_guest
        self.outbound6, self.outbound_if6 = family6.outbound, family6.outbound_interface
        self.dns6, self.dns_match6, self.dns_host6 = family6.dns, family6.dns_match, family6.dns_host
        self.our_link_local = our_link_local
        self.scope_id = family6.scope_id
        self.shared = family4.shared + family6.shared
        self.hostname, self.fqdn, self.search = names.hostname, names.fqdn, names.search
        self.dhcp_dns, self.dhcp_search = names.dhcp_dns, names.dhcp_search
        self.notes = notes
        self.warnings = warnings
        self.virtual = virtual
        self.withdrawn6: tuple[bytes, ...] = ()

    def changes(self, before: Assignments) -> dict[str, object]:
        """What the guest has to learn, by name; empty if nothing is new to it or to the worker."""
        told = (name for name in self.__slots__ if name not in ("notes", "warnings", "withdrawn6"))
        return {name: getattr(self, name) for name in told if getattr(self, name) != getattr(before, name)}

    @property
    def dhcp(self) -> bool:
        return bool(self.flags & VIEW_DHCP)

    @property
    def dhcpv6(self) -> bool:
        return bool(self.flags & VIEW_DHCPV6)

    @property
    def ra(self) -> bool:
        return bool(self.flags & VIEW_RA)

    def pack(self, version: int) -> bytes:
        """As struct lg_net_view."""
        return _NET_VIEW.pack(
            version,
            self.flags,
            self.mtu,
            self.scope_id,
            self.our_mac,
            self.guest4,
            self.guest6,
            self.gateway4,
            self.gateway6,
            self.our_link_local,
            self.map_host4,
            self.map_host6,
            self.dns_match4,
            self.dns_host4,
            self.dns_match6,
            self.dns_host6,
            self.map_guest4,
            self.map_guest6,
            self.outbound4,
            self.outbound6,
            self.outbound_if4.encode(),
            self.outbound_if6.encode(),
            b"".join(self.shared),
            self.virtual,
        )


def follow(spec: NetworkSpec, host: hostnet.HostNet, before: Assignments) -> Assignments:
    """What is assigned now, to a guest that had something before: it keeps what still holds.

    Raises hostnet.InterfaceError.
    """
    now = assign(spec, host, before.guest4, before.guest6)
    former = dict.fromkeys((before.guest6[:PREFIX6_BYTES], *before.withdrawn6))
    none = now.guest6[:PREFIX6_BYTES], address.UNSET[:PREFIX6_BYTES]
    now.withdrawn6 = tuple(one for one in former if one not in none)[:WITHDRAWN_MAX]
    return now


def look_again(spec: NetworkSpec, before: hostnet.HostNet, resolv_conf: str = hostnet.RESOLV_CONF) -> hostnet.HostNet:
    """At the host, as far as a guest is concerned that had something before. Raises OSError."""
    return hostnet.read_again(before, (_named(spec, spec.ipv4), _named(spec, spec.ipv6)), resolv_conf)


def reach(spec: NetworkSpec, host: hostnet.HostNet) -> int:
    """Whom the host reached at the last look, with the family that reaches further; one of hostnet.REACH_*."""
    families = (_socket.AF_INET, spec.ipv4), (_socket.AF_INET6, spec.ipv6)
    return max(hostnet.reach(host.seen, family, _named(spec, wanted)) for family, wanted in families if wanted.enabled)


def assign(
    spec: NetworkSpec, host: hostnet.HostNet, keep4: bytes = address.UNSET, keep6: bytes = address.UNSET
) -> Assignments:
    """`keep4` and `keep6` are preferred among the host's addresses. Raises hostnet.InterfaceError."""
    if spec.virtual is not None:
        return _made_up(spec, spec.virtual, host)
    notes: list[str] = []
    warnings: list[str] = []
    family4, family6, our_link_local = _Family(), _Family(), address.UNSET
    linked = spec.namespace is None or not spec.namespace.splice_only  # else nobody reaches it, nor gets anything
    if spec.ipv4.enabled and linked:
        family4 = _assign4(spec, host, keep4, notes)
        _take_choices(family4, spec.ipv4)
        _assign_dns(family4, spec.ipv4, host.resolvers.servers4, warnings)
        missing = _missing4(family4)
        if missing and not spec.no_dhcp:
            warnings.append(f"no DHCP for the guest: {missing}")
    if spec.ipv6.enabled and linked:
        family6, our_link_local = _assign6(spec, host, keep6, notes)
        _take_choices(family6, spec.ipv6)
        _assign_dns(family6, spec.ipv6, _reachable6(family6, host.resolvers), warnings)
    left_to_us = spec.ipv4.dns is None and spec.ipv6.dns is None and not spec.no_dhcp_dns
    if left_to_us and not family4.dns and not family6.dns:
        warnings.append("the host has no resolver that the guest could use: the guest is given none")
    return Assignments(
        flags=_flags(spec, bool(_missing4(family4)), family6.guest != address.UNSET),
        mtu=spec.mtu,
        our_mac=spec.mac,
        family4=family4,
        family6=family6,
        our_link_local=our_link_local,
        names=_Names(spec, host.resolvers),
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def _made_up(spec: NetworkSpec, network: VirtualNetwork, host: hostnet.HostNet) -> Assignments:
    """Of a virtual network nothing is the host's, but for search domains that were left to it."""
    from lockgate.plugin.gateway import view

    family4, family6, our_link_local = _Family(), _Family(), address.UNSET
    family4.guest, family4.prefix, family4.gateway = network.device, network.prefix_length, network.gateway
    family4.dns = (network.gateway,)
    if network.nat.get(network.host) == address.LOOPBACK4:
        family4.map_host = network.host
    ipv6 = spec.ipv6.enabled and hostnet.reach(host.tables, _socket.AF_INET6) == hostnet.REACH_ALL
    if ipv6:
        our_link_local = LOCAL_LINK_LOCAL
        family6.guest, family6.gateway, family6.map_host = network.device6, network.gateway6, network.host6
        family6.dns = (network.gateway6,)
    return Assignments(
        flags=_flags(spec, False, ipv6) & ~(VIEW_MAP_ROUTER if ipv6 else _ALL_OF_IPV6) | view.flags(network),
        mtu=spec.mtu,
        our_mac=spec.mac,
        family4=family4,
        family6=family6,
        our_link_local=our_link_local,
        names=_Names(spec, host.resolvers),
        notes=(),
        warnings=(),
        virtual=view.pack(network),
    )


def _flags(spec: NetworkSpec, dhcp_impossible: bool, has_address6: bool) -> int:
    """Neighbour discovery and advertisements are part of ICMPv6: each needs what comes before it. DHCPv6 is not."""
    ipv4, ipv6, icmp = spec.ipv4.enabled, spec.ipv6.enabled, not spec.no_icmp
    ndp = ipv6 and icmp and not spec.no_ndp
    chosen = (
        (VIEW_IPV4, ipv4),
        (VIEW_IPV6, ipv6),
        (VIEW_TCP, not spec.no_tcp),
        (VIEW_UDP, not spec.no_udp),
        (VIEW_ICMP, icmp),
        (VIEW_NDP, ndp),
        (VIEW_DHCP, ipv4 and not spec.no_dhcp and not dhcp_impossible),
        (VIEW_RA, ndp and not spec.no_ra),
        (VIEW_DHCPV6, ipv6 and not spec.no_dhcpv6 and has_address6),
        # "The gateway" is to a guest the router of its advertisements, whatever the host's own is called. An address
        # that the caller chose, or none, is taken at its word.
        (VIEW_MAP_ROUTER, ipv6 and spec.ipv6.map_host_loopback is None),
        # And so is the guest's own: what a guest uses until it is configured says nothing then. Nor does what comes
        # from behind a guest that is a router.
        (VIEW_FIXED4, ipv4 and (spec.is_shared or spec.ipv4.address != address.UNSET)),
        (VIEW_FIXED6, ipv6 and (spec.is_shared or spec.ipv6.address != address.UNSET)),
        (VIEW_FREEBIND, spec.freebind),
        (VIEW_SPLICE, spec.namespace is not None and not spec.namespace.no_splice),
        (VIEW_SPLICE_LOOPBACK, spec.namespace is not None and spec.namespace.host_lo_to_ns_lo),
        (VIEW_PLACED, spec.namespace is not None and spec.namespace.config_net),
    )
    return sum(flag for flag, on in chosen if on)


def _assign4(spec: NetworkSpec, host: hostnet.HostNet, keep: bytes, notes: list[str]) -> _Family:
    wanted = spec.ipv4
    family = _Family()
    named = _named(spec, wanted)
    template = _template(host, _socket.AF_INET, named, keep, notes)
    if template is None or (template.address == wanted.address == address.UNSET and not named):
        family.guest, family.prefix, family.gateway = LOCAL_GUEST4, LOCAL_PREFIX4, LOCAL_GATEWAY4
    else:
        family.interface = template.interface
        family.guest, family.prefix = template.address, template.prefix
        family.gateway = LOCAL_GATEWAY4 if template.on_link_default else template.gateway
        family.shared = _shared(spec, wanted, template)
    family.guest = _first_set(wanted.address, family.guest)
    family.prefix = wanted.prefix_length or family.prefix
    family.gateway = _first_set(wanted.gateway, family.gateway)
    return family


def _missing4(family: _Family) -> str:
    """What the host has not got that DHCP would hand out, and what to do; empty if all is there."""
    if family.guest == address.UNSET:
        return f"interface {family.interface} has no IPv4 address; --address can give one"
    if family.gateway == address.UNSET:
        return f"interface {family.interface} has no default route for IPv4; --gateway can name a router"
    return ""


def _assign6(spec: NetworkSpec, host: hostnet.HostNet, keep: bytes, notes: list[str]) -> tuple[_Family, bytes]:
    """Also our link-local address: the router's if that is link-local, so that it is true outside too; then the host's.

    It is the router that the guest sees in our advertisements, and so stands in for a gateway that the host lacks.
    """
    wanted = spec.ipv6
    family = _Family()
    template = _template(host, _socket.AF_INET6, _named(spec, wanted), keep, notes)
    gateway, link_local = wanted.gateway, address.UNSET
    if template is not None and _first_set(wanted.address, template.address) != address.UNSET:
        family.interface, family.scope_id = template.interface, template.index
        family.guest = template.address
        family.shared = _shared(spec, wanted, template)
        gateway = _first_set(gateway, template.gateway)
        link_local = template.link_local
    family.guest = _first_set(wanted.address, family.guest)
    our_link_local = gateway if address.is_link_local(gateway) else _first_set(link_local, LOCAL_LINK_LOCAL)
    family.gateway = _first_set(gateway, our_link_local)
    return family, our_link_local


def _named(spec: NetworkSpec, wanted: FamilySpec) -> str:
    """The interface that the caller wants this family modelled on; empty: none."""
    return spec.interface or wanted.outbound_interface


def _template(
    host: hostnet.HostNet, family: int, interface: str, keep: bytes, notes: list[str]
) -> hostnet.Template | None:
    template = hostnet.choose_template(*host.tables, family, interface, keep)
    if template is not None and template.others and not interface:
        name = "IPv4" if family == _socket.AF_INET else "IPv6"
        others = ", ".join(template.others)
        notes.append(f"{name} follows interface {template.interface}; {others} too has a default route (--interface)")
    return template


def _shared(spec: NetworkSpec, wanted: FamilySpec, template: hostnet.Template) -> tuple[bytes, ...]:
    """What an interface that we configure has beside the address that it is known by (interface_plan.py)."""
    namespace = spec.namespace
    copied = namespace is not None and namespace.config_net and namespace.copy_addrs and wanted.address == address.UNSET
    return template.further if copied else ()


def _take_choices(family: _Family, wanted: FamilySpec) -> None:
    """What means the host itself, and the ways out."""
    family.map_host = family.gateway if wanted.map_host_loopback is None else wanted.map_host_loopback
    family.map_guest = wanted.map_guest
    family.outbound, family.outbound_interface = wanted.outbound, wanted.outbound_interface


def _reachable6(family: _Family, resolvers: ResolvConf) -> list[bytes]:
    """Those of the host that are not link-local on another interface; in local mode there is none for link-local."""
    here = ("", family.interface, str(family.scope_id)) if family.scope_id else ()
    zoned = zip(resolvers.servers6, resolvers.zones6, strict=True)
    return [server for server, zone in zoned if not address.is_link_local(server) or zone in here]


def _assign_dns(family: _Family, wanted: FamilySpec, resolvers: Sequence[bytes], warnings: list[str]) -> None:
    """The guest's resolvers, and the address whose questions a resolver of the host answers.

    A resolver that only the host can address, or that is shadowed by the mapping or by the guest's own address, gets a
    stand-in, which is redirected to the host's first resolver; without one, it is left out. A resolver that the caller
    named is given as it is.
    """
    stand_in = _first_set(wanted.dns_forward, family.map_host)
    ours = (family.guest, family.map_host, family.map_guest)
    shadowed = [address.is_loopback(one) or one in ours for one in resolvers]
    match = wanted.dns_forward
    if wanted.dns is not None:
        family.dns = wanted.dns
    else:
        given = [stand_in if hidden else one for one, hidden in zip(resolvers, shadowed, strict=True)]
        family.dns = tuple(one for one in dict.fromkeys(given) if one != address.UNSET)
        match = stand_in if any(shadowed) else match
    answering = _first_set(wanted.dns_host, *resolvers)
    if match != address.UNSET and answering == address.UNSET:
        shown = address.to_text(match)
        warnings.append(f"--dns-forward {shown}: the host has no resolver of this family; --dns-host can name one")
    elif match != address.UNSET:
        family.dns_match, family.dns_host = match, answering


def _first_set(*choices: bytes) -> bytes:
    return next((choice for choice in choices if choice != address.UNSET), address.UNSET)
