# SPDX-License-Identifier: Apache-2.0
"""The contract `pasta`: from a command line to a NetworkSpec, or to what the caller reads when it is none."""

from __future__ import annotations

import os
from pathlib import Path

import fresh_python
import pytest
import refused
from host_samples import ip
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.plugin import address, spec
from lockgate.plugin.contracts import pasta, request
from lockgate.plugin.contracts.getopt import Option
from lockgate.plugin.contracts.passt_options import GROUPS, PASST, PASTA, TABLE
from lockgate.plugin.spec import NamespaceSpec, NetworkSpec, Stop
from lockgate.plugin.version import VERSION

PROGRAM = "/opt/hb/pasta"
NETNS = "/run/user/1000/netns/netns-8fc3a1b2-0c1d-4e5f-8a9b-0123456789ab"
SHARED = "/run/user/1000/containers/networks/rootless-netns"
PODMAN_END = f"--no-map-gw --quiet --netns {NETNS} --map-guest-addr 169.254.1.2"
NO_PORTS = "-t none -u none -T none -U none"


@pytest.fixture(autouse=True)
def _known_ephemeral_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "ephemeral_ports", lambda: (32768, 60999))


def parse(*words: str) -> NetworkSpec:
    return pasta.parse(words, PROGRAM)


def line(text: str) -> NetworkSpec:
    return parse(*text.split())


def where(*words: str) -> NamespaceSpec:
    found = parse(*words).namespace
    assert found
    return found


def joined(*words: str) -> NamespaceSpec:
    """With a namespace to join, which changes nothing else."""
    return where("--netns", NETNS, *words)


def stop(*words: str) -> Stop:
    return refused.stop(lambda: parse(*words))


def refusal(*words: str) -> str:
    return refused.refusal(lambda: parse(*words))


def is_podmans(got: NetworkSpec, path: str = NETNS, host6: str = "::") -> None:
    """What all of Podman's command lines have in common."""
    assert (got.contract, got.link, got.foreground, got.log_level) == ("pasta", spec.TAP, False, spec.QUIET)
    namespace = got.namespace
    assert namespace
    assert (namespace.path, namespace.userns, namespace.netns_only, namespace.command) == (path, "", True, ())
    assert (namespace.config_net, namespace.quit_when_gone, namespace.is_new) == (True, True, False)
    assert (namespace.no_splice, namespace.splice_only, namespace.host_lo_to_ns_lo) == (False, False, False)
    assert got.ipv4.dns_forward == ip("169.254.1.1")
    assert (got.ipv4.map_guest, got.ipv6.map_guest) == (ip("169.254.1.2"), ip(host6))
    assert (got.no_dhcp_dns, got.no_dhcp_search, got.no_ra) == (True, True, True)
    assert got.warnings == []


# ---- what callers write ----


def test_podman_without_ports() -> None:
    """The plain `podman run` of a rootless user: nothing is forwarded, the gateway stands for nobody."""
    got = line(f"--config-net --dns-forward 169.254.1.1 {NO_PORTS} {PODMAN_END}")
    is_podmans(got)
    assert got.forwards == ()
    assert got.namespace and got.namespace.forwards == ()
    assert got.ipv4.map_host_loopback == got.ipv6.map_host_loopback == address.UNSET
    assert got.notes == []


def test_podman_publishes_ports() -> None:
    """As ranges, in the order of the user's words, with a host address that has no brackets."""
    got = line(
        "--config-net -t 127.0.0.1/5555-5555:80-80 -u 6000-6002:7000-7002 -t fd00::2/80-80:80-80 "
        f"--dns-forward 169.254.1.1 -T none -U none {PODMAN_END}"
    )
    is_podmans(got)
    assert [str(rule) for rule in got.forwards] == [
        "TCP 127.0.0.1:5555  =>  80",
        "UDP *:6000-6002  =>  7000-7002",
        "TCP [fd00::2]:80  =>  80",
    ]
    assert got.namespace and got.namespace.forwards == ()


def test_podman_with_options_of_its_users() -> None:
    """From `--net=pasta:-T,5201,--map-gw`, of which Podman keeps --map-gw to itself."""
    got = line(
        "--config-net -T 5201 --dns-forward 169.254.1.1 -t none -u none -U none --quiet "
        f"--netns {NETNS} --map-guest-addr 169.254.1.2"
    )
    is_podmans(got)
    assert got.ipv4.map_host_loopback is None
    assert got.forwards == ()
    assert got.namespace and [str(rule) for rule in got.namespace.forwards] == ["TCP *%lo:5201  =>  5201"]


