# SPDX-License-Identifier: Apache-2.0
"""plugin/contracts/forward_spec.py: from the words of a forward to rules, or to one sentence."""

from __future__ import annotations

import pytest
from host_samples import ip
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lockgate.plugin import address
from lockgate.plugin.address import ANY4, UNSET
from lockgate.plugin.contracts.forward_spec import RULES_MAX, SOCKETS_MAX, ForwardSpecError, Scope, add
from lockgate.plugin.forward_rule import PORT_MAX, TCP, UDP, ForwardRule

EPHEMERAL = (32768, 60999)
OPTIONS = {TCP: "--tcp-ports", UDP: "--udp-ports"}


def never() -> tuple[int, int]:
    raise AssertionError("the host's ephemeral ports are not needed here")


def scope(ipv4: bool = True, ipv6: bool = True, tcp: bool = True, udp: bool = True) -> Scope:
    return Scope(ipv4=ipv4, ipv6=ipv6, tcp=tcp, udp=udp, ephemeral=lambda: EPHEMERAL)


def rules(*texts: str, protocol: int = TCP, within: Scope | None = None) -> tuple[ForwardRule, ...]:
    """What several options of one protocol add up to."""
    found: tuple[ForwardRule, ...] = ()
    for text in texts:
        found = add(found, OPTIONS[protocol], protocol, text, within or scope())
    return found


def told(*texts: str, protocol: int = TCP, within: Scope | None = None) -> str:
    """The sentence about the last text; those before it are taken."""
    before = rules(*texts[:-1], protocol=protocol, within=within)
    with pytest.raises(ForwardSpecError) as caught:
        add(before, OPTIONS[protocol], protocol, texts[-1], within or scope())
    return str(caught.value)


def shown(*texts: str, **options: object) -> list[str]:
    return [str(rule) for rule in rules(*texts, **options)]  # type: ignore[arg-type]


# ---- what each part means ----


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", ["80  =>  80"]),
        ("080", ["80  =>  80"]),
        ("1,65535", ["1  =>  1", "65535  =>  65535"]),
        ("8000-8010", ["8000-8010  =>  8000-8010"]),
        ("8080-8080:80-80", ["8080  =>  80"]),
        ("8080:80", ["8080  =>  80"]),
        ("8000-8010:9000-9010", ["8000-8010  =>  9000-9010"]),
        ("22,80-82:1080-1082,53", ["22  =>  22", "80-82  =>  1080-1082", "53  =>  53"]),
        ("80-90,~85", ["80-84  =>  80-84", "86-90  =>  86-90"]),
        ("~85,80-90", ["80-84  =>  80-84", "86-90  =>  86-90"]),
        ("80-90:1080-1090,~80-82,~89-95", ["83-88  =>  1083-1088"]),
        ("80,~80", []),
        ("80,all", ["80  =>  80"]),
        ("40000", ["40000  =>  40000"]),
    ],
)
def test_ports_and_where_they_lead(text: str, ports: list[str]) -> None:
    """Excludes win in any order, and keep the mapping of what is left; "all" counts for nothing beside ports."""
    assert shown(text) == [f"TCP *:{line}" for line in ports]


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("all", [(1, 32767), (61000, 65535)]),
        ("~22", [(1, 21), (23, 32767), (61000, 65535)]),
        ("all,~0-1023", [(1024, 32767), (61000, 65535)]),
        ("~1-1023,~40000-65535", [(1024, 32767)]),
        ("~1-65535", []),
    ],
)
def test_all_is_what_the_host_does_not_use_itself(text: str, runs: list[tuple[int, int]]) -> None:
    """Without ports that are named: from 1, less the ephemeral ones and what is left out; any of a run will do."""
    found = rules(text, protocol=UDP)
    assert [(rule.first, rule.last, rule.to_first) for rule in found] == [(first, last, first) for first, last in runs]
    assert all(rule.best_effort and rule.protocol == UDP and rule.dual_stack for rule in found)


def test_ports_that_are_named_need_not_know_the_host() -> None:
    """The ephemeral range is asked for by "all" only, and ports that are named are no best effort."""
    within = Scope(ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=never)
    found = rules("80,~81", "90,all", "40000-50000", within=within)
    assert [(rule.first, rule.last, rule.count) for rule in found] == [(80, 80, 1), (90, 90, 1), (40000, 50000, 10001)]
    assert not any(rule.best_effort for rule in found)


