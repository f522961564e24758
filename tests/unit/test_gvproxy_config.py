# SPDX-License-Identifier: Apache-2.0
"""The configuration file of the contract `gvproxy`: what it says, where it counts, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from host_samples import ip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yaml.nodes import Node

from lockgate.plugin import address, spec
from lockgate.plugin.contracts import gvproxy, gvproxy_config
from lockgate.plugin.contracts.gvproxy_settings import Settings
from lockgate.plugin.gateway.virtual_network import (
    BESS,
    DEVICE_MAC,
    GATEWAY_MAC,
    STDIO,
    VFKIT,
    VPNKIT,
    VirtualNetwork,
)
from lockgate.plugin.spec import NetworkSpec, Stop

Action = Callable[[Node], None]


class File:
    """A configuration file of this test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def parse(self, text: str, *words: str) -> NetworkSpec:
        self.path.write_text(text)
        return gvproxy.parse(["-config", str(self.path), *words], "gvproxy")

    def network(self, text: str, *words: str) -> VirtualNetwork:
        made = self.parse(text, *words).virtual
        assert made is not None
        return made

    def fault(self, text: str, *words: str) -> str:
        """The message of the last line, which is fatal."""
        with pytest.raises(Stop) as caught:
            self.parse(text, *words)
        assert (caught.value.exit_code, caught.value.stdout_text) == (1, "")
        message = caught.value.stderr_text.splitlines()[-1].partition(" level=fatal msg=")[2]
        return message[1:-1].replace('\\"', '"').replace("\\\\", "\\")

    def wrong(self, text: str) -> str:
        """Where, and what."""
        start = f"failed to parse configuration: {self.path}"
        message = self.fault(text)
        assert message.startswith(start)
        return message.removeprefix(f"{start}:").strip()


@pytest.fixture(name="file")
def made_file(tmp_path: Path) -> File:
    return File(tmp_path / "config.yaml")


# ---- what it says ----


def test_an_empty_file_has_a_network_without_guests_names_or_ports(file: File) -> None:
    """Those are defaults of a command line without a file."""
    for text in ("", "# nothing\n", "---\n", "{}", "null", "stack:\n", "stack: {}\nforwards: ~\n"):
        got = file.parse(text)
        made = got.virtual
        assert made and (made.gateway, made.device, made.host) == tuple(
            map(ip, ("192.168.127.1", "192.168.127.2", "192.168.127.254"))
        )
        assert (made.nat, made.virtual_addresses) == ({made.host: address.LOOPBACK4}, (made.host,))
        assert (made.zones, made.search, got.search, made.forwards, got.forwards) == ((), (), (), (), ())
        assert (made.device_leases, made.vpnkit_macs, made.gateway_mac) == ({}, {}, GATEWAY_MAC)
        assert (got.mtu, got.log_level, got.warnings, made.ipv6) == (1500, spec.INFO, [], address.has_ipv6())


WHOLE = """
listen: [unix:///run/network.sock, "vsock://:1024"]
services: unix:///run/services.sock
log-level: Trace
pid-file: /run/pid
log-file: /run/log
notification: /run/notify
interfaces:
  qemu: unix:///nonexistent/qemu.sock
some-other-key: {of: [a, newer, version]}
forwards:
  - socket: /run/api.sock
    dest: /run/podman/podman.sock
    user: root
    identity: KEY
stack:
  debug: false
  capture-file: /run/pcap
  mtu: 0x5dd
  subnet: 10.1.0.0/16
  gatewayIP: 10.1.0.10
  deviceIP: 10.1.0.20
  hostIP: 10.1.0.30
  gatewayMacAddress: 10:11:11:11:11:00
  dns:
    - name: crc.testing.
      records:
        - {name: api, ip: 10.1.0.1}
        - {regexp: "a.*", ip: 10.1.0.2}
        - {name: both, regexp: b+, ip: 10.1.0.3}
      defaultIP: 10.1.0.4
    - name: other
  dnsSearchDomains: [example.org, example.net.]
  forwards:
    127.0.0.1:2222: 10.1.0.20:22
    udp::53: 10.1.0.20:5353
    tcp:[::1]:80: 10.1.0.21:80
  nat: {10.1.0.30: 127.0.0.1, 10.1.0.31: 192.0.2.1}
  gatewayVirtualIPs: [10.1.0.30, 10.1.0.31, 10.1.0.30]
  dhcpStaticLeases: {10.1.0.20: 5a:94:ef:e4:0c:ee, 10.1.0.21: 5A-94-EF-E4-0C-EF, 10.1.0.22: 5a94.efe4.0cf0}
  vpnKitUUIDMacAddresses: {c3d68012-0208-11ea-9fd7-f2189899ab08: 5a:94:ef:e4:0c:ee}
  ec2MetadataAccess: yes
  ipv6: false
  hostPorts: [80, "8000-8010"]
  guestMayExposeFiles: true
"""


