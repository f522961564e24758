# SPDX-License-Identifier: Apache-2.0
"""plugin/namespace/interface_plan.py: what a container's interface gets from hosts of all kinds, and from options."""

from __future__ import annotations

import pytest
from host_samples import ETH0, LO, ORDINARY, WG0, WLAN0, host, ip, own, route

from lockgate.plugin import hostnet, netlink
from lockgate.plugin.address import UNSET, to_text
from lockgate.plugin.namespace import interface_plan
from lockgate.plugin.spec import NamespaceSpec, NetworkSpec

KERNEL, RA, DHCP = 2, 9, 16


def planned(*records: netlink.Address | netlink.Route, spec: NetworkSpec | None = None) -> interface_plan.Plan:
    return interface_plan.plan(spec or NetworkSpec(contract="pasta"), host(*records))


def addresses(plan: interface_plan.Plan) -> list[str]:
    return [f"{to_text(one.address)}/{one.prefix}" for one in plan.addresses]


def routes(plan: interface_plan.Plan) -> list[str]:
    """As a person would write them: `DESTINATION via GATEWAY`, with further gateways after commas."""
    lines = []
    for one in plan.routes:
        target = f"{to_text(one.destination)}/{one.prefix}" if one.prefix else "default"
        gateways = [to_text(hop.gateway if hop.via == UNSET else hop.via) for hop in one.hops]
        lines.append(target + (f" via {', '.join(gateways)}" if gateways != ["::"] else ""))
    return lines


def asked(**content: object) -> NetworkSpec:
    """A specification with some of it chosen: `asked(address4="192.0.2.9", mtu=1400)`."""
    spec = NetworkSpec(contract="pasta")
    for name, value in content.items():
        if name[-1] in "46":
            family = spec.ipv4 if name[-1] == "4" else spec.ipv6
            setattr(family, name[:-1], ip(str(value)) if name[:-1] in ("address", "gateway") else value)
        else:
            setattr(spec, name, value)
    return spec


def test_all_that_an_ordinary_host_has_is_copied() -> None:
    """But what comes by itself: link-local addresses, and the routes to the networks of addresses."""
    made = [one for one in ORDINARY if isinstance(one, netlink.Route) and one.prefix]
    for one in made:
        one.protocol, one.priority = KERNEL, 0 if one.family == 2 else 256
    plan = planned(*ORDINARY)
    assert addresses(plan) == ["192.0.2.7/24", "2001:db8::7/64"]
    assert routes(plan) == ["default via 192.0.2.1", "default via fe80::a"]
    assert plan.mtu == 65520
    for one in made:
        one.protocol, one.priority = 0, 0


@pytest.mark.parametrize("copy_addrs", [True, False])
def test_a_namespace_stays_known_by_an_address_while_the_host_has_it(copy_addrs: bool) -> None:
    """Even one that is deprecated, or that would not be chosen any more: peers are led there. Cause: they were, and the
    namespace had another."""
    known, fresh = own(ETH0, "2001:db8::7/64"), own(ETH0, "2001:db8::77/128")
    known.flags |= netlink.ADDRESS_DEPRECATED
    spec = asked(namespace=NamespaceSpec())
    assert spec.namespace is not None
    spec.namespace.copy_addrs = copy_addrs
    records = host(known, fresh, route("::/0", (ETH0, "fe80::a")))
    now = interface_plan.plan(spec, records, (UNSET, known.address))
    assert f"{to_text(known.address)}/64" in addresses(now)
    assert f"{to_text(known.address)}/64" not in addresses(interface_plan.plan(spec, records))


def test_addresses_come_in_the_hosts_order() -> None:
    """Of IPv6 the last is added first, as the kernel puts each before the others. Labels and lifetimes are not kept."""
    plan = planned(
        own(ETH0, "192.0.2.7/24"),
        own(ETH0, "10.0.0.3/8", scope=200),
        own(ETH0, "192.0.2.8/24", flags=0x81),
        own(ETH0, "2001:db8::7/64", flags=0x300),
        own(ETH0, "2001:db8::8/128"),
        own(WLAN0, "198.51.100.9/24"),
        route("0.0.0.0/0", (ETH0, "192.0.2.1")),
        route("::/0", (ETH0, "fe80::a")),
    )
    assert addresses(plan) == ["192.0.2.7/24", "10.0.0.3/8", "192.0.2.8/24", "2001:db8::8/128", "2001:db8::7/64"]
    assert [one.scope for one in plan.addresses] == [0, 200, 0, 0, 0]
    assert {(one.flags, one.index) for one in plan.addresses} == {(0, 0)}


