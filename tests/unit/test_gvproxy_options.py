# SPDX-License-Identifier: Apache-2.0
"""The contract `gvproxy`: from a command line to a NetworkSpec, or to what the caller reads when it is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from host_samples import ip
from hypothesis import given, settings
from hypothesis import strategies as st

import lockgate.plugin
from lockgate.plugin import address, logrus, spec
from lockgate.plugin.contracts import gvproxy
from lockgate.plugin.contracts.goflags import BOOL
from lockgate.plugin.contracts.gvproxy_options import FLAGS
from lockgate.plugin.gateway.virtual_network import DEVICE_MAC, GATEWAY_MAC, VirtualNetwork
from lockgate.plugin.spec import NetworkSpec, Stop
from lockgate.plugin.version import VERSION

PROGRAM = "gvproxy"
RUN = "/run/user/1000/podman"
TIME = r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)"'


def parse(*words: str) -> NetworkSpec:
    return gvproxy.parse(words, PROGRAM)


def network(*words: str) -> VirtualNetwork:
    made = parse(*words).virtual
    assert made is not None
    return made


def stop(*words: str) -> Stop:
    with pytest.raises(Stop) as caught:
        parse(*words)
    return caught.value


def said(ended: Stop) -> list[tuple[str, str]]:
    """Level and message of each line."""
    lines = []
    for line in ended.stderr_text.splitlines():
        found = re.fullmatch(rf'{TIME} level=(\w+) msg=(?:"(.*)"|(\S+))', line)
        assert found, line
        lines.append((found[2], (found[3] or found[4]).replace('\\"', '"').replace("\\\\", "\\")))
    assert ended.stdout_text == "" and ended.stderr_text.endswith("\n")
    return lines


def fatal(*words: str) -> str:
    """The one line of a configuration that is wrong."""
    ended = stop(*words)
    ((level, message),) = said(ended)
    assert (ended.exit_code, level) == (1, logrus.FATAL)
    return message


def failure(*words: str) -> str:
    """Why it cannot be had; the version comes first."""
    ended = stop(*words)
    first, (level, message) = said(ended)
    assert (ended.exit_code, first, level) == (0, ("info", "gvproxy version v0.8.9"), logrus.ERROR)
    assert message.startswith("gvproxy exiting: ")
    return message.removeprefix("gvproxy exiting: ")


@pytest.fixture(name="key")
def made_key(tmp_path: Path) -> str:
    path = tmp_path / "machine"
    path.write_text("key")
    return str(path)


# ---- what callers write ----


def test_podman_machine_with_qemu(key: str) -> None:
    """Podman 5.x and 6.0."""
    got = parse(
        *f"-debug -mtu 1500 -ssh-port 40123 -listen-qemu unix://{RUN}/m%20a-gvproxy.sock "
        f"-forward-sock {RUN}/m-api.sock -forward-dest /run/user/1000/podman/podman.sock -forward-user core "
        f"-forward-identity {key} -pid-file {RUN}/gvproxy.pid -log-file {RUN}/gvproxy.log".split()
    )
    assert (got.contract, got.link, got.socket_path) == ("gvproxy", spec.STREAM, f"{RUN}/m a-gvproxy.sock")
    assert (got.foreground, got.one_off, got.mtu, got.log_level) == (True, True, 1500, spec.DEBUG)
    assert (got.pid_file, got.log_file, got.pcap_file) == (f"{RUN}/gvproxy.pid", f"{RUN}/gvproxy.log", None)
    assert [str(rule) for rule in got.forwards] == ["TCP 127.0.0.1:40123  =>  192.168.127.2:22"]
    made = got.virtual
    assert (
        made
        and made.link
        and (made.transport, made.link.scheme, made.listen, made.services)
        == (
            "qemu",
            "unix",
            (),
            None,
        )
    )
    (forward,) = made.ssh_forwards
    assert (forward.path, forward.destination) == (f"{RUN}/m-api.sock", "/run/user/1000/podman/podman.sock")
    assert (forward.user, forward.identity) == ("core", key)
    assert (got.warnings, got.notes) == ([], ["gvproxy version v0.8.9"])


def test_podman_machine_of_debian_12(key: str) -> None:
    """Podman 4.3: the link's socket has the path of QEMU's QMP socket, and options come in another order."""
    got = parse(
        *f"-listen-qemu unix://{RUN}/qmp_m.sock -pid-file {RUN}/m_proxy.pid -ssh-port 40123 -forward-sock /h/podman "
        f"-forward-dest /run/podman/podman.sock -forward-user root -forward-identity {key} --debug".split()
    )
    assert (got.socket_path, got.mtu, got.log_file, got.log_level) == (f"{RUN}/qmp_m.sock", 1500, None, spec.DEBUG)


def test_libkrun_and_krunkit_send_datagrams() -> None:
    got = parse("-listen-vfkit", f"unixgram://{RUN}/m-gvproxy.sock", "-ssh-port", "-1")
    assert (got.link, got.socket_path, got.one_off) == (spec.DGRAM, f"{RUN}/m-gvproxy.sock", True)
    assert got.forwards == () and got.virtual and got.virtual.forwards == ()


def test_other_links() -> None:
    """User-mode Linux, HyperKit, a pipe, QEMU by TCP; or none, where guests come by /connect."""
    got = parse("-listen-bess", "unixpacket:///b")
    assert (got.link, got.socket_path, got.one_off) == (spec.SEQPACKET, "/b", True)
    got = parse("-listen-vpnkit", "unix:///v")
    assert (got.link, got.socket_path, got.one_off) == (spec.STREAM, "/v", False)
    got = parse("-listen-stdio", "accept")
    assert (got.link, got.socket_path, got.one_off, network("-listen-stdio", "x").transport) == (
        spec.STREAM,
        None,
        True,
        "stdio",
    )
    link = network("-listen-qemu", "tcp://127.0.0.1:1234").link
    assert link and (link.host, link.port) == ("127.0.0.1", 1234)
    got = parse("-listen", "vsock://:1024", "-listen", "unix:///n", "-services", "unix:///s")
    made = got.virtual
    assert made and (made.transport, made.link, got.socket_path, got.one_off) == ("", None, None, False)
    assert [(one.scheme, one.path, one.port) for one in made.listen] == [("vsock", "", 1024), ("unix", "/n", 0)]
    assert made.services and made.services.path == "/s"


def test_macadam_finds_services_in_the_usage_text() -> None:
    ended = stop("--help")
    assert (ended.exit_code, ended.stdout_text) == (0, "") and "\n  -services string\n" in ended.stderr_text
    assert ended.stderr_text.startswith("Usage of gvproxy:\n")


def test_the_version_is_that_of_the_program_whose_contract_this_is() -> None:
    """And wins over everything but a command line that cannot be read."""
    for words in (["-version"], ["--version=1", "-ssh-port", "1"], ["-config", "/nonexistent", "-version", "word"]):
        ended = stop(*words)
        assert (ended.exit_code, ended.stdout_text, ended.stderr_text) == (0, "gvproxy version v0.8.9\n", "")
    assert stop("-version", "-x").exit_code == 2


# ---- what the network is ----


def test_the_network_of_an_empty_command_line() -> None:
    got, made = parse(), network()
    assert (made.subnet, made.prefix_length) == (ip("192.168.127.0"), 24)
    assert (made.gateway, made.device, made.host) == (ip("192.168.127.1"), ip("192.168.127.2"), ip("192.168.127.254"))
    assert (made.gateway_mac, made.device_leases) == (GATEWAY_MAC, {made.device: DEVICE_MAC})
    assert (made.nat, made.virtual_addresses) == ({made.host: address.LOOPBACK4}, (made.host,))
    assert made.vpnkit_macs == {"c3d68012-0208-11ea-9fd7-f2189899ab08": DEVICE_MAC}
    assert [zone.name for zone in made.zones] == ["containers.internal.", "docker.internal."]
    for zone in made.zones:
        assert [(one.name, one.address) for one in zone.records] == [("gateway", made.gateway), ("host", made.host)]
    assert made.search is got.search is None
    assert [(one.protocol, one.local, one.remote) for one in made.forwards] == [
        ("tcp", "127.0.0.1:2222", "192.168.127.2:22")
    ]
    assert (made.allow_link_local, made.host_ports, made.guest_may_expose_files) == (False, None, False)


def test_the_rest_of_the_program_finds_it_where_it_looks_for_it() -> None:
    got, made = parse(), network()
    assert (got.ipv4.address, got.ipv4.prefix_length, got.ipv4.gateway) == (made.device, 24, made.gateway)
    assert (got.ipv4.map_host_loopback, got.ipv4.dns) == (made.host, (made.gateway,))
    assert (got.mac, got.mtu, got.log_level) == (GATEWAY_MAC, 1500, spec.INFO)
    assert (got.failure_prefix, got.failure_status) == ("gvproxy exiting: ", 0)


def test_a_kernel_without_ipv6_has_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(address, "has_ipv6", lambda answer=there: answer)
        got = parse()
        assert got.virtual and got.ipv6.enabled == got.virtual.ipv6 == there


def test_a_subnet_brings_its_addresses() -> None:
    made = network("-subnet", "10.9.8.7/16")
    assert (made.subnet, made.gateway, made.device, made.host) == tuple(
        map(ip, ("10.9.0.0", "10.9.0.1", "10.9.0.2", "10.9.255.254"))
    )
    assert network("-subnet", "10.0.0.8/29").host == ip("10.0.0.14")
    words = "-subnet 10.0.0.0/30 -gatewayIP 10.0.0.1 -deviceIP 10.0.0.2 -hostIP 10.0.0.0".split()
    assert network(*words).forwards[0].remote == "10.0.0.2:22"


def test_addresses_can_be_chosen() -> None:
    made = network("-gatewayIP", "192.168.127.9", "-hostIP", "192.168.127.10", "-deviceIP", "192.168.127.11")
    assert (made.gateway, made.host, made.device) == tuple(
        map(ip, ("192.168.127.9", "192.168.127.10", "192.168.127.11"))
    )
    assert made.zones[0].records[1].address == made.host and made.forwards[0].remote == "192.168.127.11:22"


@pytest.mark.parametrize(
    "words, message",
    [
        ("-subnet x", 'failed to parse subnet: "x": expected an IPv4 network, as in 192.168.127.0/24'),
        ("-subnet 10.0.0.0", 'failed to parse subnet: "10.0.0.0": expected an IPv4'),
        ("-subnet 10.0.0.0/33", 'failed to parse subnet: "10.0.0.0/33": expected an IPv4'),
        ("-subnet fd00::/64", 'failed to parse subnet: "fd00::/64": expected an IPv4'),
        ("-subnet 1.0.0.0/30", "failed to identify usable gateway IP address in subnet: subnet too small"),
        ("-subnet 1.0.0.0/30 -gatewayIP 1.0.0.1", "failed to identify usable device IP address in subnet: subnet too"),
        ("-gatewayIP x", "failed to validate configuration IPs: invalid IP address: x"),
        ("-hostIP fd00::1", "failed to validate configuration IPs: invalid IP address: fd00::1"),
        ("-hostIP 10.0.0.1", "failed to validate configuration IPs: IP (10.0.0.1) not in subnet (192.168.127.0/24)"),
        (
            "-deviceIP 192.168.127.255",
            "failed to validate configuration IPs: IP must not be broadcast address: 192.168.127.255",
        ),
        ("-deviceIP 192.168.127.1", "failed to validate configuration IPs: IP addresses need to be distinct"),
    ],
)
def test_addresses_that_make_no_network_are_fatal(words: str, message: str) -> None:
    assert fatal(*words.split()).startswith(message)


@pytest.mark.parametrize(
    "subnet, what",
    [
        ("127.0.0.0/8", "the loopback (127.0.0.0/8)"),
        ("127.9.0.0/24", "the loopback (127.0.0.0/8)"),
        ("126.0.0.0/7", "the loopback (127.0.0.0/8)"),
        ("0.0.0.0/8", "addresses of nobody (0.0.0.0/8)"),
        ("0.1.2.0/24", "addresses of nobody (0.0.0.0/8)"),
        ("0.0.0.0/1", "addresses of nobody (0.0.0.0/8)"),
        ("169.254.0.0/16", "link-local addresses, where clouds have their metadata (169.254.0.0/16)"),
        ("169.254.169.0/24", "link-local addresses, where clouds have their metadata (169.254.0.0/16)"),
        ("160.0.0.0/4", "link-local addresses, where clouds have their metadata (169.254.0.0/16)"),
        ("224.0.0.0/4", "multicast groups (224.0.0.0/4)"),
        ("239.1.2.0/24", "multicast groups (224.0.0.0/4)"),
        ("192.0.0.0/2", "multicast groups (224.0.0.0/4)"),
        ("255.255.255.0/24", "the broadcast address (255.255.255.255/32)"),
    ],
)
def test_a_subnet_whose_addresses_mean_something_else_is_fatal(subnet: str, what: str) -> None:
    """Cause: -subnet 127.0.0.0/8 was taken without a word, and no guest of it could do anything."""
    message = f'failed to parse subnet: "{subnet}": expected a network without {what}, as in 192.168.127.0/24'
    assert fatal("-subnet", subnet) == message


@pytest.mark.parametrize("subnet", ["1.0.0.0/8", "126.0.0.0/8", "128.0.0.0/8", "169.253.0.0/16", "169.255.0.0/16"])
def test_its_neighbours_are_taken(subnet: str) -> None:
    assert network("-subnet", subnet).prefix_length == int(subnet.partition("/")[2])


def test_link_local_addresses_are_reached_only_where_somebody_wants_it() -> None:
    assert not network().allow_link_local
    assert network("-ec2-metadata-access").allow_link_local


@pytest.mark.parametrize("port", ["0", "80", "1023", "65536", "-2", "9223372036854775807"])
def test_the_ssh_port_is_one_that_users_may_have(port: str) -> None:
    assert fatal("-ssh-port", port) == "ssh-port value must be between 1024 and 65535"


def test_the_bounds_of_the_ssh_port_are_within() -> None:
    assert [network("-ssh-port", port).forwards[0].local for port in ("1024", "0xffff")] == [
        "127.0.0.1:1024",
        "127.0.0.1:65535",
    ]


@pytest.mark.parametrize("mtu", ["-1", "67", "65522"])
def test_an_mtu_that_nothing_can_have_ends_the_start(mtu: str) -> None:
    assert failure("-mtu", mtu) == "mtu is out of range"


def test_an_mtu_of_zero_is_that_of_ethernet() -> None:
    assert [parse("-mtu", mtu).mtu for mtu in ("0", "68", "65521")] == [1500, 68, 65521]


# ---- places ----


def test_a_file_in_the_place_of_the_link_is_fatal_whatever_it_is(tmp_path: Path) -> None:
    """A socket of a living helper, or a user's file: neither is replaced."""
    there = tmp_path / 'a "file"'
    there.write_text("")
    url = str(there).replace(" ", "%20")
    for words in (
        ("-listen-qemu", f"unix://{url}"),
        ("-listen-bess", f"unixpacket://{url}"),
        ("-listen-vfkit", f"unixgram://{url}"),
    ):
        assert fatal(*words) == f'"{there}" already exists'.replace('"file"', '\\"file\\"')
    assert parse("-listen-vpnkit", f"unix://{url}").socket_path == str(there)
    assert parse("-listen-qemu", f"unixpacket://{url}").socket_path == str(there)