@pytest.fixture(name="whole")
def whole_file(tmp_path: Path) -> str:
    (tmp_path / "key").touch()
    return WHOLE.replace("KEY", str(tmp_path / "key"))


def test_everything_that_is_no_network_is_taken(file: File, whole: str, tmp_path: Path) -> None:
    got = file.parse(whole)
    made = got.virtual
    assert made and [one.text for one in made.listen] == ["unix:///run/network.sock", "vsock://:1024"]
    assert made.services and made.services.path == "/run/services.sock"
    assert (got.log_level, got.pid_file, got.log_file, got.pcap_file) == (
        spec.TRACE,
        "/run/pid",
        "/run/log",
        "/run/pcap",
    )
    assert (made.notification, got.socket_path, made.transport) == ("/run/notify", "/nonexistent/qemu.sock", "qemu")
    (forward,) = made.ssh_forwards
    assert (forward.path, forward.destination) == ("/run/api.sock", "/run/podman/podman.sock")
    assert (forward.user, forward.identity) == ("root", str(tmp_path / "key"))
    assert got.warnings == []


def test_every_part_of_the_network_is_taken(file: File, whole: str) -> None:
    got = file.parse(whole)
    made = got.virtual
    assert made and (made.subnet, made.prefix_length, got.mtu) == (ip("10.1.0.0"), 16, 1501)
    assert (made.gateway, made.device, made.host) == (ip("10.1.0.10"), ip("10.1.0.20"), ip("10.1.0.30"))
    assert made.gateway_mac == got.mac == bytes.fromhex("101111111100")
    assert (made.search, got.search) == (("example.org", "example.net"),) * 2
    assert made.nat == {ip("10.1.0.30"): address.LOOPBACK4, ip("10.1.0.31"): ip("192.0.2.1")}
    assert made.virtual_addresses == (ip("10.1.0.30"), ip("10.1.0.31"))
    assert [(address.to_text(one), mac.hex()) for one, mac in made.device_leases.items()] == [
        ("10.1.0.20", "5a94efe40cee"),
        ("10.1.0.21", "5a94efe40cef"),
        ("10.1.0.22", "5a94efe40cf0"),
    ]
    assert made.vpnkit_macs == {"c3d68012-0208-11ea-9fd7-f2189899ab08": DEVICE_MAC}
    assert (made.allow_link_local, made.ipv6, got.ipv6.enabled) == (True, False, False)
    assert (made.host_ports, made.guest_may_expose_files) == (((80, 80), (8000, 8010)), True)