@pytest.mark.parametrize(
    ("text", "listen", "dual_stack", "interface"),
    [
        ("80", UNSET, True, ""),
        ("/80", UNSET, True, ""),
        ("*/80", UNSET, True, ""),
        ("%eth0/80", UNSET, True, "eth0"),
        ("*%eth0/80", UNSET, True, "eth0"),
        ("%eth0:1/80", UNSET, True, "eth0:1"),
        ("0.0.0.0/80", ANY4, False, ""),
        ("::/80", UNSET, False, ""),
        ("[::]/80", UNSET, False, ""),
        ("127.0.0.1/80", ip("127.0.0.1"), False, ""),
        ("[127.0.0.1]/80", ip("127.0.0.1"), False, ""),
        ("::1/80", ip("::1"), False, ""),
        ("[::1]/8080-8080:80-80", ip("::1"), False, ""),
        ("fe80::1%eth0/80", ip("fe80::1"), False, "eth0"),
        ("[fe80::1]%a-name-of-fiftn/80", ip("fe80::1"), False, "a-name-of-fiftn"),
        ("10::1%eth0/80", ip("10::1"), False, "eth0"),
        ("80:fd00::1/80", ip("80:fd00::1"), False, ""),
    ],
)
def test_where_a_forward_listens(text: str, listen: bytes, dual_stack: bool, interface: str) -> None:
    """Without an address for both families; with one, also an unspecified one, for its own. Brackets are optional."""
    (rule,) = rules(text)
    assert (rule.listen, rule.dual_stack, rule.interface) == (listen, dual_stack, interface)
    assert (rule.first, rule.last) in ((80, 80), (8080, 8080))


@pytest.mark.parametrize(("ipv4", "ipv6", "listen"), [(True, False, ANY4), (False, True, UNSET)])
def test_with_one_family_only_any_address_is_of_that(ipv4: bool, ipv6: bool, listen: bytes) -> None:
    """So that a target may follow without an address to listen on."""
    within = scope(ipv4=ipv4, ipv6=ipv6)
    target = ip("10.0.0.1" if ipv4 else "fd00::1")
    (rule,) = rules(f"*%lo/80:{address.to_text(target)}", within=within)
    assert (rule.listen, rule.dual_stack, rule.target, rule.interface) == (listen, False, target, "lo")


@pytest.mark.parametrize(
    ("text", "target", "to_first"),
    [
        ("127.0.0.1/80:10.0.0.1", "10.0.0.1", 80),
        ("127.0.0.1/80:10.0.0.1/81", "10.0.0.1", 81),
        ("127.0.0.1/80-82:[10.0.0.1]/90-92", "10.0.0.1", 90),
        ("::/80:fd00::1", "fd00::1", 80),
        ("::/80:fd00::1/81", "fd00::1", 81),
        ("[::]/80:[fd00::1]/81", "fd00::1", 81),
        ("::/80:80::1", "80::1", 80),
        ("0.0.0.0/all:10.0.0.1,~1,~3-65535", "10.0.0.1", 2),
    ],
)
def test_targets_with_an_address(text: str, target: str, to_first: int) -> None:
    """The guest's ports are as the host's, unless they follow the address."""
    (rule,) = rules(text)
    assert (rule.target, rule.to_first) == (ip(target), to_first)


def test_the_slash_of_a_target_begins_no_listening_part() -> None:
    """What stands before it are ports, and no address."""
    within = scope(ipv6=False)
    assert shown("80:10.0.0.1/81", within=within) == ["TCP 0.0.0.0:80  =>  10.0.0.1:81"]
    assert shown("22,80:10.0.0.1/81", within=within) == ["TCP 0.0.0.0:22  =>  22", "TCP 0.0.0.0:80  =>  10.0.0.1:81"]
    assert shown("~1,80:10.0.0.1/81", within=within) == ["TCP 0.0.0.0:80  =>  10.0.0.1:81"]