def test_what_is_good_for_the_host_alone_is_not_copied() -> None:
    """Addresses of link and host scope, deprecated ones, those that somebody else has, loopback."""
    plan = planned(
        own(ETH0, "192.0.2.7/24"),
        own(ETH0, "169.254.9.9/16", scope=netlink.SCOPE_LINK),
        own(ETH0, "192.0.2.8/24", scope=254),
        own(ETH0, "127.0.0.2/32"),
        own(ETH0, "2001:db8::6/64", flags=netlink.ADDRESS_DEPRECATED),
        own(ETH0, "2001:db8::5/64", flags=netlink.ADDRESS_DAD_FAILED),
        own(ETH0, "2001:db8::7/64"),
        own(ETH0, "fe80::7/64", scope=netlink.SCOPE_LINK),
        route("0.0.0.0/0", (ETH0, "192.0.2.1")),
        route("::/0", (ETH0, "fe80::a")),
    )
    assert addresses(plan) == ["192.0.2.7/24", "2001:db8::7/64"]


def test_an_address_of_link_scope_is_copied_where_there_is_no_other() -> None:
    """It is what the guest is known by then."""
    link = own(ETH0, "169.254.9.9/16", scope=netlink.SCOPE_LINK)
    assert addresses(planned(link, route("0.0.0.0/0", (ETH0, "")), spec=asked(enabled6=False))) == ["169.254.9.9/16"]


def test_a_point_to_point_link_keeps_its_peer() -> None:
    """And a default route without gateway, as of WireGuard and ppp."""
    pair = own(WG0, "10.8.0.2/32")
    pair.peer = ip("10.8.0.1")
    by_itself = route("10.8.0.1/32", (WG0, ""))
    by_itself.protocol = KERNEL
    plan = planned(pair, route("0.0.0.0/0", (WG0, "")), by_itself)
    assert [(one.address, one.peer) for one in plan.addresses] == [(ip("10.8.0.2"), ip("10.8.0.1"))]
    assert routes(plan) == ["default"]


def test_routes_keep_what_they_say() -> None:
    """Origin, scope, metric, type of service, MTU, preference, a gateway of the other family, on-link; not more."""
    one = route("10.0.0.0/8", (ETH0, "192.0.2.1"), flags=netlink.HOP_ON_LINK | 0x10)
    one.protocol, one.scope, one.priority, one.tos, one.mtu = DHCP, 200, 600, 8, 1400
    other = route("203.0.113.0/24", (ETH0, ""))
    other.hops[0].via = ip("fe80::b")
    third = route("2001:db8:1::/48", (ETH0, "fe80::a"))
    third.preference, third.protocol = 3, RA
    plan = planned(*ORDINARY[:5], route("::/0", (ETH0, "fe80::a")), one, other, third)
    kept = next(route for route in plan.routes if route.prefix == 8)
    assert (kept.protocol, kept.scope, kept.priority, kept.tos, kept.mtu) == (DHCP, 200, 600, 8, 1400)
    assert [(hop.index, hop.flags) for hop in kept.hops] == [(0, netlink.HOP_ON_LINK)]
    assert "203.0.113.0/24 via fe80::b" in routes(plan)
    (preferred,) = [route for route in plan.routes if route.prefix == 48]
    assert (preferred.preference, preferred.protocol) == (3, RA)


def test_routes_on_the_link_come_before_those_that_lead_through_them() -> None:
    """Beyond that they are in the host's order; a router outside of the address's network is reached that way."""
    plan = planned(
        own(ETH0, "192.0.2.7/32"),
        route("0.0.0.0/0", (ETH0, "10.0.0.1")),
        route("198.51.100.0/24", (ETH0, "10.0.0.2")),
        route("10.0.0.1/32", (ETH0, "")),
        route("10.0.0.2/32", (ETH0, "")),
    )
    assert routes(plan) == [
        "10.0.0.1/32",
        "10.0.0.2/32",
        "default via 10.0.0.1",
        "198.51.100.0/24 via 10.0.0.2",
    ]


def test_of_a_multipath_route_the_next_hops_on_the_interface_are_kept() -> None:
    """With their weights. One whose next hops are elsewhere is none of ours, like that of a dead one."""
    plan = planned(
        own(ETH0, "192.0.2.7/24"),
        route("0.0.0.0/0", (ETH0, "192.0.2.1", 3), (ETH0, "192.0.2.2", 9), (WLAN0, "198.51.100.1", 1)),
        route("10.0.0.0/8", (WLAN0, "198.51.100.1", 1), (WG0, "", 1)),
        route("10.1.0.0/16", (ETH0, "192.0.2.1"), flags=netlink.HOP_DEAD),
    )
    assert routes(plan) == ["default via 192.0.2.1, 192.0.2.2"]
    assert [hop.weight for hop in plan.routes[0].hops] == [3, 9]


