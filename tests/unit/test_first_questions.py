# SPDX-License-Identifier: Apache-2.0
"""plugin/services/neighbour.py, read back by scapy."""

from __future__ import annotations

import pytest
from host_samples import ETH0, host, ip, own, route
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from lockgate.plugin import netview
from lockgate.plugin.netlink import Address, Route
from lockgate.plugin.services import neighbour
from lockgate.plugin.spec import NetworkSpec

HOST = (
    own(ETH0, "192.0.2.7/24"),
    own(ETH0, "2001:db8::7:8/64"),
    own(ETH0, "fe80::7/64"),
    route("0.0.0.0/0", (ETH0, "192.0.2.1")),
    route("::/0", (ETH0, "fe80::a")),
)


def asked(records: tuple[Address | Route, ...], **fields: object) -> list[Ether]:
    spec = NetworkSpec(contract="passt")
    for name, value in fields.items():
        setattr(spec, name, value)
    return [Ether(frame) for frame in neighbour.questions(netview.assign(spec, host(*records)), {})]


def test_the_guest_is_asked_for_both_its_addresses() -> None:
    """By the gateway, as any neighbour would; frames of 60 bytes at least."""
    request, solicitation = asked(HOST)
    assert (request.dst, request[ARP].op, request[ARP].psrc) == ("ff:ff:ff:ff:ff:ff", 1, "192.0.2.1")
    assert (request[ARP].pdst, request[ARP].hwsrc, len(request)) == ("192.0.2.7", "9a:55:9a:55:9a:55", 60)
    assert solicitation.dst == "33:33:ff:07:00:08"
    packet = solicitation[IPv6]
    assert (packet.src, packet.dst, packet.hlim) == ("fe80::a", "ff02::1:ff07:8", 255)
    assert solicitation[ICMPv6ND_NS].tgt == "2001:db8::7:8"
    assert solicitation[ICMPv6NDOptSrcLLAddr].lladdr == "9a:55:9a:55:9a:55"
    sum_sent = solicitation[ICMPv6ND_NS].cksum
    del solicitation[ICMPv6ND_NS].cksum
    assert Ether(bytes(solicitation))[ICMPv6ND_NS].cksum == sum_sent


def test_the_router_that_asks_has_the_mac_that_is_mirrored() -> None:
    """Else the guest would learn of two."""
    view, mac = netview.assign(NetworkSpec(contract="passt"), host(*HOST)), bytes((2, 0, 0, 0, 0, 7))
    request = Ether(neighbour.questions(view, {ip("192.0.2.1"): mac})[0])
    assert request.src == request[ARP].hwsrc == "02:00:00:00:00:07"


@pytest.mark.parametrize("switch", ["no_icmp", "no_ndp"])
def test_without_neighbour_discovery_there_is_no_solicitation(switch: str) -> None:
    switches = {"no_icmp": True, "no_ndp": True} if switch == "no_icmp" else {"no_ndp": True}
    (request,) = asked(HOST, **switches)
    assert ARP in request


def test_a_neighbour_is_announced_as_if_by_itself() -> None:
    """A request about itself to all, an advertisement that nobody asked for: both with its own MAC address."""
    view = netview.assign(NetworkSpec(contract="passt"), host(*HOST))
    mac = bytes((2, 0, 0, 0, 0, 7))
    frames = neighbour.announcements(view, {ip("192.0.2.77"): mac, ip("2001:db8::77"): mac})
    arp, advertisement = map(Ether, frames)
    assert (arp.src, arp.dst, len(arp)) == ("02:00:00:00:00:07", "ff:ff:ff:ff:ff:ff", 60)
    assert (arp[ARP].op, arp[ARP].hwsrc, arp[ARP].psrc, arp[ARP].pdst) == (1, arp.src, "192.0.2.77", "192.0.2.77")
    assert (advertisement.src, advertisement.dst) == ("02:00:00:00:00:07", "33:33:00:00:00:01")
    packet = advertisement[IPv6]
    assert (packet.src, packet.dst, packet.hlim) == ("2001:db8::77", "ff02::1", 255)
    told = advertisement[ICMPv6ND_NA]
    assert (told.tgt, told.R, told.S, told.O) == ("2001:db8::77", 0, 0, 1)
    assert advertisement[ICMPv6NDOptDstLLAddr].lladdr == advertisement.src


def test_a_family_that_is_off_has_no_announcements() -> None:
    spec = NetworkSpec(contract="passt")
    spec.ipv4.enabled, spec.no_ndp = False, True
    view = netview.assign(spec, host(*HOST))
    assert neighbour.announcements(view, {ip("192.0.2.77"): bytes(6), ip("2001:db8::77"): bytes(6)}) == []


def test_a_guest_without_an_address_is_not_asked_for_it() -> None:
    """Local mode has none of IPv6 to assign."""
    (request,) = asked(())
    assert request[ARP].pdst == "169.254.2.1"
