# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/names/name_server.py and dns_message.py, with dnspython as the other end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin import address, resolvconf
from lockgate.plugin.gateway.names import dns_message, host_files
from lockgate.plugin.gateway.names.dns_message import (
    QUERY_MAX,
    Query,
    addressed,
    build,
    fit,
    is_answer,
    is_truncated,
    lifetime,
    query_parse,
)
from lockgate.plugin.gateway.names.host_files import HostFile, hosts_parse, servers_of
from lockgate.plugin.gateway.names.name_server import Forward, NameServer
from lockgate.plugin.gateway.names.zones import Zones
from lockgate.plugin.gateway.virtual_network import Record, Zone


def ip(text: str) -> bytes:
    parsed = address.parse(text)
    assert parsed is not None
    return parsed


GATEWAY, HOST = "192.168.127.1", "192.168.127.254"
TWINS = {ip(HOST): ip("fd00::fe")}
HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n10.9.9.9 nas.lan  NAS # at home\n10.9.9.10 nas.lan\n"


def server(hosts: str = HOSTS, ipv6: bool = True) -> NameServer:
    records = (
        Record("gateway", ip(GATEWAY)),
        Record("host", ip(HOST)),
        Record("six", ip("fd00::6")),
    )
    zones = Zones([Zone("containers.internal.", records)])
    parsed = hosts_parse(hosts)
    return NameServer(zones, lambda: parsed, ipv6=ipv6, twins=TWINS)


def ask(name: str, kind: str = "A", **options: object) -> dns.message.QueryMessage:
    return dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]


def answered(query: dns.message.Message, by: NameServer | None = None) -> dns.message.Message:
    """Our answer, as dnspython reads it."""
    answer = (by or server()).answer(query.to_wire())
    assert isinstance(answer, bytes), answer
    parsed = dns.message.from_wire(answer)
    assert query.is_response(parsed)
    return parsed


def forwarded(query: dns.message.Message, by: NameServer | None = None) -> Forward:
    forward = (by or server()).answer(query.to_wire())
    assert isinstance(forward, Forward), forward
    return forward


def addresses(answer: dns.message.Message) -> list[str]:
    return [str(record) for rrset in answer.answer for record in rrset]


def parsed_query(query: dns.message.Message) -> Query:
    parsed = query_parse(query.to_wire())
    assert isinstance(parsed, Query)
    return parsed


def response(query: dns.message.Message, answers: Iterable[str] = (), authorities: Iterable[str] = ()) -> bytes:
    made = dns.message.make_response(query)
    made.flags |= dns.flags.RA
    for section, lines in ((made.answer, answers), (made.authority, authorities)):
        for line in lines:
            name, ttl, kind, text = line.split(" ", 3)
            section.append(dns.rrset.from_text(name, int(ttl), "IN", kind, text))
    return made.to_wire(max_size=65535)


def test_an_address_comes_from_a_zone() -> None:
    """Flags qr, rd and ra, and a TTL of 0, since zones can change at any moment."""
    answer = answered(ask("host.containers.internal."))
    assert addresses(answer) == [HOST]
    assert answer.answer[0].ttl == 0
    assert answer.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert (answer.rcode(), answer.edns) == (dns.rcode.NOERROR, -1)


def test_what_a_client_did_not_want_is_not_in_the_flags() -> None:
    """RD and CD are copied (RFC 1035 §4.1.1, RFC 4035 §3.2.2)."""
    query = ask("host.containers.internal.")
    query.flags = dns.flags.Flag(0)
    assert answered(query).flags == dns.flags.QR | dns.flags.RA
    query.flags = dns.flags.CD | dns.flags.RD
    assert answered(query).flags == dns.flags.QR | dns.flags.RA | dns.flags.CD | dns.flags.RD


