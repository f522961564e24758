# SPDX-License-Identifier: Apache-2.0
"""plugin/services/dhcp.py, with scapy as the other end, and with the parsers of muvm and libkrun as byte walks."""

from __future__ import annotations

from typing import Any

import pytest
from host_samples import ENDLESS_SEARCH, ETH0, WG0, assignments, ip, own, route
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from lockgate.plugin import address
from lockgate.plugin.netview import VIEW_DHCP, Assignments
from lockgate.plugin.services import dhcp, domain_name
from lockgate.plugin.services.frame import Answer, Ignored

GUEST_MAC = "5a:94:ef:e4:0c:ee"
OUR_MAC = "9a:55:9a:55:9a:55"
GUEST, GATEWAY = "192.0.2.7", "192.0.2.1"
COOKIE = b"\x63\x82\x53\x63"


def request(*options: Any, source: str = "0.0.0.0", destination: str = "255.255.255.255", **fields: Any) -> bytes:
    """A frame as a client sends it, built by scapy."""
    bootp = {"op": 1, "htype": 1, "hlen": 6, "xid": 0x01020304, "chaddr": bytes.fromhex(GUEST_MAC.replace(":", ""))}
    packet = (
        Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff")
        / IP(src=source, dst=destination)
        / UDP(sport=68, dport=67)
        / BOOTP(**{**bootp, **fields})
    )
    return bytes(packet / DHCP(options=[*options, "end"]) if options else packet)


def discover(*options: Any, **fields: Any) -> bytes:
    return request(("message-type", "discover"), *options, **fields)


def wanting(*options: Any, **fields: Any) -> bytes:
    return request(("message-type", "request"), *options, **fields)


def answered(frame: bytes, view: Assignments | None = None) -> tuple[str, Any]:
    """The event, and the reply as scapy reads it; all lengths and checksums are right."""
    answer = dhcp.answer(frame, view or assignments())
    assert isinstance(answer, Answer), answer
    reply = Ether(answer.frame)
    again = reply.copy()
    del again[IP].chksum, again[IP].len, again[UDP].chksum, again[UDP].len
    assert bytes(again) == answer.frame
    assert (reply[UDP].sport, reply[UDP].dport, reply[IP].ttl, reply[IP].id) == (67, 68, 255, 0)
    return answer.event, reply


def ignored(frame: bytes, view: Assignments | None = None) -> Ignored:
    reason = dhcp.answer(frame, view or assignments())
    assert isinstance(reason, Ignored), reason
    return reason


def message(frame: bytes) -> bytes:
    return bytes(Ether(frame)[UDP].payload)


def options_of(reply: Any) -> dict[int, bytes]:
    """The options in their order, by a walk that knows no Pad; nothing but zeros after the End."""
    data, at, found = bytes(reply[UDP].payload), 240, {}
    assert data[236:240] == COOKIE
    while data[at] != 255:
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    assert not any(data[at + 1 :])
    return found


def test_a_discover_gets_an_offer() -> None:
    """All that an ordinary client needs, from the gateway, to the address that it will have."""
    event, reply = answered(discover(secs=3))
    assert event == "dhcp.offer"
    assert (reply.src, reply.dst, reply[IP].src, reply[IP].dst) == (OUR_MAC, GUEST_MAC, GATEWAY, GUEST)
    bootp = reply[BOOTP]
    assert (bootp.op, bootp.htype, bootp.hlen, bootp.xid, bootp.secs, bootp.hops) == (2, 1, 6, 0x01020304, 0, 0)
    assert (bootp.yiaddr, bootp.ciaddr, bootp.siaddr, bootp.giaddr) == (GUEST, "0.0.0.0", "0.0.0.0", "0.0.0.0")
    assert bootp.chaddr[:6].hex(":") == GUEST_MAC
    decoded: dict[str, Any] = dict(option[:2] for option in reply[DHCP].options if isinstance(option, tuple))
    assert decoded["message-type"] == 2
    assert (decoded["server_id"], decoded["router"], decoded["subnet_mask"]) == (GATEWAY, GATEWAY, "255.255.255.0")
    assert (decoded["name_server"], decoded["interface-mtu"], decoded["lease_time"]) == ("192.0.2.53", 65520, 2**32 - 1)


