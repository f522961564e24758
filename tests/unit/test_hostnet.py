# SPDX-License-Identifier: Apache-2.0
"""plugin/hostnet.py: which interface is the template, and what is taken from it."""

from __future__ import annotations

import _socket
import os
from pathlib import Path

import pytest
from host_samples import ETH0, LINKS, LO, ORDINARY, WG0, WLAN0, host, ip, own, route

from lockgate.plugin import address, hostnet, netlink


def choose(*records: netlink.Address | netlink.Route, family: int = 4, wanted: str = "") -> hostnet.Template | None:
    net = host(*records)
    number = _socket.AF_INET if family == 4 else _socket.AF_INET6
    return hostnet.choose_template(net.links, net.addresses, net.routes, number, wanted)


def chosen(*records: netlink.Address | netlink.Route, family: int = 4, wanted: str = "") -> hostnet.Template:
    template = choose(*records, family=family, wanted=wanted)
    assert template is not None
    return template


def test_the_first_default_route_names_the_template() -> None:
    """The kernel lists the lowest metric first; its order is taken, and the others are reported."""
    template = chosen(
        own(WLAN0, "198.51.100.9/24"),
        own(ETH0, "192.0.2.7/24"),
        route("0.0.0.0/0", (WLAN0, "198.51.100.1")),
        route("0.0.0.0/0", (ETH0, "192.0.2.1")),
        route("192.0.2.0/24", (ETH0, "")),
    )
    assert (template.interface, template.address, template.prefix) == ("wlan0", ip("198.51.100.9"), 24)
    assert (template.gateway, template.others) == (ip("198.51.100.1"), ("eth0",))


def test_each_family_is_chosen_for_itself() -> None:
    """An ordinary host: IPv4 and IPv6 each with address, prefix length, gateway; IPv6 with its link-local address."""
    four, six = chosen(*ORDINARY), chosen(*ORDINARY, family=6)
    assert (four.interface, four.address, four.prefix, four.gateway) == ("eth0", ip("192.0.2.7"), 24, ip("192.0.2.1"))
    assert (six.interface, six.address, six.prefix) == ("eth0", ip("2001:db8::7"), 64)
    assert (six.gateway, six.link_local) == (ip("fe80::a"), ip("fe80::7"))


def test_without_a_default_route_the_first_route_counts() -> None:
    """Then there is a template without gateway."""
    template = chosen(own(ETH0, "192.0.2.7/24"), route("192.0.2.0/24", (ETH0, "")))
    assert (template.interface, template.gateway, template.on_link_default) == ("eth0", address.UNSET, False)


@pytest.mark.parametrize(
    "useless",
    [
        route("10.0.0.0/8", (LO, "")),
        route("169.254.0.0/16", (ETH0, "")),
        route("0.0.0.0/0", (ETH0, "192.0.2.1"), table=100),
        route("0.0.0.0/0", (ETH0, "192.0.2.1"), kind=7),
        route("0.0.0.0/0", (ETH0, "192.0.2.1"), flags=netlink.HOP_DEAD),
        route("0.0.0.0/0", (99, "192.0.2.1")),
        route("0.0.0.0/0"),
        route("::/0", (ETH0, "fe80::1")),
    ],
    ids=["loopback", "link-local", "other table", "unreachable", "dead", "gone interface", "no hop", "other family"],
)
def test_a_route_that_leads_nowhere_makes_no_template(useless: netlink.Route) -> None:
    """Loopback, link-local destinations, other tables and dead ends do not count; with nothing else there is none."""
    assert choose(own(ETH0, "192.0.2.7/24"), useless) is None


def test_the_heaviest_next_hop_of_a_multipath_route_is_taken() -> None:
    """The first among those with the highest weight."""
    hops = ((ETH0, "192.0.2.1", 1), (WLAN0, "198.51.100.1", 5), (WLAN0, "198.51.100.2", 5))
    template = chosen(own(WLAN0, "198.51.100.9/24"), route("0.0.0.0/0", *hops))
    assert (template.interface, template.gateway) == ("wlan0", ip("198.51.100.1"))