def test_other_tables_other_kinds_and_other_interfaces_are_not_copied() -> None:
    """A blackhole among them."""
    plan = planned(
        *ORDINARY[:6],
        route("10.0.0.0/8", (ETH0, "192.0.2.1"), table=100),
        route("10.1.0.0/16", (ETH0, "192.0.2.1"), kind=7),
        route("10.2.0.0/16"),
        route("10.3.0.0/16", (LO, "")),
        spec=asked(enabled6=False),
    )
    assert routes(plan) == ["default via 192.0.2.1"]


@pytest.mark.parametrize(
    ("default", "way_out"),
    [
        (route("0.0.0.0/0", (ETH0, "192.0.2.1")), ["default via 192.0.2.1"]),
        (route("0.0.0.0/0", (ETH0, "")), ["default"]),
        (route("198.51.100.0/24", (ETH0, "192.0.2.2")), []),
    ],
    ids=["gateway", "on the link", "none"],
)
def test_less_may_be_copied(default: netlink.Route, way_out: list[str]) -> None:
    """The one address that DHCP would hand out, and the one route that it would."""
    spec = asked(enabled6=False)
    spec.namespace = NamespaceSpec()
    spec.namespace.copy_addrs = spec.namespace.copy_routes = False
    records = own(ETH0, "192.0.2.6/16"), own(ETH0, "192.0.2.7/24"), own(ETH0, "192.0.2.8/24")
    plan = planned(*records, default, route("10.0.0.0/8", (ETH0, "192.0.2.1")), spec=spec)
    assert (addresses(plan), routes(plan)) == (["192.0.2.7/24"], way_out)
    assert [hop.flags for one in plan.routes for hop in one.hops] == [0] * len(way_out)


def test_without_a_default_route_the_hosts_stand_ins_are_still_reached() -> None:
    """Podman tells a container to ask 169.254.1.1, whose host then loses its router."""
    spec = asked(dns_forward4=ip("169.254.1.1"), map_guest4=ip("169.254.1.2"), map_host_loopback4=UNSET)
    near = own(ETH0, "192.0.2.7/24"), own(ETH0, "2001:db8::7/64")
    link = route("192.0.2.0/24", (ETH0, ""))
    link.protocol = KERNEL
    plan = planned(*near, link, spec=spec)
    assert routes(plan) == ["169.254.1.1/32", "169.254.1.2/32"]
    assert {one.scope for one in plan.routes} == {netlink.SCOPE_LINK}
    assert routes(planned(*near, link, route("0.0.0.0/0", (ETH0, "192.0.2.1")), spec=spec)) == ["default via 192.0.2.1"]


def test_each_family_has_its_own_template() -> None:
    """One interface has what two of the host have; it is called as the one with IPv4."""
    records = (
        own(WLAN0, "198.51.100.9/24"),
        own(ETH0, "2001:db8::7/64"),
        route("0.0.0.0/0", (WLAN0, "198.51.100.1")),
        route("::/0", (ETH0, "fe80::a")),
    )
    plan = planned(*records)
    assert addresses(plan) == ["198.51.100.9/24", "2001:db8::7/64"]
    assert routes(plan) == ["default via 198.51.100.1", "default via fe80::a"]
    spec = NetworkSpec(contract="pasta")
    assert interface_plan.name(spec, host(*records)) == "wlan0"
    assert interface_plan.name(asked(enabled4=False), host(*records)) == "eth0"
    assert interface_plan.name(spec, host(*records[1:2], *records[3:])) == "eth0"
    assert interface_plan.name(spec, host()) == "tap0"


def test_a_host_without_any_network_gives_made_up_ones() -> None:
    """Of IPv6 only a way out, with which the link-local address does."""
    plan = planned()
    assert addresses(plan) == ["169.254.2.1/16"]
    assert routes(plan) == ["default via 169.254.2.2", "default via fe80::1"]
    assert [hop.flags for one in plan.routes for hop in one.hops] == [0, 0]


def test_a_host_with_ipv4_alone_gives_no_route_of_ipv6() -> None:
    """Nor does an interface with link-local addresses alone. A family that is not wanted gets nothing at all."""
    four = (own(ETH0, "192.0.2.7/24"), route("0.0.0.0/0", (ETH0, "192.0.2.1")))
    narrow = (own(ETH0, "fe80::7/64", scope=netlink.SCOPE_LINK), route("::/0", (ETH0, "fe80::a")))
    for records in (four, four + narrow):
        plan = planned(*records)
        assert (addresses(plan), routes(plan)) == (["192.0.2.7/24"], ["default via 192.0.2.1"])
    plan = planned(*ORDINARY[:5], *ORDINARY[7:8], spec=asked(enabled4=False))
    assert (addresses(plan), routes(plan)) == (["2001:db8::7/64"], ["default via fe80::a"])