def test_the_request_after_the_offer_gets_an_ack() -> None:
    """SELECTING: server and address as offered."""
    event, reply = answered(wanting(("server_id", GATEWAY), ("requested_addr", GUEST)))
    assert (event, options_of(reply)[53], reply[BOOTP].yiaddr) == ("dhcp.ack", b"\5", GUEST)


def test_the_broadcast_flag_sends_the_reply_to_all() -> None:
    """At IP; the Ethernet destination stays the guest, which is alone on the link."""
    _, reply = answered(discover(flags=0x8000))
    assert (reply[IP].dst, reply.dst, reply[BOOTP].flags) == ("255.255.255.255", GUEST_MAC, 0x8000)


def test_rapid_commit_gets_an_ack_at_once() -> None:
    """RFC 4039: the ACK repeats the empty option."""
    event, reply = answered(discover((80, b"")))
    found = options_of(reply)
    assert (event, found[53], found[80]) == ("dhcp.rapid_ack", b"\5", b"")
    assert 80 not in options_of(answered(wanting(("requested_addr", GUEST), (80, b"")))[1])


@pytest.mark.parametrize("fields", [{"ciaddr": GUEST, "source": GUEST}, {"ciaddr": GUEST, "destination": GATEWAY}])
def test_a_renewal_is_confirmed_to_the_address_itself(fields: dict[str, str]) -> None:
    """RENEWING and REBINDING: the address is in ciaddr, and is answered there."""
    event, reply = answered(wanting(flags=0x8000, **fields))
    assert (event, reply[IP].dst, reply[BOOTP].ciaddr, reply[BOOTP].yiaddr) == ("dhcp.ack", GUEST, GUEST, GUEST)


def test_a_rebooted_client_is_confirmed_in_its_address() -> None:
    """INIT-REBOOT: no server is named."""
    assert answered(wanting(("requested_addr", GUEST)))[0] == "dhcp.ack"


@pytest.mark.parametrize(
    "frame",
    [
        wanting(("requested_addr", "10.0.0.9")),
        wanting(("requested_addr", "10.0.0.9"), ("server_id", GATEWAY)),
        wanting(ciaddr="10.0.0.9", source="10.0.0.9"),
    ],
    ids=["init-reboot", "selecting", "renewing"],
)
def test_a_request_for_another_address_is_refused(frame: bytes) -> None:
    """A NAK to all, without an address and without configuration: the client starts afresh."""
    event, reply = answered(frame)
    assert (event, reply[IP].dst, reply.dst) == ("dhcp.nak", "255.255.255.255", GUEST_MAC)
    assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr) == ("0.0.0.0", "0.0.0.0")
    assert options_of(reply) == {53: b"\6", 54: bytes((192, 0, 2, 1))}


def test_a_request_that_names_no_address_is_confirmed() -> None:
    """Against the RFC, and there is only one that it can mean."""
    assert answered(wanting(("server_id", GATEWAY)))[0] == "dhcp.ack"


