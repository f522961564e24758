# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/exposed.py and what it reads texts with: ports in the one table of forwards, and socket files."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from forwarding import FIRST, HERE, listening
from forwarding import Scene as Forwarding
from host_samples import ip
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin import address
from lockgate.plugin.address import ANY4, LOOPBACK4, LOOPBACK6, UNSET
from lockgate.plugin.forward_rule import TCP, UDP
from lockgate.plugin.gateway import exposed
from lockgate.plugin.gateway.exposed import Exposed, SshRemote
from lockgate.plugin.gateway.forward_words import ExposeError, refusal, rule_of, split_host_port, with_requester
from lockgate.plugin.gateway.virtual_network import PortForward

PATIENCE = 20.0  # seconds, for what takes no time
GUEST = "192.168.127.2"
A, B = FIRST, FIRST + 1


class Scene:
    """What is exposed, by a real table of forwards; a network in which everybody answers with what they hear."""

    def __init__(self, folder: Path, *at_start: PortForward) -> None:
        self.forwarding = Forwarding()
        self.folder = folder
        self.told: list[tuple[str, dict[str, object]]] = []
        self.dialled: list[tuple[bytes, int]] = []
        self.guests: list[socket.socket] = []
        self.tunnels: list[SshRemote] = []
        self.exposed = Exposed(
            self.forwarding.table, self.dial, self.open_ssh_tunnel, self.emit, at_start=at_start, folder=str(folder)
        )

    def emit(self, event: str, /, **fields: object) -> None:
        self.told.append((event, fields))

    async def dial(self, address: bytes, port: int) -> socket.socket:
        self.dialled.append((address, port))
        guest, other = socket.socketpair()
        guest.setblocking(False)
        self.guests.append(guest)
        return other

    async def open_ssh_tunnel(self, listener: socket.socket, remote: SshRemote) -> None:
        assert stat.S_ISSOCK(os.fstat(listener.fileno()).st_mode)
        self.tunnels.append(remote)
        await asyncio.get_running_loop().create_future()

    def texts(self) -> list[tuple[str, str, str]]:
        return sorted((one.protocol, one.local, one.remote) for one in self.exposed.all())

    async def refused(self, protocol: str, local: str, remote: str) -> str:
        """Why, and nothing has changed."""
        before = self.texts(), listening(), sorted(os.listdir(self.folder))
        with pytest.raises(ExposeError) as refusal:
            await self.exposed.expose(protocol, local, remote)
        assert (self.texts(), listening(), sorted(os.listdir(self.folder))) == before
        return str(refusal.value)


def play(folder: Path, part: Callable[[Scene], Awaitable[None]], *at_start: PortForward) -> Scene:
    async def run() -> Scene:
        scene = Scene(folder, *at_start)
        await scene.forwarding.table.restore(scene.forwarding.worker)
        if at_start:
            await scene.forwarding.table.exchange([], [rule_of(one) for one in at_start])
        try:
            async with asyncio.timeout(PATIENCE):
                await part(scene)
        finally:
            await scene.exposed.close()
            for guest in scene.guests:
                guest.close()
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)
            scene.forwarding.end()
        return scene

    before = len(os.listdir("/proc/self/fd"))
    scene = asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before and not listening()
    return scene


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.setblocking(False)
    return client


# ---- texts ----


@pytest.mark.parametrize(
    ("local", "listen", "dual_stack", "interface"),
    [
        (":8080", UNSET, True, ""),
        ("[::]:8080", UNSET, True, ""),
        ("0.0.0.0:8080", UNSET, True, ""),
        ("127.0.0.1:8080", LOOPBACK4, False, ""),
        ("localhost:8080", LOOPBACK4, False, ""),
        ("192.0.2.7:8080", ip("192.0.2.7"), False, ""),
        ("[::1]:8080", LOOPBACK6, False, ""),
        ("[fe80::1%eth0]:8080", ip("fe80::1"), False, "eth0"),
    ],
)
def test_a_local_text_says_where_to_listen(
    local: str, listen: bytes, dual_stack: bool, interface: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "has_ipv6", lambda: True)
    rule = rule_of(PortForward("udp", local, f"{GUEST}:80"))
    assert (rule.listen, rule.dual_stack, rule.interface) == (listen, dual_stack, interface)
    assert (rule.protocol, rule.first, rule.last, rule.to_first, rule.target) == (UDP, 8080, 8080, 80, ip(GUEST))
    assert not (rule.best_effort or rule.auto or rule.outward)