def test_podman_in_the_manner_of_slirp4netns() -> None:
    """The recipe of its manual, which many have copied: an address whose host part is 0, and its own resolver."""
    got = line(
        "--config-net --ipv4-only -a 10.0.2.0 -n 24 -g 10.0.2.2 --dns-forward 10.0.2.3 -m 1500 --no-ndp --no-dhcpv6 "
        f"--no-dhcp {NO_PORTS} {PODMAN_END}"
    )
    assert (got.ipv4.address, got.ipv4.prefix_length, got.ipv4.gateway) == (ip("10.0.2.0"), 24, ip("10.0.2.2"))
    assert (got.ipv4.dns_forward, got.mtu, got.ipv6.enabled) == (ip("10.0.2.3"), 1500, False)
    assert (got.no_ndp, got.no_dhcpv6, got.no_dhcp) == (True, True, True)


@pytest.mark.parametrize("conf", [None, f"{SHARED}/pasta.sock"])
def test_podman_for_all_its_bridge_networks(conf: str | None) -> None:
    """One helper for all of them, found again by its PID file; newer ones change its ports through a socket. Behind the
    namespace are others, who know the host by an address that is sent on."""
    got = line(
        f"--config-net --pid {SHARED}/rootless-netns-conn.pid {f'-c {conf}' if conf else ''} "
        f"--dns-forward 169.254.1.1 {NO_PORTS} --no-map-gw --quiet --netns {SHARED}/rootless-netns "
        "--map-guest-addr 169.254.1.2"
    )
    is_podmans(got, f"{SHARED}/rootless-netns", "64:ff9b:1::a9fe:102")
    assert (got.pid_file, got.conf_path) == (f"{SHARED}/rootless-netns-conn.pid", conf)
    assert got.is_shared


@pytest.mark.parametrize("path", [NETNS, "/run/rootless-netns/other", "/proc/4711/ns/net"])
def test_no_other_namespace_is_shared(path: str) -> None:
    assert not line(f"--config-net --netns {path}").is_shared


def test_the_caller_may_give_the_host_another_name_in_a_shared_namespace() -> None:
    got = line(f"--config-net --netns {SHARED}/rootless-netns --map-guest-addr fd00::99")
    assert got.ipv6.map_guest == ip("fd00::99")


def test_builds_join_the_namespace_of_a_process_by_path() -> None:
    """Podman build and Buildah."""
    got = line(
        f"--config-net --dns-forward 169.254.1.1 {NO_PORTS} --no-map-gw --quiet --netns /proc/4711/ns/net "
        "--map-guest-addr 169.254.1.2"
    )
    is_podmans(got, "/proc/4711/ns/net")
    assert got.namespace and got.namespace.pid == 0


ROOTLESSKIT = (
    "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 "
    "--dns-forward=10.0.2.3 --no-map-gw --ipv4-only"
)


def test_rootlesskit_names_a_process() -> None:
    """Its user namespace is joined too; ports of the namespace's loopback, of which nothing is said, lead out."""
    got = line(f"{ROOTLESSKIT} --tcp-ports=auto --udp-ports=auto --host-lo-to-ns-lo 4711")
    namespace = got.namespace
    assert namespace
    assert (namespace.path, namespace.userns, namespace.pid) == ("/proc/4711/ns/net", "/proc/4711/ns/user", 4711)
    assert (namespace.ns_ifname, namespace.config_net, namespace.netns_only) == ("tap0", True, False)
    assert namespace.host_lo_to_ns_lo
    assert (got.mtu, got.ipv4.address, got.ipv4.prefix_length) == (65520, ip("10.0.2.100"), 24)
    assert (got.ipv4.gateway, got.ipv4.dns_forward) == (ip("10.0.2.2"), ip("10.0.2.3"))
    assert (got.foreground, got.ipv6.enabled) == (False, False)
    assert all(rule.auto and rule.best_effort for rule in (*got.forwards, *namespace.forwards))
    assert [str(rule) for rule in namespace.forwards][0] == (
        "TCP 0.0.0.0%lo:1-32767  =>  1-32767  (best effort)  (auto-scan)"
    )
    assert [warning.startswith("--stderr is obsolete") for warning in got.warnings] == [True]


