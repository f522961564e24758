# SPDX-License-Identifier: Apache-2.0
"""plugin/contracts/pesto.py: the bytes of the control protocol, as `pesto` of 2026 reads and writes them, and what a
client may not send. How a helper acts on them is in tests/contract."""

from __future__ import annotations

import struct

import pytest
from host_samples import ip
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.plugin.address import ANY4, UNSET
from lockgate.plugin.contracts import forward_spec, pesto
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule
from lockgate.plugin.ports import Rights

EVERYTHING = Rights(ipv4=True, ipv6=True, protocols=[TCP, UDP], room=1000)
IPV4_TCP = Rights(ipv4=True, ipv6=False, protocols=[TCP], room=1000)
IPV6_UDP = Rights(ipv4=False, ipv6=True, protocols=[UDP], room=1000)

# What the command sent, by its options.
SENT = {
    "-t 80": "0100000001" + "00" * 48 + "005000500050" + "0601" + "00",
    "-t 127.0.0.1/80:10.0.0.1/81": "0100000001"
    + ("00" * 10 + "ffff7f000001" + "00" * 10 + "ffff0a000001" + "00" * 16 + "005000500051" + "0600")
    + "00",
    "-u [fe80::1]%lo/5-9": "0100000001"
    + ("fe80" + "00" * 13 + "01" + "00" * 16 + "6c6f" + "00" * 14 + "000500090005" + "1100")
    + "00",
    "-t all": "0100000002" + ("00" * 48 + "00017fff0001" + "0603") + ("00" * 48 + "ee48ffffee48" + "0603") + "00",
    "-C HOST": "010000000000",
}


def scope(rights: Rights = EVERYTHING) -> forward_spec.Scope:
    return forward_spec.Scope(
        ipv4=rights.ipv4,
        ipv6=rights.ipv6,
        tcp=TCP in rights.protocols,
        udp=UDP in rights.protocols,
        ephemeral=lambda: (32768, 60999),
    )


def rules_of(words: str) -> tuple[ForwardRule, ...]:
    """What our own option of that name means."""
    option, text = words.split()
    return forward_spec.add((), option, TCP if option == "-t" else UDP, text, scope())


def read(data: bytes, rights: Rights = EVERYTHING) -> pesto.Message:
    """A message out of a stream that holds it, read as it asks for."""
    message = pesto.Message(rights)
    while message.wanted and data:
        assert message.wanted <= pesto.RULE_BYTES
        part, data = data[: message.wanted], data[message.wanted :]
        if len(part) < message.wanted:
            break
        message.feed(part)
    return message


def rule(
    first: int = 80,
    last: int = 80,
    to: int = 80,
    listen: bytes = UNSET,
    target: bytes = UNSET,
    interface: bytes = b"",
    protocol: int = TCP,
    flags: int = 0,
) -> bytes:
    return struct.pack("!16s16s16sHHHBB", listen, target, interface, first, last, to, protocol, flags)


def table(*rules: bytes, count: int | None = None) -> bytes:
    return b"\1" + struct.pack("!I", len(rules) if count is None else count) + b"".join(rules)


def told(value: object) -> str:
    """For the name of a test."""
    return value if isinstance(value, str) else "rule"


def refused(data: bytes, rights: Rights = EVERYTHING) -> str:
    with pytest.raises(pesto.ProtocolError) as caught:
        read(data, rights)
    return str(caught.value)


# ---- the layout ----


def test_the_greeting_says_what_there_is() -> None:
    """Magic, version and the two sizes; one table with its capabilities and its rules; no further table."""
    rules = (*rules_of("-t 18080:80"), *rules_of("-u 127.0.0.1/15353"))
    said = pesto.greeting(EVERYTHING, rules)
    assert said[:20] == b"basil:s\0" + bytes.fromhex("00000002 00000080 00000010")
    assert said[20:149] == b"\1" + b"HOST".ljust(128, b"\0")
    assert said[149:157] == bytes.fromhex("0000002f 00000002")
    assert said[157:213] == bytes(48) + bytes.fromhex("46a0 46a0 0050 06 01")
    loopback = bytes(10) + bytes.fromhex("ffff 7f000001")
    assert said[213:269] == loopback + bytes(32) + bytes.fromhex("3bf9 3bf9 3bf9 11 00")
    assert said[269:] == b"\0"