def test_the_example_of_the_manual_has_every_key(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is taken as it is."""
    known: set[str] = set()
    each = gvproxy_config._each

    def each_known(node: Node, actions: Mapping[str, Action]) -> None:
        known.update(actions)
        each(node, actions)

    monkeypatch.setattr(gvproxy_config, "_each", each_known)
    manual = (Path(__file__).resolve().parents[2] / "packaging" / "man" / "gvproxy.1").read_text()
    example = manual.partition("\n.nf\n")[2].partition("\n.fi\n")[0].replace("\\-", "-")
    file.path.write_text(example)
    taken = Settings()
    gvproxy_config.read(str(file.path), taken)
    made = taken.virtual
    assert (taken.pid_file, made.host_ports, len(made.forwards)) == ("/run/gvproxy/pid", ((80, 80), (8000, 8010)), 2)
    assert {key for key in known if f"{key}:" not in example} == {BESS, VFKIT, VPNKIT, STDIO}, "a network has one link"


def test_zones_keep_their_order_and_end_with_a_dot(file: File, whole: str) -> None:
    first, second = file.network(whole).zones
    assert (first.name, second.name, second.records, second.default_address) == (
        "crc.testing.",
        "other.",
        (),
        address.UNSET,
    )
    assert [(one.name, one.pattern, address.to_text(one.address)) for one in first.records] == [
        ("api", "", "10.1.0.1"),
        ("", "a.*", "10.1.0.2"),
        ("both", "", "10.1.0.3"),
        ("", "b+", "10.1.0.3"),
    ]
    assert first.default_address == ip("10.1.0.4")


def test_ports_are_rules_and_the_texts_of_the_api(file: File, whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "has_ipv6", lambda: True)
    got = file.parse(whole)
    assert [str(rule) for rule in got.forwards] == [
        "TCP 127.0.0.1:2222  =>  10.1.0.20:22",
        "UDP *:53  =>  10.1.0.20:5353",
        "TCP [::1]:80  =>  10.1.0.21:80",
    ]
    assert got.virtual and [(one.protocol, one.local, one.remote) for one in got.virtual.forwards] == [
        ("tcp", "127.0.0.1:2222", "10.1.0.20:22"),
        ("udp", ":53", "10.1.0.20:5353"),
        ("tcp", "[::1]:80", "10.1.0.21:80"),
    ]


def test_text_is_what_is_written_where_yaml_would_see_something_else(file: File) -> None:
    got = file.parse("pid-file: 017\nlog-file: 1e3\nnotification: yes\n")
    assert (got.pid_file, got.log_file, got.virtual and got.virtual.notification) == ("017", "1e3", "yes")


def test_anchors_are_followed_and_the_first_document_counts(file: File) -> None:
    text = "x: &m {10.0.0.2: 5a:94:ef:e4:0c:ee}\nstack: {subnet: 10.0.0.0/24, dhcpStaticLeases: *m}\n--- {listen: 1}\n"
    assert file.network(text).device_leases == {ip("10.0.0.2"): DEVICE_MAC}


def test_the_hosts_loopback_is_what_the_address_translation_says(file: File) -> None:
    nat = "stack: {nat: {%s}}"
    one = file.parse(nat % "192.168.127.9: 192.0.2.1, 192.168.127.8: 127.0.0.1")
    assert one.ipv4.map_host_loopback == ip("192.168.127.8")
    both = file.parse(nat % "192.168.127.8: 127.0.0.1, 192.168.127.254: 127.0.0.1")
    assert both.ipv4.map_host_loopback == ip("192.168.127.254")
    assert file.parse(nat % "192.168.127.8: 192.0.2.1").ipv4.map_host_loopback == address.UNSET


# ---- file and command line ----


def test_the_command_line_wins(file: File, whole: str) -> None:
    words = "-debug -log-file /c/log -pid-file /c/pid -listen unix:///c/l -services unix:///c/s -mtu 1400"
    got = file.parse(whole, *words.split(), "-listen-qemu", "tcp://:1", "-notification", "unix:///c/n")
    made = got.virtual
    assert made and (got.log_level, got.log_file, got.pid_file, got.mtu) == (spec.DEBUG, "/c/log", "/c/pid", 1400)
    assert [one.path for one in made.listen] == ["/c/l"]
    assert made.services and made.services.path == "/c/s" and made.notification == "/c/n"
    assert made.link and made.link.scheme == "tcp"


def test_the_file_wins_where_the_network_is_concerned(file: File) -> None:
    words = "-subnet 10.2.0.0/16 -gatewayIP 10.1.0.3 -deviceIP 10.1.0.4 -hostIP 10.1.0.5".split()
    made = file.network("stack: {subnet: 10.1.0.0/16, gatewayIP: 10.1.0.7, hostIP: 10.1.0.8}", *words)
    assert (made.subnet, made.gateway, made.device, made.host) == tuple(
        map(ip, ("10.1.0.0", "10.1.0.7", "10.1.0.4", "10.1.0.8"))
    )


def test_forwards_by_ssh_of_the_command_line_come_behind_those_of_the_file(file: File, whole: str) -> None:
    words = f"-forward-sock /c -forward-dest /d -forward-user u -forward-identity {file.path}".split()
    assert [one.path for one in file.network(whole, *words).ssh_forwards] == ["/run/api.sock", "/c"]


def test_flags_that_a_file_has_no_use_for_are_ignored_with_a_warning(file: File) -> None:
    got = file.parse("", "-ssh-port", "80", "-pcap", "x")
    assert got.warnings == [
        '-ssh-port is ignored with -config; add "127.0.0.1:80: 192.168.127.2:22" to stack.forwards of the file instead',
        "-pcap is ignored with -config; name the file as stack.capture-file there instead",
    ]
    assert (got.forwards, got.pcap_file) == ((), None)


def test_a_link_of_the_file_is_checked_as_one_of_the_command_line(file: File) -> None:
    assert file.fault(f"interfaces: {{qemu: 'unix://{file.path}'}}") == f'"{file.path}" already exists'
    both = "interfaces: {bess: 'unixpacket:///b', vpnkit: 'unix:///v'}"
    assert file.fault(both) == "cannot use bess and vpnkit protocol at the same time"
    assert file.fault("forwards: [{identity: /nonexistent/k}]").startswith('identity file "/nonexistent/k" can')


@pytest.mark.parametrize(
    "name, level", [("panic", spec.QUIET), ("error", spec.QUIET), ("warn", spec.QUIET), ("debug", spec.DEBUG)]
)
def test_levels_of_the_log_are_ours_as_far_as_we_have_them(file: File, name: str, level: str) -> None:
    assert file.parse(f"log-level: {name}").log_level == level
    assert file.parse(f"log-level: {name}", "-debug").log_level == spec.DEBUG
    assert file.parse(f"log-level: {name}\nstack: {{debug: true}}").log_level == spec.TRACE


def test_a_level_that_is_none_is_told(file: File) -> None:
    got = file.parse("log-level: loud")
    assert (got.log_level, got.warnings) == (spec.INFO, ['bad log level "loud", falling back to "info"'])


def test_what_is_fatal_is_told_at_every_level(file: File) -> None:
    """And a warning only where it is heard."""
    assert file.fault("log-level: panic\nstack: {mtu: a}").startswith("failed to parse configuration")
    file.path.write_text("log-level: panic\nlisten: [foo]\nlog-file: /run/log")
    with pytest.raises(Stop) as caught:
        gvproxy.parse(["-config", str(file.path), "-ssh-port", "1"], "gvproxy")
    assert caught.value.stderr_text.count("\n") == 1 and caught.value.log_file == "/run/log"


def test_addresses_that_no_guest_can_have_are_told(file: File) -> None:
    got = file.parse(
        "stack: {subnet: 10.0.0.0/16, forwards: {':80': 192.168.127.2:22}, "
        "dhcpStaticLeases: {10.1.0.2: 5a:94:ef:e4:0c:ee}}"
    )
    assert got.warnings == [
        "stack.forwards: :80: no guest can have 192.168.127.2, which is not in 10.0.0.0/16",
        "stack.dhcpStaticLeases: no guest can have 10.1.0.2, which is not in 10.0.0.0/16",
    ]


def test_search_domains_beyond_what_can_be_handed_out_are_told(file: File) -> None:
    domains = ", ".join(f"d{number}.example.org" for number in range(8))
    got = file.parse(f"stack: {{dnsSearchDomains: [{domains}]}}")
    assert got.search and len(got.search) == 6 and len(got.warnings) == 1


# ---- what is wrong ----


@pytest.mark.parametrize(
    "text, where",
    [
        ("[]", "1:1: expected a mapping of keys and values, got a list"),
        ("word", "1:1: expected a mapping of keys and values, got text"),
        ("listen: unix:///a", "1:9: listen: expected a list, got text"),
        ("listen:\n- [a]", "2:3: listen: expected text, got a list"),
        ("pid-file: {}", "1:11: pid-file: expected text, got a mapping"),
        ("{[a]: b}", "1:2: expected text, got a list"),
        ("ec2-metadata-access: 1", "1:22: ec2-metadata-access: expected true or false"),
        ("stack:\n  debug: 'true'", "2:10: stack.debug: expected true or false"),
        ("stack:\n  mtu: many", "2:8: stack.mtu: many: expected a whole number"),
        ("stack:\n  mtu: '1500'", "2:8: stack.mtu: 1500: expected a whole number"),
        ("stack:\n  mtu: 1.5", "2:8: stack.mtu: 1.5: expected a whole number"),
        ("stack: {mtu: [1]}", "1:14: stack.mtu: expected text, got a list"),
        ("stack:\n  subnet: fd00::/64", "2:11: stack.subnet: fd00::/64: expected an IPv4 network, as in"),
        ("stack: {subnet: 127.0.0.0/8}", "1:17: stack.subnet: 127.0.0.0/8: expected a network without the loopback"),
        ("stack: {nat: {a: 127.0.0.1}}", "1:15: stack.nat: a: expected an IPv4 address"),
        ("stack: {nat: {1.2.3.4: '::1'}}", "1:24: stack.nat: ::1: expected an IPv4 address"),
        ("stack: {gatewayVirtualIPs: [x]}", "1:29: stack.gatewayVirtualIPs: x: expected an IPv4 address"),
        ("stack: {gatewayMacAddress: 1:2}", "1:28: stack.gatewayMacAddress: 1:2: expected the MAC address of one"),
        ("stack: {gatewayMacAddress: ff:ff:ff:ff:ff:ff}", "1:28: stack.gatewayMacAddress: ff:ff:ff:ff:ff:ff: expected"),
        ("stack: {dns: [{records: [{name: a}]}]}", "1:26: stack.dns.records: ip: nothing: expected an IPv4 address"),
        (
            "stack: {dns: [{records: [{regexp: '(', ip: 1.2.3.4}]}]}",
            "1:26: stack.dns.records: regexp: error parsing regexp: missing closing ): `(`",
        ),
        ("stack: {dns: [{defaultIP: 1}]}", "1:27: stack.dns.defaultIP: 1: expected an IPv4 address"),
        ("stack: {dnsSearchDomains: ['a b']}", "1:28: stack.dnsSearchDomains: a b: expected a domain name"),
        ("stack: {forwards: {80: 1.2.3.4:80}}", "1:20: stack.forwards: listen tcp: address 80: missing port"),
        ("stack: {forwards: {unix:/a: 1.2.3.4:80}}", "1:20: stack.forwards: listen tcp: lookup tcp//a: unknown port"),
        ("stack: {hostPorts: [8-7]}", "1:21: stack.hostPorts: 8-7: expected a port from 1 to 65535, or a range like"),
        ("stack: {hostPorts: ['1-']}", "1:21: stack.hostPorts: 1-: expected a port from 1 to 65535"),
        ("stack: {hostPorts: [65536]}", "1:21: stack.hostPorts: 65536: expected a port from 1 to 65535"),
        (
            "stack: {dhcpStaticLeases: {10.0.0.1: 5a:94:ef:e4:0c:ee, 10.0.0.2: 5a:94:ef:e4:0c:ee}}",
            "1:67: stack.dhcpStaticLeases: 5a:94:ef:e4:0c:ee: expected one address for each MAC address",
        ),
        ("a: 1\nb: 2\na: 3", "3:1: key a is given twice, in line 1, too"),
        ("stack: {mtu: 1, mtu: 1}", "1:17: stack: key mtu is given twice, in line 1, too"),
        ("stack: {<<: {mtu: 1}}", "1:9: stack: merge keys are not taken; write out what they stand for"),
        ('pid-file: "a\\0"', "1:11: pid-file: expected text without NUL and surrogates"),
        ('pid-file: "\\ud800"', "1:11: pid-file: expected text without NUL and surrogates"),
        ("a: b: c", "1:5: mapping values are not allowed here"),
        ("a: [", "1:5: expected the node content, but found '<stream end>'"),
        ("a: *b", "1:4: found undefined alias 'b'"),
        ("\ta", "1:1: found character '\\t' that cannot start any token"),
        ("[" * 5000, "nested too deeply"),
        ('a: "\\UFFFFFFFF"', "Python int too large to convert to C int"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(file: File, text: str, where: str) -> None:
    assert file.wrong(text).startswith(where)


def test_bytes_that_are_no_text_are_told(file: File) -> None:
    file.path.write_bytes(b"a: \xff")
    with pytest.raises(gvproxy_config.ConfigError, match="unacceptable character"):
        gvproxy_config.read(str(file.path), Settings())


def test_sizes_are_bounded(file: File) -> None:
    assert file.wrong("pid-file: " + "a" * 4097) == "1:11: pid-file: expected at most 4096 characters"
    assert file.wrong("listen: [" + "a," * 1025 + "]") == "1:9: listen: expected at most 1024 entries"
    assert file.wrong("".join(f"k{number}: 1\n" for number in range(1025))) == "1:1: expected at most 1024 entries"
    message = f"failed to read config file: {file.path}: expected at most 262144 bytes"
    assert file.fault("#" * (256 << 10) + "#") == message


@pytest.mark.parametrize(
    "key, entries",
    [
        ("nat", [f"192.168.127.{number}: 127.0.0.1" for number in range(17)]),
        ("gatewayVirtualIPs", [f"192.168.127.{number}" for number in range(9)]),
        ("hostPorts", [str(8000 + number) for number in range(33)]),
    ],
)
def test_what_the_worker_has_no_room_for_is_refused(file: File, key: str, entries: list[str]) -> None:
    """It was cut off without a word; the last that fits is taken."""
    start, end = "{}" if key == "nat" else "[]"
    said = file.wrong(f"stack:\n  {key}: {start}{', '.join(entries)}{end}")
    assert said.endswith(f" stack.{key}: expected at most {len(entries) - 1} entries")
    assert file.network(f"stack:\n  {key}: {start}{', '.join(entries[:-1])}{end}")


def test_zones_have_no_more_records_than_control_takes(file: File) -> None:
    """Aliases make thousands out of a few lines."""
    zone = f"stack:\n  dns:\n  - &a {{name: z., records: [{', '.join(['{ip: 10.0.0.1}'] * 1024)}]}}\n"
    assert len(file.network(zone + "  - *a\n" * 15).zones) == 16
    assert "expected at most 16384 records in all zones" in file.wrong(zone + "  - *a\n" * 16)


def test_a_file_that_cannot_be_read_is_told(file: File, tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(gvproxy_config.ConfigError) as caught:
            gvproxy_config.read(str(path), Settings())
        return str(caught.value)

    start = "failed to read config file: open"
    assert message(file.path) == f"{start} {file.path}: no such file or directory"
    assert message(tmp_path) == f"{start} {tmp_path}: is a directory"


KEYS = ["stack", "listen", "forwards", "nat", "mtu", "dns", "records", "name", "ip", "hostPorts", "ipv6", "debug", "<<"]
SCALARS = ["1", "true", "10.0.0.1", "127.0.0.1:80", "5a:94:ef:e4:0c:ee", "null", "'x'", '"\\u0000"', "&a b", "*a"]
FLOW = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | st.lists(st.tuples(st.sampled_from(KEYS + SCALARS), inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FLOW.map(lambda text: f"stack: {text}") | FLOW | st.text())
def test_every_file_is_a_network_or_one_fatal_line(file: File, text: str) -> None:
    file.path.write_bytes(os.fsencode(text.encode("utf-8", "replace").decode()))
    try:
        got = gvproxy.parse(["-config", str(file.path)], "gvproxy")
    except Stop as ended:
        assert ended.exit_code in (0, 1) and ended.stderr_text.endswith("\n")
        return
    assert got.virtual and len(got.forwards) == len(got.virtual.forwards)