@pytest.mark.parametrize(
    "words, message",
    [
        ("-listen-vfkit unix:///a", "vfkit listen address must be unixgram:// address"),
        ("-listen-bess unix:///a", "bess listen address must be unixpacket:// address"),
        ("-listen-qemu %zz", 'invalid value for qemu listen address: parse "%zz": invalid URL escape "%zz"'),
        ("-listen-bess :", 'invalid value for bess listen address: parse ":": missing protocol scheme'),
        ("-listen-vfkit :", 'invalid value for vfkit listen address: parse ":": missing protocol scheme'),
        ("-notification :", 'invalid value for notification listen address: parse ":": missing protocol scheme'),
        ("-notification tcp://a:1", "notification listen address must be unix:// address"),
        ("-notification unix://", "invalid value for notification listen address: listen unix: no path"),
        ("-listen-qemu unix:///a -listen-vpnkit unix:///b", "cannot use qemu and vpnkit protocol at the same time"),
        ("-listen-bess unixpacket:/a -listen-vpnkit unix:/b", "cannot use bess and vpnkit protocol at the same time"),
        ("-listen-bess unixpacket:///a -listen-qemu unix:///b", "cannot use qemu and bess protocol at the same time"),
        ("-listen-stdio x -listen-qemu unix:///b", "cannot use qemu and stdio protocol at the same time"),
    ],
)
def test_links_that_cannot_be_are_fatal(words: str, message: str) -> None:
    assert fatal(*words.split()).startswith(message)


