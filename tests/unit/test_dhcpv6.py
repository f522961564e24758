# SPDX-License-Identifier: Apache-2.0
"""plugin/services/dhcpv6.py, with scapy as the other end."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from host_samples import ENDLESS_SEARCH, assignments, host, ip
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Decline,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_RelayForward,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptElapsedTime,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIA_TA,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
    DHCP6OptPref,
    DHCP6OptRapidCommit,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
    DHCP6OptUnknown,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from lockgate.plugin import address, netview
from lockgate.plugin.netview import VIEW_DHCPV6, Assignments
from lockgate.plugin.services import dhcpv6
from lockgate.plugin.services.frame import Answer, Ignored
from lockgate.plugin.spec import NetworkSpec

GUEST_MAC = "5a:94:ef:e4:0c:ee"
OUR_MAC = "9a:55:9a:55:9a:55"
ROUTER = "fe80::a"
GUEST = "fe80::5894:efff:fee4:cee"
ASSIGNED = "2001:db8::7"
OTHER = "2001:db8:f::99"
INFINITE = 2**32 - 1

CLIENT_ID = DHCP6OptClientId(duid=DUID_LL(lladdr=GUEST_MAC))
SERVER_ID = DHCP6OptServerId(duid=DUID_LL(lladdr=OUR_MAC))
OTHER_SERVER_ID = DHCP6OptServerId(duid=DUID_LL(lladdr="02:00:00:00:00:99"))
RAPID_COMMIT = DHCP6OptRapidCommit()

NA, TA, PD = 3, 4, 25  # codes of the options that hold IAs
ADDRESS, STATUS = 5, 13
ANY_SERVER = [DHCP6_Solicit, DHCP6_Confirm, DHCP6_Rebind]
ONE_SERVER = [DHCP6_Request, DHCP6_Renew, DHCP6_Release, DHCP6_Decline]


def ends(source: str = GUEST, destination: str = "ff02::1:2") -> Any:
    return Ether(src=GUEST_MAC, dst="33:33:00:01:00:02") / IPv6(src=source, dst=destination) / UDP(sport=546, dport=547)


def message(kind: Any, *options: Any, client: Any = CLIENT_ID, **addresses: str) -> bytes:
    """A frame as a client sends it; its identifier comes first."""
    packet = ends(**addresses) / kind(trid=0x010203)
    for option in (client, *options):
        packet = packet / option if option is not None else packet
    return bytes(packet)


def raw(payload: bytes) -> bytes:
    return bytes(ends() / payload)


def ia(*addresses: str, iaid: int = 7) -> Any:
    named = [DHCP6OptIAAddress(addr=one, preflft=1, validlft=2) for one in addresses]
    return DHCP6OptIA_NA(iaid=iaid, T1=0, T2=0, ianaopts=named)


def answered(frame: bytes, view: Assignments | None = None) -> tuple[dict[str, str], Any]:
    """What is told of it, and the reply as scapy reads it: lengths, checksum, ends and identifiers are right."""
    answer = dhcpv6.answer(frame, view or assignments())
    assert isinstance(answer, Answer), answer
    reply = Ether(answer.frame)
    again = reply.copy()
    del again[IPv6].plen, again[UDP].len, again[UDP].chksum
    assert bytes(again) == answer.frame
    assert (reply.src, reply.dst) == (OUR_MAC, GUEST_MAC)
    assert (reply[IPv6].src, reply[IPv6].dst) == (ROUTER, address.to_text(frame[22:38]))
    assert (reply[UDP].sport, reply[UDP].dport) == (547, 546)
    assert bytes(reply[UDP].payload)[1:4] == b"\1\2\3"
    assert bytes(reply[DHCP6OptServerId].duid) == bytes(SERVER_ID.duid)
    assert answer.fields.pop("mac") == GUEST_MAC
    return {"event": answer.event, **answer.fields}, reply


def ignored(frame: bytes, view: Assignments | None = None) -> Ignored:
    reason = dhcpv6.answer(frame, view or assignments())
    assert isinstance(reason, Ignored), reason
    return reason


def walk(data: bytes) -> list[tuple[int, bytes]]:
    """Reference reader of options."""
    found = []
    while data:
        code, length = struct.unpack_from("!HH", data)
        assert len(data) >= 4 + length
        found.append((code, data[4 : 4 + length]))
        data = data[4 + length :]
    return found


def options(reply: Any) -> list[tuple[int, bytes]]:
    return walk(bytes(reply[UDP].payload)[4:])


def codes(reply: Any) -> list[int]:
    return [code for code, _ in options(reply)]


def associations(reply: Any) -> list[tuple[int, int, list[tuple[int, bytes]]]]:
    """Kind and number of each IA in the reply, and the options in it."""
    found = []
    for code, value in options(reply):
        if code in (NA, TA, PD):
            if code != TA:
                assert value[4:12] == b"\xff" * 8  # T1 and T2: never
            found.append((code, int.from_bytes(value[:4]), walk(value[4 if code == TA else 12 :])))
    return found


def lease(text: str, lifetime: int = INFINITE) -> tuple[int, bytes]:
    return ADDRESS, struct.pack("!16sII", ip(text), lifetime, lifetime)


def status(reply: Any) -> int | None:
    """The code of the status outside of IAs."""
    return next((int.from_bytes(value[:2]) for code, value in options(reply) if code == STATUS), None)


def test_a_solicit_gets_an_advertise() -> None:
    """With all that an ordinary client needs, and so that it does not wait for other servers."""
    asked = DHCP6OptOptReq(reqopts=[23, 24]), DHCP6OptElapsedTime()
    told, reply = answered(message(DHCP6_Solicit, ia(), *asked))
    assert told == {"event": "dhcpv6.advertise", "address": ASSIGNED}
    assert DHCP6_Advertise in reply and reply[DHCP6OptPref].prefval == 255
    assert bytes(reply[DHCP6OptClientId].duid) == bytes(CLIENT_ID.duid)
    given = reply[DHCP6OptIA_NA]
    assert (given.iaid, given.T1, given.T2, len(given.ianaopts)) == (7, INFINITE, INFINITE, 1)
    leased = given.ianaopts[0]
    assert (leased.addr, leased.preflft, leased.validlft) == (ASSIGNED, INFINITE, INFINITE)
    assert reply[DHCP6OptDNSServers].dnsservers == ["2001:db8::53"]
    assert reply[DHCP6OptDNSDomains].dnsdomains == ["example.org.", "lab.example.org."]
    assert DHCP6OptRapidCommit not in reply and DHCP6OptStatusCode not in reply


def test_rapid_commit_gets_a_reply_at_once() -> None:
    """RFC 8415 §18.3.1: the reply repeats the empty option. Where nothing is committed, it is an ordinary ADVERTISE."""
    told, reply = answered(message(DHCP6_Solicit, RAPID_COMMIT, ia()))
    assert told == {"event": "dhcpv6.rapid_reply", "address": ASSIGNED}
    assert DHCP6_Reply in reply and DHCP6OptRapidCommit in reply and DHCP6OptPref not in reply
    assert associations(reply) == [(NA, 7, [lease(ASSIGNED)])]
    assert DHCP6_Advertise in answered(message(DHCP6_Solicit, RAPID_COMMIT))[1]
    assert DHCP6OptRapidCommit not in answered(message(DHCP6_Request, SERVER_ID, RAPID_COMMIT, ia()))[1]


@pytest.mark.parametrize("named", [(), (ASSIGNED,)])
@pytest.mark.parametrize("kind", [DHCP6_Request, DHCP6_Renew, DHCP6_Rebind], ids=lambda kind: kind.__name__)
def test_the_assigned_address_is_given_for_ever(kind: Any, named: tuple[str, ...]) -> None:
    """To who asks for it and to who leaves the choice to us; the number of the IA comes back."""
    server = [] if kind is DHCP6_Rebind else [SERVER_ID]
    told, reply = answered(message(kind, *server, ia(*named, iaid=0xFFFFFFFF)))
    assert told == {"event": "dhcpv6.reply", "address": ASSIGNED}
    assert DHCP6_Reply in reply and DHCP6OptPref not in reply and status(reply) is None
    assert associations(reply) == [(NA, 0xFFFFFFFF, [lease(ASSIGNED)])]
    assert {1, 2, 23, 24} <= set(codes(reply))


def test_a_hint_in_a_solicit_binds_nobody() -> None:
    """Another address is answered with ours."""
    assert associations(answered(message(DHCP6_Solicit, ia(OTHER)))[1]) == [(NA, 7, [lease(ASSIGNED)])]
    rapid = answered(message(DHCP6_Solicit, RAPID_COMMIT, ia(OTHER)))
    assert rapid[0]["event"] == "dhcpv6.rapid_reply"
    assert associations(rapid[1]) == [(NA, 7, [lease(ASSIGNED)])]


@pytest.mark.parametrize("named", [(OTHER,), (ASSIGNED, OTHER), (OTHER, OTHER, ASSIGNED)])
@pytest.mark.parametrize("kind", [DHCP6_Request, DHCP6_Renew], ids=lambda kind: kind.__name__)
def test_a_request_for_another_address_is_refused_in_its_ia(kind: Any, named: tuple[str, ...]) -> None:
    """NotOnLink, and no address; whoever renews hears that the old one is not valid any more."""
    told, reply = answered(message(kind, SERVER_ID, ia(*named)))
    assert told == {"event": "dhcpv6.not_on_link", "refused": OTHER}
    ((kind_of_ia, iaid, (first, *gone)),) = associations(reply)
    assert (kind_of_ia, iaid, first[0], first[1][:2]) == (NA, 7, STATUS, b"\0\4")
    assert gone == ([lease(OTHER, 0)] if kind is DHCP6_Renew else [])
    assert status(reply) is None


def test_a_rebind_of_another_address_gets_ours_in_exchange() -> None:
    """RFC 8415 §18.3.5: the other one comes back with lifetimes of zero."""
    told, reply = answered(message(DHCP6_Rebind, ia(OTHER)))
    assert told == {"event": "dhcpv6.reply", "address": ASSIGNED}
    assert associations(reply) == [(NA, 7, [lease(ASSIGNED), lease(OTHER, 0)])]


def test_a_confirm_is_answered_by_a_status_alone() -> None:
    """Success for our address, NotOnLink if there is any other in any IA; an IA is not in the answer."""
    told, reply = answered(message(DHCP6_Confirm, ia(ASSIGNED)))
    assert (told["event"], status(reply), associations(reply)) == ("dhcpv6.confirm", 0, [])
    for wrong in ([ia(OTHER)], [ia(ASSIGNED, OTHER)], [ia(ASSIGNED), ia(OTHER, iaid=8)]):
        told, reply = answered(message(DHCP6_Confirm, *wrong))
        assert told == {"event": "dhcpv6.not_on_link", "refused": OTHER}
        assert (status(reply), associations(reply)) == (4, [])


def test_an_information_request_gets_information_only() -> None:
    """No IA; with and without a client identifier, which comes back if there was one."""
    told, reply = answered(message(DHCP6_InfoRequest, DHCP6OptOptReq(reqopts=[23])))
    assert told == {"event": "dhcpv6.information"}
    assert DHCP6_Reply in reply and codes(reply) == [2, 1, 23, 24]
    assert codes(answered(message(DHCP6_InfoRequest, client=None))[1]) == [2, 23, 24]
    assert codes(answered(message(DHCP6_InfoRequest, SERVER_ID, client=None))[1]) == [2, 23, 24]


@pytest.mark.parametrize(
    ("kind", "event"),
    [(DHCP6_Release, "dhcpv6.release"), (DHCP6_Decline, "dhcpv6.decline")],
    ids=["release", "decline"],
)
def test_what_is_given_back_is_taken(kind: Any, event: str) -> None:
    """RFC 8415 §18.3.7 and §18.3.8: success and nothing else, but that there never was a prefix."""
    for given_back in (ia(ASSIGNED), ia(OTHER), ia()):
        told, reply = answered(message(kind, SERVER_ID, given_back))
        assert told == {"event": event}
        assert (status(reply), codes(reply)) == (0, [2, 1, STATUS])
    _, reply = answered(message(kind, SERVER_ID, ia(ASSIGNED), DHCP6OptIA_PD(iaid=9, T1=0, T2=0)))
    ((code, iaid, (inner,)),) = associations(reply)
    assert (code, iaid, inner[0], inner[1][:2], status(reply)) == (PD, 9, STATUS, b"\0\3", 0)


def test_there_is_no_ia_for_who_asks_for_none() -> None:
    """A SOLICIT or REQUEST for other things."""
    for frame in (message(DHCP6_Solicit), message(DHCP6_Request, SERVER_ID)):
        told, reply = answered(frame)
        assert associations(reply) == [] and "address" not in told


@pytest.mark.parametrize(
    "frame",
    [
        message(kind, *server, *(ia(iaid=1), DHCP6OptIA_TA(iaid=2), DHCP6OptIA_PD(iaid=3, T1=0, T2=0), ia(iaid=4)))
        for kind, server in ((DHCP6_Solicit, []), (DHCP6_Request, [SERVER_ID]), (DHCP6_Rebind, []))
    ],
    ids=["solicit", "request", "rebind"],
)
def test_of_several_ias_one_gets_the_address(frame: bytes) -> None:
    """The first IA_NA; the others hear that there are no addresses, or no prefixes."""
    first, *others = associations(answered(frame)[1])
    assert first == (NA, 1, [lease(ASSIGNED)])
    assert [(code, iaid, [(one, value[:2]) for one, value in inner]) for code, iaid, inner in others] == [
        (TA, 2, [(STATUS, b"\0\2")]),
        (PD, 3, [(STATUS, b"\0\6")]),
        (NA, 4, [(STATUS, b"\0\2")]),
    ]


@pytest.mark.parametrize("source", [GUEST, "2001:db8::99"])
def test_the_reply_goes_where_the_request_came_from(source: str) -> None:
    """To its real source, at the port of clients."""
    assert answered(message(DHCP6_Solicit, ia(), source=source))[1][IPv6].dst == source


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        *((message(kind, SERVER_ID, ia(ASSIGNED)), Ignored.MISPLACED_OPTION) for kind in ANY_SERVER),
        *((message(kind, ia(ASSIGNED)), Ignored.MISSING_OPTION) for kind in ONE_SERVER),
        *((message(kind, OTHER_SERVER_ID, ia(ASSIGNED)), Ignored.OTHER_SERVER) for kind in ONE_SERVER),
        *((message(kind, ia(ASSIGNED), client=None), Ignored.MISSING_OPTION) for kind in ANY_SERVER),
        *((message(kind, SERVER_ID, ia(ASSIGNED), client=None), Ignored.MISSING_OPTION) for kind in ONE_SERVER),
        (message(DHCP6_InfoRequest, OTHER_SERVER_ID), Ignored.OTHER_SERVER),
        (message(DHCP6_InfoRequest, ia()), Ignored.MISPLACED_OPTION),
        (message(DHCP6_Confirm, ia()), Ignored.MISSING_OPTION),
        (message(DHCP6_Confirm), Ignored.MISSING_OPTION),
        (message(DHCP6_Advertise, SERVER_ID), Ignored.NOT_A_REQUEST),
        (message(DHCP6_Reply, SERVER_ID), Ignored.NOT_A_REQUEST),
        (raw(b"\x0a\1\2\3"), Ignored.NOT_A_REQUEST),
        (raw(b"\xff\1\2\3"), Ignored.NOT_A_REQUEST),
        (bytes(ends() / DHCP6_RelayForward()), Ignored.RELAYED),
        (message(DHCP6_Solicit, ia(), destination=ROUTER), Ignored.UNICAST),
        (message(DHCP6_Solicit, ia(), source="::"), Ignored.NO_SOURCE),
        (message(DHCP6_Solicit, ia(), source="ff02::1"), Ignored.NO_SOURCE),
        (message(DHCP6_Solicit, client=DHCP6OptUnknown(optcode=1, data=b"\0\3")), Ignored.BAD_LENGTH),
        (message(DHCP6_Solicit, client=DHCP6OptUnknown(optcode=1, data=b"x" * 131)), Ignored.BAD_LENGTH),
        (raw(b"\1\1\2"), Ignored.TRUNCATED),
        (raw(b"\1\1\2\3\0\1\0"), Ignored.TRUNCATED),
        (raw(b"\1\1\2\3\0\1\0\5xxxx"), Ignored.TRUNCATED),
        (raw(b"\1\1\2\3\0\3\0\x0b" + bytes(11)), Ignored.TRUNCATED),
        (raw(b"\1\1\2\3\0\3\0\x10" + bytes(12) + b"\0\5\0\1"), Ignored.TRUNCATED),
        (raw(b"\1\1\2\3\0\3\0\x11" + bytes(12) + b"\0\5\0\1x"), Ignored.TRUNCATED),
        (raw(b"\1\1\2\3\0\4\0\3" + bytes(3)), Ignored.TRUNCATED),
        (bytes(Ether() / IPv6(src=GUEST, dst="ff02::1:2") / UDP(dport=546) / b"\1\1\2\3"), Ignored.NOT_OURS),
        (bytes(Ether() / IPv6(src=GUEST, dst="ff02::1:2", nh=58) / b"\x85\0\0\0\0\0\0\0"), Ignored.NOT_OURS),
        (bytes(Ether() / IP() / UDP(dport=547) / b"\1\1\2\3"), Ignored.NOT_OURS),
        (bytes(ends())[:40], Ignored.TRUNCATED),
        (b"", Ignored.TRUNCATED),
    ],
)
def test_a_frame_without_an_answer_has_a_named_reason(frame: bytes, reason: Ignored) -> None:
    """RFC 8415 §16, and what is malformed or for somebody else."""
    assert ignored(frame) is reason


@pytest.mark.parametrize("length", [3, 130])
def test_a_client_identifier_of_any_kind_comes_back(length: int) -> None:
    """RFC 8415 §11.1: its bytes mean nothing to a server."""
    identifier = bytes((0xEE,)) * length
    _, reply = answered(message(DHCP6_Solicit, client=DHCP6OptUnknown(optcode=1, data=identifier)))
    assert (1, identifier) in options(reply)


def test_unknown_options_do_not_matter() -> None:
    """Also inside of an IA (RFC 8415 §16)."""
    odd = DHCP6OptUnknown(optcode=999, data=b"odd")
    inside = DHCP6OptIA_NA(iaid=7, T1=0, T2=0, ianaopts=[odd, DHCP6OptIAAddress(addr=ASSIGNED)])
    _, reply = answered(message(DHCP6_Request, odd, SERVER_ID, inside))
    assert associations(reply) == [(NA, 7, [lease(ASSIGNED)])]


def test_nothing_is_answered_when_there_is_no_address() -> None:
    """--no-dhcpv6, and local mode."""
    view = assignments()
    view.flags &= ~VIEW_DHCPV6
    local = netview.assign(NetworkSpec(contract="passt"), host())
    for off in (view, local):
        assert ignored(message(DHCP6_Solicit, ia()), off) is Ignored.DISABLED
        assert ignored(message(DHCP6_InfoRequest), off) is Ignored.DISABLED


@pytest.mark.parametrize(("dns", "search", "given"), [(False, True, [24]), (True, False, [23]), (False, False, [])])
def test_resolvers_and_search_domains_have_a_switch_each(dns: bool, search: bool, given: list[int]) -> None:
    """--no-dhcp-dns, --no-dhcp-search."""
    view = assignments()
    view.dhcp_dns, view.dhcp_search = dns, search
    assert codes(answered(message(DHCP6_InfoRequest), view)[1]) == [2, 1, *given]


def test_what_there_is_not_is_no_option() -> None:
    """No resolvers, no search domains, no name: none of the options is there, empty."""
    assert codes(answered(message(DHCP6_Solicit, ia()), assignments(resolv_conf=""))[1]) == [2, 1, 7, 3]


def test_the_guest_is_told_its_name() -> None:
    """RFC 4704: flags that promise nothing, and a complete name."""
    view = assignments()
    view.fqdn = "vm.example.org"
    _, reply = answered(message(DHCP6_Solicit, ia()), view)
    assert (39, b"\0\2vm\7example\3org\0") in options(reply)
    assert reply[DHCP6OptClientFQDN].fqdn == b"vm.example.org."
    assert 39 not in codes(answered(message(DHCP6_Release, SERVER_ID, ia(ASSIGNED)), view)[1])


def test_the_longest_reply_passes_any_ipv6_link() -> None:
    """The longest identifier and name, three resolvers: within 1280 bytes; the search list has what room is left."""
    text = "".join(f"nameserver 2001:db8::{n}\n" for n in (1, 2, 3))
    longer = "." + "y" * 63 + "." + "z" * 63
    view = assignments(resolv_conf=text + f"search {' '.join(name + longer for name in ENDLESS_SEARCH)}\n")
    view.fqdn = ".".join(["x" * 61] * 4) + ".yy"
    identifier = DHCP6OptUnknown(optcode=1, data=b"x" * 130)
    _, reply = answered(message(DHCP6_Solicit, ia(OTHER), client=identifier), view)
    assert 1000 < len(bytes(reply[IPv6])) <= 1280
    assert {1, 2, 3, 23, 24, 39} <= set(codes(reply))
    domains = [name.rstrip(".") for name in reply[DHCP6OptDNSDomains].dnsdomains]
    assert 0 < len(domains) < len(view.search) and domains == list(view.search[: len(domains)])


def test_a_message_of_very_many_parts_gets_a_short_reply() -> None:
    """Thousands of IAs, or of addresses in one IA that is to be answered with all of them: what is too long is left
    out."""
    leases = b"".join(struct.pack("!HH16sII", ADDRESS, 24, ip(OTHER)[:14] + n.to_bytes(2), 1, 2) for n in range(2300))
    parts = [b"".join(struct.pack("!HHIII", code, 12, n, 0, 0) for n in range(4000)) for code in (NA, PD)]
    parts.append(struct.pack("!HHIII", NA, 12 + len(leases), 1, 0, 0) + leases)
    for kind in (1, 6):
        for part in parts:
            _, reply = answered(raw(bytes((kind, 1, 2, 3)) + bytes(CLIENT_ID) + part))
            assert len(bytes(reply[UDP].payload)) <= 1232


def test_the_checksum_of_a_request_is_not_asked_for() -> None:
    """With checksum offload it may be anything."""
    frame = bytearray(message(DHCP6_Solicit, ia()))
    frame[60:62] = b"\xba\xad"
    assert answered(bytes(frame))[0]["event"] == "dhcpv6.advertise"


VALID = [
    message(DHCP6_Solicit, RAPID_COMMIT, ia(OTHER)),
    message(DHCP6_Request, SERVER_ID, ia(ASSIGNED), DHCP6OptIA_PD(iaid=1, T1=0, T2=0)),
    message(DHCP6_Confirm, ia(ASSIGNED)),
    message(DHCP6_InfoRequest, DHCP6OptOptReq(reqopts=[23])),
]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=8),
    st.integers(0, 200),
)
def test_no_frame_raises(frame: bytes, changes: list[tuple[int, int]], length: int) -> None:
    """Valid requests with changed bytes, cut anywhere."""
    hostile = bytearray(frame)
    for at, value in changes:
        hostile[at % len(hostile)] = value
    for data in (bytes(hostile), bytes(hostile[:length])):
        assert isinstance(dhcpv6.answer(data, assignments()), Answer | Ignored)


@settings(deadline=None)
@given(st.integers(0, 13), st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 5, 13, 14, 25]), st.binary(max_size=60))))
def test_no_options_raise(kind: int, noise: list[tuple[int, bytes]]) -> None:
    """Any values of the options that are read, in a message of any kind; a reply is well formed."""
    parts = b"".join(struct.pack("!HH", code, len(value)) + value for code, value in noise)
    answer = dhcpv6.answer(raw(bytes((kind, 1, 2, 3)) + parts), assignments())
    if isinstance(answer, Answer):
        walk(bytes(Ether(answer.frame)[UDP].payload)[4:])
