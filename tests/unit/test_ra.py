# SPDX-License-Identifier: Apache-2.0
"""plugin/services/ra.py, read back by scapy."""

from __future__ import annotations

from typing import Any

import pytest
from host_samples import ENDLESS_SEARCH, ETH0, ORDINARY, RESOLV_CONF, assignments, host, own, route
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from lockgate.plugin import netview
from lockgate.plugin.netview import VIEW_DHCPV6, VIEW_RA, Assignments
from lockgate.plugin.services import ra
from lockgate.plugin.services.frame import Answer, Ignored
from lockgate.plugin.spec import NetworkSpec

GUEST_MAC = "5a:94:ef:e4:0c:ee"
OUR_MAC = "9a:55:9a:55:9a:55"
ROUTER = "fe80::a"
GUEST = "fe80::5894:efff:fee4:cee"


def solicitation(source: str = GUEST, hop_limit: int = 255, tail: bytes = b"", code: int = 0) -> bytes:
    ends = Ether(src=GUEST_MAC, dst="33:33:00:00:00:02") / IPv6(src=source, dst="ff02::2", hlim=hop_limit)
    return bytes(ends / ICMPv6ND_RS(code=code) / tail)


def read(frame: bytes) -> Any:
    """The advertisement as scapy reads it; lengths and checksum are right."""
    packet = Ether(frame)
    again = packet.copy()
    del again[IPv6].plen, again[ICMPv6ND_RA].cksum
    assert bytes(again) == frame
    return packet


def answered(frame: bytes, view: Assignments | None = None) -> Any:
    answer = ra.answer(frame, view or assignments())
    assert isinstance(answer, Answer), answer
    assert (answer.event, answer.fields) == ("ra.answer", {"mac": GUEST_MAC})
    return read(answer.frame)


def options(packet: Any) -> list[type]:
    """The classes of the options, in their order."""
    found, layer = [], packet[ICMPv6ND_RA].payload
    while layer:
        found.append(type(layer))
        layer = layer.payload
    return found