def test_the_name_comes_back_in_the_case_of_the_question() -> None:
    """A resolver that mixes it looks whether it does."""
    answer = answered(ask("hOsT.cOntaInErs.InternAl."))
    assert addresses(answer) == [HOST]
    assert answer.question[0].name.to_text() == "hOsT.cOntaInErs.InternAl."


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_a_name_that_a_zone_does_not_have_does_not_exist(kind: str) -> None:
    """In both families."""
    assert answered(ask("nobody.containers.internal.", kind)).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("host.containers.internal.", "AAAA", ["fd00::fe"]),
        ("gateway.containers.internal.", "AAAA", []),
        ("six.containers.internal.", "AAAA", ["fd00::6"]),
        ("six.containers.internal.", "A", []),
    ],
)
def test_a_name_has_the_addresses_of_each_family_that_there_are(name: str, kind: str, found: list[str]) -> None:
    """None is no reason to say that it does not exist."""
    answer = answered(ask(name, kind))
    assert (answer.rcode(), addresses(answer)) == (dns.rcode.NOERROR, found)


@pytest.mark.parametrize("name", ["host.containers.internal.", "example.org.", "localhost."])
def test_without_ipv6_no_name_has_any(name: str) -> None:
    """As with gvisor-tap-vsock; guests that ask for both families are not held up."""
    answer = answered(ask(name, "AAAA"), server(ipv6=False))
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("localhost.", "A", ["127.0.0.1"]),
        ("localhost.", "AAAA", ["::1"]),
        ("NAS.lan.", "A", ["10.9.9.9", "10.9.9.10"]),
        ("nas.", "A", ["10.9.9.9"]),
        ("nas.lan.", "AAAA", []),
        ("ip6-localhost.", "A", []),
    ],
)
def test_names_of_the_hosts_file_count(name: str, kind: str, found: list[str]) -> None:
    """And have the addresses that it lists; of another family, none."""
    answer = answered(ask(name, kind))
    assert (answer.rcode(), addresses(answer)) == (dns.rcode.NOERROR, found)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("example.org.", "A"), ("example.org.", "AAAA"), ("nas.lan.", "TXT"), (".", "NS"), ("x.", "TYPE999")],
)
def test_all_else_is_for_the_hosts_resolvers(name: str, kind: str) -> None:
    """Unchanged."""
    query = ask(name, kind)
    forward = forwarded(query)
    assert (forward.query.wire, forward.exists) == (query.to_wire(), False)


def test_another_class_is_no_business_of_ours() -> None:
    """Who asks a resolver for its version hears that of the host's."""
    assert not forwarded(ask("host.containers.internal.", "TXT", rdclass="CH")).exists


@pytest.mark.parametrize(
    ("name", "rcode"), [("host.containers.internal.", "NOERROR"), ("nobody.containers.internal.", "NXDOMAIN")]
)
def test_a_name_of_ours_exists_whatever_resolvers_say(name: str, rcode: str) -> None:
    """Of other types they are asked, and know nothing of it; caches would forget its address."""
    query = ask(name, "HTTPS")
    forward = forwarded(query)
    refusal = dns.message.make_response(query)
    refusal.set_rcode(dns.rcode.NXDOMAIN)
    settled = dns.message.from_wire(forward.settle(refusal.to_wire()))
    assert settled.rcode() == dns.rcode.from_text(rcode)
    failure = dns.message.make_response(query)
    failure.set_rcode(dns.rcode.SERVFAIL)
    assert forward.settle(failure.to_wire()) == failure.to_wire()


def test_edns_is_answered_with_edns() -> None:
    """RFC 6891 §6.1.1, with DO copied (RFC 3225 §3)."""
    answer = answered(ask("host.containers.internal.", use_edns=0, payload=4096, want_dnssec=True))
    assert (answer.edns, answer.payload, addresses(answer)) == (0, 1232, [HOST])
    assert answer.ednsflags == dns.flags.DO
    assert answered(ask("host.containers.internal.", use_edns=0)).ednsflags == 0


def test_an_edns_of_the_future_is_told_ours() -> None:
    """BADVERS, in an OPT record of version 0 (RFC 6891 §6.1.3)."""
    wire = bytearray(ask("host.containers.internal.", use_edns=0).to_wire())
    wire[-5] = 1
    reply = server().answer(bytes(wire))
    assert isinstance(reply, bytes)
    answer = dns.message.from_wire(reply)
    assert (answer.rcode(), answer.edns, answer.answer) == (dns.rcode.BADVERS, 0, [])