@pytest.mark.parametrize("local", [":8080", "0.0.0.0:8080", "[::]:8080"])
def test_without_ipv6_a_port_of_all_addresses_is_one_of_ipv4(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "has_ipv6", lambda: False)
    rule = rule_of(PortForward("tcp", local, f"{GUEST}:80"))
    assert (rule.protocol, rule.listen, rule.dual_stack) == (TCP, ANY4, False)


@pytest.mark.parametrize(
    ("local", "why"),
    [
        ("", "missing port in address"),
        ("127.0.0.1", "address 127.0.0.1: missing port in address"),
        ("8080", "address 8080: missing port in address"),
        ("::1:80", "address ::1:80: too many colons in address"),
        ("[::1]", "address [::1]: missing port in address"),
        ("[::1:80", "address [::1:80: missing ']' in address"),
        ("[::1]80:80", "address [::1]80:80: missing port in address"),
        ("a[b:80", "address a[b:80: unexpected '[' in address"),
        (":99999", "address 99999: invalid port"),
        (":nosuch", "lookup tcp/nosuch: unknown port; expected a number from 1 to 65535"),
        (":٣", "lookup tcp/٣: unknown port; expected a number from 1 to 65535"),
        (":0", "address :0: expected a port from 1 to 65535 behind the colon"),
        (":", "address :: expected a port from 1 to 65535 behind the colon"),
        ("127.1:80", "lookup 127.1: no such host; expected an address of this one, or localhost"),
        ("[::1%lo]:80", "address [::1%lo]:80: expected an interface for link-local addresses alone"),
        ("a\nb:80", "lookup 'a\\nb': no such host; expected an address of this one, or localhost"),
    ],
)
def test_a_local_text_that_makes_no_sense_is_refused_in_gos_words(local: str, why: str) -> None:
    for protocol, prefix in (("tcp", "listen tcp: "), ("udp", "")):
        with pytest.raises(ExposeError) as mistake:
            rule_of(PortForward(protocol, local, f"{GUEST}:80"))
        told = why.replace("lookup tcp/", f"lookup {protocol}/")
        assert (str(mistake.value), mistake.value.status) == (prefix + told, 500)


@pytest.mark.parametrize(
    ("remote", "why"),
    [
        (GUEST, f"address {GUEST}: missing port in address"),
        ("example.org:80", "address example.org:80: expected the IPv4 address of a guest before the port"),
        ("0.0.0.0:80", "address 0.0.0.0:80: expected the IPv4 address of a guest before the port"),
        ("[fd00::1]:80", "address [fd00::1]:80: expected the IPv4 address of a guest before the port"),
        (f"{GUEST}:65536", "address 65536: invalid port"),
    ],
)
def test_a_remote_text_that_makes_no_sense_is_a_wrong_request(remote: str, why: str) -> None:
    with pytest.raises(ExposeError) as mistake:
        rule_of(PortForward("tcp", ":80", remote))
    assert (str(mistake.value), mistake.value.status) == (why, 400)


def test_a_guest_may_leave_out_its_own_address() -> None:
    assert with_requester(":80", GUEST) == f"{GUEST}:80"
    assert with_requester("192.168.127.9:80", GUEST) == "192.168.127.9:80"
    assert with_requester(":80", "fd00::2") == "[fd00::2]:80"
    for remote, requester in ((":80", ""), ("80", GUEST), ("", GUEST)):
        with pytest.raises(ExposeError) as mistake:
            with_requester(remote, requester)
        assert mistake.value.status == 400


@given(st.text(max_size=300) | st.from_regex(r"[\[\]:%a-f0-9.]{0,20}:[0-9]{0,6}", fullmatch=True))
def test_no_text_breaks_what_reads_it(words: str) -> None:
    for forward in (PortForward("tcp", words, f"{GUEST}:80"), PortForward("tcp", ":80", words)):
        try:
            rule = rule_of(forward)
        except ExposeError as mistake:
            assert len(str(mistake)) < 2000 and str(mistake).isprintable()
        else:
            assert 0 < rule.first == rule.last <= 65535
            assert not str(refusal(forward, rule, errno.EACCES)).count("\n")