@pytest.mark.parametrize(("rights", "bits"), [(EVERYTHING, 0x2F), (IPV4_TCP, 0x25), (IPV6_UDP, 0x2A)])
def test_what_is_switched_off_is_not_offered(rights: Rights, bits: int) -> None:
    """Ports that are looked for in a namespace never are; interfaces always."""
    assert pesto.greeting(rights, ())[149:153] == struct.pack("!I", bits)


@pytest.mark.parametrize("words", [words for words in SENT if words[1] in "tu"])
def test_what_the_command_sends_is_what_the_option_means(words: str) -> None:
    message = read(bytes.fromhex(SENT[words]))
    assert message.wanted == 0 and tuple(message.rules) == rules_of(words)


@pytest.mark.parametrize("data", [bytes.fromhex(SENT["-C HOST"]), b"\0"], ids=["no rule", "no table"])
def test_a_table_may_be_emptied(data: bytes) -> None:
    """Also by a message that has none."""
    message = read(data)
    assert message.wanted == 0 and not message.rules


def test_one_table_may_come_in_parts() -> None:
    message = read(table(rule(80)) + table() + table(rule(81, 81)) + b"\0")
    assert message.wanted == 0 and [each.first for each in message.rules] == [80, 81]


def test_nothing_behind_the_end_is_asked_for() -> None:
    message = read(table(rule()) + b"\0")
    assert message.wanted == 0


@pytest.mark.parametrize(
    ("rights", "listen", "dual_stack"),
    [(EVERYTHING, UNSET, True), (IPV4_TCP, ANY4, False), (IPV6_UDP, UNSET, False)],
    ids=["both", "IPv4", "IPv6"],
)
def test_every_address_means_those_of_the_families_that_there_are(
    rights: Rights, listen: bytes, dual_stack: bool
) -> None:
    """As on a command line with --ipv4-only or --ipv6-only."""
    (got,) = read(table(rule(flags=1, protocol=rights.protocols[0])) + b"\0", rights).rules
    assert (got.listen, got.dual_stack) == (listen, dual_stack)


SPECS = ["80", "81-90:1081-1090", "127.0.0.1/100", "[::1]%lo/200:fd00::1/9", "300,302,~301", "0.0.0.0/400"]


@settings(max_examples=100)
@given(specs=st.lists(st.sampled_from(SPECS), unique=True))
def test_rules_come_back_as_they_went(specs: list[str]) -> None:
    rules: tuple[ForwardRule, ...] = ()
    for text in specs:
        rules = forward_spec.add(rules, "-t", TCP, text, scope())
    message = read(table(*map(pesto.pack_rule, rules)) + b"\0")
    assert message.wanted == 0 and tuple(message.rules) == rules


# ---- what is refused ----


@pytest.mark.parametrize("identifier", [2, 3, 255])
def test_a_table_that_there_is_not_is_refused(identifier: int) -> None:
    """Those of pasta too."""
    assert f"no table {identifier} " in refused(bytes((identifier,)) + bytes(5))


@pytest.mark.parametrize(
    "data",
    [table(count=256), table(count=2**32 - 1), table(rule(80)) + table(count=255)],
    ids=["256", "all bits", "in two parts"],
)
def test_too_many_rules_are_refused_before_they_come(data: bytes) -> None:
    assert "at most 255 rules" in refused(data)


def test_255_rules_are_taken() -> None:
    message = read(table(*(rule(port, port) for port in range(1, 256))) + b"\0")
    assert message.wanted == 0 and len(message.rules) == 255