def test_a_host_with_ipv6_alone_still_gives_ipv4() -> None:
    """Callers hand out a resolver and a name of the host that are IPv4."""
    plan = planned(own(ETH0, "2001:db8::7/64"), route("::/0", (ETH0, "fe80::a")))
    assert addresses(plan) == ["169.254.2.1/16", "2001:db8::7/64"]
    assert routes(plan) == ["default via 169.254.2.2", "default via fe80::a"]


def test_an_address_that_was_asked_for_replaces_all_others_of_its_family() -> None:
    """With its own prefix length or that of its class; IPv6 has always 64. Routes are copied all the same."""
    plan = planned(*ORDINARY[:5], *ORDINARY[5:6], *ORDINARY[7:8], spec=asked(address4="10.0.2.0", prefix_length4=24))
    assert addresses(plan) == ["10.0.2.0/24", "2001:db8::7/64"]
    assert routes(plan) == ["default via 192.0.2.1", "default via fe80::a"]
    plan = planned(*ORDINARY, spec=asked(address4="192.168.7.7", address6="2001:db8:7::7", prefix_length6=96))
    assert addresses(plan) == ["192.168.7.7/24", "2001:db8:7::7/64"]


def test_a_netmask_alone_is_that_of_the_address_that_the_guest_is_known_by() -> None:
    """Others keep their own."""
    plan = planned(own(ETH0, "192.0.2.7/24"), own(ETH0, "10.0.0.3/8"), ORDINARY[5], spec=asked(prefix_length4=20))
    assert addresses(plan) == ["192.0.2.7/20", "10.0.0.3/8"]


def test_a_gateway_that_was_asked_for_is_the_only_route_of_its_family() -> None:
    """By itself on the link if no address leads to it."""
    plan = planned(*ORDINARY, spec=asked(gateway4="192.0.2.9", gateway6="2001:db8:7::1"))
    assert routes(plan) == ["default via 192.0.2.9", "default via 2001:db8:7::1"]
    assert [one.hops[0].flags for one in plan.routes] == [0, netlink.HOP_ON_LINK]
    slirp = asked(address4="10.0.2.0", prefix_length4=24, gateway4="10.0.2.2", enabled6=False, mtu=1500)
    plan = planned(*ORDINARY, spec=slirp)
    assert (addresses(plan), routes(plan), plan.mtu) == (["10.0.2.0/24"], ["default via 10.0.2.2"], 1500)
    assert plan.routes[0].hops[0].flags == 0


def test_an_address_of_ipv6_that_was_asked_for_has_a_way_out_on_any_host() -> None:
    """The helper is its router."""
    plan = planned(*ORDINARY[:2], ORDINARY[5], spec=asked(address6="2001:db8:7::7"))
    assert (addresses(plan)[1], routes(plan)[1]) == ("2001:db8:7::7/64", "default via fe80::1")


def test_the_interface_that_was_asked_for_is_copied_whatever_others_have() -> None:
    """For both families, or (--outbound-if4) for one; one that does not exist is an error."""
    records = (*ORDINARY, own(WG0, "10.8.0.2/24"), route("10.9.0.0/16", (WG0, "10.8.0.1")))
    plan = planned(*records, spec=asked(interface="wg0"))
    assert (addresses(plan), routes(plan)) == (["10.8.0.2/24"], ["10.9.0.0/16 via 10.8.0.1"])
    plan = planned(*records, spec=asked(outbound_interface4="wg0"))
    assert addresses(plan) == ["10.8.0.2/24", "2001:db8::7/64"]
    with pytest.raises(hostnet.InterfaceError):
        planned(*records, spec=asked(interface="nope0"))


def test_a_plan_has_an_end() -> None:
    """The default route is among what is left, as the kernel lists it first; so is the way to the host's stand-ins."""
    many = [route(f"10.{n >> 8}.{n & 255}.0/24", (ETH0, "192.0.2.1")) for n in range(interface_plan.ROUTES_MAX + 5)]
    plan = planned(own(ETH0, "192.0.2.7/24"), route("0.0.0.0/0", (ETH0, "192.0.2.1")), *many)
    assert len(plan.routes) == interface_plan.ROUTES_MAX // 2 and routes(plan)[0] == "default via 192.0.2.1"
    spec = asked(dns_forward4=ip("169.254.1.1"), map_guest4=UNSET, map_host_loopback4=UNSET)
    assert routes(planned(own(ETH0, "192.0.2.7/24"), *many, spec=spec))[0] == "169.254.1.1/32"