def test_an_inform_gets_configuration_and_no_address() -> None:
    """RFC 2131 §4.3.5: to ciaddr, with neither yiaddr nor lease."""
    inform = ("message-type", "inform")
    event, reply = answered(request(inform, ciaddr="192.0.2.99", source="192.0.2.99"))
    found = options_of(reply)
    assert (event, reply[IP].dst, reply[BOOTP].yiaddr) == ("dhcp.inform_ack", "192.0.2.99", "0.0.0.0")
    assert (found[53], 51 in found, 6 in found) == (b"\5", False, True)
    assert answered(request(inform))[1][IP].dst == "255.255.255.255"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (wanting(("server_id", "192.0.2.200"), ("requested_addr", GUEST)), Ignored.OTHER_SERVER),
        (request(("message-type", "release"), ciaddr=GUEST), Ignored.RELEASED),
        (request(("message-type", "decline"), ("requested_addr", GUEST)), Ignored.DECLINED),
        (request(("message-type", "offer")), Ignored.NOT_A_REQUEST),
        (discover(op=2), Ignored.NOT_A_REQUEST),
        (discover(giaddr="192.0.2.7"), Ignored.RELAYED),
        (discover(hlen=17), Ignored.BAD_LENGTH),
        (request((53, b"\1\1")), Ignored.BAD_LENGTH),
        (wanting((50, b"\1\2\3")), Ignored.BAD_LENGTH),
        (wanting((54, b"\1\2\3\4\5")), Ignored.BAD_LENGTH),
        (bytes(Ether() / IP() / UDP(sport=68, dport=53) / (b"x" * 300)), Ignored.NOT_OURS),
        (bytes(Ether() / IP(proto=6) / (b"x" * 300)), Ignored.NOT_OURS),
        (bytes(Ether(type=0x806) / (b"x" * 300)), Ignored.NOT_OURS),
        (bytes(Ether() / IP(flags="MF") / UDP(dport=67) / (b"x" * 300)), Ignored.FRAGMENT),
        (bytes(Ether() / IP(frag=1) / UDP(dport=67) / (b"x" * 300)), Ignored.FRAGMENT),
        (bytes(Ether() / IP() / UDP(dport=67, len=7) / (b"x" * 300)), Ignored.BAD_LENGTH),
        (bytes(Ether() / IP(ihl=4) / UDP(dport=67)), Ignored.BAD_LENGTH),
        (bytes(Ether() / IP(len=2000) / UDP(dport=67) / (b"x" * 300)), Ignored.TRUNCATED),
        (bytes(Ether() / IP() / UDP(dport=67, len=2000) / (b"x" * 300)), Ignored.TRUNCATED),
        (bytes(Ether() / IP() / UDP(dport=67) / bytes((1,) * 235)), Ignored.TRUNCATED),
        (b"", Ignored.TRUNCATED),
    ],
)
def test_a_frame_without_an_answer_has_a_named_reason(frame: bytes, reason: Ignored) -> None:
    """Malformed, for somebody else, or in no need of words."""
    assert ignored(frame) is reason


def test_an_option_that_is_longer_than_the_message_drops_it() -> None:
    """A length byte is not believed."""
    frame = discover()
    udp = bytearray(message(frame))
    body = bytes(udp[:240]) + bytes((53, 1, 1, 12, 200)) + b"short"
    packet = Ether(src=GUEST_MAC) / IP() / UDP(sport=68, dport=67) / body
    assert ignored(bytes(packet)) is Ignored.TRUNCATED


def test_nothing_is_answered_when_dhcp_is_off() -> None:
    """--no-dhcp, or no IPv4 address or router to hand out."""
    view = assignments()
    view.flags &= ~VIEW_DHCP
    assert ignored(discover(), view) is Ignored.DISABLED


def test_options_follow_the_parameter_list() -> None:
    """What says that it is an answer, then what was asked for in its order, then the rest in ascending order."""
    wide = assignments(own(WG0, "10.8.0.2/32"), route("0.0.0.0/0", (WG0, "")))
    _, reply = answered(discover(("param_req_list", [121, 119, 6, 6, 200, 1])), wide)
    assert list(options_of(reply)) == [53, 54, 51, 121, 119, 6, 1, 3, 26]
    assert list(options_of(answered(discover(), wide)[1])) == [53, 54, 51, 1, 3, 6, 26, 119, 121]


def test_the_client_identifier_comes_back() -> None:
    """RFC 6842, in a NAK too."""
    identifier = b"\xff\1\2\3\4\0\1\0\1\x20\x20"
    assert options_of(answered(discover((61, identifier)))[1])[61] == identifier
    assert options_of(answered(wanting((61, identifier), ("requested_addr", "10.0.0.9")))[1])[61] == identifier


def test_an_option_in_several_parts_is_put_together() -> None:
    """RFC 3396, for a list that is split, with Pads between the parts, and without an End."""
    body = message(discover())[:240] + bytes((53, 1, 1, 55, 1, 6, 0, 0, 55, 1, 3))
    _, reply = answered(bytes(Ether(src=GUEST_MAC) / IP() / UDP(sport=68, dport=67) / body))
    assert list(options_of(reply))[3:5] == [6, 3]