def test_as_many_sockets_are_taken_as_passt_takes() -> None:
    """327 680 of them; not one more."""
    every = [rule(1, 65535, 1, listen=ip(f"127.0.0.{n}")) for n in range(1, 6)]
    assert read(table(*every, rule(1, 5, 1, protocol=UDP)) + b"\0").wanted == 0
    assert "at most 327680 sockets" in refused(table(*every, rule(1, 6, 1, protocol=UDP)))


@pytest.mark.parametrize(
    ("wrong", "about"),
    [
        (rule(protocol=1), "TCP or UDP as a rule's protocol, not 1"),
        (rule(protocol=0), "not 0"),
        (rule(flags=4), "flags 3 at most, not 4"),
        (rule(flags=0x81), "not 129"),
        (rule(0, 5, 5), "not 0-5"),
        (rule(9, 8, 9), "not 9-8"),
        (rule(to=0), "from 1 to 65535, not 0"),
        (rule(1, 65535, 2), "not 2-65536"),
        (rule(listen=ip("127.0.0.1"), flags=1), "no address for a port of both families, not 127.0.0.1"),
        (rule(listen=ANY4, flags=1), "not 0.0.0.0"),
        (rule(target=ip("10.0.0.1"), flags=1), "of the family of its target 10.0.0.1"),
        (rule(target=ip("10.0.0.1")), "of the family of its target 10.0.0.1"),
        (rule(target=ip("fd00::1"), listen=ANY4), "of the family of its target fd00::1"),
        (rule(target=ANY4, listen=ANY4), "a target that a guest can be"),
        (rule(interface=b"x" * 16), "the name of an interface"),
        (rule(interface=b"eth0\0x"), "the name of an interface"),
        (rule(interface=b"a/b"), "the name of an interface"),
        (rule(interface=b"a b"), "the name of an interface"),
        (rule(interface=b"\x1b[2J"), "'\\x1b[2J"),
        (rule(interface=b"\xff"), "the name of an interface"),
    ],
    ids=told,
)
def test_a_rule_that_no_command_line_could_make_is_refused(wrong: bytes, about: str) -> None:
    """In words that say which, without a byte that would talk to a terminal."""
    sentence = refused(table(wrong))
    assert about in sentence.replace("\\\\", "\\") and sentence.isprintable()


@pytest.mark.parametrize(
    ("wrong", "rights", "about"),
    [
        (rule(protocol=UDP, flags=1), IPV4_TCP, "UDP is switched off"),
        (rule(protocol=TCP, flags=1), IPV6_UDP, "TCP is switched off"),
        (rule(listen=ip("::1")), IPV4_TCP, "[::1] is of a family that is switched off"),
        (rule(), IPV4_TCP, "[::] is of a family that is switched off"),
        (rule(listen=ANY4, protocol=UDP), IPV6_UDP, "0.0.0.0 is of a family that is switched off"),
    ],
    ids=told,
)
def test_what_was_not_offered_is_refused(wrong: bytes, rights: Rights, about: str) -> None:
    assert about in refused(table(wrong), rights)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (rule(80, 90, 80, flags=1), rule(85, 85, 1, listen=ip("127.0.0.1"))),
        (rule(flags=1), rule(flags=1)),
        (rule(listen=ANY4), rule(listen=ip("192.0.2.1"), interface=b"lo")),
    ],
    ids=["a part", "the same", "another interface"],
)
def test_two_rules_for_one_port_are_refused(one: bytes, other: bytes) -> None:
    """In one part of the table or in two."""
    assert "two rules want the same port" in refused(table(one, other))
    assert "two rules want the same port" in refused(table(one) + table(other))