def test_a_rule_is_shown_as_passt_announces_it() -> None:
    assert shown("[::1]%lo/80-81:[fd00::1]/90-91") == ["TCP [::1]%lo:80-81  =>  [fd00::1]:90-91"]
    assert shown("*%lo/~1-60999", protocol=UDP) == ["UDP *%lo:61000-65535  =>  61000-65535  (best effort)"]
    assert repr(rules("80")[0]) == "ForwardRule(TCP *:80  =>  80)"


def test_rules_are_compared_by_what_they_say() -> None:
    assert rules("80") == rules("/80:80") != rules("*%lo/80")
    assert len({*rules("80"), *rules("/80"), *rules("81")}) == 2
    assert rules("80")[0] != "TCP *:80  =>  80"


# ---- with a namespace ----

FOLLOWING = Scope(ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=lambda: EPHEMERAL, auto=True)
LEADING_OUT = Scope(ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=lambda: EPHEMERAL, auto=True, outbound=True)


@pytest.mark.parametrize(
    ("text", "runs", "best_effort"),
    [
        ("auto", [(1, 32767), (61000, 65535)], True),
        ("auto,auto", [(1, 32767), (61000, 65535)], True),
        ("auto,all", [(1, 32767), (61000, 65535)], True),
        ("~22,auto", [(1, 21), (23, 32767), (61000, 65535)], True),
        ("20-30,~22,auto", [(20, 21), (23, 30)], False),
        ("127.0.0.1%lo/auto,~1-60999", [(61000, 65535)], True),
    ],
)
def test_auto_makes_a_whole_spec_follow_what_listens(text: str, runs: list[tuple[int, int]], best_effort: bool) -> None:
    """By itself, of all ports that the host does not use; beside ports that are named, of those."""
    found = rules(text, within=FOLLOWING)
    assert [(rule.first, rule.last) for rule in found] == runs
    assert all(rule.auto and rule.best_effort == best_effort for rule in found)
    assert not any(rule.auto for rule in rules("80", "all,~80", within=FOLLOWING))


def test_auto_is_seen_in_a_rule() -> None:
    (rule,) = rules("80,auto", within=FOLLOWING)
    assert str(rule) == "TCP *:80  =>  80  (auto-scan)"
    assert rule != rules("80")[0]


@pytest.mark.parametrize("chunk", ["auto:80", "auto:10.0.0.1", "auto:"])
def test_ports_that_follow_lead_to_the_same_ports(chunk: str) -> None:
    assert "expected nothing after auto" in told(chunk, within=FOLLOWING)


def test_ports_that_lead_out_are_those_of_loopback() -> None:
    """On its interface, whatever the family; so no listening part can be written, not even an empty one."""
    (rule,) = rules("80:81", within=LEADING_OUT)
    assert (rule.listen, rule.dual_stack, rule.interface, rule.to_first) == (UNSET, True, "lo", 81)
    for text in ("127.0.0.1/80", "*/80", "/80", "%lo/80"):
        assert "it is the namespace's loopback that listens" in told(text, within=LEADING_OUT)


# ---- several options ----


def test_options_add_up() -> None:
    """Each is a spec of its own: excludes do not reach into another."""
    assert shown("80,~81", "81", "127.0.0.1/82") == [
        "TCP *:80  =>  80",
        "TCP *:81  =>  81",
        "TCP 127.0.0.1:82  =>  82",
    ]


def test_none_must_come_first() -> None:
    """It is refused after forwards of its own protocol; what follows it counts."""
    assert shown("none", "80") == ["TCP *:80  =>  80"]
    assert rules("none", "none") == ()
    assert told("80", "none").startswith("--tcp-ports none: TCP ports are forwarded by what comes before it")
    assert add(rules("80"), "--udp-ports", UDP, "none", scope()) == rules("80")
    assert add((), "--tcp-ports", TCP, "none", scope(tcp=False)) == ()


@pytest.mark.parametrize(
    "texts",
    [("80", "80"), ("80,80",), ("80", "127.0.0.1/80"), ("80-90", "%lo/85-95"), ("all", "80"), ("80", "81,80:90")],
)
def test_a_port_that_is_forwarded_twice_is_refused(texts: tuple[str, ...]) -> None:
    """Also an identical forward, another target, or another interface; in one option or in two."""
    assert "is forwarded already, by *" in told(*texts)


