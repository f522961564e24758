# SPDX-License-Identifier: Apache-2.0
"""plugin/forwards.py: real sockets, on ports that are free at the time, and what is said where one cannot be had."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import fresh_python
import pytest

from lockgate.plugin import forwards, port_holder
from lockgate.plugin.contracts import forward_spec
from lockgate.plugin.contracts.forward_spec import Scope
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule

ROOM = 10000  # descriptors; more than any test wants
PATIENCE = 20.0  # seconds, for what takes no time on loopback
NOBODY = 65534
IP_PKTINFO, IP_RECVERR, IPV6_RECVERR = 8, 11, 25  # <linux/in.h>, <linux/in6.h>

Kind = Callable[..., list[socket.socket]]


def rules(*texts: str, protocol: int = TCP, ipv4: bool = True, ipv6: bool = True) -> tuple[ForwardRule, ...]:
    scope = Scope(ipv4=ipv4, ipv6=ipv6, tcp=True, udp=True, ephemeral=lambda: (49152, 65535))
    found: tuple[ForwardRule, ...] = ()
    for text in texts:
        found = forward_spec.add(found, "--tcp-ports" if protocol == TCP else "--udp-ports", protocol, text, scope)
    return found


def silent(line: str) -> None:
    raise AssertionError(f"nothing is to be said: {line}")


def refused(wanted: tuple[ForwardRule, ...]) -> tuple[list[str], str]:
    """The lines of warning and the sentence; and nothing stays open."""
    lines: list[str] = []
    before = os.listdir("/proc/self/fd")
    with pytest.raises(forwards.ForwardError) as caught:
        forwards.bind(wanted, ROOM, lines.append)
    assert os.listdir("/proc/self/fd") == before
    return lines, str(caught.value)


def ourselves() -> str:
    return f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"


@pytest.fixture
def bound() -> Iterator[Kind]:
    """Binds rules of which nothing is said, and gives the sockets; closes them after the test."""
    sockets: list[socket.socket] = []

    def bind(wanted: tuple[ForwardRule, ...], warn: Callable[[str], None] = silent) -> list[socket.socket]:
        listeners = forwards.bind(wanted, ROOM, warn)
        made = [socket.socket(fileno=listener.fd) for listener in listeners]
        sockets.extend(made)
        assert [one.getsockname()[1] for one in made] == [listener.port for listener in listeners]
        assert all(one.rule.first <= one.port <= one.rule.last for one in listeners)
        return made

    yield bind
    for one in sockets:
        one.close()


@pytest.fixture
def port() -> int:
    """Free a moment ago, for both protocols and families, as is the one after it."""
    for _ in range(100):
        with socket.socket(socket.AF_INET6) as first:
            first.bind(("::", 0))
            number: int = first.getsockname()[1]
        if number < 65535 and all(_is_free(kind, number + more) for kind in (1, 2) for more in (0, 1)):
            return number
    raise AssertionError("no two consecutive ports are free")


def _is_free(kind: int, number: int) -> bool:
    with socket.socket(socket.AF_INET6, kind) as probe:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("::", number))
        except OSError:
            return False
    return True


@pytest.fixture
def holder(port: int) -> Iterator[socket.socket]:
    """Somebody else listens on the port, on the loopback address of IPv4; and for UDP."""
    with socket.socket() as taken, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken_udp:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        taken_udp.bind(("127.0.0.1", port))
        yield taken


def option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


# ---- what is bound ----


def test_without_an_address_one_tcp_socket_serves_both_families(bound: Kind, port: int) -> None:
    """It listens, and is accepted from without waiting."""
    (listener,) = bound(rules(f"{port}:80"))
    assert listener.family == socket.AF_INET6
    with pytest.raises(BlockingIOError):
        listener.accept()
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port), PATIENCE) as client:
            accepted, peer = listener.accept()
            assert peer[1] == client.getsockname()[1]
            accepted.close()


def test_without_an_address_one_udp_socket_serves_both_families(bound: Kind, port: int) -> None:
    """Each datagram comes with the address that it was sent to, IPv4's as mapped into IPv6 and by itself."""
    (listener,) = bound(rules(f"{port}", protocol=UDP))
    with pytest.raises(BlockingIOError):
        listener.recv(1)
    for host, mapped in (("127.0.0.2", "::ffff:127.0.0.2"), ("::1", "::1")):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", (host, port))
        data, ancillary, _, _ = listener.recvmsg(100, 200)
        assert data == b"hello"
        told = {(level, kind): value for level, kind, value in ancillary}
        info6 = told.pop((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO))
        assert info6[:16] == socket.inet_pton(socket.AF_INET6, mapped)
        if family == socket.AF_INET:
            assert told.pop((socket.IPPROTO_IP, IP_PKTINFO))[4:8] == socket.inet_aton(host), "where answers come from"
        assert not told


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_an_explicit_any_address_is_of_one_family(bound: Kind, port: int, protocol: int) -> None:
    """So both can be bound side by side."""
    four, six = bound(rules(f"0.0.0.0/{port}", f"[::]/{port}", protocol=protocol))
    assert (four.family, six.family) == (socket.AF_INET, socket.AF_INET6)
    assert option(six, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_with_one_family_only_that_is_served(bound: Kind, port: int) -> None:
    """Any address of IPv4, or of IPv6 without IPv4's."""
    (four,) = bound(rules(f"{port}", ipv6=False))
    (six,) = bound(rules(f"{port}", ipv4=False))
    assert four.getsockname() == ("0.0.0.0", port)
    assert six.getsockname()[:2] == ("::", port)
    assert option(six, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_an_address_is_bound_as_it_is_written(bound: Kind, port: int) -> None:
    four, six = bound(rules(f"127.0.0.1/{port}", f"[::1]/{port}"))
    assert four.getsockname() == ("127.0.0.1", port)
    assert six.getsockname()[:2] == ("::1", port)


def test_each_port_of_a_range_has_its_socket(bound: Kind, port: int) -> None:
    """In order; so the listener knows where its port leads."""
    first, second = bound(rules(f"127.0.0.1/{port}-{port + 1}:80-81"))
    assert (first.getsockname()[1], second.getsockname()[1]) == (port, port + 1)


@pytest.mark.parametrize("listen", ["127.0.0.1", "[::1]", "*"])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_sockets_are_set_to(bound: Kind, port: int, protocol: int, listen: str) -> None:
    """They do not block, do not survive exec; only TCP ports are shared with connections that linger; UDP's report
    errors of each family that they serve."""
    (listener,) = bound(rules(f"{listen}/{port}", protocol=protocol))
    assert not listener.get_inheritable()
    assert fcntl.fcntl(listener, fcntl.F_GETFL) & os.O_NONBLOCK
    assert option(listener, socket.SOL_SOCKET, socket.SO_REUSEADDR) == (protocol == TCP)
    assert listener.type == (socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM)
    if protocol == UDP:
        ipv4, ipv6 = listen != "[::1]", listen != "127.0.0.1"
        assert option(listener, socket.IPPROTO_IP, IP_RECVERR) == ipv4
        assert option(listener, socket.IPPROTO_IP, IP_PKTINFO) == ipv4
        if ipv6:
            assert option(listener, socket.IPPROTO_IPV6, IPV6_RECVERR) == 1
            assert option(listener, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) == 1


def test_a_backlog_as_long_as_the_machine_allows_is_asked_for(bound: Kind, port: int) -> None:
    """Up to 4096, as servers have. TCP_INFO shows it of a listening socket, in the place of a
    connection's segments that are acknowledged (SACK)."""
    (listener,) = bound(rules(f"127.0.0.1/{port}"))
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (sacked,) = struct.unpack_from("=I", info, 28)
    assert sacked == min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_an_interface_is_bound_to(bound: Kind, port: int, protocol: int) -> None:
    (listener,) = bound(rules(f"%lo/{port}", protocol=protocol))
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"


def test_a_link_local_address_is_one_of_its_interface(port: int) -> None:
    """Its number is part of the socket's address; loopback has no such address, and the answer is the kernel's."""
    (rule,) = rules(f"fe80::1%lo/{port}")
    assert forwards._scope_id(rule) == socket.if_nametoindex("lo")
    (rule,) = rules(f"fe80::1%nosuchif0/{port}")
    assert forwards._scope_id(rule) == 0
    (rule,) = rules(f"[::1]%lo/{port}")
    assert forwards._scope_id(rule) == 0


def test_closing_frees_the_ports(port: int) -> None:
    for _ in range(2):
        forwards.close(forwards.bind(rules(f"127.0.0.1/{port}-{port + 1}"), ROOM, silent))


def test_a_port_is_free_again_while_its_connections_linger(bound: Kind, port: int) -> None:
    """Those of a helper that has ended are in TIME_WAIT for a minute."""
    (listener,) = bound(rules(f"127.0.0.1/{port}"))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        accepted, _ = listener.accept()
        accepted.close()
        assert client.recv(1) == b""
    listener.close()
    bound(rules(f"127.0.0.1/{port}"))


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("host", ["203.0.113.77", "[2001:db8::77]"])
def test_freebind_binds_what_the_host_does_not_have(port: int, protocol: int, host: str) -> None:
    """Or not yet; what is said without it is below."""
    anywhere = forwards.on_host(freebind=True)
    (listener,) = forwards.bind(rules(f"{host}/{port}", protocol=protocol), ROOM, silent, anywhere)
    with socket.socket(fileno=listener.fd) as made:
        assert made.getsockname()[:2] == (host.strip("[]"), port)


# ---- ports that were named, and cannot be had ----


@pytest.mark.parametrize(
    ("protocol", "name", "option_name"), [(TCP, "TCP", "--tcp-ports"), (UDP, "UDP", "--udp-ports")]
)
def test_the_holder_of_a_port_is_named(
    holder: socket.socket, port: int, protocol: int, name: str, option_name: str
) -> None:
    """A line in the contract's words, and a sentence with a process and what can be done."""
    lines, sentence = refused(rules(f"127.0.0.1/{port}", protocol=protocol))
    assert lines == [f"Listen failed for HOST {name} port 127.0.0.1/{port}: Address already in use"]
    assert sentence == (
        f"Couldn't listen on requested ports: {name} port {port} is held by {ourselves()}; stop that, "
        f"or choose another port for {option_name}"
    )


def test_an_address_of_the_holder_is_in_the_way_of_any_address(holder: socket.socket, port: int) -> None:
    """And an interface is part of the line."""
    lines, sentence = refused(rules(f"{port}", protocol=UDP))
    assert lines == [f"Listen failed for HOST UDP port */{port}: Address already in use"]
    assert f"is held by {ourselves()}" in sentence
    lines, _ = refused(rules(f"0.0.0.0/{port}"))
    assert lines == [f"Listen failed for HOST TCP port 0.0.0.0/{port}: Address already in use"]


def test_each_rule_that_fails_has_one_line_and_nothing_is_kept(holder: socket.socket, port: int) -> None:
    """Also a rule of many ports; the sentence is about the first."""
    wanted = rules(f"127.0.0.1/{port}-{port + 1}", f"127.0.0.2/{port}", f"127.0.0.1%nosuchif0/{port + 2}")
    lines, sentence = refused(wanted)
    assert lines == [
        f"Listen failed for HOST TCP port 127.0.0.1/{port}: Address already in use",
        f"Listen failed for HOST TCP port 127.0.0.1%nosuchif0/{port + 2}: No such device",
    ]
    assert ourselves() in sentence
    forwards.close(forwards.bind(rules(f"127.0.0.2/{port}"), ROOM, silent))


def test_a_holder_that_cannot_be_seen_is_another_process(
    holder: socket.socket, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_holder, "find", lambda *_: "")
    _, sentence = refused(rules(f"127.0.0.1/{port}"))
    assert f"TCP port {port} is held by another process; stop that" in sentence


@pytest.mark.parametrize(
    ("text", "reason", "advice"),
    [
        ("203.0.113.77/{}", "Cannot assign requested address", "this machine has no address 203.0.113.77; `ip addr"),
        ("[2001:db8::77]/{}", "Cannot assign requested address", "this machine has no address 2001:db8::77; `ip addr"),
        ("%nosuchif0/{}", "No such device", "there is no interface nosuchif0; `ip link` lists what there is"),
        ("fe80::77/{}", "Invalid argument", "a link-local address needs its interface, as in [fe80::77]%eth0/{}"),
    ],
)
def test_other_reasons_come_with_what_to_do(port: int, text: str, reason: str, advice: str) -> None:
    lines, sentence = refused(rules(text.format(port)))
    assert len(lines) == 1 and lines[0].endswith(f"/{port}: {reason}")
    assert sentence.startswith(f"Couldn't listen on requested ports: {advice.format(port)}")


@pytest.mark.parametrize(
    ("error", "text", "about"),
    [
        (1, "%lo/{}", "before Linux 5.7 only root may listen on one interface; leave out %lo"),
        (1, "{}", "TCP port {}: Operation not permitted"),
        (13, "50000", "TCP port 50000: Permission denied"),
        (22, "127.0.0.1/{}", "TCP port {}: Invalid argument"),
        (24, "{}", "TCP port {}: Too many open files"),
    ],
)
def test_reasons_of_other_machines(error: int, text: str, about: str) -> None:
    """What this one may not bring about, from the number that the kernel gives."""
    (rule,) = rules(text.format(4000))
    failure = forwards.Failure(rule, rule.first, error)
    assert forwards.explain(failure) == about.format(4000)


class Namespace:
    """Opens ports as an agent does, several at a time; those that are taken it cannot."""

    def __init__(self, *taken: int) -> None:
        self.taken = taken
        self.asked: list[tuple[int, int]] = []

    def __call__(self, rule: ForwardRule, first: int, count: int) -> list[int]:
        assert rule.outward
        self.asked.append((first, count))
        numbers = range(first, first + count)
        return [-errno.EADDRINUSE if port in self.taken else os.open("/dev/null", os.O_RDONLY) for port in numbers]


def outward(*texts: str) -> tuple[ForwardRule, ...]:
    scope = Scope(ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=lambda: (49152, 65535), auto=True, outbound=True)
    found: tuple[ForwardRule, ...] = ()
    for text in texts:
        found = forward_spec.add(found, "--tcp-ns", TCP, text, scope)
    return found


def test_ports_of_a_namespace_are_opened_in_batches() -> None:
    """Each comes out with its number."""
    opens = Namespace()
    listeners = forwards.bind(outward("80", "1000-1149"), ROOM, silent, opens)
    assert opens.asked == [(80, 1), (1000, 64), (1064, 64), (1128, 22)]
    assert [one.port for one in listeners] == [80, *range(1000, 1150)]
    forwards.close(listeners)


def test_a_port_that_is_taken_in_a_namespace_is_told_as_one_of_it() -> None:
    """Nothing stays open, nor of the same batch; whose port it is, nobody can see from here."""
    lines: list[str] = []
    before = os.listdir("/proc/self/fd")
    with pytest.raises(forwards.ForwardError) as caught:
        forwards.bind(outward("79", "80-100"), ROOM, lines.append, Namespace(90))
    assert os.listdir("/proc/self/fd") == before
    assert lines == ["Listen failed for SPLICE TCP port *%lo/90: Address already in use"]
    assert str(caught.value) == (
        "Couldn't listen on requested ports: TCP port 90 is taken in the namespace already; stop what has it there, "
        "or choose another port for --tcp-ns"
    )
    (rule,) = outward("80")
    assert forwards.explain(forwards.Failure(rule, 80, 32)) == "TCP port 80 of the namespace: Broken pipe"


def test_room_is_asked_for_ports_that_were_named_alone() -> None:
    """Nobody knows how many will follow what listens."""
    forwards.check_room(outward("auto", "50000"), 1)
    with pytest.raises(forwards.ForwardError, match="^--tcp-ns: 2 ports need a socket each"):
        forwards.check_room(outward("auto", "50000-50001"), 1)


def test_of_ports_that_are_welcome_as_many_are_opened_as_there_is_room_for() -> None:
    """What cannot be had takes none."""
    first, second = outward("auto,80-89", "auto,90-99")
    opens = Namespace(81)
    listeners = forwards.bind_some([(first, [80, 81, 82]), (second, [90, 91, 92])], 3, opens)
    assert [(one.rule, one.port) for one in listeners] == [(first, 80), (first, 82), (second, 90)]
    assert opens.asked == [(80, 3), (90, 1)]
    forwards.close(listeners)


def test_a_port_for_root_only_names_the_sysctl() -> None:
    """Bound as nobody: the file, its value, and how to change it."""
    start = int(Path(forwards.UNPRIVILEGED_FILE).read_text())
    if start < 2:
        pytest.skip(f"{forwards.UNPRIVILEGED_FILE} lets everybody bind every port of this machine")

    def attempt() -> str:
        lines: list[str] = []
        try:
            forwards.bind(rules(f"127.0.0.1/{start - 1}"), ROOM, lines.append)
        except forwards.ForwardError as fault:
            return "\n".join([*lines, str(fault)])
        return "bound"

    line, sentence = _as_nobody(attempt).split("\n")
    assert line == f"Listen failed for HOST TCP port 127.0.0.1/{start - 1}: Permission denied"
    assert sentence == (
        f"Couldn't listen on requested ports: TCP port {start - 1} is for root only "
        f"(net.ipv4.ip_unprivileged_port_start is {start}); `sysctl net.ipv4.ip_unprivileged_port_start={start - 1}` "
        "changes that, or choose another port for --tcp-ports"
    )


def _as_nobody(attempt: Callable[[], str]) -> str:
    """What it returns in a process without rights."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, attempt().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


def test_without_the_sysctl_the_limit_is_1024(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(forwards, "UNPRIVILEGED_FILE", str(tmp_path / "missing"))
    assert forwards._unprivileged_start() == 1024


# ---- "all" ----


def best_effort(port: int, protocol: int = TCP) -> tuple[ForwardRule, ...]:
    """ "all" of 127.0.0.1, with but two ports that are not left out."""
    scope = Scope(ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=lambda: (0, 0))
    text = f"127.0.0.1/all,~0-{port - 1},~{port + 2}-65535"
    name = "--tcp-ports" if protocol == TCP else "--udp-ports"
    (rule,) = forward_spec.add((), name, protocol, text, scope)
    assert rule.best_effort and (rule.first, rule.last) == (port, port + 1)
    return (rule,)


def test_what_is_missing_of_all_is_told_in_one_line(bound: Kind, holder: socket.socket, port: int) -> None:
    """Of both protocols; and the rest is bound."""
    lines: list[str] = []
    made = bound(best_effort(port) + best_effort(port, UDP), lines.append)
    assert [one.getsockname() for one in made] == [("127.0.0.1", port + 1)] * 2
    assert lines == [
        f"2 of 4 ports are not forwarded: TCP {port} (Address already in use), UDP {port} (Address already in use)"
    ]


def test_a_run_of_all_of_which_nothing_can_be_had_is_an_error(holder: socket.socket, port: int) -> None:
    """With the line of its first port, and the words to leave it out."""
    with socket.socket() as second:
        second.bind(("127.0.0.1", port + 1))
        second.listen()
        lines, sentence = refused(best_effort(port))
    assert lines == [f"Listen failed for HOST TCP port 127.0.0.1/{port}: Address already in use"]
    assert sentence == (
        f"Couldn't listen on requested ports: none from {port}-{port + 1} can be had, TCP port {port} is held by "
        f"{ourselves()}; stop that, or leave them out of --tcp-ports, with ~{port}-{port + 1}"
    )


def test_what_is_missing_is_told_with_a_few_examples() -> None:
    """Ports that failed alike side by side are one example; of the others, only the number of ports is told."""
    (one,), (other,) = rules("127.0.0.1/1-100"), rules("127.0.0.1/1-100", protocol=UDP)
    permission, in_use = 13, 98
    missed = [
        *((one, port, permission) for port in range(1, 23)),
        (one, 23, in_use),
        (one, 30, in_use),
        (other, 31, in_use),
        (other, 33, permission),
        *((other, port, in_use) for port in range(40, 45)),
        (other, 50, in_use),
    ]
    assert forwards.examples([forwards.Failure(*each) for each in missed]) == (
        "TCP 1-22 (Permission denied), TCP 23 (Address already in use), TCP 30 (Address already in use), "
        "UDP 31 (Address already in use), UDP 33 (Permission denied), and 6 more"
    )


# ---- limits and start-up ----


def test_descriptors_are_counted_before_anything_is_bound(port: int) -> None:
    """In a sentence that says how many, how many there are, and what to do."""
    wanted = rules("1-32767", "61000-65535") + rules(f"127.0.0.1/{port}", protocol=UDP)
    with pytest.raises(forwards.ForwardError) as caught:
        forwards.bind(wanted, 19744, silent)
    assert str(caught.value) == (
        "--tcp-ports and --udp-ports: 37304 ports need a socket each, and the limit on open files leaves 19744 for "
        "them; forward fewer ports, or raise the hard limit (ulimit -Hn, or LimitNOFILE= of a systemd unit)"
    )
    with pytest.raises(forwards.ForwardError, match="leaves 0 for them"):
        forwards.bind(rules(f"{port}"), -5, silent)
    forwards.close(forwards.bind(rules(f"127.0.0.1/{port}-{port + 1}"), 2, silent))
    assert forwards.bind((), 0, silent) == []


def test_the_module_imports_nothing_heavy(tmp_path: Path) -> None:
    """It is part of the wrapper before READY: beside our own modules, only these three."""
    program = (
        "from lockgate.plugin import forwards\n"
        "from lockgate.plugin.contracts.passt import parse\n"
        "parse(['--vhost-user', '-t', 'all,~80', '-u', '127.0.0.1%lo/53:10.0.0.1/54'], 'passt')\n"
    )
    imported = fresh_python.imported(tmp_path, program)
    assert "lockgate.plugin.contracts.forward_spec" in imported
    assert {name for name in imported if not name.startswith("lockgate.")} <= {"__future__", "_socket", "errno"}