@pytest.mark.parametrize(
    "words, reason",
    [
        ("-listen foo://x", "cannot listen: unexpected scheme"),
        ("-listen %zz", 'cannot listen: parse "%zz": invalid URL escape "%zz"'),
        ("-services unixgram:///x", "cannot listen: unexpected scheme"),
        ("-listen-qemu foo://x", "qemu listen error: unexpected scheme"),
        ("-listen-qemu unix:", "qemu listen error: listen unix: no path is given; expected one, as in"),
        ("-listen-vpnkit :", 'vpnkit listen error: parse ":": missing protocol scheme'),
        ("-listen-vpnkit tcp://a", "vpnkit listen error: listen tcp: address a: missing port in address"),
    ],
)
def test_places_where_nobody_can_listen_end_the_start(words: str, reason: str) -> None:
    assert failure(*words.split()).startswith(reason)


def test_guests_are_told_of_where_somebody_wants_to_hear_it() -> None:
    assert network("-notification", "unix:///run/a%20b").notification == "/run/a b"


# ---- forwards by SSH ----


def ssh(sock: str, key: str) -> list[str]:
    return ["-forward-sock", sock, "-forward-dest", "/d", "-forward-user", "u", "-forward-identity", key]


def test_forwards_by_ssh_belong_together_by_their_places(key: str) -> None:
    made = network(*ssh("unix:///a%20b", key), *ssh("/c%20d", key))
    assert [one.path for one in made.ssh_forwards] == ["/a b", "/c%20d"]


