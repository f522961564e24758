# SPDX-License-Identifier: Apache-2.0
"""plugin/netview.py: what the guest is assigned, and that struct lg_net_view is packed as the header says."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from host_samples import ETH0, ORDINARY, RESOLV_CONF, WG0, WLAN0, assignments, host, ip, own, route

from lockgate.plugin import address, hostnet, netlink, netview
from lockgate.plugin.contracts import pasta
from lockgate.plugin.spec import NamespaceSpec, NetworkSpec

DATAPATH = Path(__file__).resolve().parents[2] / "core" / "datapath"


def passt(**fields: object) -> NetworkSpec:
    """A specification; `ipv4_gateway=…` sets a field of the family."""
    spec = NetworkSpec(contract="passt")
    for name, value in fields.items():
        family, _, field = name.partition("_")
        if family in ("ipv4", "ipv6"):
            assert hasattr(getattr(spec, family), field)
            setattr(getattr(spec, family), field, value)
        else:
            assert hasattr(spec, name)
            setattr(spec, name, value)
    return spec


def names(addresses: tuple[bytes, ...]) -> list[str]:
    return [address.to_text(one) for one in addresses]


def resolv_conf(*servers: str) -> str:
    return "".join(f"nameserver {server}\n" for server in servers)


def test_the_guest_gets_the_hosts_addresses_and_routers() -> None:
    """An ordinary dual-stack host, no options."""
    view = assignments()
    assert (view.interface4, view.guest4, view.prefix4) == ("eth0", ip("192.0.2.7"), 24)
    assert (view.gateway4, view.map_host4) == (ip("192.0.2.1"), ip("192.0.2.1"))
    assert (view.interface6, view.guest6) == ("eth0", ip("2001:db8::7"))
    assert (view.gateway6, view.our_link_local, view.map_host6) == (ip("fe80::a"), ip("fe80::a"), ip("fe80::a"))
    assert (names(view.dns4), names(view.dns6)) == (["192.0.2.53"], ["2001:db8::53"])
    assert view.search == ("example.org", "lab.example.org")
    assert (view.hostname, view.fqdn, view.dhcp_dns, view.dhcp_search) == ("", "", True, True)
    assert (view.dns_match4, view.dns_host4, view.dns_match6, view.dns_host6) == (address.UNSET,) * 4
    assert (view.mtu, view.advertised_mtu, view.our_mac.hex(":")) == (65520, 65520, "9a:55:9a:55:9a:55")
    assert (view.notes, view.warnings) == ((), ())


def test_a_host_without_network_gives_local_addresses() -> None:
    """Local mode: the addresses of the contract; DHCP, advertisements and the mapping of the host work."""
    view = netview.assign(passt(), host())
    assert (view.interface4, view.interface6) == ("", "")
    assert (view.guest4, view.prefix4, view.gateway4) == (ip("169.254.2.1"), 16, ip("169.254.2.2"))
    assert (view.guest6, view.gateway6, view.our_link_local) == (address.UNSET, ip("fe80::1"), ip("fe80::1"))
    assert (view.map_host4, view.map_host6) == (ip("169.254.2.2"), ip("fe80::1"))
    assert view.dhcp and view.ra and not view.dhcpv6


def test_local_mode_is_of_one_family() -> None:
    """A host with IPv4 alone."""
    view = assignments(own(ETH0, "192.0.2.7/24"), route("0.0.0.0/0", (ETH0, "192.0.2.1")))
    assert (view.interface4, view.interface6) == ("eth0", "")
    assert (view.guest4, view.guest6, view.our_link_local) == (ip("192.0.2.7"), address.UNSET, ip("fe80::1"))


def test_a_template_without_an_address_is_no_template() -> None:
    """An unnumbered uplink: local addresses."""
    view = assignments(route("0.0.0.0/0", (ETH0, "192.0.2.1")), route("::/0", (ETH0, "fe80::a")))
    assert (view.interface4, view.guest4, view.gateway4) == ("", ip("169.254.2.1"), ip("169.254.2.2"))
    assert (view.interface6, view.guest6, view.our_link_local) == ("", address.UNSET, ip("fe80::1"))


def test_options_come_before_the_host() -> None:
    """--address, --netmask, --gateway, --mac-addr, --mtu."""
    view = netview.assign(
        passt(
            ipv4_address=ip("10.1.2.3"),
            ipv4_prefix_length=20,
            ipv4_gateway=ip("10.1.0.1"),
            ipv6_address=ip("2001:db8:1::3"),
            ipv6_gateway=ip("fe80::99"),
            mac=bytes.fromhex("020000000001"),
            mtu=1400,
        ),
        host(*ORDINARY),
    )
    assert (view.guest4, view.prefix4, view.gateway4) == (ip("10.1.2.3"), 20, ip("10.1.0.1"))
    assert (view.guest6, view.gateway6, view.our_link_local) == (ip("2001:db8:1::3"), ip("fe80::99"), ip("fe80::99"))
    assert (view.our_mac.hex(), view.mtu, view.map_host4) == ("020000000001", 1400, ip("10.1.0.1"))


def test_a_netmask_alone_applies_to_the_hosts_address() -> None:
    """--netmask without --address."""
    only_mask = netview.assign(passt(ipv4_prefix_length=28), host(*ORDINARY))
    assert (only_mask.guest4, only_mask.prefix4) == (ip("192.0.2.7"), 28)


def test_addresses_can_be_given_to_a_host_that_has_none() -> None:
    """The router stays the one of local mode."""
    view = netview.assign(
        passt(ipv4_address=ip("10.1.2.3"), ipv4_prefix_length=8, ipv6_address=ip("2001:db8:1::3")), host()
    )
    assert (view.guest4, view.prefix4, view.gateway4) == (ip("10.1.2.3"), 8, ip("169.254.2.2"))
    assert (view.guest6, view.our_link_local) == (ip("2001:db8:1::3"), ip("fe80::1"))


def test_an_mtu_that_the_worker_would_refuse_is_advertised_but_not_its_own() -> None:
    """Cause: the worker takes none below 68, and the start that had only warned ended with its EINVAL."""
    for mtu, made_for in ((1, 68), (67, 68), (68, 68), (69, 69)):
        view = netview.assign(passt(mtu=mtu), host(*ORDINARY))
        assert (view.advertised_mtu, view.mtu) == (mtu, made_for)


def test_mtu_zero_is_not_advertised_and_taken_for_ethernets() -> None:
    """The worker always needs a number."""
    view = netview.assign(passt(mtu=0), host(*ORDINARY))
    assert (view.advertised_mtu, view.mtu) == (0, 1500)


def test_a_global_ipv6_router_leaves_the_hosts_link_local_address_to_us() -> None:
    """Our link-local address is the gateway's only if that is link-local."""
    view = assignments(
        own(ETH0, "2001:db8::7/64"),
        own(ETH0, "fe80::7/64", scope=netlink.SCOPE_LINK),
        route("::/0", (ETH0, "2001:db8::1")),
    )
    assert (view.gateway6, view.our_link_local, view.map_host6) == (ip("2001:db8::1"), ip("fe80::7"), ip("2001:db8::1"))