@pytest.mark.parametrize("kind", ["AXFR", "IXFR"])
def test_a_transfer_of_a_whole_zone_is_refused(kind: str) -> None:
    """It would not fit into one message."""
    assert answered(ask("containers.internal.", kind)).rcode() == dns.rcode.REFUSED


def malformed(change: str) -> bytes:
    wire = ask("ab.example.", use_edns=0).to_wire()
    question, opt = wire[12:28], wire[28:]
    assert len(opt) == 11
    return {
        "no question": wire[:4] + b"\0\0" + wire[6:12],
        "two questions": wire[:4] + b"\0\2\0\0\0\0\0\0" + question * 2,
        "no end": wire[:10] + b"\0\0" + b"\2ab",
        "no type": wire[:10] + b"\0\0" + question[:-4],
        "half a class": wire[:10] + b"\0\0" + question[:-1],
        "pointer": wire[:10] + b"\0\0" + b"\xc0\x0c\0\1\0\1",
        "label of 64": wire[:10] + b"\0\0" + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
        "name of 256": wire[:10] + b"\0\0" + (b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0\0\1\0\1",
        "record cut": wire[:-1],
        "record longer": wire[:-1] + b"\1",
        "two OPT": wire[:10] + b"\0\2" + question + opt * 2,
        "OPT with a name": wire[:12] + question + b"\1a" + opt,
        "record without name": wire[:12] + question,
        "record named in a loop": wire[:12] + question + b"\x80\0" + opt[1:],
        "many records": wire[:6] + b"\xff\xff\xff\xff\xff\xff" + question + opt,
        "too long": wire + bytes(QUERY_MAX),
        "more behind it": wire + b"\0",
        "compressed": wire[:4] + b"\0\1\0\0\0\0\0\0" + b"\1a\xc0\x0b" + wire[24:28],
    }[change]


@pytest.mark.parametrize(
    "change",
    [
        "no question",
        "two questions",
        "no end",
        "no type",
        "half a class",
        "pointer",
        "label of 64",
        "name of 256",
        "record cut",
        "record longer",
        "two OPT",
        "OPT with a name",
        "record without name",
        "record named in a loop",
        "many records",
        "too long",
        "more behind it",
        "compressed",
    ],
)
def test_a_malformed_query_is_told_so(change: str) -> None:
    """FORMERR, with nothing but the id and RD of the query."""
    wire = malformed(change)
    assert server().answer(wire) == wire[:2] + b"\x81\x01" + bytes(8)


def test_the_longest_name_is_taken() -> None:
    """255 bytes (RFC 1035 §2.3.4)."""
    name = ".".join(("a" * 63, "a" * 63, "a" * 63, "a" * 61)) + "."
    query = ask(name)
    assert forwarded(query).query.wire == query.to_wire()


def test_other_operations_are_not_implemented() -> None:
    """A NOTIFY or an UPDATE."""
    query = ask("example.org.")
    query.set_opcode(dns.opcode.NOTIFY)
    answer = server().answer(query.to_wire())
    assert isinstance(answer, bytes)
    assert answer[:2] == query.to_wire()[:2]
    assert dns.message.from_wire(answer).rcode() == dns.rcode.NOTIMP


@pytest.mark.parametrize("wire", [b"", b"\0" * 11, b"\1\2\x81\x80\0\1" + bytes(6)])
def test_what_is_no_query_gets_no_answer(wire: bytes) -> None:
    """Neither half a header nor another server's answer."""
    assert server().answer(wire) is None


def test_an_answer_that_does_not_fit_says_so() -> None:
    """Without records, and with the rcode and OPT of one that does."""
    query = ask("example.org.", "TXT", use_edns=0, payload=1300)
    long = response(query, [f'example.org. 60 TXT "{"x" * 200}{number}"' for number in range(10)])
    parsed = parsed_query(query)
    assert parsed.udp_room(1472) == 1300
    assert fit(long, parsed, len(long)) == long
    cut = dns.message.from_wire(fit(long, parsed, 1300))
    assert cut.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA | dns.flags.TC
    assert (cut.answer, cut.edns, query.is_response(cut)) == ([], 0, True)


@pytest.mark.parametrize(
    ("payload", "largest", "room"), [(0, 1472, 512), (100, 1472, 512), (4096, 1472, 1472), (1232, 1472, 1232)]
)
def test_the_room_by_udp_is_the_clients_and_the_links(payload: int, largest: int, room: int) -> None:
    """Less than 512 nobody means (RFC 6891 §6.2.3)."""
    query = ask("example.org.", use_edns=0, payload=payload) if payload else ask("example.org.")
    assert parsed_query(query).udp_room(largest) == room


# ---- what resolvers answer ----


def test_an_answer_belongs_to_its_question() -> None:
    """By id and question, whatever the case of the name; and it is an answer."""
    query = ask("Example.org.")
    right = response(query, ["example.org. 60 A 10.0.0.1"])
    question = query.to_wire()
    assert is_answer(right, question)
    assert is_answer(right.replace(b"Example", b"eXAMPLE"), question)
    wrong = [
        bytes((right[0] ^ 1,)) + right[1:],
        question,
        response(ask("example.com.", id=query.id)),
        response(ask("Example.org.", "AAAA", id=query.id)),
        right[:20],
        right[:4] + b"\0\2" + right[6:],
        right[:2] + b"\xa1" + right[3:],
        b"",
    ]
    assert [is_answer(one, question) for one in wrong] == [False] * len(wrong)


def test_a_server_that_could_not_read_the_question_may_leave_it_out() -> None:
    """Its error is an answer nonetheless, and is addressed to the client with the question put back."""
    query = ask("example.org.", use_edns=0)
    wire = query.to_wire()
    bare = wire[:2] + b"\x81\x81" + bytes(8)
    assert is_answer(bare, wire) and not is_answer(bare[:3] + b"\x80" + bare[4:], wire)
    parsed = dns.message.from_wire(addressed(bare, parsed_query(query)))
    assert (parsed.rcode(), query.is_response(parsed)) == (dns.rcode.FORMERR, True)


def test_an_answer_is_addressed_to_who_asked() -> None:
    """With the id and the case of the name that are his."""
    mine, other = ask("exAMPle.org."), ask("EXAMPLE.org.")
    answer = response(other, ["example.org. 60 A 10.0.0.1"])
    assert parsed_query(mine).key == parsed_query(other).key
    adopted = dns.message.from_wire(addressed(answer, parsed_query(mine)))
    assert mine.is_response(adopted)
    assert adopted.question[0].name.to_text() == "exAMPle.org."
    assert addresses(adopted) == ["10.0.0.1"]


SOA = "SOA ns.example. root.example. 1 2 3 4 "


@pytest.mark.parametrize(
    ("answers", "authorities", "rcode", "seconds"),
    [
        (["example.org. 60 A 10.0.0.1"], [], "NOERROR", 60),
        (["example.org. 60 CNAME x.org.", "x.org. 30 A 10.0.0.1"], ["org. 20 NS ns.org."], "NOERROR", 20),
        (["example.org. 0 A 10.0.0.1"], [], "NOERROR", None),
        ([f"example.org. {2**31} A 10.0.0.1"], [], "NOERROR", None),
        ([], [f"org. 900 {SOA}300"], "NXDOMAIN", 300),
        ([], [f"org. 100 {SOA}300"], "NXDOMAIN", 100),
        ([], [f"org. 100 {SOA}50"], "NOERROR", 50),
        (["example.org. 60 CNAME x.org."], [f"org. 100 {SOA}50"], "NXDOMAIN", 50),
        (["example.org. 60 CNAME x.org."], [], "NXDOMAIN", None),
        ([], [], "NOERROR", None),
        ([], ["org. 100 NS ns.org."], "NOERROR", None),
        ([], [f"org. 100 {SOA}50"], "SERVFAIL", None),
        (["example.org. 60 A 10.0.0.1"], [], "REFUSED", None),
    ],
)
def test_an_answer_is_kept_as_long_as_all_of_it_holds(
    answers: list[str], authorities: list[str], rcode: str, seconds: int | None
) -> None:
    """RFC 2181 §5.2 and §8; that something does not exist, as long as the SOA record says (RFC 2308 §5)."""
    query = ask("example.org.", use_edns=0)
    if any(str(2**31) in line for line in answers):
        wire = response(query, ["example.org. 60 A 10.0.0.1"]).replace(b"\0\0\0\x3c", b"\x80\0\0\0")
    else:
        wire = response(query, answers, authorities)
    wire = wire[:3] + bytes((wire[3] & 0xF0 | dns.rcode.from_text(rcode),)) + wire[4:]
    found = lifetime(wire, parsed_query(query))
    assert (None if found is None else found.seconds) == seconds
    if found is not None:
        kept = [int.from_bytes(wire[place : place + 4]) for place in found.places]
        assert kept == [int(line.split()[1]) for line in (*answers, *authorities)]


def test_a_cut_answer_is_not_kept() -> None:
    """The rest of it may say less."""
    query = ask("example.org.")
    wire = response(query, ["example.org. 60 A 10.0.0.1"])
    cut = wire[:2] + bytes((wire[2] | 2,)) + wire[3:]
    assert is_truncated(cut) and not is_truncated(wire)
    assert lifetime(cut, parsed_query(query)) is None
    for end in range(len(query.to_wire()), len(wire)):
        assert lifetime(wire[:end], parsed_query(query)) is None


# ---- any bytes ----


NAMES = st.lists(st.binary(min_size=1, max_size=62), max_size=4).map(tuple)


@given(NAMES, st.integers(0, 65535), st.integers(0, 65535), st.booleans())
def test_a_question_is_read_as_by_the_oracle(
    labels: tuple[bytes, ...], kind: int, question_class: int, edns: bool
) -> None:
    """Any name that is none too long, with labels of any bytes."""
    name = dns.name.Name((*labels, b""))
    encoded = b"".join(len(label).to_bytes() + label for label in name.labels)
    wire = os.urandom(2) + b"\1\0\0\1\0\0\0\0\0" + (b"\1" if edns else b"\0") + encoded
    wire += kind.to_bytes(2) + question_class.to_bytes(2) + (b"\0\0\x29\x10\0\0\0\0\0\0\0" if edns else b"")
    query = query_parse(wire)
    assert isinstance(query, Query)
    assert (tuple(query.labels), query.kind, query.question_class) == (labels, kind, question_class)
    assert query.edns_size == (4096 if edns else 0)
    parsed = dns.message.from_wire(build(query, 0))
    assert [parsed.question[0].name, parsed.question[0].rdtype, parsed.edns] == [name, kind, 0 if edns else -1]


@st.composite
def nearly_plain(draw: st.DrawFn) -> bytes:
    """A plain query of which a few bytes are others, or away, or more."""
    wire = bytearray(ask("ab.example.", use_edns=draw(st.sampled_from((False, 0)))).to_wire())
    for at, byte in draw(st.lists(st.tuples(st.integers(4, len(wire) - 1), st.integers(0, 255)), max_size=3)):
        wire[at] = byte
    return bytes(wire[: draw(st.integers(12, len(wire)))]) + draw(st.binary(max_size=12))


@given(nearly_plain())
def test_a_plain_query_is_read_as_any_other(wire: bytes) -> None:
    """What is walked here for speed says nothing else to dnspython's parser."""
    plain = dns_message._plain_parse(wire, int.from_bytes(wire[10:12]))
    if plain is not None:
        full = dns_message._full_parse(wire, int.from_bytes(wire[10:12]))
        assert full is not None
        assert list(full.labels) == plain.labels
        others = set(Query.__slots__) - {"labels"}
        assert {name: getattr(full, name) for name in others} == {name: getattr(plain, name) for name in others}


@given(st.binary(max_size=600))
def test_no_bytes_are_worse_than_a_malformed_query(wire: bytes) -> None:
    """As a query, as an answer, and as both with a header that promises something."""
    real = ask("host.containers.internal.", use_edns=0).to_wire()
    for one in (wire, real[:12] + wire, real[:12] + b"\1a\0\0\1\0\1" + wire, real + wire):
        answer = server().answer(one)
        assert answer is None or isinstance(answer, Forward) or len(answer) <= 512
    query = parsed_query(ask("a."))
    for one in (wire, query.wire[:2] + b"\x81\x80\0\1" + wire[:6] + query.wire[12:] + wire):
        if is_answer(one, query.wire):
            found = lifetime(one, query)
            assert found is None or all(place + 4 <= len(one) for place in found.places)
            addressed(one, query)


@pytest.mark.parametrize("options", [[], [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"x" * 20)]])
def test_a_query_with_more_in_it_is_answered_too(options: list[dns.edns.Option]) -> None:
    """With options of EDNS, or records that we know nothing of."""
    query = ask("host.containers.internal.", use_edns=0, payload=4000, options=options)
    wire = query.to_wire()
    signature = b"\1k\0" + (250).to_bytes(2) + b"\0\xff\0\0\0\0\0\3abc"
    for one in (wire, wire[:10] + b"\0\2" + wire[12:] + signature):
        answer = server().answer(one)
        assert isinstance(answer, bytes)
        parsed = dns.message.from_wire(answer)
        assert (addresses(parsed), parsed.edns, query.is_response(parsed)) == ([HOST], 0, True)