def test_a_wanted_interface_is_taken_whatever_routes_there_are() -> None:
    """Its own next hop is found in a multipath route too."""
    default = route("0.0.0.0/0", (WLAN0, "198.51.100.1", 5), (ETH0, "192.0.2.1", 1))
    template = chosen(own(ETH0, "192.0.2.7/24"), default, wanted="eth0")
    assert (template.interface, template.gateway, template.others) == ("eth0", ip("192.0.2.1"), ())
    routeless = chosen(own(WG0, "10.8.0.2/32"), default, wanted="wg0")
    assert (routeless.interface, routeless.address, routeless.gateway) == ("wg0", ip("10.8.0.2"), address.UNSET)


def test_a_wanted_interface_that_does_not_exist_is_an_error_that_lists_the_others() -> None:
    """One sentence: which one, and what there is instead."""
    with pytest.raises(hostnet.InterfaceError, match=r"interface 'eth9' does not exist; .* has lo, eth0, wlan0, wg0$"):
        choose(*ORDINARY, wanted="eth9")


def test_the_address_with_the_longest_prefix_is_taken() -> None:
    """The first among equals; never a deprecated one, one that is taken by somebody else, or a loopback address."""
    template = chosen(
        own(ETH0, "127.0.0.2/32"),
        own(ETH0, "192.0.2.4/32", flags=netlink.ADDRESS_DEPRECATED),
        own(ETH0, "192.0.2.5/32", flags=netlink.ADDRESS_DAD_FAILED),
        own(WLAN0, "198.51.100.9/32"),
        own(ETH0, "192.0.2.6/16"),
        own(ETH0, "192.0.2.7/24"),
        own(ETH0, "192.0.2.8/24"),
        route("0.0.0.0/0", (ETH0, "192.0.2.1")),
    )
    assert (template.address, template.prefix) == (ip("192.0.2.7"), 24)


def test_an_interface_without_an_address_leaves_it_unset() -> None:
    """That is for netview to judge."""
    template = chosen(own(ETH0, "fe80::7/64", scope=netlink.SCOPE_LINK), route("::/0", (ETH0, "fe80::a")), family=6)
    assert (template.address, template.link_local) == (address.UNSET, ip("fe80::7"))


def test_a_default_route_without_gateway_is_told_from_none() -> None:
    """WireGuard, tun and ppp have such routes."""
    template = chosen(own(WG0, "10.8.0.2/24"), route("0.0.0.0/0", (WG0, "")))
    assert (template.interface, template.gateway, template.on_link_default) == ("wg0", address.UNSET, True)


def test_the_host_of_this_test_can_be_read(tmp_path: Path) -> None:
    """The real kernel, as found: it has a loopback interface, whatever else."""
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    net = hostnet.read_host(str(tmp_path / "resolv.conf"))
    assert LINKS[0].name in [link.name for link in net.links]
    assert net.resolvers.servers4 == (ip("192.0.2.53"),)


def test_a_missing_resolv_conf_is_an_empty_one(tmp_path: Path) -> None:
    """A host without resolvers still has a network."""
    assert hostnet.read_host(str(tmp_path / "absent")).resolvers.servers4 == ()
    assert hostnet.read_host(str(tmp_path)).resolvers.servers4 == ()


def test_a_fifo_in_place_of_resolv_conf_is_not_waited_for(tmp_path: Path) -> None:
    """Cause: an ordinary open() of one waits for who writes, and read() for what is written. The text in this one is
    what shows that it is not read."""
    path = tmp_path / "resolv.conf"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, b"nameserver 192.0.2.53\n")
    assert hostnet.read_host(str(path)).resolvers.servers4 == ()
    before = host(*ORDINARY, resolv_conf="nameserver 192.0.2.54")
    assert hostnet.read_again(before, resolv_conf=str(path)).resolvers is before.resolvers
    os.close(writer)