def test_a_tunnel_gives_the_guest_its_address_and_a_made_up_router() -> None:
    """WireGuard: a default route without gateway, no link-local address. IPv4 and IPv6 both work for the guest."""
    view = assignments(
        own(WG0, "10.8.0.2/32"),
        own(WG0, "2001:db8::8/128"),
        route("0.0.0.0/0", (WG0, "")),
        route("::/0", (WG0, "")),
    )
    assert (view.guest4, view.prefix4, view.gateway4) == (ip("10.8.0.2"), 32, ip("169.254.2.2"))
    assert (view.guest6, view.gateway6, view.our_link_local) == (ip("2001:db8::8"), ip("fe80::1"), ip("fe80::1"))
    assert view.dhcp and view.warnings == ()


def test_without_an_ipv4_router_there_is_no_dhcp_and_no_mapping() -> None:
    """A warning says what to do about it; the option for it helps."""
    records = (own(ETH0, "192.0.2.7/24"), route("192.0.2.0/24", (ETH0, "")))
    view = assignments(*records)
    assert (view.guest4, view.gateway4, view.map_host4) == (ip("192.0.2.7"), address.UNSET, address.UNSET)
    assert not view.dhcp
    assert view.warnings[0].startswith("no DHCP for the guest: interface eth0 has no default route for IPv4; --gateway")
    assert netview.assign(passt(no_dhcp=True), host(*records, resolv_conf=RESOLV_CONF)).warnings == ()
    helped = netview.assign(passt(ipv4_gateway=ip("192.0.2.1")), host(*records))
    assert helped.dhcp and helped.map_host4 == ip("192.0.2.1")