def test_rootlesskit_names_both_namespaces() -> None:
    got = line(
        f"{ROOTLESSKIT} --tcp-ports=none --udp-ports=none --userns=/proc/4711/ns/user "
        "--netns=/run/user/1000/dockerd/netns"
    )
    namespace = got.namespace
    assert namespace
    assert (namespace.path, namespace.userns) == ("/run/user/1000/dockerd/netns", "/proc/4711/ns/user")
    assert (namespace.netns_only, namespace.pid) == (False, 0)
    assert got.forwards == ()
    assert len(namespace.forwards) == 4


@pytest.mark.parametrize("text", ["--version", "--host-lo-to-ns-lo --version", "-q -t 80 --version --bogus"])
def test_probes_for_the_version_and_for_an_option(text: str) -> None:
    """Options before it are read, and must be known; its first line is the command's name and the version."""
    ended = stop(*text.split())
    assert (ended.exit_code, ended.stderr_text) == (0, "")
    first, *others = ended.stdout_text.splitlines()
    assert first == f"pasta {VERSION}"
    assert "Apache License" in "".join(others)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--bogus", "--version"], "unrecognized option '--bogus'"),
        (["--map-gw"], "unrecognized option '--map-gw'"),
        (["--tcp-ns 80 --bogus=1"], ""),
        (["--bogus 80"], "unrecognized option '--bogus 80'"),
        (["--quiet yes"], "unrecognized option '--quiet yes'"),
        (["-v"], "invalid option -- 'v'"),
        (["-T"], "option requires an argument -- 'T'"),
        (["--netns"], "option '--netns' requires an argument"),
        (["--config-net=yes"], "option '--config-net' doesn't allow an argument"),
        (["--no-co"], "option '--no-co' is ambiguous; possibilities: '--no-copy-routes' '--no-copy-addrs'"),
    ],
)
def test_an_option_that_does_not_parse_shows_the_usage(words: list[str], told: str) -> None:
    """Podman looks for "unrecognized option" in it, and takes the exit code 1."""
    ended = stop(*words)
    assert (ended.exit_code, ended.stdout_text) == (1, "")
    first, rest = ended.stderr_text.split("\n", 1)
    if told:
        assert first == f"{PROGRAM}: {told}"
        assert rest.startswith("Usage: pasta ")
    else:
        assert first.startswith("--tcp-ns 80 --bogus=1: expected a port")


# ---- usage ----


def test_the_usage_names_every_option_of_pasta_and_none_of_passt() -> None:
    """To standard output, with exit code 0; the three ways to say which namespace come first."""
    ended = stop("-qh", "--bogus")
    assert (ended.exit_code, ended.stderr_text) == (0, "")
    text = ended.stdout_text
    assert [row.strip() for row in text.splitlines()[:3]] == [
        "Usage: pasta [OPTION]... [COMMAND [ARGUMENT]...]",
        "pasta [OPTION]... PID",
        "pasta [OPTION]... --netns PATH|NAME",
    ]
    for _, options in GROUPS:
        for option in options:
            short = f"-{option.short}, " if option.short else " "
            row = f" {short}{', '.join(f'--{name}' for name in (option.name, *option.aliases))} {option.argument}"
            assert (row in text) == (option.mode != PASST), row
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("option", [option for option in TABLE.options if option.mode == PASST], ids=lambda o: o.name)
def test_options_of_passt_are_refused(option: Option) -> None:
    words = [f"--{option.name}", *(["x"] if option.argument else []), "--bogus"]
    assert refusal(*words).startswith(f"--{option.name} is for passt only")


@pytest.mark.parametrize("option", [o for o in TABLE.options if o.mode != PASST], ids=lambda o: o.name)
def test_each_option_does_something(option: Option) -> None:
    """But for one: chroot is the fallback anyway."""
    has_method = hasattr(pasta._Request, f"on_{option.name.replace('-', '_')}")
    assert option.built
    assert option.sets or has_method or option.name == "chroot-fallback"
    assert option.argument == "" or has_method
    assert all(field in NetworkSpec.__slots__ for field in option.sets)


# ---- which namespace ----


