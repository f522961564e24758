# SPDX-License-Identifier: Apache-2.0
"""The contract `passt`: from a command line to a NetworkSpec, or to what the caller reads when it is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fresh_python
import pytest
import refused
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockgate.plugin import address, resolvconf, spec
from lockgate.plugin.contracts import passt
from lockgate.plugin.contracts.getopt import Option
from lockgate.plugin.contracts.passt_options import GROUPS, PASST, PASTA, TABLE
from lockgate.plugin.spec import NetworkSpec, Stop
from lockgate.plugin.version import VERSION

PROGRAM = "/usr/bin/passt"


def parse(*words: str) -> NetworkSpec:
    """The specification; with --vhost-user in front, which changes nothing else."""
    return passt.parse(["--vhost-user", *words], PROGRAM)


def stop(*words: str) -> Stop:
    return refused.stop(lambda: passt.parse(words, PROGRAM))


def refusal(*words: str) -> str:
    return refused.refusal(lambda: parse(*words))


def ip(text: str) -> bytes:
    parsed = address.parse(text)
    assert parsed is not None
    return parsed


@pytest.fixture
def open_fd() -> Iterator[int]:
    ours, theirs = os.pipe()
    os.close(theirs)
    yield ours
    os.close(ours)


@pytest.fixture
def closed_fd(open_fd: int) -> int:
    number = os.dup(open_fd)
    os.close(number)
    return number


# ---- what callers write ----


def test_qemu_hands_over_a_descriptor(open_fd: int) -> None:
    """-netdev passt of QEMU: quiet, daemonised, with a PID file that it reads, on a socketpair."""
    got = parse(
        *"--quiet --mtu 1500 --address 10.0.2.15 --netmask 24 --mac-addr 52:54:00:12:34:56 --gateway 10.0.2.2".split(),
        *"--interface lo --dns 10.0.2.53 --fqdn vm.example.org --no-dhcp-dns --no-dhcp-search".split(),
        *"--map-host-loopback 10.0.2.3 --dns-forward 10.0.2.54 --dns-host 127.0.0.53".split(),
        *["--no-udp", "--no-icmp", "--no-ra", "--ipv4-only", "--search", "a.example b.example"],
        *f"--pid /tmp/passt-XYZ.pid --fd {open_fd}".split(),
    )
    assert (got.contract, got.link, got.log_level, got.foreground) == ("passt", spec.VHOST_USER, spec.QUIET, False)
    assert (got.socket_fd, got.socket_path, got.one_off) == (open_fd, None, True)
    assert (got.pid_file, got.mtu, got.interface) == ("/tmp/passt-XYZ.pid", 1500, "lo")
    assert got.mac == bytes.fromhex("525400123456")
    assert (got.ipv4.address, got.ipv4.prefix_length, got.ipv4.gateway) == (ip("10.0.2.15"), 24, ip("10.0.2.2"))
    assert got.ipv4.map_host_loopback == ip("10.0.2.3")
    assert (got.ipv4.enabled, got.ipv6.enabled) == (True, False)
    assert (got.no_udp, got.no_icmp, got.no_ndp, got.no_ra) == (True, True, True, True)
    assert (got.no_tcp, got.no_dhcp, got.no_dhcpv6) == (False, False, False)
    assert got.ipv4.dns == (ip("10.0.2.53"),)
    assert (got.ipv4.dns_forward, got.ipv4.dns_host) == (ip("10.0.2.54"), ip("127.0.0.53"))
    assert (got.fqdn, got.search) == ("vm.example.org", ("a.example", "b.example"))
    assert (got.no_dhcp_dns, got.no_dhcp_search) == (True, True)
    assert got.warnings == []


def test_libvirt_names_a_socket() -> None:
    """type='vhostuser' of libvirt: one client, socket and PID file in its state directory, netmask after address."""
    got = parse(
        *"--one-off --socket /run/libvirt/qemu/passt/1-vm-net0.socket".split(),
        *"--pid /run/libvirt/qemu/passt/1-vm-net0-passt.pid --mtu 9000 --interface lo".split(),
        *"--log-file /tmp/passt.log --hostname vm --fqdn vm.example.org".split(),
        *"--address 172.17.2.4 --netmask 24 --address 2001:db8::4".split(),
    )
    assert (got.one_off, got.socket_path) == (True, "/run/libvirt/qemu/passt/1-vm-net0.socket")
    assert (got.pid_file, got.log_file) == ("/run/libvirt/qemu/passt/1-vm-net0-passt.pid", "/tmp/passt.log")
    assert (got.mtu, got.interface, got.hostname, got.fqdn) == (9000, "lo", "vm", "vm.example.org")
    assert (got.ipv4.address, got.ipv4.prefix_length) == (ip("172.17.2.4"), 24)
    assert got.ipv6.address == ip("2001:db8::4")


def test_by_hand_in_the_foreground() -> None:
    """Bundled shorts, the last of them with its argument: the shape of the manual's examples."""
    got = parse("-f1ds", "/tmp/s")
    assert (got.foreground, got.one_off, got.log_level, got.socket_path) == (True, True, spec.DEBUG, "/tmp/s")