def test_options_in_the_name_fields_are_read() -> None:
    """RFC 2131 §4.1: option 52 says that sname and file hold options; file comes first."""
    frame = request((52, b"\3"), sname=bytes((50, 4, 10, 0, 0, 9, 255)), file=bytes((53, 1, 3, 255)))
    assert answered(frame)[0] == "dhcp.nak"


def test_an_mtu_of_zero_is_not_handed_out() -> None:
    """--mtu 0."""
    assert 26 not in options_of(answered(discover(), assignments(mtu=0))[1])
    assert options_of(answered(discover(), assignments(mtu=1500))[1])[26] == (1500).to_bytes(2)


def test_no_resolvers_mean_no_option() -> None:
    """An empty option 6 or 119 would be malformed."""
    found = options_of(answered(discover(), assignments(resolv_conf=""))[1])
    assert 6 not in found and 119 not in found


@pytest.mark.parametrize(("dns", "search"), [(False, True), (True, False), (False, False)])
def test_resolvers_and_search_domains_have_a_switch_each(dns: bool, search: bool) -> None:
    """--no-dhcp-dns, --no-dhcp-search."""
    view = assignments()
    view.dhcp_dns, view.dhcp_search = dns, search
    found = options_of(answered(discover(("param_req_list", [6, 119])), view)[1])
    assert (6 in found, 119 in found) == (dns, search)


def test_the_guest_is_told_its_name() -> None:
    """Option 12 as text, option 81 in wire format (RFC 4702: flag E, result codes of a server), each if known."""
    view = assignments()
    view.hostname = "vm"
    found = options_of(answered(discover(), view)[1])
    assert (found[12], 81 in found) == (b"vm", False)
    view.hostname, view.fqdn = "", "vm.example.org"
    found = options_of(answered(wanting(("param_req_list", [81, 3]), ("requested_addr", GUEST)), view)[1])
    assert (found[81], 12 in found) == (b"\4\xff\xff\2vm\7example\3org\0", False)
    assert list(found)[3:5] == [81, 3]


def test_names_leave_room_for_what_the_guest_needs() -> None:
    """The longest ones, asked for first: mask, router, resolvers and MTU are there, then the names that still fit."""
    view = assignments()
    view.hostname = ".".join(["h" * 62] * 4)
    view.fqdn = view.hostname + ".x"
    _, reply = answered(discover((61, b"i" * 9), ("param_req_list", [12, 81, 119])), view)
    found = options_of(reply)
    assert len(bytes(reply[UDP].payload)) <= 548
    assert {1, 3, 6, 26, 51, 53, 54, 61} <= set(found)
    assert (found[12], 81 in found) == (view.hostname.encode(), False)
    view.hostname = ""
    assert 81 not in options_of(answered(discover(), view)[1])  # one byte too long for any option
    view.fqdn = view.fqdn[5:]
    assert 81 in options_of(answered(discover(), view)[1])


def test_a_router_outside_the_subnet_comes_with_routes() -> None:
    """Option 121: the router itself first, on the link; then the default route through it."""
    wide = assignments(own(WG0, "10.8.0.2/32"), route("0.0.0.0/0", (WG0, "")))
    found = options_of(answered(discover(), wide)[1])
    gateway = bytes((169, 254, 2, 2))
    assert found[121] == bytes((32,)) + gateway + bytes(4) + bytes((0,)) + gateway
    assert (found[1], found[3]) == (b"\xff" * 4, gateway)
    assert 121 not in options_of(answered(discover())[1])


def test_bootp_gets_its_three_hundred_bytes() -> None:
    """RFC 1534: an address and configuration without DHCP's own options, with or without a cookie in the request."""
    for frame in (request(options=COOKIE), request(), request(options=b"")):
        event, reply = answered(frame)
        assert (event, reply[BOOTP].yiaddr, reply[IP].dst) == ("dhcp.bootp", GUEST, GUEST)
        assert len(bytes(reply[UDP].payload)) == 300
        assert not {50, 51, 53, 54, 80} & set(options_of(reply))
        assert {1, 3, 6} <= set(options_of(reply))
    known = answered(request(ciaddr="192.0.2.99"))[1]
    assert (known[IP].dst, known[BOOTP].ciaddr) == ("192.0.2.99", "192.0.2.99")