def test_nothing_asked_for_is_a_shell_in_new_namespaces() -> None:
    """In the foreground and quiet, with all that listens forwarded both ways, and an interface that is left bare."""
    got = parse()
    namespace = got.namespace
    assert namespace
    assert (got.link, got.foreground, got.log_level) == (spec.TAP, True, spec.QUIET)
    assert (namespace.path, namespace.userns, namespace.command, namespace.is_new) == ("", "", (), True)
    assert (namespace.netns_only, namespace.pidns, namespace.quit_when_gone) == (False, True, True)
    assert (namespace.config_net, namespace.copy_addrs, namespace.copy_routes) == (False, True, True)
    assert (namespace.ns_ifname, namespace.ns_mac) == ("", None)
    assert (namespace.no_splice, namespace.splice_only, namespace.host_lo_to_ns_lo) == (False, False, False)
    assert (got.mtu, got.mac, got.hostname, got.fqdn) == (65520, bytes.fromhex("9a559a559a55"), "", "")
    assert (got.no_dhcp_dns, got.no_dhcp_search, got.no_ra, got.no_dhcp, got.no_icmp) == (True, True, *[False] * 3)
    assert got.ipv4.map_host_loopback is got.ipv6.map_host_loopback is None
    assert "path=''" in repr(got)
    assert (got.warnings, got.notes) == ([], [])


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["-4", "sh", "-c", "exit 7", "-T", "80"], ("sh", "-c", "exit 7", "-T", "80")),
        (["--", "-t", "80"], ("-t", "80")),
        (["4711", "x"], ("4711", "x")),
        (["x4711"], ("x4711",)),
        (["٣"], ("٣",)),
        (["-"], ("-",)),
        ([""], ("",)),
    ],
)
def test_words_that_are_no_options_are_a_command(words: list[str], command: tuple[str, ...]) -> None:
    """With its own options, whatever they are."""
    got = parse(*words)
    assert got.namespace
    assert (got.namespace.command, got.namespace.is_new, got.namespace.pid) == (command, True, 0)
    assert (got.foreground, got.log_level) == (True, spec.QUIET)


@pytest.mark.parametrize(
    ("text", "level"),
    [("-d true", spec.DEBUG), ("--trace true", spec.TRACE), ("-d -q true", spec.QUIET), ("-q -d true", spec.DEBUG)],
)
def test_events_of_a_command_are_told_if_wanted(text: str, level: str) -> None:
    assert line(text).log_level == level


@pytest.mark.parametrize(
    ("text", "path", "userns", "netns_only"),
    [
        ("4711", "/proc/4711/ns/net", "/proc/4711/ns/user", False),
        ("-- 04711", "/proc/4711/ns/net", "/proc/4711/ns/user", False),
        ("--userns /u 4711", "/proc/4711/ns/net", "/u", False),
        ("--netns-only 4711", "/proc/4711/ns/net", "", True),
        ("--netns blue", "/run/netns/blue", "", True),
        ("--netns ./blue", "./blue", "", True),
        ("--netns /a --netns /b", "/b", "", True),
        ("--netns /n --userns /u", "/n", "/u", False),
        ("--userns /u --netns-only --netns /n", "/n", "", True),
        ("--netns-only --userns /u --netns /n", "/n", "/u", False),
        ("--netns-only true", "", "", True),
    ],
)
def test_which_namespaces_are_joined(text: str, path: str, userns: str, netns_only: bool) -> None:
    """A name is looked up where `ip netns` puts it; of --userns and --netns-only the later one wins."""
    got = where(*text.split())
    assert (got.path, got.userns, got.netns_only) == (path, userns, netns_only)


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("--netns /n true", "--netns /n: true would choose another"),
        ("--netns /n 4711", "--netns /n: 4711 would choose another"),
        ("--userns /u true", "--userns /u: a command gets a user namespace of its own"),
        ("0", "Invalid PID 0: "),
        ("4194305", "Invalid PID 4194305: "),
        ("9" * 5000, "Invalid PID 999"),
        ("--no-pidns 4711", "--no-pidns is for a command only"),
        ("--no-pidns --netns /n", "--no-pidns is for a command only"),
        ("--no-copy-routes true", "--no-copy-routes needs --config-net"),
        ("--no-copy-addrs true", "--no-copy-addrs needs --config-net"),
        ("--splice-only --no-splice", "--splice-only is incompatible with --no-splice"),
        ("--no-splice --host-lo-to-ns-lo", "--host-lo-to-ns-lo is incompatible with --no-splice"),
        ("--stats 1 true", "--stats 1: counters are printed in the foreground only"),
        ("-m 70000 --netns /n true", "--mtu 70000: expected"),
        ("-t x --netns /n true", "--netns /n: true would choose another"),
        ("-T x -t y", "--tcp-ports y: expected a port"),
    ],
)
def test_what_does_not_fit_together_is_refused(text: str, beginning: str) -> None:
    """In one line; the order is that of the words, what follows the options, what needs all options, forwards."""
    assert refusal(*text.split()).startswith(beginning)


