# SPDX-License-Identifier: Apache-2.0
"""The host's network changes while the helper runs: what the guest is told, and by itself where it can be.

The host is a namespace that the test makes, with one cable whose other end lies in it too, and an /etc of its own.
Adversary: nobody.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import host_namespace
import pytest
from host_namespace import Namespace
from monitor import GUEST_MAC, IS_AT, Monitor
from running import Foreground
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet


@pytest.fixture(name="host")
def started_host() -> Iterator[Namespace]:
    host = host_namespace.host()
    yield host
    host.close()


@pytest.fixture(name="helper")
def started_helper(host: Namespace, start: Callable[..., Foreground]) -> Foreground:
    return start("-d", prefix=host.prefix, stream=True)


@pytest.fixture(name="guest")
def attached_guest(helper: Foreground) -> Iterator[Monitor]:
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(helper.socket))
    yield Monitor(end)
    end.close()


def lease(guest: Monitor) -> tuple[str, list[object]]:
    """The address that DHCP hands out now, and the resolvers."""
    message = BOOTP(guest.discovers())
    options: dict[str, object] = {one[0]: one[1] for one in message[DHCP].options if isinstance(one, tuple)}
    servers = options.get("name_server", [])
    return message.yiaddr, servers if isinstance(servers, list) else [servers]


def prefixes(advertisement: Packet) -> dict[str, int]:
    """Each prefix, and for how long it is preferred."""
    found, layer = {}, advertisement
    while layer := layer.payload:
        if isinstance(layer, ICMPv6NDOptPrefixInfo):
            found[layer.prefix] = layer.preferredlifetime
    return found


def test_an_address_that_the_host_loses_for_another(host: Namespace, helper: Foreground, guest: Monitor) -> None:
    """The old prefix is told to be out of favour, and what is open goes on (RFC 4862, 5.5.4); DHCP has the new one."""
    assert lease(guest)[0] == "10.5.0.2"
    host.does("""
        ip address add 10.6.0.2/24 dev cable; ip address del 10.5.0.2/24 dev cable
        ip route replace default via 10.6.0.1
        ip address add fd06::2/64 dev cable nodad; ip address del fd05::2/64 dev cable
    """)
    advertisement = guest.receives(ICMPv6ND_RA)
    while prefixes(advertisement) != {"fd06::": 0xFFFFFFFF, "fd05::": 0}:
        advertisement = guest.receives(ICMPv6ND_RA)  # a look in the middle of it
    helper.line_with("network.change")
    while lease(guest)[0] != "10.6.0.2":
        pass


def test_a_host_that_moves_to_a_network_without_ipv6(host: Namespace, helper: Foreground, guest: Monitor) -> None:
    """The prefix is out of favour, and we are no router for it: a guest would try IPv6 first for every name."""
    helper.line_with("link.attach")
    host.does("""
        ip link del cable; ip link add cable type veth peer name end; ip link set end up; ip link set cable up
        ip address add 10.6.0.2/24 dev cable; ip route add default via 10.6.0.1
    """)
    advertisement = guest.receives(ICMPv6ND_RA)
    while prefixes(advertisement) != {"fd05::": 0} or advertisement[ICMPv6ND_RA].routerlifetime:
        advertisement = guest.receives(ICMPv6ND_RA)
    assert lease(guest)[0] == "10.6.0.2"


def test_a_host_without_network_for_a_while(host: Namespace, helper: Foreground, guest: Monitor) -> None:
    """The guest keeps its addresses: there is nothing better, and the host may be about to have the same ones again."""
    host.does("ip link set cable down; ip address flush dev cable")
    host.does("echo nameserver 10.5.0.54 > /etc/resolv.conf")
    assert "dns4" in helper.line_with("network.change"), "so it has looked"
    assert lease(guest) == ("10.5.0.2", ["10.5.0.54"])


def lines_until(helper: Foreground, word: str) -> list[str]:
    """The lines of events about the host's network, up to one with this word."""
    lines = [helper.line_with("network.")]
    while word not in lines[-1]:
        lines.append(helper.line_with("network."))
    return lines


AWAY = "ip link set cable down; ip address flush dev cable"
BACK = """
    ip link set cable up; ip address replace 10.5.0.2/24 dev cable; ip address replace fd05::2/64 dev cable nodad
    ip route replace default via 10.5.0.1; ip route replace default via fd05::1
"""