def test_the_protocols_do_not_meet() -> None:
    assert [rule.protocol for rule in add(rules("80"), "--udp-ports", UDP, "80", scope())] == [TCP, UDP]


def test_the_conflict_names_the_ports_and_the_other_rule() -> None:
    sentence = told("127.0.0.1/80-90", "85-95")
    assert sentence.startswith("--tcp-ports 85-95: TCP port 85-90 is forwarded already, by 127.0.0.1/80-90;")


# Addresses that a socket could have, as a model of the host; each listening part stands for some of them.
PLACES = {
    "": {"127.0.0.1", "other4", "::1", "other6"},
    "*": {"127.0.0.1", "other4", "::1", "other6"},
    "0.0.0.0": {"127.0.0.1", "other4"},
    "::": {"::1", "other6"},
    "127.0.0.1": {"127.0.0.1"},
    "192.0.2.1": {"other4"},
    "::1": {"::1"},
    "[fd00::1]": {"other6"},
}
FORWARDS = st.tuples(
    st.sampled_from([TCP, UDP]),
    st.sampled_from(list(PLACES)),
    st.sampled_from(["", "%lo", "%eth0"]),
    st.integers(1, 12),
    st.integers(0, 4),
)


@given(one=FORWARDS, other=FORWARDS)
def test_two_forwards_conflict_if_a_socket_would_serve_both(
    one: tuple[int, str, str, int, int], other: tuple[int, str, str, int, int]
) -> None:
    """Against the set of all sockets of each; interfaces do not tell them apart."""
    sockets = []
    found: tuple[ForwardRule, ...] = ()
    for protocol, place, _, first, more in (one, other):
        ports = range(first, first + more + 1)
        sockets.append({(protocol, where, port) for where in PLACES[place] for port in ports})
    conflict = bool(sockets[0] & sockets[1])
    try:
        for protocol, place, interface, first, more in (one, other):
            text = f"{place}{interface}/{first}-{first + more}"
            found = add(found, OPTIONS[protocol], protocol, text, scope())
    except ForwardSpecError as mistake:
        assert conflict and "is forwarded already" in str(mistake)
        return
    assert not conflict
    assert found[0].conflicts(found[1]) == found[1].conflicts(found[0]) == conflict


# ---- any spec, against sets of ports ----

RANGES = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))
INCLUDES = st.tuples(st.just("include"), RANGES, st.none() | st.integers(1, 65000))
EXCLUDES = st.tuples(st.just("exclude"), RANGES | st.just((61, PORT_MAX)), st.none())
ALL = st.tuples(st.just("all"), st.just((1, PORT_MAX)), st.none())
Chunk = tuple[str, tuple[int, int], int | None]


def written(chunk: Chunk) -> str:
    kind, (first, last), to = chunk
    ports = f"{first}-{last}" if last > first else f"{first}"
    if kind == "exclude":
        return f"~{ports}"
    if kind == "all":
        return "all"
    return ports if to is None else f"{ports}:{to}-{to + last - first}"


def model(chunks: list[Chunk]) -> dict[int, int] | None:
    """Each port and where it leads; None if one is named twice."""
    excluded = {port for kind, (first, last), _ in chunks if kind == "exclude" for port in range(first, last + 1)}
    includes = [chunk for chunk in chunks if chunk[0] == "include"]
    if not includes:
        excluded |= set(range(EPHEMERAL[0], EPHEMERAL[1] + 1))
        includes = [("include", (1, PORT_MAX), None)]
    leads: dict[int, int] = {}
    for _, (first, last), to in includes:
        for port in set(range(first, last + 1)) - excluded:
            if port in leads:
                return None
            leads[port] = port if to is None else to + port - first
    return leads