def test_a_command_may_keep_the_process_namespace() -> None:
    assert not where("--no-pidns", "true").pidns


def test_the_watch_for_the_namespace_can_be_switched_off() -> None:
    assert not joined("--no-netns-quit").quit_when_gone


# ---- its interface ----


def test_the_interface_is_as_asked_for() -> None:
    got = parse(*"--netns n -I eth7 --ns-mac-addr 02:00:00:00:00:0A -M 9a:55:9a:55:9a:56 -m 0".split())
    assert got.namespace
    assert (got.namespace.ns_ifname, got.namespace.ns_mac) == ("eth7", bytes.fromhex("02000000000a"))
    assert (got.mac, got.mtu) == (bytes.fromhex("9a559a559a56"), 0)
    assert joined("--ns-ifname=a-name-of-fiftn").ns_ifname == "a-name-of-fiftn"


def test_less_can_be_copied() -> None:
    """Obsolete, and said so."""
    got = parse("--config-net", "--no-copy-routes", "--no-copy-addrs", "--netns", NETNS)
    assert got.namespace
    assert (got.namespace.copy_routes, got.namespace.copy_addrs) == (False, False)
    assert ["--gateway" in got.warnings[0], "--address" in got.warnings[1]] == [True, True]


def test_a_configured_interface_needs_no_router_advertisements() -> None:
    assert [line(f"{word} true").no_ra for word in ("--config-net", "-4", "--no-ra")] == [True, False, True]


def test_names_are_handed_out_if_asked_for() -> None:
    got = line("--dhcp-dns --dhcp-search -D 10.0.0.53 -S example.org -H blue --fqdn blue.example.org true")
    assert (got.no_dhcp_dns, got.no_dhcp_search) == (False, False)
    assert (got.ipv4.dns, got.search) == ((ip("10.0.0.53"),), ("example.org",))
    assert (got.hostname, got.fqdn) == ("blue", "blue.example.org")


@pytest.mark.parametrize(
    "words",
    [
        *(["--ns-ifname", name] for name in ("", "lo", ".", "..", "a b", "a/b", "eth0:1", "a-name-of-sixten")),
        *(["--ns-mac-addr", mac] for mac in ("", "x", "01:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00")),
        *([option, path] for option in ("--netns", "--userns") for path in ("", "p" * 4096)),
        *(["--mtu", text] for text in ("x", "65522")),
        *(["--address", text] for text in ("127.0.0.1", "0.0.0.0", "224.0.0.1", "::1")),
        ["--mac-addr", "x"],
        ["--conf-path", "c" * 108],
        ["--interface", "nonexistent0"],
    ],
    ids=lambda words: f"{words[0]} {words[1][:20]!r}",
)
def test_values_that_are_refused(words: list[str]) -> None:
    """In one line that names the option and quotes the value; those of both commands are tested with passt."""
    told = refusal(*words)
    assert told.startswith(f"{words[0]} {words[1]}: ")


def test_what_both_commands_take_is_read_by_the_same_code() -> None:
    """One of each kind; tests of passt have the rest."""
    got = line(
        "-f -d -l /tmp/log --log-size 50000 -P /tmp/pid -p /tmp/pcap -c /tmp/conf --stats 5 --runas 0 -i lo "
        "-o 10.7.0.2 --outbound-if4 lo --outbound-if6 lo --freebind --map-host-loopback 10.9.9.9 --map-guest-addr none "
        f"--dns-host 127.0.0.53 --no-udp --no-icmp -a fd00::5/64 -g fe80::1 --netns {NETNS} --chroot-fallback"
    )
    assert (got.foreground, got.log_level, got.log_file, got.log_size) == (True, spec.DEBUG, "/tmp/log", 50000)
    assert (got.pid_file, got.pcap_file, got.conf_path, got.stats_seconds) == ("/tmp/pid", "/tmp/pcap", "/tmp/conf", 5)
    assert (got.runas, got.interface, got.freebind) == ((0, 0), "lo", True)
    assert (got.ipv4.outbound, got.ipv4.outbound_interface, got.ipv6.outbound_interface) == (ip("10.7.0.2"), "lo", "lo")
    assert (got.ipv4.map_host_loopback, got.ipv4.dns_host) == (ip("10.9.9.9"), ip("127.0.0.53"))
    assert (got.no_udp, got.no_icmp, got.no_ndp) == (True, True, True)
    assert (got.ipv6.address, got.ipv6.gateway) == (ip("fd00::5"), ip("fe80::1"))