@pytest.mark.parametrize(
    ("away", "reason"), [(AWAY, "no address"), ("ip route del default; ip -6 route del default", "no default route")]
)
def test_a_network_that_is_lost_and_found_is_told_once_each(
    host: Namespace, helper: Foreground, away: str, reason: str
) -> None:
    """Whatever the two families do one after the other, and as often as it happens."""
    host.does("ip route del default; echo nameserver 10.5.0.54 > /etc/resolv.conf")
    assert len(lines_until(helper, "dns4")) == 1, "the other family still has its way out"
    host.does("ip route add default via 10.5.0.1")
    for server in ("10.5.0.55", "10.5.0.56"):
        host.does(away)
        assert f"reason={reason!r}" in helper.line_with("network.lost")
        host.does(f"echo nameserver {server} > /etc/resolv.conf")
        assert not [line for line in lines_until(helper, server) if "lost" in line or "found" in line]
        host.does(BACK)
        assert "network.found" in helper.line_with("network.")


def test_a_better_way_out_does_not_renumber_the_guest_of_an_address_that_stays(host: Namespace, guest: Monitor) -> None:
    """A host with privacy extensions (RFC 8981) has a new address each day beside the ones before."""
    host.does("ip address add fd05::9:9/128 dev cable nodad; ip address add 10.5.0.77/32 dev cable")
    host.does("echo nameserver fd05::53 > /etc/resolv.conf")
    while ICMPv6NDOptRDNSS not in (advertisement := guest.receives(ICMPv6ND_RA)):
        pass
    assert advertisement[ICMPv6NDOptRDNSS].dns == ["fd05::53"]
    assert lease(guest)[0] == "10.5.0.2"


@pytest.mark.parametrize(
    "change",
    [
        "echo nameserver 10.5.0.54 > /etc/resolv.conf",
        "echo nameserver 10.5.0.54 > /etc/new; mv /etc/new /etc/resolv.conf",
        "mkdir /etc/elsewhere; echo nameserver 10.5.0.54 > /etc/elsewhere/r; ln -sf elsewhere/r /etc/resolv.conf",
    ],
    ids=["written", "replaced", "a link instead"],
)
def test_other_resolvers(host: Namespace, helper: Foreground, guest: Monitor, change: str) -> None:
    """As editors, resolvconf and NetworkManager change them."""
    assert lease(guest)[1] == ["10.5.0.53"]
    host.does(change)
    helper.line_with("network.change")
    assert lease(guest)[1] == ["10.5.0.54"]


def test_a_fifo_in_place_of_resolv_conf_holds_up_nothing(host: Namespace, helper: Foreground, guest: Monitor) -> None:
    """Cause: control opened it, and waited for a writer for ever: no lease, no end when the front end went. The
    resolvers stay as they were meanwhile; the address that changes too shows that there was a look."""
    host.does("""
        rm /etc/resolv.conf; mkfifo /etc/resolv.conf
        ip address add 10.6.0.2/24 dev cable; ip address del 10.5.0.2/24 dev cable
        ip route replace default via 10.6.0.1
    """)
    helper.line_with("guest4=10.6.0.2")
    assert lease(guest) == ("10.6.0.2", ["10.5.0.53"])
    host.does("rm /etc/resolv.conf; echo nameserver 10.6.0.54 > /etc/resolv.conf")
    helper.line_with("dns4=10.6.0.54")
    assert lease(guest)[1] == ["10.6.0.54"]


def test_what_a_link_leads_to_is_followed(host: Namespace, start: Callable[..., Foreground]) -> None:
    """systemd-resolved writes the file that /etc/resolv.conf leads to."""
    host.does("mkdir /etc/elsewhere; echo nameserver 10.5.0.53 > /etc/elsewhere/r; ln -sf elsewhere/r /etc/resolv.conf")
    helper = start("-d", prefix=host.prefix, stream=True)
    host.does("echo nameserver 10.5.0.54 > /etc/elsewhere/new; mv /etc/elsewhere/new /etc/elsewhere/r")
    assert "10.5.0.54" in helper.line_with("network.change")


def test_every_link_and_folder_on_the_way_to_it_is_followed(host: Namespace, start: Callable[..., Foreground]) -> None:
    """NixOS and resolvconf have links to links; a container's runtime may put another folder in place."""
    host.does("""
        mkdir -p /etc/first /etc/second; ln -sf link /etc/resolv.conf; ln -s first/r /etc/link
        echo nameserver 10.5.0.53 > /etc/first/r; echo nameserver 10.5.0.54 > /etc/second/r
    """)
    helper = start("-d", prefix=host.prefix, stream=True)
    host.does("ln -s second/r /etc/new; mv -T /etc/new /etc/link")
    assert "10.5.0.54" in helper.line_with("network.change")
    host.does("mv /etc/second /etc/old; mv /etc/first /etc/second")
    assert "10.5.0.53" in helper.line_with("network.change")