@settings(max_examples=200)
@given(chunks=st.lists(INCLUDES | EXCLUDES | ALL, min_size=1, max_size=6))
@example(chunks=[("include", (10, 20), 110), ("exclude", (12, 12), None), ("exclude", (14, 15), None)])
@example(chunks=[("all", (1, PORT_MAX), None), ("exclude", (32760, 32770), None)])
def test_the_ports_of_a_spec_are_those_of_the_model(chunks: list[Chunk]) -> None:
    """What is included, less what is excluded, and no two rules where one would do."""
    expected = model(chunks)
    text = ",".join(map(written, chunks))
    if expected is None:
        assert "is forwarded already" in told(text)
        return
    found = rules(text)
    ports = [port for rule in found for port in range(rule.first, rule.last + 1)]
    leads = [port - rule.first + rule.to_first for rule in found for port in range(rule.first, rule.last + 1)]
    assert len(set(ports)) == len(ports)
    assert dict(zip(ports, leads, strict=True)) == expected
    named = [chunk for chunk in chunks if chunk[0] == "include"]
    if len(named) <= 1:
        firsts = {rule.first for rule in found}
        assert all(rule.last + 1 not in firsts for rule in found)
    assert all(rule.best_effort == (not named) for rule in found)


# ---- limits ----


def test_there_may_be_255_rules() -> None:
    """Of both protocols together."""
    text = ",".join(str(2 * number) for number in range(1, RULES_MAX + 1))
    full = rules(text)
    assert len(full) == RULES_MAX == 255
    with pytest.raises(ForwardSpecError, match="--udp-ports 7: expected at most 255 separate ranges of ports in all"):
        add(full, "--udp-ports", UDP, "7", scope())
    assert "expected at most 255" in told(text + ",1001")
    assert "expected at most 255" in told(",".join(f"~{2 * number}" for number in range(1, 400)))


def test_there_may_be_five_times_65536_sockets() -> None:
    whole = [f"127.0.0.{number}/1-65535" for number in range(1, 6)]
    found = rules(*whole, "127.0.0.6/1-5")
    assert sum(rule.count for rule in found) == SOCKETS_MAX
    assert f"expected at most {SOCKETS_MAX} sockets in all" in told(*whole, "127.0.0.6/1-6")