def test_a_solicitation_is_answered_to_its_source() -> None:
    """From our link-local address, with all that the guest needs to configure itself."""
    packet = answered(solicitation())
    assert (packet.src, packet.dst, packet[IPv6].src, packet[IPv6].dst) == (OUR_MAC, GUEST_MAC, ROUTER, GUEST)
    assert packet[IPv6].hlim == 255
    head = packet[ICMPv6ND_RA]
    assert (head.chlim, head.M, head.O, head.prf, head.routerlifetime) == (255, 1, 0, 0, 65535)
    assert (head.reachabletime, head.retranstimer) == (0, 0)
    prefix = packet[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("2001:db8::", 64, 1, 1)
    assert (prefix.validlifetime, prefix.preferredlifetime) == (2**32 - 1, 2**32 - 1)
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == OUR_MAC
    assert packet[ICMPv6NDOptMTU].mtu == 65520
    assert (packet[ICMPv6NDOptRDNSS].dns, packet[ICMPv6NDOptRDNSS].lifetime) == (["2001:db8::53"], 2**32 - 1)
    assert packet[ICMPv6NDOptDNSSL].searchlist == ["example.org.", "lab.example.org."]
    assert packet[ICMPv6NDOptDNSSL].lifetime == 2**32 - 1


def test_a_guest_without_address_is_answered_through_all_nodes() -> None:
    """Nothing else would reach it."""
    packet = answered(solicitation(source="::"))
    assert (packet.dst, packet[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")


def test_the_unsolicited_advertisement_says_the_same_to_all() -> None:
    """Only the destination differs."""
    packet, solicited = read(ra.advertise(assignments())), answered(solicitation())
    assert (packet.src, packet.dst) == (OUR_MAC, "33:33:00:00:00:01")
    assert (packet[IPv6].src, packet[IPv6].dst) == (ROUTER, "ff02::1")
    bodies = [bytearray(bytes(one[ICMPv6ND_RA])) for one in (packet, solicited)]
    for body in bodies:
        body[2:4] = b"\0\0"
    assert bodies[0] == bodies[1]


def test_the_prefix_has_no_bits_behind_its_length() -> None:
    """RFC 4861 §4.6.2, for an address whose own prefix is longer than 64 too."""
    view = assignments(own(ETH0, "2001:db8:1:2:3:4:5:6/128"), route("::/0", (ETH0, "fe80::a")))
    assert answered(solicitation(), view)[ICMPv6NDOptPrefixInfo].prefix == "2001:db8:1:2::"


def test_a_router_with_another_address_takes_its_leave() -> None:
    """In the name of the one before, with all that it had told; the new one has its own advertisement."""
    before, now = assignments(), assignments(*ORDINARY[:-3], route("::/0", (ETH0, "fe80::b")))
    frame = ra.farewell(before, now)
    assert frame is not None
    packet = read(frame)
    assert (packet[IPv6].src, packet[IPv6].dst, packet[ICMPv6ND_RA].routerlifetime) == (ROUTER, "ff02::1", 0)
    assert (packet[ICMPv6NDOptRDNSS].dns, packet[ICMPv6NDOptRDNSS].lifetime) == (["2001:db8::53"], 0)
    assert packet[ICMPv6NDOptDNSSL].lifetime == 0 and ICMPv6NDOptPrefixInfo not in packet


def test_resolvers_and_search_domains_that_end_are_taken_back() -> None:
    """Only those; the router stays what it is."""
    now = assignments(resolv_conf="nameserver 2001:db8::54\nsearch lab.example.org\n")
    packet = read(ra.farewell(assignments(), now) or b"")
    assert (packet[IPv6].src, packet[ICMPv6ND_RA].routerlifetime) == (ROUTER, 65535)
    assert (packet[ICMPv6NDOptRDNSS].dns, packet[ICMPv6NDOptRDNSS].lifetime) == (["2001:db8::53"], 0)
    assert (packet[ICMPv6NDOptDNSSL].searchlist, packet[ICMPv6NDOptDNSSL].lifetime) == (["example.org."], 0)


def test_what_only_grows_needs_no_farewell() -> None:
    more = assignments(resolv_conf=RESOLV_CONF + "nameserver 2001:db8::54\n")
    assert ra.farewell(assignments(), more) is None


def test_local_mode_advertises_a_router_without_prefix() -> None:
    """The guest keeps its link-local address and reaches the host through fe80::1."""
    packet = answered(solicitation(), netview.assign(NetworkSpec(contract="passt"), host()))
    assert (packet[IPv6].src, packet[ICMPv6ND_RA].M) == ("fe80::1", 0)
    assert options(packet) == [ICMPv6NDOptSrcLLAddr, ICMPv6NDOptMTU]


def test_who_has_left_ipv6_behind_is_no_router() -> None:
    """Cause: a guest that still has a route by IPv6 tries that first. Not so in the local mode of the start."""
    spec = NetworkSpec(contract="passt")
    now = netview.follow(spec, host(), assignments())
    packet = answered(solicitation(), now)
    prefix = packet[ICMPv6NDOptPrefixInfo]
    assert (packet[ICMPv6ND_RA].routerlifetime, prefix.validlifetime, prefix.preferredlifetime) == (0, 7200, 0)
    back = netview.follow(spec, host(*ORDINARY), now)
    assert answered(solicitation(), back)[ICMPv6ND_RA].routerlifetime == 65535


def test_search_domains_need_no_resolver() -> None:
    """They may serve resolvers that the guest knows from DHCP."""
    packet = answered(solicitation(), assignments(resolv_conf="nameserver 192.0.2.53\nsearch example.org"))
    assert ICMPv6NDOptRDNSS not in options(packet)
    assert packet[ICMPv6NDOptDNSSL].searchlist == ["example.org."]


@pytest.mark.parametrize(("mtu", "advertised"), [(0, None), (1279, None), (1280, 1280), (1500, 1500)])
def test_an_mtu_that_ipv6_can_use_is_advertised(mtu: int, advertised: int | None) -> None:
    """Not for --mtu 0, and none that every host would have to ignore."""
    packet = answered(solicitation(), assignments(mtu=mtu))
    assert (packet[ICMPv6NDOptMTU].mtu if ICMPv6NDOptMTU in packet else None) == advertised


def test_the_managed_flag_follows_dhcpv6() -> None:
    """A guest that is told to ask waits for an answer."""
    view = assignments()
    view.flags &= ~VIEW_DHCPV6
    assert answered(solicitation(), view)[ICMPv6ND_RA].M == 0


@pytest.mark.parametrize(("dns", "search"), [(False, True), (True, False), (False, False)])
def test_resolvers_and_search_domains_have_a_switch_each(dns: bool, search: bool) -> None:
    """--no-dhcp-dns, --no-dhcp-search."""
    view = assignments()
    view.dhcp_dns, view.dhcp_search = dns, search
    found = options(answered(solicitation(), view))
    assert (ICMPv6NDOptRDNSS in found, ICMPv6NDOptDNSSL in found) == (dns, search)


def test_the_longest_advertisement_passes_any_ipv6_link() -> None:
    """Three resolvers and a search list at its limits: below 1280 bytes."""
    text = "".join(f"nameserver 2001:db8::{n}\n" for n in (1, 2, 3))
    longer = "." + "y" * 63 + "." + "z" * 63
    text += f"search {' '.join(name + longer for name in ENDLESS_SEARCH)}\n"
    view = assignments(resolv_conf=text)
    assert len(view.search) == 5
    packet = answered(solicitation(), view)
    assert 1150 < len(bytes(packet[IPv6])) <= 1280
    assert [name.rstrip(".") for name in packet[ICMPv6NDOptDNSSL].searchlist] == list(view.search)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (solicitation(hop_limit=64), Ignored.FROM_AFAR),
        (solicitation(code=1), Ignored.NOT_OURS),
        (solicitation(tail=b"\1\0" + bytes(6)), Ignored.BAD_LENGTH),
        (solicitation(tail=b"\1\2" + bytes(6)), Ignored.TRUNCATED),
        (solicitation(tail=b"\1"), Ignored.TRUNCATED),
        (solicitation()[:60], Ignored.TRUNCATED),
        (solicitation()[:30], Ignored.TRUNCATED),
        (bytes(Ether() / IPv6(nh=58, hlim=255) / b"\x85\0\0\0"), Ignored.TRUNCATED),
        (bytes(Ether() / IPv6(nh=58, hlim=255)), Ignored.NOT_OURS),
        (bytes(Ether() / IPv6(nh=58, hlim=255) / b"\x87\0\0\0\0\0\0\0"), Ignored.NOT_OURS),
        (bytes(Ether() / IPv6(nh=17) / b"\x85\0\0\0\0\0\0\0"), Ignored.NOT_OURS),
        (bytes(Ether(type=0x86DD) / (b"\x45" + bytes(60))), Ignored.BAD_LENGTH),
    ],
)
def test_a_frame_without_an_answer_has_a_named_reason(frame: bytes, reason: Ignored) -> None:
    """RFC 4861 §6.1.1, and what is no solicitation."""
    assert ra.answer(frame, assignments()) is reason


def test_nothing_is_answered_when_advertisements_are_off() -> None:
    """--no-ra."""
    view = assignments()
    view.flags &= ~VIEW_RA
    assert ra.answer(solicitation(), view) is Ignored.DISABLED


def test_options_of_a_solicitation_and_padding_behind_it_do_not_matter() -> None:
    """An Ethernet address, an unknown option, and what fills a short frame."""
    tail = bytes(ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)) + b"\xee\1" + bytes(6)
    assert answered(solicitation(tail=tail) + bytes(20))[IPv6].dst == GUEST


def test_the_checksum_of_a_solicitation_is_not_asked_for() -> None:
    """With checksum offload it may be anything."""
    frame = bytearray(solicitation())
    frame[56:58] = b"\xba\xad"
    assert answered(bytes(frame))[IPv6].dst == GUEST


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=8), st.integers(0, 90), st.binary(max_size=40)
)
def test_no_frame_raises(changes: list[tuple[int, int]], length: int, tail: bytes) -> None:
    """Valid solicitations with changed bytes, cut anywhere, with anything for options."""
    hostile = bytearray(solicitation(tail=tail))
    for at, value in changes:
        hostile[at % len(hostile)] = value
    for data in (bytes(hostile), bytes(hostile[:length]), tail):
        assert isinstance(ra.answer(data, assignments()), Answer | Ignored)


def test_the_link_local_resolver_of_a_home_router_is_the_mapping() -> None:
    """fe80::a is router and resolver: the guest asks it where it already knows it."""
    packet = answered(solicitation(), assignments(resolv_conf="nameserver fe80::a%eth0"))
    assert packet[ICMPv6NDOptRDNSS].dns == ["fe80::a"]