@given(st.from_regex(r"[a-z0-9.]{0,9}", fullmatch=True), st.from_regex(r"[0-9]{0,5}", fullmatch=True))
def test_a_host_and_a_port_that_were_joined_come_apart(host: str, port: str) -> None:
    assert split_host_port(f"{host}:{port}") == split_host_port(f"[{host}]:{port}") == (host, port)


# ---- ports ----


def test_a_port_is_exposed_until_it_is_not(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.exposed.expose("tcp", f"{HERE}:{A}", f"{GUEST}:80")
        await scene.exposed.expose("tcp", f"{HERE}:{B}", f"{GUEST}:81")
        await scene.exposed.expose("udp", f"{HERE}:{A}", f"{GUEST}:53")
        assert listening() == {A, B}
        assert sorted(scene.forwarding.worker.slots.values()) == [
            (A, 53, ip(GUEST)),
            (A, 80, ip(GUEST)),
            (B, 81, ip(GUEST)),
        ]
        await scene.exposed.unexpose("tcp", f"{HERE}:{A}")
        assert listening() == {B}
        assert scene.texts() == [("tcp", f"{HERE}:{B}", f"{GUEST}:81"), ("udp", f"{HERE}:{A}", f"{GUEST}:53")]
        await scene.exposed.unexpose("udp", f"{HERE}:{A}")
        await scene.exposed.unexpose("tcp", f"{HERE}:{B}")
        assert scene.texts() == [] and not scene.forwarding.worker.slots and not scene.forwarding.table.rules

    told = play(tmp_path, part).told
    assert told[0] == ("expose.added", {"protocol": "tcp", "local": f"{HERE}:{A}", "remote": f"{GUEST}:80"})
    assert told[-1] == ("expose.removed", {"protocol": "tcp", "local": f"{HERE}:{B}", "remote": f"{GUEST}:81"})


def test_what_is_there_from_the_start_is_listed_and_may_go(tmp_path: Path) -> None:
    forward = PortForward("tcp", f"{HERE}:{A}", f"{GUEST}:22")

    async def part(scene: Scene) -> None:
        assert scene.texts() == [("tcp", f"{HERE}:{A}", f"{GUEST}:22")] and listening() == {A}
        assert await scene.refused("tcp", f"{HERE}:{A}", f"{GUEST}:22") == (
            f"proxy already running for tcp on {HERE}:{A}"
        )
        await scene.exposed.unexpose("tcp", f"{HERE}:{A}")
        assert not listening()

    play(tmp_path, part, forward)


def test_a_port_that_cannot_be_had_is_refused_in_gos_words(tmp_path: Path) -> None:
    """Whoever has it, somebody else or another text of ours."""

    async def part(scene: Scene) -> None:
        with socket.create_server((HERE, A)):
            assert await scene.refused("tcp", f"{HERE}:{A}", f"{GUEST}:80") == (
                f"listen tcp {HERE}:{A}: bind: address already in use"
            )
        await scene.exposed.expose("tcp", f"{HERE}:{A}", f"{GUEST}:80")
        assert await scene.refused("tcp", f"0.0.0.0:{A}", f"{GUEST}:80") == (
            f"listen tcp 0.0.0.0:{A}: bind: address already in use"
        )
        assert await scene.refused("tcp", f":{A}", f"{GUEST}:80") == f"listen tcp :{A}: bind: address already in use"
        assert await scene.refused("udp", f"192.0.2.7:{A}", f"{GUEST}:80") == (
            f"listen udp 192.0.2.7:{A}: bind: cannot assign requested address"
        )
        await scene.exposed.unexpose("tcp", f"{HERE}:{A}")

    play(tmp_path, part)


def test_errors_are_told_by_the_call_and_the_address_that_go_has() -> None:
    for local, shown in (
        (":080", ":80"),
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("[0::0]:80", "[::]:80"),
        ("localhost:80", "127.0.0.1:80"),
        ("[fe80::1%lo]:80", "[fe80::1%lo]:80"),
    ):
        forward = PortForward("tcp", local, f"{GUEST}:80")
        rule = rule_of(forward)
        assert str(refusal(forward, rule, errno.EACCES)) == f"listen tcp {shown}: bind: permission denied"
        assert str(refusal(forward, rule, errno.EMFILE)) == f"listen tcp {shown}: socket: too many open files"


def test_of_two_who_ask_for_the_same_at_once_one_gets_it(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        asked = [scene.exposed.expose("tcp", f"{HERE}:{A}", f"{GUEST}:{port}") for port in (80, 81)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(one, ExposeError) for one in results] == [False, True]
        await asyncio.gather(*[scene.exposed.unexpose("tcp", f"{HERE}:{A}") for _ in range(2)], return_exceptions=True)
        assert not scene.texts()

    play(tmp_path, part)


@pytest.mark.parametrize(
    ("protocol", "why"),
    [
        ("sctp", "unknown protocol sctp"),
        ("TCP", "unknown protocol TCP"),
        ("npipe", "named pipes are not supported by this platform"),
    ],
)
def test_a_protocol_that_is_none_of_ours_is_refused(tmp_path: Path, protocol: str, why: str) -> None:
    async def part(scene: Scene) -> None:
        assert await scene.refused(protocol, f"{HERE}:{A}", f"{GUEST}:80") == why

    play(tmp_path, part)


def test_what_was_not_exposed_by_the_same_text_is_not_found(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.exposed.expose("tcp", f"{HERE}:{A}", f"{GUEST}:80")
        for protocol, local in (("udp", f"{HERE}:{A}"), ("tcp", f"{HERE}:0{A}"), ("sctp", ""), ("unix", "/x")):
            with pytest.raises(ExposeError, match=r"^proxy not found$"):
                await scene.exposed.unexpose(protocol, local)
        assert listening() == {A}
        await scene.exposed.unexpose("tcp", f"{HERE}:{A}")

    play(tmp_path, part)


# ---- socket files ----


def test_clients_of_a_socket_file_reach_the_guest(tmp_path: Path) -> None:
    """Also after the file has gone."""
    path = tmp_path / "api.sock"

    async def part(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        await scene.exposed.expose("unix", str(path), f"tcp://{GUEST}:2375")
        assert stat.S_ISSOCK(path.stat().st_mode)
        with connected(path) as client:
            await loop.sock_sendall(client, b"ping")
            while not scene.guests:
                await asyncio.sleep(0)
            assert await loop.sock_recv(scene.guests[0], 99) == b"ping"
            assert scene.dialled == [(ip(GUEST), 2375)]
            await scene.exposed.unexpose("unix", str(path))
            assert not path.exists()
            await loop.sock_sendall(scene.guests[0], b"pong")
            assert await loop.sock_recv(client, 99) == b"pong"

    play(tmp_path, part)


def test_the_mode_of_a_socket_file_is_what_the_umask_leaves(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        before = os.umask(0o027)
        try:
            await scene.exposed.expose("unix", str(tmp_path / "x"), f"tcp://{GUEST}:1")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o750

    play(tmp_path, part)


def test_a_socket_in_its_place_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    """gvproxy would remove any file there."""
    stale, file, link, folder = (tmp_path / name for name in ("stale", "file", "link", "folder"))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    file.write_text("precious")
    link.symlink_to(stale)
    folder.mkdir()

    async def part(scene: Scene) -> None:
        for path in (file, link, folder):
            assert await scene.refused("unix", str(path), f"tcp://{GUEST}:1") == (
                f"listen unix {path}: bind: address already in use"
            )
        await scene.exposed.expose("unix", str(stale), f"tcp://{GUEST}:1")
        connected(stale).close()

    play(tmp_path, part)
    assert file.read_text() == "precious" and link.is_symlink() and folder.is_dir() and not stale.exists()


def test_what_took_the_place_of_a_socket_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x"

    async def part(scene: Scene) -> None:
        await scene.exposed.expose("unix", str(path), f"tcp://{GUEST}:1")
        path.unlink()
        path.write_text("somebody else's")
        await scene.exposed.unexpose("unix", str(path))

    play(tmp_path, part)
    assert path.read_text() == "somebody else's"


def test_a_path_begins_where_the_helper_was_started(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.exposed.expose("unix", "x", f"tcp://{GUEST}:1")
        assert (tmp_path / "x").is_socket()

    play(tmp_path, part)
    assert not (tmp_path / "x").exists()


def test_an_abstract_name_has_no_file(tmp_path: Path) -> None:
    name = f"@lockgate-exposed-{os.getpid()}"

    async def part(scene: Scene) -> None:
        await scene.exposed.expose("unix", name, f"tcp://{GUEST}:1")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0" + name[1:])
        assert await scene.refused("unix", name, f"tcp://{GUEST}:1") == f"proxy already running for unix on {name}"

    play(tmp_path, part)
    assert not list(tmp_path.iterdir())


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        for path, why in (
            (str(tmp_path / "missing" / "x"), "no such file or directory"),
            (str(tmp_path / ("x" * 150)), "invalid argument"),
            ("", "invalid argument"),
            (str(tmp_path / "a\0b"), "invalid argument"),
        ):
            told = await scene.refused("unix", path, f"tcp://{GUEST}:1")
            assert told == f"listen unix {path}: bind: {why}"

    play(tmp_path, part)


@pytest.mark.parametrize(
    ("remote", "status", "why"),
    [
        ("foo://bar/baz", 500, "remote protocol for unix forwarder is not implemented: foo"),
        ("x", 500, "remote protocol for unix forwarder is not implemented: "),
        (
            "1:80",
            500,
            'failed to parse remote uri :1:80 : parse "1:80": first path segment in URL cannot contain colon',
        ),
        (
            f"ssh-tunnel://core@{GUEST}/x%00?key=/k",
            400,
            "'/x\\x00' is no path that ssh takes: it may have no control characters in it, and no ${",
        ),
        (
            f"ssh-tunnel://core@{GUEST}/x?key=k",
            400,
            "'k' is no path of a key file: expected / and at most 1022 bytes behind it",
        ),
        (
            f"ssh-tunnel://-oProxyCommand@{GUEST}/x?key=/k",
            400,
            "'-oProxyCommand' is no name of a user: expected letters, digits and any of ._+@- but no - at its start",
        ),
        (
            f"ssh-tunnel://core@{GUEST}/x?key=/k&passphrase=two+words",
            400,
            "a key with a passphrase is not taken; ssh-keygen -p makes one without",
        ),
        (f"ssh-tunnel://core@{GUEST}/run/x.sock", 500, "key not provided for unix-ssh connection"),
        (f"ssh-tunnel://core@{GUEST}?key=/k", 500, "remote uri must contain a path to a socket file"),
        (f"tcp://{GUEST}", 400, f"address {GUEST}: missing port in address"),
        ("tcp://guest:80", 400, "address guest:80: expected the IPv4 address of a guest before the port"),
    ],
)
def test_a_remote_of_a_socket_file_that_leads_nowhere_is_refused(
    tmp_path: Path, remote: str, status: int, why: str
) -> None:
    async def part(scene: Scene) -> None:
        assert await scene.refused("unix", str(tmp_path / "x"), remote) == why
        with pytest.raises(ExposeError) as mistake:
            await scene.exposed.expose("unix", str(tmp_path / "x"), remote)
        assert mistake.value.status == status

    play(tmp_path, part)


def test_an_ssh_tunnel_is_handed_a_listening_socket_and_all_that_it_needs(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        path = str(tmp_path / "x")
        remote = f"ssh-tunnel://core@{GUEST}/run/user/1000/a%20b.sock?key=%2Fk"
        await scene.exposed.expose("unix", path, remote)
        await asyncio.sleep(0)
        (tunnel,) = scene.tunnels
        assert (tunnel.address, tunnel.port, tunnel.user) == (ip(GUEST), 22, "core")
        assert (tunnel.path, tunnel.identity) == ("/run/user/1000/a b.sock", "/k")
        await scene.exposed.unexpose("unix", path)
        assert not os.path.exists(path) and len(asyncio.all_tasks()) == 1

    assert "?key=" not in str(play(tmp_path, part).told)


def test_there_are_only_so_many_socket_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposed, "FILES_MAX", 2)

    async def part(scene: Scene) -> None:
        for name in "ab":
            await scene.exposed.expose("unix", str(tmp_path / name), f"tcp://{GUEST}:1")
        told = await scene.refused("unix", str(tmp_path / "c"), f"tcp://{GUEST}:1")
        assert told == "2 sockets are exposed already; unexpose some of them"
        await scene.exposed.unexpose("unix", str(tmp_path / "a"))
        await scene.exposed.expose("unix", str(tmp_path / "c"), f"tcp://{GUEST}:1")

    play(tmp_path, part)


def test_texts_have_a_bound(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        for local, remote in (("x" * 5000, f"{GUEST}:1"), (f"{HERE}:{A}", "x" * 20000)):
            assert "at most" in await scene.refused("tcp", local, remote)

    play(tmp_path, part)