# ---- mistakes ----


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("", "expected a port from 1 to 65535"),
        ("x", "expected a port from 1 to 65535, or a range like 8000-8010, all, or ~"),
        ("80,", "nothing: expected a port"),
        ("80,,81", "nothing: expected a port"),
        (" 80", "expected a port"),
        ("+80", "expected a port"),
        ("0x50", "expected a port"),
        ("٣", "expected a port"),
        ("65536", "expected a port from 1 to 65535"),
        ("9" * 5000, "expected a port from 1 to 65535"),
        ("80-", "expected a port"),
        ("-80", "expected a port"),
        ("80-81-82", "expected a port"),
        ("90-80", "expected the lower port first; write 80-90"),
        ("0", "port 0 cannot be forwarded; ports begin at 1"),
        ("0-10", "port 0 cannot be forwarded"),
        ("80:0", "0: port 0 cannot be forwarded"),
        ("80:0-0", "0-0: port 0 cannot be forwarded"),
        ("80:", "nothing: expected a port, a range, or an address of the guest"),
        ("80:x", "x: expected a port, a range, or an address of the guest"),
        ("80:90-80", "90-80: expected the lower port first"),
        ("80:65536", "65536: expected a port"),
        ("80-82:90-91", "expected two ranges of the same length, as in 80-82:90-92"),
        ("80-82:90", "expected two ranges of the same length, as in 80-82:90-92"),
        ("80:90-91", "expected two ranges of the same length, as in 80:90"),
        ("127.0.0.1/80-82:10.0.0.1/90", "expected two ranges of the same length, as in 80-82:90-92"),
        ("127.0.0.1/80:10.0.0.1/", "nothing: expected a port"),
        ("127.0.0.1/80:10.0.0/90", "10.0.0: expected a port, a range, or an address of the guest"),
        ("127.0.0.1/80:0.0.0.0", "0.0.0.0: expected an address that a guest can have"),
        ("::/80:[::]/90", "[::]: expected an address that a guest can have"),
        ("~", "nothing: expected a port"),
        ("~x", "x: expected a port"),
        ("~80:90", "80:90: expected a port"),
        ("~90-80", "90-80: expected the lower port first"),
        ("none,80", "none: expected a port"),
        ("all:", "nothing: expected an address of the guest"),
        ("all:80", "80: expected an address of the guest"),
        ("0.0.0.0/all:10.0.0.1,all", "all: expected one target for all"),
        ("auto", "auto follows what listens in a namespace, and is for pasta only"),
        ("80,auto", "auto follows what listens in a namespace"),
        ("127.0.0.1", "expected a slash after an address to listen on, as in 127.0.0.1/80"),
        ("127.0.0.1:8080:80", "127.0.0.1: expected a slash after an address"),
        ("127.0.0.1/", "nothing: expected a port"),
        ("host/80", "host: expected an address to listen on before the slash"),
        ("80/90", "80: expected an address to listen on"),
        ("10.0.0/80", "10.0.0: expected an address to listen on"),
        ("[::1/80", "[::1: expected an address to listen on"),
        ("[*]/80", "[*]: expected an address to listen on"),
        ("[fe80::1%eth0]/80", "expected an address to listen on"),
        ("127.0.0.1%/80", "127.0.0.1%: expected the name of an interface after %"),
        ("%/80", "%: expected the name of an interface"),
        ("%sixteen-letters-/80", "expected the name of an interface after %, 1 to 15 bytes"),
        ("%éééééééaa/80", "expected the name of an interface after %"),
        ("%a b/80", "%a b: expected the name of an interface"),
        ("80:10.0.0.1", "10.0.0.1: expected to listen on IPv4 only for this target"),
        ("80:fd00::1", "fd00::1: expected to listen on IPv6 only for this target"),
        ("all:10.0.0.1", "10.0.0.1: expected to listen on IPv4 only"),
        ("::1/80:10.0.0.1", "10.0.0.1: expected to listen on IPv4 only"),
        ("127.0.0.1/80:fd00::1", "fd00::1: expected to listen on IPv6 only"),
    ],
    ids=lambda text: text[:24],
)
def test_mistakes_are_told_in_one_sentence(text: str, about: str) -> None:
    """The option, all that was written for it, the part that is wrong, and what was expected."""
    sentence = told(text)
    assert sentence.startswith(f"--tcp-ports {text}: ")
    assert about in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("text", "within", "protocol", "about"),
    [
        ("127.0.0.1/80", scope(ipv4=False), TCP, "127.0.0.1: IPv4 is switched off by --ipv6-only"),
        ("::/80", scope(ipv6=False), TCP, "::: IPv6 is switched off by --ipv4-only"),
        ("80", scope(tcp=False), TCP, "TCP is switched off by --no-tcp"),
        ("53", scope(udp=False), UDP, "UDP is switched off by --no-udp"),
    ],
)
def test_what_is_switched_off_is_not_forwarded(text: str, within: Scope, protocol: int, about: str) -> None:
    assert about in told(text, within=within, protocol=protocol)


TEXTS = st.text(alphabet="0123456789-~:,/[]%*. aelnoutfd\udcff", max_size=24) | st.text(max_size=8)


@settings(max_examples=500)
@given(text=TEXTS, ipv4=st.booleans(), ipv6=st.booleans())
@example(text="80:10.0.0.1/81", ipv4=True, ipv6=False)
def test_every_text_ends_in_checked_rules_or_in_one_sentence(text: str, ipv4: bool, ipv6: bool) -> None:
    """No other exception, and nothing that later code would have to check again."""
    assume(ipv4 or ipv6)
    try:
        found = rules(text, within=scope(ipv4, ipv6))
    except ForwardSpecError as mistake:
        assert str(mistake).startswith(f"--tcp-ports {text}: ")
        return
    for rule in found:
        assert 1 <= rule.first <= rule.last <= PORT_MAX
        assert 1 <= rule.to_first <= PORT_MAX - rule.count + 1
        assert len(rule.listen) == len(rule.target) == 16
        assert len(rule.interface.encode("utf-8", "surrogateescape")) <= 15
        assert rule.dual_stack <= (rule.listen == UNSET and ipv4 and ipv6)
        assert rule.dual_stack or (ipv4 if address.is_ipv4(rule.listen) else ipv6)
        assert rule.target == UNSET or (
            not rule.dual_stack and address.is_ipv4(rule.target) == address.is_ipv4(rule.listen)
        )