def test_the_loopback_interface_has_nothing_to_hand_out() -> None:
    """--interface lo: no DHCP, no mapping for IPv4; local mode for IPv6."""
    view = netview.assign(passt(interface="lo"), host(*ORDINARY))
    assert (view.interface4, view.guest4, view.map_host4, view.dhcp) == ("lo", address.UNSET, address.UNSET, False)
    assert (view.interface6, view.our_link_local) == ("", ip("fe80::1"))
    assert "interface lo has no IPv4 address; --address can give one" in view.warnings[0]


def test_an_interface_that_does_not_exist_is_an_error() -> None:
    """Found before READY."""
    with pytest.raises(hostnet.InterfaceError, match="eth7"):
        netview.assign(passt(interface="eth7"), host(*ORDINARY))


def test_further_default_routes_are_noted_unless_an_interface_was_named() -> None:
    """Whoever wonders about the choice finds the option."""
    records = (*ORDINARY, own(WLAN0, "198.51.100.9/24"), route("0.0.0.0/0", (WLAN0, "198.51.100.1")))
    assert assignments(*records).notes == ("IPv4 follows interface eth0; wlan0 too has a default route (--interface)",)
    assert netview.assign(passt(interface="eth0"), host(*records)).notes == ()


ALL_OF_IPV6 = netview.VIEW_IPV6 | netview.VIEW_NDP | netview.VIEW_RA | netview.VIEW_DHCPV6 | netview.VIEW_MAP_ROUTER


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({}, 0),
        ({"no_tcp": True}, netview.VIEW_TCP),
        ({"no_udp": True}, netview.VIEW_UDP),
        ({"no_icmp": True}, netview.VIEW_ICMP | netview.VIEW_NDP | netview.VIEW_RA),
        ({"no_ndp": True}, netview.VIEW_NDP | netview.VIEW_RA),
        ({"no_ra": True}, netview.VIEW_RA),
        ({"no_dhcp": True}, netview.VIEW_DHCP),
        ({"no_dhcpv6": True}, netview.VIEW_DHCPV6),
        ({"ipv4_enabled": False}, netview.VIEW_IPV4 | netview.VIEW_DHCP),
        ({"ipv6_enabled": False}, ALL_OF_IPV6),
    ],
)
def test_each_switch_turns_off_what_depends_on_it(options: dict[str, object], lost: int) -> None:
    """Everything is on by default."""
    everything = 2 * netview.VIEW_MAP_ROUTER - 1
    assert netview.assign(passt(**options), host(*ORDINARY)).flags == everything & ~lost


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({}, 0),
        ({"ipv4_address": ip("10.0.0.1")}, netview.VIEW_FIXED4),
        ({"ipv6_address": ip("fd00::1")}, netview.VIEW_FIXED6),
        ({"ipv6_address": ip("fd00::1"), "ipv6_enabled": False}, 0),
        ({"freebind": True}, netview.VIEW_FREEBIND),
    ],
    ids=["nothing", "--address", "--address of IPv6", "of a family that is off", "--freebind"],
)
def test_what_the_caller_fixes_is_fixed(options: dict[str, object], added: int) -> None:
    """The guest's address, whatever the guest uses; and whether sockets may have addresses that the host has not."""
    fixed = netview.VIEW_FIXED4 | netview.VIEW_FIXED6 | netview.VIEW_FREEBIND
    assert netview.assign(passt(**options), host(*ORDINARY)).flags & fixed == added


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ("", netview.VIEW_SPLICE),
        ("--no-splice", 0),
        ("--host-lo-to-ns-lo", netview.VIEW_SPLICE | netview.VIEW_SPLICE_LOOPBACK),
        ("--splice-only", netview.VIEW_SPLICE | netview.VIEW_SPLICE_LOOPBACK),
    ],
)
def test_the_hosts_loopback_leads_into_a_namespace(options: str, flags: int) -> None:
    """Of a machine, there is nobody who could make sockets."""
    both = netview.VIEW_SPLICE | netview.VIEW_SPLICE_LOOPBACK
    spec = pasta.parse(["--netns", "blue", *options.split()], "pasta")
    assert netview.assign(spec, host(*ORDINARY)).flags & both == flags
    assert netview.assign(passt(), host(*ORDINARY)).flags & both == 0