def test_nothing_asked_for_means_the_defaults() -> None:
    """What a caller that gives no option may rely on."""
    got = parse()
    assert (got.socket_path, got.socket_fd, got.one_off, got.foreground) == (None, None, False, False)
    assert (got.log_level, got.log_file, got.log_size) == (spec.INFO, None, 1048576)
    assert (got.pid_file, got.pcap_file, got.interface, got.conf_path) == (None, None, None, None)
    assert (got.mtu, got.mac) == (65520, bytes.fromhex("9a559a559a55"))
    assert (got.hostname, got.fqdn, got.search, got.no_dhcp_dns, got.no_dhcp_search) == ("", "", None, False, False)
    for family in (got.ipv4, got.ipv6):
        assert (family.enabled, family.address, family.prefix_length) == (True, address.UNSET, 0)
        assert (family.gateway, family.map_host_loopback) == (address.UNSET, None)
        assert (family.dns, family.dns_forward, family.dns_host) == (None, address.UNSET, address.UNSET)


@pytest.mark.parametrize(
    "line",
    [
        "-q -f --fd 0 -t 8080-8080:80-80 -t [::1]/8081-8081:80-80 -u 53-53:53-53",  # muvm
        "-f --fd 0",  # libkrun's examples
        "-t all -u all --no-dhcp-dns --no-map-gw --fd 0",  # crun
        "--one-off --socket /tmp/s --pid /tmp/p",  # libvirt, type='user'
        "--quiet --pid /tmp/p --fd 0",  # QEMU, stream
    ],
)
def test_the_command_line_of_every_caller_is_understood(line: str) -> None:
    assert parse(*line.split()).contract == "passt"


# ---- texts and exit codes ----


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["-qh", "--bogus"], ["--he"]])
def test_help_goes_to_standard_output(words: list[str]) -> None:
    """Exit code 0, and what follows on the command line is not looked at."""
    ended = stop(*words)
    assert (ended.exit_code, ended.stderr_text) == (0, "")
    assert ended.stdout_text.startswith("Usage: passt ")


@pytest.mark.parametrize("words", [["--version"], ["--vers"], ["--version", "word"]])
def test_version_goes_to_standard_output(words: list[str]) -> None:
    """The first line is the command's name and the version; the licence follows."""
    ended = stop(*words)
    assert (ended.exit_code, ended.stderr_text) == (0, "")
    first, *others = ended.stdout_text.splitlines()
    assert first == f"passt {VERSION}"
    assert "Apache License" in "".join(others)


def test_capabilities_go_to_standard_error() -> None:
    """passt's own way, whatever the vhost-user specification says; with exit code 0."""
    ended = stop("--print-capabilities", "--bogus")
    assert (ended.exit_code, ended.stdout_text, ended.stderr_text) == (0, "", '{\n  "type": "net"\n}\n')


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--bogus"], "unrecognized option '--bogus'"),
        (["-z"], "invalid option -- 'z'"),
        (["--mtu"], "option '--mtu' requires an argument"),
        (["-s"], "option requires an argument -- 's'"),
        (["--quiet=yes"], "option '--quiet' doesn't allow an argument"),
        (["--t"], "option '--t' is ambiguous; possibilities: '--trace' '--tcp-ports' '--tcp-ns'"),
        (["--bogus", "--help"], "unrecognized option '--bogus'"),
    ],
)
def test_an_option_that_does_not_parse_shows_the_usage(words: list[str], line: str) -> None:
    """The C library's line under the name that the command was called by, then the usage; exit code 1."""
    ended = stop(*words)
    first, rest = ended.stderr_text.split("\n", 1)
    assert (ended.exit_code, ended.stdout_text) == (1, "")
    assert first == f"{PROGRAM}: {line}"
    assert rest.startswith("Usage: passt ")


