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
from lockgate.plugin.spec import NetworkSpec

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


def test_the_guest_gets_the_hosts_addresses_and_routers() -> None:
    """An ordinary dual-stack host, no options."""
    view = assignments()
    assert (view.interface4, view.guest4, view.prefix4) == ("eth0", ip("192.0.2.7"), 24)
    assert (view.gateway4, view.map_host4) == (ip("192.0.2.1"), ip("192.0.2.1"))
    assert (view.interface6, view.guest6) == ("eth0", ip("2001:db8::7"))
    assert (view.gateway6, view.our_link_local, view.map_host6) == (ip("fe80::a"), ip("fe80::a"), ip("fe80::a"))
    assert (names(view.dns4), names(view.dns6)) == (["192.0.2.53"], ["2001:db8::53"])
    assert view.search == ("example.org", "lab.example.org")
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
        ({"ipv4_enabled": False}, netview.VIEW_IPV4 | netview.VIEW_DHCP),
        ({"ipv6_enabled": False}, netview.VIEW_IPV6 | netview.VIEW_NDP | netview.VIEW_RA | netview.VIEW_MAP_ROUTER),
    ],
)
def test_each_switch_turns_off_what_depends_on_it(options: dict[str, object], lost: int) -> None:
    """Everything is on by default but DHCPv6."""
    everything = 2 * netview.VIEW_RA - 1 | netview.VIEW_MAP_ROUTER
    assert netview.assign(passt(**options), host(*ORDINARY)).flags == everything & ~lost


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
    text = "".join(f"nameserver {server}\n" for server in servers)
    view = netview.assign(passt(ipv4_map_host_loopback=mapping), host(*ORDINARY, resolv_conf=text))
    assert names(view.dns4) == given


def test_a_guest_without_resolvers_is_warned_of() -> None:
    """No resolv.conf, or one with nothing that the guest could reach."""
    assert "resolver" in netview.assign(passt(), host(*ORDINARY)).warnings[0]
    hidden = passt(ipv4_map_host_loopback=address.UNSET)
    assert "resolver" in netview.assign(hidden, host(*ORDINARY, resolv_conf="nameserver 127.0.0.1")).warnings[0]


LAYOUT_C = """
#include "datapath.h"
#include <stddef.h>
#include <stdio.h>
#define FIELD(name) printf("%zu %zu ", offsetof(struct lg_net_view, name), sizeof(((struct lg_net_view *)0)->name))
int main(void)
{
    FIELD(version); FIELD(flags); FIELD(mtu); FIELD(our_mac); FIELD(guest4); FIELD(guest6); FIELD(gateway4);
    FIELD(gateway6); FIELD(our_link_local); FIELD(map_host4); FIELD(map_host6);
    printf("%zu ", sizeof(struct lg_net_view));
    printf("%d %d %d %d %d %d %d %d %d\\n", LG_VIEW_IPV4, LG_VIEW_IPV6, LG_VIEW_TCP, LG_VIEW_UDP, LG_VIEW_ICMP,
           LG_VIEW_NDP, LG_VIEW_DHCP, LG_VIEW_RA, LG_VIEW_DHCPV6);
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
    packed = view.pack(7)
    integers = [struct.pack("=I", number) for number in (7, view.flags, view.mtu)]
    expected = [*integers, view.our_mac, view.guest4, view.guest6, view.gateway4, view.gateway6]
    expected += [view.our_link_local, view.map_host4, view.map_host6]
    fields = list(zip(numbers[0:22:2], numbers[1:22:2], strict=True))
    assert [packed[offset : offset + size] for offset, size in fields] == expected
    assert len(packed) == numbers[22]
    flags = ["IPV4", "IPV6", "TCP", "UDP", "ICMP", "NDP", "DHCP", "RA", "DHCPV6"]
    assert [getattr(netview, f"VIEW_{name}") for name in flags] == numbers[23:]


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