@pytest.mark.parametrize(("options", "flag"), [("", 0), ("--config-net", netview.VIEW_PLACED)])
def test_a_namespace_that_is_configured_has_its_addresses_at_once(options: str, flag: int) -> None:
    """Any other guest takes them when it likes."""
    spec = pasta.parse(["--netns", "blue", *options.split()], "pasta")
    assert netview.assign(spec, host(*ORDINARY)).flags & netview.VIEW_PLACED == flag
    assert netview.assign(passt(), host(*ORDINARY)).flags & netview.VIEW_PLACED == 0


def test_a_namespace_with_loopback_alone_is_given_nothing() -> None:
    """So that whoever comes from elsewhere is refused at once."""
    spec = pasta.parse("--netns blue --splice-only --dns-forward 192.0.2.53".split(), "pasta")
    given = netview.assign(spec, host(*ORDINARY))
    addresses = ("guest4", "guest6", "gateway4", "gateway6", "our_link_local", "map_host4", "map_host6", "dns_match4")
    assert {getattr(given, name) for name in addresses} == {bytes(16)}
    assert not (given.dns4 or given.dns6 or given.warnings or given.dhcp or given.dhcpv6 or given.ra)


def test_a_namespace_that_others_share_is_known_by_its_own_addresses() -> None:
    """Whatever they send through it."""
    spec = passt()
    spec.namespace = NamespaceSpec()
    spec.namespace.path = "/run/user/1000/containers/networks/rootless-netns/rootless-netns"
    fixed = netview.VIEW_FIXED4 | netview.VIEW_FIXED6
    assert netview.assign(spec, host(*ORDINARY)).flags & fixed == fixed


def test_dhcpv6_needs_an_address_to_hand_out() -> None:
    """On in local mode too, once --address gives one."""
    assert not netview.assign(passt(), host()).dhcpv6
    assert netview.assign(passt(ipv6_address=ip("2001:db8:1::3")), host()).dhcpv6


def test_a_family_that_is_off_is_assigned_nothing() -> None:
    """Neither addresses nor resolvers."""
    six = netview.assign(passt(ipv4_enabled=False), host(*ORDINARY, resolv_conf=RESOLV_CONF))
    assert (six.guest4, six.gateway4, six.map_host4, six.dns4) == (address.UNSET,) * 3 + ((),)
    four = netview.assign(passt(ipv6_enabled=False), host(*ORDINARY, resolv_conf=RESOLV_CONF))
    assert (four.guest6, four.gateway6, four.our_link_local, four.dns6) == (address.UNSET,) * 3 + ((),)


@pytest.mark.parametrize(
    ("servers", "mapping", "given"),
    [
        (["192.0.2.53", "192.0.2.54"], None, ["192.0.2.53", "192.0.2.54"]),
        (["127.0.0.53"], None, ["192.0.2.1"]),
        (["192.0.2.1"], None, ["192.0.2.1"]),
        (["192.0.2.7", "127.0.0.1", "192.0.2.53"], None, ["192.0.2.1", "192.0.2.53"]),
        (["127.0.0.53", "192.0.2.53"], address.UNSET, ["192.0.2.53"]),
        (["192.0.2.1"], address.UNSET, ["192.0.2.1"]),
        (["127.0.0.53"], ip("10.9.9.9"), ["10.9.9.9"]),
        (["10.9.9.9", "192.0.2.1"], ip("10.9.9.9"), ["10.9.9.9", "192.0.2.1"]),
    ],
)
def test_a_resolver_on_the_host_is_reached_through_the_mapping(
    servers: list[str], mapping: bytes | None, given: list[str]
) -> None:
    """A loopback resolver becomes the mapping address, and is dropped where there is none; others are handed out."""
    view = netview.assign(passt(ipv4_map_host_loopback=mapping), host(*ORDINARY, resolv_conf=resolv_conf(*servers)))
    assert names(view.dns4) == given