# ---- the host's files ----


def test_a_file_is_read_again_when_it_is_another(tmp_path: Path) -> None:
    """Not at other times; and while it is away, what was last there counts."""
    path = tmp_path / "hosts"
    reads: list[str] = []

    def parse(text: str) -> int:
        reads.append(text)
        return len(reads)

    file = HostFile(str(path), parse, 16)
    assert file.current() == 1
    path.write_text("one\n")
    assert file.current() == file.current() == 2
    path.write_text("three\n")
    assert file.current() == file.current() == 3
    path.unlink()
    assert file.current() == 3
    os.mkfifo(path)
    assert file.current() == 3
    path.unlink()
    path.write_text("0123456789\nabcdef\n")
    assert file.current() == 4
    assert reads == ["", "one\n", "three\n", "0123456789\n"]


def test_the_hosts_file_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of a name, and names; what is over them is left out."""
    lines = "".join(f"10.0.0.{number} many\n::{number} many\n" for number in range(1, 20))
    found = hosts_parse(lines + lines)[b"many"]
    assert [address.to_text(found[at : at + 16]) for at in range(0, len(found), 16)] == [
        text for number in range(1, 9) for text in (f"10.0.0.{number}", f"::{number}")
    ]
    answer = server(lines).answer(ask(".".join(["many"])).to_wire())
    assert isinstance(answer, bytes) and len(answer) <= 512
    monkeypatch.setattr(host_files, "HOSTS_NAMES_MAX", 2)
    assert list(hosts_parse("10.0.0.1 a b c\n")) == [b"a", b"b"]


@pytest.mark.parametrize("line", ["10.0.0.1", "nonsense name", "10.0.0 name", "# 10.0.0.1 name", "", "\0 \x85 x"])
def test_a_line_of_the_hosts_file_that_makes_no_sense_is_passed_over(line: str) -> None:
    """The others count; a zone behind an address and a dot behind a name are taken off."""
    assert hosts_parse(f"{line}\nfe80::1%eth0 Name.\n") == {b"name": ip("fe80::1")}


def test_the_hosts_resolvers_are_those_of_resolv_conf() -> None:
    """With the interface of a link-local one."""
    conf = resolvconf.parse("nameserver 10.0.0.53\nnameserver fe80::1%eth0\nnameserver ::1\n")
    assert servers_of(conf) == (("10.0.0.53", 53), ("fe80::1%eth0", 53), ("::1", 53))