def test_parts_of_a_forward_that_are_missing_are_fatal(key: str) -> None:
    message = (
        "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified together, the "
        "same number of times, or not at all"
    )
    words = ssh("/a", key)
    for number in range(0, len(words), 2):
        assert fatal(*words[:number], *words[number + 2 :]) == message
        assert fatal(*words, *words[number : number + 2]) == message


def test_a_key_that_is_not_there_is_fatal(tmp_path: Path) -> None:
    key = tmp_path / "none"
    reason = f"stat {key}: no such file or directory"
    assert fatal(*ssh("/a", str(key))) == f'identity file "{key}" can\'t be loaded: {reason}'
    assert fatal(*ssh("/a", "")).endswith("can't be loaded: stat : no such file or directory")


def test_a_socket_that_cannot_be_made_ends_the_start(key: str) -> None:
    assert failure(*ssh("", key)).startswith("cannot listen: listen unix: no path is given")
    assert failure(*ssh("/" + "a" * 107, key)).endswith("expected a path of at most 107 bytes, without NUL")


# ---- how it ends, and what is said ----


def test_what_is_fatal_is_for_the_log_file_if_there_is_one() -> None:
    """The standard streams of who starts it are /dev/null."""
    assert stop("-log-file", "/run/log", "-ssh-port", "1").log_file == "/run/log"
    assert stop("-log-file", "/run/log", "-config", "/nonexistent").log_file == "/run/log"
    assert stop("-log-file", "/run/log", "-listen", "x").log_file == "/run/log"
    assert stop("-ssh-port", "1").log_file is None
    assert stop("-log-file", "/run/log", "-x").log_file is None