def test_a_resolver_of_ipv6_that_ends_is_taken_back(host: Namespace, helper: Foreground, guest: Monitor) -> None:
    """By a lifetime of zero (RFC 8106): a guest would use it for ever."""
    helper.line_with("link.attach")
    told: list[tuple[list[str], int]] = []
    for server in ("fd05::53", "fd05::54"):
        host.does(f"echo nameserver {server} > /etc/resolv.conf")
        while [server] not in [servers for servers, _ in told]:
            told += [(one[ICMPv6NDOptRDNSS].dns, one[ICMPv6NDOptRDNSS].lifetime) for one in advertised(guest)]
    assert told == [(["fd05::53"], 0xFFFFFFFF), (["fd05::53"], 0), (["fd05::54"], 0xFFFFFFFF)]


def advertised(guest: Monitor) -> list[Packet]:
    """The next advertisement, if it names resolvers."""
    advertisement = guest.receives(ICMPv6ND_RA)
    return [advertisement] if ICMPv6NDOptRDNSS in advertisement else []


OUR_MAC, LAN_MAC, OTHER_MAC = "9a:55:9a:55:9a:55", "02:00:00:00:00:07", "02:00:00:00:00:08"


def announced(guest: Monitor, address: str) -> str:
    """The MAC address in the next gratuitous ARP request of this address."""
    while (arp := guest.receives(ARP)[ARP]).psrc != address or arp.pdst != address:
        pass
    return str(arp.hwsrc)


def resolved(guest: Monitor, address: str) -> str:
    """The MAC address that answers for it."""
    ask = ARP(op="who-has", hwsrc=GUEST_MAC, psrc="10.5.0.2", pdst=address)
    guest.send(bytes(Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ask))
    while (answer := guest.receives(ARP))[ARP].op != IS_AT:
        pass
    assert answer[ARP].psrc == address and answer.src == answer[ARP].hwsrc
    return str(answer[ARP].hwsrc)


def test_a_machine_of_the_hosts_network_is_seen_under_its_own_mac(
    host: Namespace, helper: Foreground, guest: Monitor
) -> None:
    """When the host learns of it the guest does, and again when it changes."""
    helper.line_with("link.attach")
    assert resolved(guest, "10.5.0.77") == OUR_MAC
    host.does(f"ip neighbour add 10.5.0.77 lladdr {LAN_MAC} dev cable nud permanent")
    assert announced(guest, "10.5.0.77") == resolved(guest, "10.5.0.77") == LAN_MAC
    host.does(f"ip neighbour replace 10.5.0.77 lladdr {OTHER_MAC} dev cable nud permanent")
    assert announced(guest, "10.5.0.77") == resolved(guest, "10.5.0.77") == OTHER_MAC
    host.does(f"ip neighbour add fd05::77 lladdr {LAN_MAC} dev cable nud permanent")
    advertisement = guest.receives(ICMPv6ND_NA)
    assert (advertisement[ICMPv6ND_NA].tgt, advertisement[ICMPv6NDOptDstLLAddr].lladdr) == ("fd05::77", LAN_MAC)
    host.does("ip neighbour del 10.5.0.77 dev cable")
    assert "network.neighbours" in helper.line_with("gone=1")
    while resolved(guest, "10.5.0.77") != OUR_MAC:
        pass  # the worker is told just after


def test_the_gateway_that_means_the_host_is_at_our_mac(host: Namespace, helper: Foreground, guest: Monitor) -> None:
    """The router's own would lead there as well, but the guest has to know one of the two."""
    helper.line_with("link.attach")
    host.does(f"ip neighbour add 10.5.0.1 lladdr {LAN_MAC} dev cable nud permanent")
    host.does(f"ip neighbour add 10.5.0.77 lladdr {OTHER_MAC} dev cable nud permanent")
    assert announced(guest, "10.5.0.77") == OTHER_MAC
    assert resolved(guest, "10.5.0.1") == resolved(guest, "10.5.0.99") == OUR_MAC


def test_without_the_mapping_the_router_has_its_own_mac(host: Namespace, start: Callable[..., Foreground]) -> None:
    """And whoever is no neighbour is behind it; what was known before the start counts."""
    host.does(f"ip neighbour add 10.5.0.1 lladdr {LAN_MAC} dev cable nud permanent")
    helper = start("-d", "--no-map-gw", prefix=host.prefix, stream=True)
    assert "known=1" in helper.line_with("network.neighbours")
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(helper.socket))
        guest = Monitor(end)
        while resolved(guest, "10.5.0.1") != LAN_MAC:
            pass  # the worker is told just after
        assert resolved(guest, "198.51.100.1") == LAN_MAC