@pytest.mark.parametrize(
    ("servers", "options", "redirect"),
    [
        (["127.0.0.53"], {}, ("192.0.2.1", "127.0.0.53")),
        (["127.0.0.53", "192.0.2.53"], {}, ("192.0.2.1", "127.0.0.53")),
        (["192.0.2.53", "127.0.0.53"], {}, ("192.0.2.1", "192.0.2.53")),
        (["192.0.2.1"], {}, ("192.0.2.1", "192.0.2.1")),
        (["192.0.2.7"], {}, ("192.0.2.1", "192.0.2.7")),
        (["127.0.0.53"], {"map_host_loopback": ip("10.9.9.9")}, ("10.9.9.9", "127.0.0.53")),
        (["192.0.2.1"], {"map_host_loopback": ip("10.9.9.9")}, None),
        (["192.0.2.53"], {}, None),
        ([], {}, None),
        (["127.0.0.53"], {"map_host_loopback": address.UNSET}, None),
        (["192.0.2.1"], {"map_host_loopback": address.UNSET}, None),
        (["127.0.0.53"], {"dns_host": ip("192.0.2.99")}, ("192.0.2.1", "192.0.2.99")),
        (["192.0.2.53"], {"dns_host": ip("192.0.2.99")}, None),
        (["192.0.2.53"], {"dns_forward": ip("10.9.9.53")}, ("10.9.9.53", "192.0.2.53")),
        ([], {"dns_forward": ip("10.9.9.53"), "dns_host": ip("127.0.0.1")}, ("10.9.9.53", "127.0.0.1")),
        (["127.0.0.53"], {"dns": (ip("192.0.2.1"),)}, None),
        (["127.0.0.53"], {"dns": (), "dns_forward": ip("10.9.9.53")}, ("10.9.9.53", "127.0.0.53")),
    ],
)
def test_one_address_is_redirected_to_a_resolver_of_the_host(
    servers: list[str], options: dict[str, object], redirect: tuple[str, str] | None
) -> None:
    """That of --dns-forward, else the mapping if it stands for a resolver; to --dns-host, else the host's first."""
    spec = passt(**{f"ipv4_{name}": value for name, value in options.items()})
    view = netview.assign(spec, host(*ORDINARY, resolv_conf=resolv_conf(*servers)))
    expected = (address.UNSET, address.UNSET) if redirect is None else (ip(redirect[0]), ip(redirect[1]))
    assert (view.dns_match4, view.dns_host4) == expected
    assert (view.dns_match6, view.dns_host6) == (address.UNSET, address.UNSET)


@pytest.mark.parametrize("mapping", [None, address.UNSET])
def test_a_forward_address_stands_for_hidden_resolvers(mapping: bytes | None) -> None:
    """With and without a mapping: it is what the guest is given instead of a loopback resolver; others stay."""
    spec = passt(ipv4_dns_forward=ip("10.9.9.53"), ipv4_map_host_loopback=mapping)
    view = netview.assign(spec, host(*ORDINARY, resolv_conf=resolv_conf("127.0.0.53", "192.0.2.53")))
    assert names(view.dns4) == ["10.9.9.53", "192.0.2.53"]
    assert (view.dns_match4, view.dns_host4) == (ip("10.9.9.53"), ip("127.0.0.53"))


def test_a_forward_address_that_nobody_answers_for_is_warned_of() -> None:
    """And it is not redirected; --dns-host would help."""
    view = netview.assign(passt(ipv4_dns_forward=ip("10.9.9.53")), host(*ORDINARY, resolv_conf="nameserver ::1"))
    assert (view.dns_match4, view.dns_host4) == (address.UNSET, address.UNSET)
    assert "--dns-forward 10.9.9.53" in view.warnings[0] and "--dns-host" in view.warnings[0]


def test_resolvers_of_ipv6_are_redirected_for_themselves() -> None:
    """A resolver at ::1 is the router of the advertisements to the guest."""
    view = assignments(resolv_conf=resolv_conf("192.0.2.53", "::1", "2001:db8::53"))
    assert (names(view.dns4), names(view.dns6)) == (["192.0.2.53"], ["fe80::a", "2001:db8::53"])
    assert (view.dns_match4, view.dns_match6, view.dns_host6) == (address.UNSET, ip("fe80::a"), ip("::1"))