def test_the_search_list_shares_its_endings() -> None:
    """RFC 3397 with the compression of RFC 1035."""
    found = options_of(answered(discover())[1])
    assert found[119] == b"\x07example\x03org\0" + b"\x03lab\xc0\0"


def expand(data: bytes) -> list[str]:
    """Reference reader of RFC 1035 names with pointers that only go back."""
    names, at = [], 0
    while at < len(data):
        labels, here, after = [], at, 0
        while data[here]:
            if data[here] >= 0xC0:
                after = after or here + 2
                target = (data[here] & 63) << 8 | data[here + 1]
                assert target < here
                here = target
            else:
                labels.append(data[here + 1 : here + 1 + data[here]].decode())
                here += 1 + data[here]
        at = after or here + 1
        names.append(".".join(labels))
    return names


LABEL = st.text("abx", min_size=1, max_size=3) | st.just("y" * 63)
DOMAINS = st.lists(st.lists(LABEL, min_size=1, max_size=3).map(".".join), max_size=6, unique=True)


@settings(deadline=None)
@given(DOMAINS, st.integers(-10, 400))
def test_a_search_list_is_read_back_as_it_was(domains: list[str], room: int) -> None:
    """As many whole names as there is room for, from the first on."""
    encoded = domain_name.encode_compressed(domains, room)
    names = expand(encoded)
    assert len(encoded) <= max(room, 0)
    assert names == domains[: len(names)]
    if room == 400 and sum(map(len, domains)) < 300:
        assert names == domains


@settings(deadline=None)
@given(
    st.integers(1, 8),
    st.binary(max_size=255),
    st.binary(max_size=300),
    st.integers(0, 6),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_every_reply_fits_a_buffer_of_576_bytes(
    kind: int, parameters: bytes, identifier: bytes, domains: int, servers: int, far: bool, rapid: bool
) -> None:
    """300 to 548 bytes whatever was asked for; what defines the reply is always there; no Pad before the End."""
    text = "".join(f"nameserver 192.0.2.{n + 10}\n" for n in range(servers))
    text += f"search {' '.join(ENDLESS_SEARCH[:domains])}\n"
    gateway = "198.51.100.1" if far else GATEWAY
    view = assignments(own(ETH0, "192.0.2.7/24"), route("0.0.0.0/0", (ETH0, gateway)), resolv_conf=text)
    options = [(55, parameters)] + [(61, identifier[at : at + 255]) for at in range(0, len(identifier), 255)]
    frame = request(("message-type", kind), *options, *([(80, b"")] if rapid else []))
    if isinstance(dhcp.answer(frame, view), Ignored):
        assert kind not in (1, 3, 8)
        return
    _, reply = answered(frame, view)
    assert 300 <= len(bytes(reply[UDP].payload)) <= 548
    found = options_of(reply)
    assert list(found)[:2] == [53, 54]
    if len(identifier) < 150:
        assert {1, 3, 26} <= set(found)
        assert (6 in found, 121 in found, 119 in found) == (servers > 0, far, domains > 0)


VALID = [discover((80, b"")), wanting(("requested_addr", GUEST), ("server_id", GATEWAY)), request(options=COOKIE)]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 340), st.integers(0, 255)), max_size=8),
    st.integers(0, 400),
)
def test_no_frame_raises(frame: bytes, changes: list[tuple[int, int]], length: int) -> None:
    """Valid requests with changed bytes, cut anywhere."""
    hostile = bytearray(frame)
    for at, value in changes:
        hostile[at % len(hostile)] = value
    for data in (bytes(hostile), bytes(hostile[:length])):
        assert isinstance(dhcp.answer(data, assignments()), Answer | Ignored)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_no_options_raise(noise: bytes) -> None:
    """Any bytes behind a valid cookie."""
    packet = Ether(src=GUEST_MAC) / IP() / UDP(sport=68, dport=67) / (message(VALID[0])[:240] + noise)
    assert isinstance(dhcp.answer(bytes(packet), assignments()), Answer | Ignored)