def test_a_log_file_that_cannot_be_is_fatal() -> None:
    ended = gvproxy.log_file_fault("/a b")
    assert said(ended) == [("fatal", "unable to open log file /a b")]
    assert (ended.exit_code, ended.log_file) == (1, None)


def test_our_own_version_is_among_the_details() -> None:
    details = parse("-debug", "word").details
    assert details[0] == f"lockgate {VERSION}, as gvproxy version v0.8.9"
    assert details[2] == 'command line: ["gvproxy" "-debug" "word"]'


def test_where_to_record_is_taken_as_it_is() -> None:
    assert parse("-pcap", "a.pcap").pcap_file == "a.pcap"


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([f"-{flag.name}" for flag in FLAGS if flag.kind == BOOL and flag.name != "version"])
        | st.sampled_from([f"-{flag.name}" for flag in FLAGS if flag.kind != BOOL and flag.name != "config"])
        | st.sampled_from(["unix:///tmp/x", "tcp://:1", "10.0.0.0/24", "10.0.0.5", "2222", "-1", "accept"])
        | st.binary(max_size=8).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),
        max_size=8,
    )
)
def test_every_command_line_is_a_network_or_a_stop(words: list[str]) -> None:
    try:
        got = parse(*words)
    except Stop as ended:
        assert ended.exit_code in (0, 1, 2) and (ended.stdout_text or ended.stderr_text)
        return
    made = got.virtual
    assert made and len({made.gateway, made.device, made.host}) == 3
    assert 68 <= got.mtu <= 65521 and got.ipv4.prefix_length > 0
    assert got.socket_path is None or 0 < len(os.fsencode(got.socket_path)) < 108
    assert len(got.forwards) == len(made.forwards)