@pytest.mark.parametrize(
    ("server", "given"),
    [
        ("fe80::a%eth0", ["fe80::a"]),
        ("fe80::53%eth0", ["fe80::53"]),
        ("fe80::53%2", ["fe80::53"]),
        ("fe80::53", ["fe80::53"]),
        ("fe80::53%wlan0", []),
        ("fe80::a%wlan0", []),
        ("2001:db8::53%wlan0", ["2001:db8::53"]),
    ],
)
def test_a_link_local_resolver_counts_on_the_interface_of_the_guest(server: str, given: list[str]) -> None:
    """One on another interface could not be reached from here, and is neither given nor redirected to."""
    view = assignments(resolv_conf=resolv_conf(server))
    assert names(view.dns6) == given
    assert view.dns_host6 == (ip("fe80::a") if server == "fe80::a%eth0" else address.UNSET)


def test_a_link_local_resolver_means_nothing_in_local_mode() -> None:
    """There is no interface on which it could lie."""
    assert netview.assign(passt(), host(resolv_conf=resolv_conf("fe80::53%eth0", "fe80::54"))).dns6 == ()


@pytest.mark.parametrize(
    ("words", "shared"),
    [
        ("--config-net", ["192.0.2.8", "2001:db8::8"]),
        ("--config-net -a 192.0.2.99", ["2001:db8::8"]),
        ("--config-net --no-copy-addrs", []),
        ("", []),
    ],
)
def test_an_interface_that_we_configure_has_more_in_common_with_the_hosts(words: str, shared: list[str]) -> None:
    """All its addresses, in the families for which none was asked for. A guest that asks for its own gets one."""
    spec = pasta.parse([*words.split(), "--netns", "/n"], "pasta")
    more = own(ETH0, "192.0.2.8/24"), own(ETH0, "2001:db8::8/64")
    view = netview.assign(spec, host(*ORDINARY, *more))
    assert names(view.shared) == shared
    assert assignments(*ORDINARY, *more).shared == ()


def test_named_resolvers_replace_the_hosts_of_their_family() -> None:
    """As they are, even those that the guest cannot reach through us; the other family keeps the host's."""
    wanted = (ip("127.0.0.1"), ip("192.0.2.1"), ip("192.0.2.1"))
    view = netview.assign(passt(ipv4_dns=wanted), host(*ORDINARY, resolv_conf=RESOLV_CONF))
    assert (view.dns4, names(view.dns6)) == (wanted, ["2001:db8::53"])


def test_names_and_search_domains_are_taken_from_the_options() -> None:
    """--hostname, --fqdn, --search; with --search none the host's domains do not count either."""
    spec = passt(hostname="vm", fqdn="vm.example.net", search=("example.net",), no_dhcp_dns=True)
    view = netview.assign(spec, host(*ORDINARY, resolv_conf=RESOLV_CONF))
    assert (view.hostname, view.fqdn, view.search) == ("vm", "vm.example.net", ("example.net",))
    assert (view.dhcp_dns, view.dhcp_search) == (False, True)
    other = netview.assign(passt(search=(), no_dhcp_search=True), host(*ORDINARY, resolv_conf=RESOLV_CONF))
    assert (other.search, other.dhcp_dns, other.dhcp_search) == ((), True, False)


def test_a_guest_without_resolvers_is_warned_of() -> None:
    """No resolv.conf, or one with nothing that the guest could reach."""
    assert "resolver" in netview.assign(passt(), host(*ORDINARY)).warnings[0]
    hidden = passt(ipv4_map_host_loopback=address.UNSET)
    assert "resolver" in netview.assign(hidden, host(*ORDINARY, resolv_conf="nameserver 127.0.0.1")).warnings[0]


@pytest.mark.parametrize("options", [{"ipv4_dns": (), "ipv6_dns": ()}, {"no_dhcp_dns": True}])
def test_who_asks_for_no_resolvers_is_not_warned(options: dict[str, object]) -> None:
    """--dns none, --no-dhcp-dns."""
    assert netview.assign(passt(**options), host(*ORDINARY)).warnings == ()