# ---- loopback ----


def test_ways_between_the_loopbacks() -> None:
    """Without an interface, what comes from loopback arrives at loopback, and nothing of a link is answered."""
    assert joined("--no-splice").no_splice
    assert joined("--host-lo-to-ns-lo").host_lo_to_ns_lo
    got = parse("--splice-only", "true")
    assert got.namespace
    assert (got.namespace.splice_only, got.namespace.host_lo_to_ns_lo) == (True, True)
    assert (got.no_icmp, got.no_ndp, got.no_ra, got.no_dhcp, got.no_dhcpv6) == (True,) * 5


# ---- any command line ----

VALUES = st.one_of(
    st.text(alphabet="0123456789abcdefx.:/[]-+ n\udcff", max_size=20),
    st.sampled_from(["10.0.0.1/24", "fd00::1", "none", "24", "auto", "all,~22", "auto,80", "lo", "/tmp/x", "eth0"]),
    st.text(alphabet="é٣漢\x7f\udc80 =", max_size=8),
)
NAMES = st.sampled_from([f"--{name}" for name, option in TABLE.longs.items() if option.mode != PASST])
ONE_WORD = st.tuples(st.one_of(NAMES, st.sampled_from(["-T", "-t", "-a"])), VALUES)
WORDS = st.lists(
    st.one_of(NAMES, ONE_WORD.map("=".join), ONE_WORD.map(" ".join), ONE_WORD.map("".join), VALUES), max_size=8
)


@settings(deadline=None, max_examples=500)
@given(words=WORDS)
def test_every_command_line_ends_in_a_checked_spec_or_in_one_sentence(words: list[str]) -> None:
    """No other exception, and nothing that later code would have to check again."""
    try:
        got = pasta.parse(words, PROGRAM)
    except Stop as ended:
        texts = ended.stdout_text, ended.stderr_text
        assert (ended.exit_code, texts.count("")) in ((0, 1), (1, 1))
        assert "Usage: " in texts[1] or texts[1].count("\n") <= 3
        return
    namespace = got.namespace
    assert namespace and got.contract == PASTA and got.link == spec.TAP
    assert bool(namespace.path) != namespace.is_new == got.foreground or "--foreground" in words
    assert not (namespace.path and namespace.command)
    assert not (namespace.netns_only and namespace.userns)
    assert not (namespace.no_splice and (namespace.splice_only or namespace.host_lo_to_ns_lo))
    assert len(os.fsencode(namespace.ns_ifname)) <= 15
    assert got.ipv4.enabled or got.ipv6.enabled
    assert all(rule.interface == "lo" for rule in namespace.forwards)


# ---- start-up ----


def test_parsing_imports_nothing_heavy(tmp_path: Path) -> None:
    """Each module costs its tenth of a millisecond before READY: beside our own, only these three."""
    words = f"--config-net -t 8080-8080:80-80 --dns-forward 169.254.1.1 -u none -T none -U none {PODMAN_END}".split()
    program = (
        "from lockgate.plugin.contracts.pasta import parse\n"
        f"parse({words!r}, 'pasta')\n"
    )
    imported = fresh_python.imported(tmp_path, program)
    ours = {name for name in imported if name.startswith("lockgate.")}
    assert imported - ours <= {"__future__", "_socket", "errno"}
    assert ours == {
        "lockgate.plugin",
        "lockgate.plugin.address",
        "lockgate.plugin.contracts",
        "lockgate.plugin.contracts.forward_spec",
        "lockgate.plugin.contracts.getopt",
        "lockgate.plugin.contracts.passt_options",
        "lockgate.plugin.contracts.pasta",
        "lockgate.plugin.contracts.request",
        "lockgate.plugin.contracts.strtoul",
        "lockgate.plugin.forward_rule",
        "lockgate.plugin.native_text",
        "lockgate.plugin.resolvconf",
        "lockgate.plugin.spec",
    }