def test_the_usage_names_every_option_of_passt_and_none_of_pasta() -> None:
    """Long and short names, one line of description each, no line too wide for a terminal of 120 columns."""
    text = stop("-h").stdout_text
    for _, options in GROUPS:
        for option in options:
            short = f"-{option.short}, " if option.short else " "
            row = f" {short}{', '.join(f'--{name}' for name in (option.name, *option.aliases))} {option.argument}"
            assert option.help
            assert (row in text) == (option.mode != PASTA), row
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "wins"),
    [
        (["-m", "x", "--help"], "--mtu x"),
        (["-m", "x", "--bogus"], "--mtu x"),
        (["--no-splice", "-m", "x"], "--mtu x"),
        (["-t", "y", "-m", "x"], "--mtu x"),
        (["-m", "x", "word"], "--mtu x"),
        (["--no-splice", "word"], "word: extra non-option argument"),
        (["-t", "y", "word"], "word: extra non-option argument"),
        (["word", "-m", "x"], "word: extra non-option argument"),
        (["--", "-m"], "-m: extra non-option argument"),
        (["--no-splice", "--hostname", "x"], "--no-splice is not built"),
        (["-t", "y", "--no-splice"], "--no-splice is not built"),
        (["-u", "y", "-t", "x"], "--udp-ports y: expected a port"),
        (["-m", "x", "--fd", "y"], "Invalid --fd: y"),
        (["--bogus", "--fd", "y"], "Invalid --fd: y"),
        (["--help", "--fd", "y"], "Invalid --fd: y"),
    ],
)
def test_of_several_mistakes_one_is_reported(words: list[str], wins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--fd first, then the order of the words, words that are no options, what is not built, and forwards."""
    monkeypatch.setattr(TABLE.longs["no-splice"], "built", False)
    assert refusal(*words).startswith(wins)


@pytest.mark.parametrize("option", [option for option in TABLE.options if option.mode == PASTA], ids=lambda o: o.name)
def test_options_of_pasta_are_refused(option: Option) -> None:
    """By name, in one line, before any mistake that follows."""
    words = [f"--{option.name}", *(["x"] if option.argument else []), "--bogus"]
    assert refusal(*words).startswith(f"--{option.name} is for pasta only")


@pytest.mark.parametrize("option", [o for o in TABLE.options if o.mode != PASTA], ids=lambda o: o.name)
def test_each_option_works_or_says_that_it_is_not_built(option: Option) -> None:
    """None is taken and silently dropped; two have no meaning: nothing is ever spliced under the name passt, and chroot
    is the fallback anyway."""
    if option.built:
        has_method = hasattr(passt._Request, f"on_{option.name.replace('-', '_')}")
        assert option.sets or has_method or option.name in ("no-splice", "chroot-fallback")
        assert option.argument == "" or has_method
    else:
        words = [f"--{option.name}", *(["1"] if option.argument else [])]
        assert refusal(*words) == f"--{option.name} is not built into lockgate yet"
    assert all(field in NetworkSpec.__slots__ for field in option.sets)


# ---- values ----


@pytest.mark.parametrize(
    ("text", "mtu"),
    [("1500", 1500), ("0x5dc", 1500), ("02734", 1500), (" +1500", 1500), ("0", 0), ("65521", 65521)],
)
def test_mtu_is_a_c_number(text: str, mtu: int) -> None:
    """Up to what fits in the longest frame; 0 leaves the guest's alone."""
    assert parse("-m", text).mtu == mtu


@pytest.mark.parametrize(
    "words",
    [
        *(["-m", text] for text in ("", "x", "09", "1500 ", "-1", "65522", "9" * 5000)),
        *(["--log-size", text] for text in ("", "40959", "1M", "-1")),
        *(["--fd", text] for text in ("", "x", "-1", "2147483648", "1x")),
        *(["-s", path] for path in ("", "s" * 108, "é" * 54)),
        *(["-c", path] for path in ("", "c" * 108)),
        *([option, path] for option in ("-P", "-l", "-p") for path in ("", "p" * 4096)),
        *(
            ["-M", mac]
            for mac in ("", "9:55:9a:55:9a:55", "9a-55-9a-55-9a-55", "9a:55:9a:55:9a", "9a:55:9a:55:9a:55:0")
        ),
        *(["-M", mac] for mac in ("9a:55:9a:55:9a:5g", "9a:55:9a:55:9a: 5", "9a:55:9a:55:9a:+5", "9a:55:9a:55:9a:٣٣")),
        *(["-M", group] for group in ("01:00:00:00:00:01", "9b:55:9a:55:9a:55", "ff:ff:ff:ff:ff:ff")),
        *(["-i", name] for name in ("", "nonexistent0", "i" * 40)),
        *(["-a", host] for host in ("", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.1.2", "010.1.2.3")),
        *(["-a", host] for host in ("::", "::1", "ff02::1", "fe80::1%eth0", "[fd00::1", "::ffff:127.0.0.1", "host")),
        *(
            ["-a", host]
            for host in ("10.1.2.3/", "10.1.2.3/33", "10.1.2.3/x", "10.1.2.3/-1", "fd00::5/129", "10.1.2.3/٣")
        ),
        *(["-n", mask] for mask in ("", "33", "255.0.255.0", "24x", "255.255.255", "-1", "::")),
        *(["-g", host] for host in ("", "0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1", "10.0.0.1/24", "none")),
        *(
            ["--map-host-loopback", host]
            for host in ("", "0.0.0.0", "127.0.0.1", "224.0.0.1", "::1", "ff02::1", "None")
        ),
        *(
            [option, host]
            for option in ("-D", "--dns-forward", "--dns-host")
            for host in ("", "0.0.0.0", "::", "224.0.0.1", "ff02::fb", "255.255.255.255", "fe80::1%eth0", "dns.example")
        ),
        *([option, name] for option in ("--outbound-if4", "--outbound-if6") for name in ("", "nonexistent0", "i" * 40)),
        *(
            [option, host]
            for option in ("-o", "--map-guest-addr")
            for host in ("", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "::1", "255.255.255.255", "None", "10.0.0.1/8")
        ),
        *(["--map-guest-addr", "127.0.0.1"], ["-o", "none"]),
        *(["--dns-forward", host] for host in ("127.0.0.1", "127.0.0.53", "::1", "none")),
        *(["--dns-host", "none"], ["-D", "10.0.0.53,10.0.0.54"], ["-D", "None"]),
        *([option, name] for option in ("-H", "--fqdn", "-S") for name in (".", "a..b", ".a", "é.org", "a\x7f")),
        *([option, name] for option in ("-H", "--fqdn", "-S") for name in ("x" * 64, ".".join(["x" * 62] * 5))),
        *(["-H", "my vm"], ["--fqdn", "vm example"], ["-S", ""], ["-S", " \t"], ["-S", "a.example b..example"]),
    ],
    ids=lambda words: f"{words[0]} {words[1][:20]!r}",
)
def test_values_that_are_refused(words: list[str]) -> None:
    """In one line that names the option and quotes the value."""
    option = TABLE.shorts[words[0][1]].name if len(words[0]) == 2 else words[0][2:]
    line = refusal(*words)
    assert f"--{option}" in line
    assert words[1] in line
    assert "\n" not in line


@pytest.mark.parametrize("mac", ["9a:55:9A:55:9a:55", "9A:55:9A:55:9A:55"])
def test_mac_digits_may_be_upper_case(mac: str) -> None:
    assert parse("-M", mac).mac == bytes.fromhex("9a559a559a55")


def test_log_size_has_a_least_value() -> None:
    assert parse("--log-size", "0xa000").log_size == 40960


def test_paths_of_the_greatest_length_are_taken() -> None:
    """107 bytes for a socket, 4095 for a file."""
    got = parse("-s", "s" * 107, "-p", "p" * 4095, "-c", "c" * 107)
    assert (got.socket_path, got.pcap_file, got.conf_path) == ("s" * 107, "p" * 4095, "c" * 107)


def test_bytes_that_are_no_utf_8_survive_in_a_path() -> None:
    """A path is what the file system takes; argv brings it with surrogate escapes."""
    path = os.fsdecode(b"/tmp/\xff")
    assert parse("-s", path).socket_path == path
    assert parse(f"-s{path}").socket_path == path


@pytest.mark.parametrize(
    ("line", "guest", "length"),
    [
        ("-a 10.1.2.3", "10.1.2.3", 8),
        ("-a 172.16.0.5", "172.16.0.5", 16),
        ("-a 192.168.1.5", "192.168.1.5", 24),
        ("-a 126.255.255.255", "126.255.255.255", 8),
        ("-a 128.0.0.0", "128.0.0.0", 16),
        ("-a 191.255.0.1", "191.255.0.1", 16),
        ("-a 192.0.0.1", "192.0.0.1", 24),
        ("-a 223.255.255.1", "223.255.255.1", 24),
        ("-a 240.0.0.1", "240.0.0.1", 32),
        ("-a 10.1.2.3/24", "10.1.2.3", 24),
        ("-a 10.1.2.3/32", "10.1.2.3", 32),
        ("-a 10.1.2.3/0", "10.1.2.3", 8),
        ("-a [10.1.2.3]/24", "10.1.2.3", 24),
        ("-a ::ffff:10.1.2.3", "10.1.2.3", 8),
        ("-a 10.1.2.3 -n 24", "10.1.2.3", 24),
        ("-n 0x18 -a 10.1.2.3", "10.1.2.3", 24),
        ("-n 0 -a 10.1.2.3", "10.1.2.3", 8),
        ("-a 10.1.2.3 -n 255.255.240.0", "10.1.2.3", 20),
        ("-a 10.1.2.3 -n 255.255.255.255", "10.1.2.3", 32),
        ("-a 10.1.2.3/24 -a 10.4.5.6", "10.4.5.6", 8),
        ("-a 10.4.5.6 -a 10.1.2.3/24", "10.1.2.3", 24),
        ("-a 10.1.2.3/24 -a 10.4.5.6 -n 20", "10.4.5.6", 20),
        ("-a 10.1.2.3/24 -a fd00::5/64", "10.1.2.3", 24),
        ("-n 24 -n 20", "::", 20),
    ],
)
def test_ipv4_prefix_length(line: str, guest: str, length: int) -> None:
    """The one with the address, else the netmask, else the address's class; without all three the host's (0)."""
    got = parse(*line.split())
    assert (address.to_text(got.ipv4.address), got.ipv4.prefix_length) == (guest, length)


@pytest.mark.parametrize("line", ["-a 10.1.2.3/24 -n 24", "-n 24 -a 10.1.2.3/24", "-a fd00::5/64 -n 24"])
def test_two_prefix_lengths_are_refused(line: str) -> None:
    """In either order, and even if they agree."""
    assert "redundant prefix length" in refusal(*line.split())


def test_each_family_keeps_its_own_last_value() -> None:
    """Addresses, gateways and mappings of one family do not touch the other's."""
    got = parse(*"-a 10.0.0.9 -a fd00::9 -a [fd00::5] -a 10.0.0.5 -g fe80::1 -g 10.0.0.2 -g 10.0.0.1".split())
    assert (got.ipv4.address, got.ipv6.address) == (ip("10.0.0.5"), ip("fd00::5"))
    assert (got.ipv4.gateway, got.ipv6.gateway) == (ip("10.0.0.1"), ip("fe80::1"))
    assert got.ipv6.prefix_length == 0


@pytest.mark.parametrize(
    ("line", "mapped4", "mapped6"),
    [
        ("--map-host-loopback 10.9.9.9", "10.9.9.9", None),
        ("--map-host-loopback fd00::9", None, "fd00::9"),
        ("--map-host-loopback none", "::", "::"),
        ("--no-map-gw", "::", "::"),
        ("--map-host-loopback none --map-host-loopback 10.9.9.9", "10.9.9.9", "::"),
        ("--map-host-loopback 10.9.9.9 --map-host-loopback none", "::", "::"),
        ("--map-host-loopback 10.9.9.9 --no-map-gw", "10.9.9.9", "::"),
        ("--no-map-gw --map-host-loopback 10.9.9.9", "10.9.9.9", "::"),
    ],
)
def test_what_stands_for_the_hosts_loopback(line: str, mapped4: str | None, mapped6: str | None) -> None:
    """None: the gateway. UNSET: nothing. --no-map-gw takes only the default away, none takes all."""
    got = parse(*line.split())
    assert got.ipv4.map_host_loopback == (None if mapped4 is None else ip(mapped4))
    assert got.ipv6.map_host_loopback == (None if mapped6 is None else ip(mapped6))


def test_an_outbound_address_of_ipv4_is_written_as_such() -> None:
    """Cause: our addresses of IPv4 are mapped into IPv6, and one that was written so was taken for one of them."""
    assert refusal("-o", "::ffff:10.7.0.2") == (
        "--outbound ::ffff:10.7.0.2: an IPv4 address is expected as such, 10.7.0.2"
    )


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1"])
def test_what_a_mapping_of_the_host_cannot_be_is_said(text: str) -> None:
    """Cause: the sentence asked for an address of IPv4, which 127.0.0.1 is."""
    assert "expected the address of a host as the guest is to see it, no loopback one" in refusal(
        "--map-host-loopback", text
    )


def test_ways_out_are_of_each_family() -> None:
    """And --map-guest-addr none takes both back."""
    got = parse(*"-o 10.0.0.1 -o fd00::1 -o 10.0.0.2 --outbound-if4 lo --map-guest-addr 10.9.9.9".split())
    assert (got.ipv4.outbound, got.ipv6.outbound) == (ip("10.0.0.2"), ip("fd00::1"))
    assert (got.ipv4.outbound_interface, got.ipv6.outbound_interface) == ("lo", "")
    assert (got.ipv4.map_guest, got.ipv6.map_guest) == (ip("10.9.9.9"), address.UNSET)
    none = parse(*"--map-guest-addr 10.9.9.9 --map-guest-addr fd00::9 --map-guest-addr none".split())
    assert none.ipv4.map_guest == none.ipv6.map_guest == address.UNSET


@pytest.mark.parametrize(
    ("line", "enabled"),
    [("-4", (True, False)), ("-6", (False, True)), ("-4 -6", (False, True)), ("-4 -6 -4", (True, False))],
)
def test_one_family_only_the_last_wins(line: str, enabled: tuple[bool, bool]) -> None:
    got = parse(*line.split())
    assert (got.ipv4.enabled, got.ipv6.enabled) == enabled


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("-q", spec.QUIET),
        ("-d", spec.DEBUG),
        ("--trace", spec.TRACE),
        ("-q -d", spec.DEBUG),
        ("-d -q", spec.QUIET),
        ("--trace -d", spec.TRACE),
        ("--trace -q -d", spec.DEBUG),
    ],
)
def test_log_level(line: str, level: str) -> None:
    """--quiet and --debug cancel each other; --debug after --trace takes nothing away."""
    assert parse(*line.split()).log_level == level


def test_socket_and_descriptor_exclude_each_other(open_fd: int) -> None:
    """The last of the two is the link; what --fd implied remains."""
    got = parse("--fd", str(open_fd), "--socket-path", "/tmp/s")
    assert (got.socket_fd, got.socket_path, got.one_off) == (None, "/tmp/s", True)
    got = parse("-s", "/tmp/s", f"-F{open_fd:#x}")
    assert (got.socket_fd, got.socket_path, got.one_off) == (open_fd, None, True)


def test_a_descriptor_that_is_not_open_is_refused(closed_fd: int) -> None:
    """Before anything else, even when --socket comes after it, and --help too."""
    for words in ([], ["-s", "/tmp/s"], ["--help"]):
        assert refusal("--fd", str(closed_fd), *words).startswith(f"--fd {closed_fd}: no such descriptor is open")


def test_of_several_descriptors_only_the_last_must_be_open(open_fd: int, closed_fd: int) -> None:
    assert parse("--fd", str(closed_fd), "--fd", str(open_fd)).socket_fd == open_fd


@pytest.mark.parametrize(
    ("line", "about"),
    [
        ("-m 1500", []),
        ("-m 0", []),
        ("-m 1279", ["IPv6"]),
        ("-m 1279 -4", []),
        ("-4 -m 67", ["IPv4", "made for 68", "TCP"]),
        ("-m 67", ["IPv4", "IPv6", "made for 68", "TCP"]),
        ("-4 -m 87", ["TCP"]),
        ("-4 -m 88", []),
        ("-e", ["--stderr"]),
    ],
)
def test_warnings_wait_in_the_spec(line: str, about: list[str]) -> None:
    """An MTU that a family in use does not allow (0 is none), and the obsolete --stderr."""
    warnings = parse(*line.split()).warnings
    assert len(warnings) == len(about)
    assert all(word in warning for word, warning in zip(about, warnings, strict=True))


def test_automatic_sockets_are_numbered_from_1_to_99() -> None:
    paths = list(passt.automatic_socket_paths())
    assert (paths[0], paths[-1], len(paths)) == ("/tmp/passt_1.socket", "/tmp/passt_99.socket", 99)


def test_a_spec_shows_its_addresses_as_text() -> None:
    """What a debug log shows."""
    shown = repr(parse("-a", "10.0.0.5/24", "--no-map-gw", "-D", "10.0.0.53"))
    assert "address=10.0.0.5/24" in shown
    assert "link='vhost-user'" in shown
    assert "gateway=::" in shown
    assert "dns=['10.0.0.53'], dns_forward=::" in shown


# ---- any command line ----

VALUES = st.one_of(
    st.text(alphabet="0123456789abcdefx.:/[]-+ n\udcff", max_size=20),
    st.sampled_from(
        ["10.0.0.1/24", "fd00::1", "none", "24", "1500", "lo", "9a:55:9a:55:9a:55", "/tmp/x", "50000", "0", "all"]
    ),
    st.text(alphabet="é٣漢\x7f\udc80 =", max_size=8),
)
NAMES = st.sampled_from(
    [f"--{name}" for name, o in TABLE.longs.items() if o.mode != PASTA and o.built and name != "fd"]
)
WORDS = st.lists(st.one_of(NAMES, st.tuples(NAMES, VALUES).map("=".join), VALUES), max_size=8)


@settings(deadline=None, max_examples=500)
@given(words=WORDS)
@example(words=["--address=10.0.0.1/" + "9" * 5000])
def test_every_command_line_ends_in_a_checked_spec_or_in_one_sentence(words: list[str]) -> None:
    """No other exception, and nothing that later code would have to check again."""
    try:
        got = passt.parse(["--vhost-user", *words], PROGRAM)
    except Stop as ended:
        texts = ended.stdout_text, ended.stderr_text
        assert (ended.exit_code, texts.count("")) in ((0, 1), (1, 1))
        assert "Usage: " in texts[1] or texts[1].count("\n") <= 3
        return
    assert got.contract == PASST
    assert got.socket_path is None or 0 < len(os.fsencode(got.socket_path)) < 108
    assert 0 <= got.mtu <= 65521 and len(got.mac) == 6 and got.log_size >= 40960
    assert got.ipv4.enabled or got.ipv6.enabled
    for family, longest in ((got.ipv4, 32), (got.ipv6, 0)):
        assert len(family.address) == len(family.gateway) == 16
        assert 0 <= family.prefix_length <= longest
        assert not address.is_loopback(family.address) and not address.is_multicast(family.address)
        assert family.dns is None or len(family.dns) <= 3
        assert not address.is_loopback(family.dns_forward)
    assert got.search is None or (len(got.search) <= 6 and all(map(resolvconf.is_domain, got.search)))
    assert all(resolvconf.is_domain(name) for name in (got.hostname, got.fqdn) if name)
    assert got.ipv4.address == address.UNSET or address.is_ipv4(got.ipv4.address)
    assert not address.is_ipv4(got.ipv6.address)


# ---- start-up ----


def test_parsing_imports_nothing_heavy(tmp_path: Path) -> None:
    """Each module costs its tenth of a millisecond before READY: beside our own, only these three."""
    program = (
        "from lockgate.plugin.contracts.passt import parse\n"
        "parse(['--vhost-user', '-fqs', '/tmp/s', '-a', '10.0.0.1/24', '-m', '1500', '-i', 'lo'], 'passt')\n"
    )
    imported = fresh_python.imported(tmp_path, program)
    ours = {name for name in imported if name.startswith("lockgate.")}
    assert imported - ours <= {"__future__", "_socket", "errno"}
    assert ours == {
        "lockgate.plugin",
        "lockgate.plugin.address",
        "lockgate.plugin.contracts",
        "lockgate.plugin.contracts.getopt",
        "lockgate.plugin.contracts.passt",
        "lockgate.plugin.contracts.passt_options",
        "lockgate.plugin.contracts.request",
        "lockgate.plugin.contracts.strtoul",
        "lockgate.plugin.resolvconf",
        "lockgate.plugin.spec",
    }