LAYOUT_C = """
#include "datapath.h"
#include <stddef.h>
#include <stdio.h>
#define FIELD(name) printf("%zu %zu ", offsetof(struct lg_net_view, name), sizeof(((struct lg_net_view *)0)->name))
int main(void)
{
    FIELD(version); FIELD(flags); FIELD(mtu); FIELD(our_mac); FIELD(guest4); FIELD(guest6); FIELD(gateway4);
    FIELD(gateway6); FIELD(our_link_local); FIELD(map_host4); FIELD(map_host6); FIELD(map_guest4); FIELD(map_guest6);
    FIELD(outbound4); FIELD(outbound6); FIELD(outbound_if4); FIELD(outbound_if6);
    FIELD(shared);
    printf("%zu ", sizeof(struct lg_net_view));
    printf("%d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d\\n", LG_VIEW_IPV4, LG_VIEW_IPV6,
           LG_VIEW_TCP, LG_VIEW_UDP, LG_VIEW_ICMP,
           LG_VIEW_NDP, LG_VIEW_DHCP, LG_VIEW_RA, LG_VIEW_DHCPV6, LG_VIEW_MAP_ROUTER, LG_VIEW_FIXED4, LG_VIEW_FIXED6,
           LG_VIEW_FREEBIND, LG_VIEW_SPLICE, LG_VIEW_SPLICE_LOOPBACK, LG_VIEW_PLACED);
}
"""


def test_the_packed_view_has_the_layout_of_the_header(tmp_path: Path) -> None:
    """Each field at the offset that the C compiler gives it; the size; the value of each flag."""
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(LAYOUT_C)
    subprocess.run(["cc", "-I", str(DATAPATH), "-o", str(program), str(source)], check=True)
    numbers = [int(word) for word in subprocess.run([program], check=True, capture_output=True).stdout.split()]
    view = assignments()
    view.guest6, view.map_host6 = ip("2001:db8::a"), ip("2001:db8::b")  # different values, so that a swap shows
    view.gateway6, view.map_host4 = ip("2001:db8::c"), ip("192.0.2.99")
    view.map_guest4, view.map_guest6 = ip("192.0.2.98"), ip("2001:db8::d")
    view.outbound4, view.outbound6 = ip("192.0.2.97"), ip("2001:db8::e")
    view.outbound_if4, view.outbound_if6 = "a" * 15, "eth6"
    view.shared = (ip("192.0.2.96"), ip("2001:db8::f")) * 9  # more than there is room for
    packed = view.pack(7)
    integers = [struct.pack("=I", number) for number in (7, view.flags, view.mtu)]
    expected = [*integers, view.our_mac, view.guest4, view.guest6, view.gateway4, view.gateway6]
    expected += [view.our_link_local, view.map_host4, view.map_host6, view.map_guest4, view.map_guest6]
    expected += [view.outbound4, view.outbound6, b"a" * 15 + b"\0", b"eth6".ljust(16, b"\0")]
    expected.append(b"".join(view.shared[:16]))
    count = 2 * len(expected)
    fields = list(zip(numbers[0:count:2], numbers[1:count:2], strict=True))
    assert [packed[offset : offset + size] for offset, size in fields] == expected
    assert len(packed) == numbers[count]
    flags = ["IPV4", "IPV6", "TCP", "UDP", "ICMP", "NDP", "DHCP", "RA", "DHCPV6"]
    flags += ["MAP_ROUTER", "FIXED4", "FIXED6", "FREEBIND", "SPLICE", "SPLICE_LOOPBACK", "PLACED"]
    assert [getattr(netview, f"VIEW_{name}") for name in flags] == numbers[count + 1 :]


def test_nothing_heavy_is_imported_before_ready() -> None:
    """netlink, resolvconf, hostnet and netview are read by the wrapper, whose start is measured in milliseconds."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; before = set(sys.modules)\n"
        "import lockgate.plugin.netview, lockgate.plugin.hostnet\n"
        "print(*sorted({name for name in set(sys.modules) - before if not name.startswith('lockgate')}))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, *filter(None, sys.path)]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    heavy = "asyncio structlog yaml argparse dataclasses typing re enum pathlib ipaddress socket signal logging json"
    assert not set(loaded) & {*heavy.split(), "subprocess", "selectors", "collections", "collections.abc"}
    assert "_socket" in loaded