def test_the_largest_message_of_tiny_options_is_read_once() -> None:
    """65 kB of one-byte parts of the same option make one parameter list."""
    body = message(discover())[:240] + bytes((53, 1, 1)) + bytes((55, 1, 6)) * 21700
    _, reply = answered(bytes(Ether(src=GUEST_MAC) / IP() / UDP(sport=68, dport=67) / body))
    assert list(options_of(reply))[3] == 6


# What muvm and libkrun do with a reply, after the contract; neither reads more than 576 bytes.


def muvm_discover() -> bytes:
    bootp = bytes((1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0)) + bytes(24) + bytes(200)
    body = (bootp + COOKIE + bytes((53, 1, 1, 80, 0, 255))).ljust(300, b"\0")
    ends = IP(src="169.254.1.1", dst="255.255.255.255") / UDP(sport=68, dport=67)
    return bytes(Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ends / body)


def muvm_configures(reply: bytes) -> dict[str, Any]:
    """Takes the first datagram whatever its type; its walk takes each byte but 255 for an option with a length."""
    data, at = reply[:576], 240
    found: dict[str, Any] = {"address": data[16:20]}
    while data[at] != 255:
        code, length = data[at], data[at + 1]
        if code in (1, 3, 6, 26):
            found[str(code)] = data[at + 2 : at + 2 + length]
        at += 2 + length
    return found


def test_muvm_is_configured_by_one_reply() -> None:
    """It has chaddr zero, comes from 169.254.1.1, and takes what it gets within 100 ms."""
    event, reply = answered(muvm_discover())
    assert (event, reply.dst, reply[IP].dst) == ("dhcp.rapid_ack", GUEST_MAC, "255.255.255.255")
    found = muvm_configures(bytes(reply[UDP].payload))
    assert found == {
        "address": bytes((192, 0, 2, 7)),
        "1": bytes((255, 255, 255, 0)),
        "3": bytes((192, 0, 2, 1)),
        "6": bytes((192, 0, 2, 53)),
        "26": (65520).to_bytes(2),
    }


def test_muvm_is_configured_in_local_mode() -> None:
    """On a host without network."""
    view = assignments(own(ETH0, "fe80::7/64", scope=253))
    found = muvm_configures(bytes(answered(muvm_discover(), view)[1][UDP].payload))
    assert (found["address"], found["3"]) == (bytes((169, 254, 2, 1)), bytes((169, 254, 2, 2)))


def libkrun_message(kind: int, *extra: bytes) -> bytes:
    options = bytes((53, 1, kind)) + b"".join(extra) + b"\xff"
    bootp = bytes((1, 1, 6, 0, 0, 0, 4, 0xD2, 0, 0, 0x80, 0)) + bytes(16) + bytes.fromhex(GUEST_MAC.replace(":", ""))
    body = (bootp.ljust(236, b"\0") + COOKIE + options).ljust(300, b"\0")
    ends = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    return bytes(Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ends / body)


def libkrun_reads(reply: Any) -> tuple[int, dict[int, bytes]]:
    """Type and options; its walk steps over Pads and stops at 576 bytes."""
    data, at, found = bytes(reply[UDP].payload)[:576], 240, {}
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found[53][0], found


def test_libkrun_is_configured_with_and_without_rapid_commit() -> None:
    """An ACK to the DISCOVER, or an OFFER and then an ACK to a REQUEST that names the source of the offer as server."""
    _, reply = answered(libkrun_message(1, bytes((80, 0))))
    kind, found = libkrun_reads(reply)
    assert (kind, found[3], found[6], found[26]) == (5, b"\xc0\0\2\1", b"\xc0\0\2\x35", (65520).to_bytes(2))
    _, offer = answered(libkrun_message(1))
    assert libkrun_reads(offer)[0] == 2
    offered = address.parse_ipv4(offer[BOOTP].yiaddr) or b""
    server = address.parse_ipv4(offer[IP].src) or b""
    event, ack = answered(libkrun_message(3, bytes((50, 4)) + offered[12:], bytes((54, 4)) + server[12:]))
    assert (event, libkrun_reads(ack)[0], ack[BOOTP].yiaddr) == ("dhcp.ack", 5, GUEST)
    assert ip(ack[BOOTP].yiaddr) == offered