@settings(max_examples=500)
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.builds(
                rule,
                first=st.integers(0, 300),
                last=st.integers(0, 300),
                to=st.sampled_from([0, 1, 80, 65535]),
                listen=st.sampled_from([UNSET, ANY4, ip("::1")]),
                flags=st.integers(0, 5),
                protocol=st.sampled_from([TCP, UDP, 1]),
            ).map(table),
        ),
        max_size=6,
    )
)
def test_whatever_comes_is_a_table_or_a_sentence(parts: list[bytes]) -> None:
    """Never another exception; and what is taken keeps the limits."""
    try:
        message = read(b"".join(parts))
    except pesto.ProtocolError as mistake:
        assert str(mistake).isprintable()
        return
    rules = message.rules
    assert not any(one.conflicts(other) for at, one in enumerate(rules) for other in rules[:at])
    assert all(0 < each.first <= each.last and each.to_first + each.count - 1 <= 65535 for each in rules)


def test_ports_that_follow_what_listens_are_there_where_there_is_a_namespace() -> None:
    """As `auto` of a command line means them; and they come out as they went in."""
    following = Rights(ipv4=True, ipv6=True, protocols=[TCP, UDP], room=1000, auto=True)
    assert pesto.capabilities(following) == pesto.capabilities(EVERYTHING) | pesto.CAP_AUTO
    (got,) = read(table(rule(flags=4)) + b"\0", following).rules
    assert got.auto and not got.best_effort
    assert pesto.pack_rule(got) == rule(flags=4)
    with pytest.raises(pesto.ProtocolError, match="flags 7 at most, not 8"):
        read(table(rule(flags=8)) + b"\0", following)


# ---- the table of what leads out of a namespace ----

OUT_80 = rule(interface=b"lo", flags=1)


def outward(data: bytes) -> pesto.Message:
    """Read where there is a namespace."""
    message = pesto.Message(EVERYTHING, EVERYTHING)
    while message.wanted and data:
        part, data = data[: message.wanted], data[message.wanted :]
        message.feed(part)
    return message


def splice_table(*rules: bytes) -> bytes:
    return b"\3" + table(*rules)[1:]


def test_of_a_namespace_there_are_two_tables() -> None:
    """As pasta has them: the second is of ports at any address of the namespace's loopback interface."""
    scope = forward_spec.Scope(ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=lambda: (1, 2), outbound=True)
    rules = forward_spec.add((), "--tcp-ns", TCP, "80", scope)
    said = pesto.greeting(EVERYTHING, (), IPV4_TCP, rules)
    assert said[149:157] == bytes.fromhex("0000002f 00000000")
    assert said[157:286] == b"\3" + b"SPLICE".ljust(128, b"\0")
    assert said[286:294] == bytes.fromhex("00000025 00000001")
    assert said[294:350] == OUT_80 and said[350:] == b"\0"


def test_each_table_of_a_message_has_its_own_rules() -> None:
    """One port may stand in both."""
    message = outward(table(rule(flags=1)) + splice_table(OUT_80) + b"\0")
    assert not message.wanted
    assert [one.outward for one in (*message.rules, *message.outward)] == [False, True]
    assert [pesto.pack_rule(one) for one in message.outward] == [OUT_80]


@pytest.mark.parametrize(
    "data",
    [
        rule(flags=1),
        rule(interface=b"eth0", flags=1),
        rule(interface=b"lo", listen=bytes(10) + b"\xff\xff\x7f\0\0\1"),
        rule(interface=b"lo", target=bytes(15) + b"\1"),
    ],
    ids=["no interface", "another", "an address", "a target"],
)
def test_what_leads_out_does_so_from_loopback_and_to_loopback(data: bytes) -> None:
    with pytest.raises(pesto.ProtocolError, match="expected lo as the interface of a port that leads out"):
        outward(splice_table(data) + b"\0")


def test_without_a_namespace_there_is_one_table() -> None:
    assert refused(splice_table(OUT_80) + b"\0") == "there is no table 3 here; expected 1, HOST"
    with pytest.raises(pesto.ProtocolError, match="no table 2 here; expected 1, HOST or 3, SPLICE"):
        outward(b"\2")