# ---- start-up ----


def test_parsing_imports_nothing_heavy(tmp_path: Path, key: str) -> None:
    """Each module costs its tenth of a millisecond before READY: beside our own, only these four, and not `os`,
    which `site` would have brought."""
    package = tmp_path / "lockgate"
    package.mkdir()
    (package / "plugin").symlink_to(Path(lockgate.plugin.__file__).resolve().parent)
    words = ["-mtu", "1500", "-listen-qemu", "unix:///nonexistent/q", *ssh("/a", key), "-log-file", "l"]
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); before = set(sys.modules)\n"
        "from lockgate.plugin.contracts.gvproxy import parse\n"
        f"parse({words!r}, 'gvproxy')\n"
        "print(*sorted(set(sys.modules) - before - {'lockgate'}))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    imported = done.stdout.split()
    ours = {name for name in imported if name.startswith("lockgate.")}
    assert set(imported) - ours <= {"__future__", "_socket", "errno", "time"}
    assert ours == {
        "lockgate.plugin",
        "lockgate.plugin.address",
        "lockgate.plugin.contracts",
        "lockgate.plugin.contracts.goflags",
        "lockgate.plugin.contracts.gvproxy",
        "lockgate.plugin.contracts.gvproxy_options",
        "lockgate.plugin.contracts.gvproxy_settings",
        "lockgate.plugin.contracts.place",
        "lockgate.plugin.forward_rule",
        "lockgate.plugin.gateway",
        "lockgate.plugin.gateway.virtual_network",
        "lockgate.plugin.logrus",
        "lockgate.plugin.native_text",
        "lockgate.plugin.spec",
    }
