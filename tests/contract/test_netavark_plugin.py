# SPDX-License-Identifier: Apache-2.0
"""`lockgate` as netavark runs it, and `rootlessport` as Podman 5 does, with a `pasta` for the namespace that containers
share: in namespaces that the test makes.

Adversary: who writes nonsense to rootlessport's socket. test_podman_bridge.py has the real callers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pasta_caller
import pytest
from host_namespace import Namespace
from namespace_sockets import NamespaceSockets
from running import PATIENCE, ended

LOCKGATE = str(Path(sys.executable).with_name("lockgate"))
PODMANS_OWN = [f"{folder}/podman/rootlessport" for folder in ("/usr/libexec", "/usr/lib")]
STREAM = socket.SOCK_STREAM
GATEWAY = "10.5.0.1"  # of the host, by which who comes from its loopback is seen
CONTAINER = 64 * "c"
NETWORK: dict[str, Any] = {
    "name": "lan",
    "id": 64 * "a",
    "driver": "lockgate",
    "network_interface": "lan0",
    "subnets": [{"subnet": "10.89.7.0/24", "gateway": "10.89.7.1"}],
}
INNER = {"id": 64 * "b", "network_interface": "lan1", "subnets": [{"subnet": "10.89.8.0/24"}], "internal": True}
# Descriptors 3 and 4 are Podman's pipes; its own name is all that rootlessport is told on its command line.
START = "import os, sys; [os.dup2(int(sys.argv[at]), at + 1) for at in (2, 3)]; os.execv(sys.argv[1], ['rootlessport'])"


def plugin(command: str, given: object, *words: str, prefix: tuple[str, ...] = ()) -> tuple[int, Any]:
    """The exit status, and what it says."""
    done = subprocess.run(
        [*prefix, LOCKGATE, command, *words], input=json.dumps(given), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def test_it_says_what_it_is() -> None:
    status, told = plugin("info", None)
    assert status == 0 and told["api_version"] == "1.0.0" and told["version"]


def test_a_network_is_completed() -> None:
    status, told = plugin("create", {"name": "lan", "id": 64 * "a", "driver": "lockgate"})
    assert status == 0 and len(told["subnets"]) == 1 and told["network_interface"] == "lgaaaaaaaaaaaa"


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        ("create", {"id": 64 * "a", "options": {"colour": "red"}}, "knows no option colour"),
        ("create", ["no network"], "expected an object"),
        ("setup", {}, "expected the path of a network namespace"),
    ],
)
def test_what_is_wrong_is_said_as_netavark_wants_it(command: str, given: object, words: str) -> None:
    status, told = plugin(command, given)
    assert status == 1 and list(told) == ["error"] and words in told["error"]


class Shared:
    """A host with the namespace that its containers share, by the path that Podman gives it."""

    def __init__(self, host: Namespace, runtime: Path) -> None:
        self.host, self.runtime = host, runtime
        self.folder = runtime / "containers/networks/rootless-netns"
        self.path = f"{self.folder}/rootless-netns"
        host.does(f"mkdir -p {self.folder}; touch {self.path}; unshare --net={self.path} true")
        self.prefix = (*host.prefix, "nsenter", f"--net={self.path}")
        self.opened: list[Namespace | NamespaceSockets] = []
        self.pid = 0

    def start_pasta(self) -> None:
        words = (
            f"--config-net --pid {self.folder}/rootless-netns-conn.pid --dns-forward 169.254.1.1 -t none -u none "
            f"-T none -U none --no-map-gw --quiet --netns {self.path} --map-guest-addr 169.254.1.2"
        )
        done = subprocess.run(
            [*self.host.prefix, pasta_caller.PASTA, *words.split()], capture_output=True, text=True, timeout=PATIENCE
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        self.pid = int((self.folder / "rootless-netns-conn.pid").read_text())

    def container(self) -> Namespace:
        made = Namespace(*self.host.prefix, "unshare", "--net")
        self.opened.append(made)
        return made

    def sockets(self, of: Namespace) -> NamespaceSockets:
        made = NamespaceSockets(of.prefix)
        self.opened.append(made)
        return made

    def plugin(self, command: str, container: Namespace, place: int, inner: bool = False) -> tuple[int, Any]:
        """For the container with this number, on the one or the other network."""
        options = {"interface_name": f"eth{int(inner)}", "static_ips": [f"10.89.{7 + inner}.{place}"]}
        network = NETWORK | INNER if inner else NETWORK
        given = {"container_id": f"{place:064x}", "network": network, "network_options": options}
        return plugin(command, given, f"/proc/{container.pid}/ns/net", prefix=self.prefix)

    def links(self) -> list[str]:
        told = subprocess.run([*self.prefix, "ip", "-j", "link"], capture_output=True, check=True).stdout
        return [one["ifname"] for one in json.loads(told)]

    def close(self) -> None:
        for one in self.opened:
            one.close()
        if self.pid:
            pidfd = os.pidfd_open(self.pid)
            os.kill(self.pid, signal.SIGTERM)
            assert ended(pidfd)
            os.close(pidfd)
        self.host.close()


@pytest.fixture(name="shared")
def made_shared(folder: Path) -> Iterator[Shared]:
    made = Shared(pasta_caller.host(), folder)
    yield made
    made.close()


class RootlessPort:
    """One that Podman has started, for port 8080 of the host."""

    def __init__(self, shared: Shared, container: Namespace, folder: Path, child: str, **mapping: object) -> None:
        link = folder / "rootlessport"
        if not link.exists():
            link.symlink_to(LOCKGATE)
        exit_end, self.exit = os.pipe()
        self.ready, ready_end = os.pipe()
        self.tmp = folder / "tmp"
        whole = {"host_ip": "", "container_port": 80, "host_port": 8080, "range": 1, "protocol": "tcp", **mapping}
        config = {
            "Mappings": [whole],
            "NetNSPath": f"/proc/{container.pid}/ns/net",
            "ExitFD": 3,
            "ReadyFD": 4,
            "TmpDir": str(self.tmp),
            "ChildIP": child,
            "ContainerID": CONTAINER,
            "RootlessCNI": True,
        }
        self.process = subprocess.Popen(
            [*shared.host.prefix, sys.executable, "-Ic", START, str(link), str(exit_end), str(ready_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(exit_end, ready_end),
            env={**os.environ, "XDG_RUNTIME_DIR": str(shared.runtime)},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(config).encode())
        self.process.stdin.close()
        os.close(exit_end)
        os.close(ready_end)
        self.is_ready = os.read(self.ready, 16) == b"1"
        self.told = self.process.stdout.read().decode()  # until nobody holds the pipe any more

    def tell(self, packet: bytes) -> bytes:
        """As Podman does when the container has another address."""
        place = os.open(self.tmp / "rp" / CONTAINER, os.O_PATH)  # a path may be longer than an address
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            end.settimeout(PATIENCE)
            end.connect(f"/proc/self/fd/{place}")
            os.close(place)
            end.send(packet)
            return end.recv(1000)

    def end(self) -> int:
        """The container has ended."""
        os.close(self.exit)
        os.close(self.ready)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(PATIENCE)


def arrives(server: socket.socket, client: NamespaceSockets) -> str:
    """A connection from the host's loopback. Whom the container saw."""
    with client.connected(STREAM, "127.0.0.1", 8080) as end:
        accepted, peer = server.accept()
        with accepted:
            end.sendall(b"question")
            assert accepted.recv(100) == b"question"
    return str(peer[0])


def test_without_our_pasta_nothing_is_set_up(shared: Shared) -> None:
    """What is not there can be taken down all the same."""
    container = shared.container()
    status, told = shared.plugin("setup", container, 5)
    assert status == 1 and "is not lockgate's pasta" in told["error"]
    assert shared.plugin("teardown", container, 5) == (0, None)
    assert shared.links() == ["lo"]


def test_a_container_is_attached_and_let_go_of(shared: Shared) -> None:
    shared.start_pasta()
    container = shared.container()
    status, told = shared.plugin("setup", container, 5)
    assert status == 0 and told["dns_server_ips"] == []  # Podman names the host's by itself
    assert told["interfaces"]["eth0"]["subnets"] == [{"ipnet": "10.89.7.5/24", "gateway": "10.89.7.1"}]
    host, inside = shared.sockets(shared.host), shared.sockets(container)
    listener, port = host.bound(STREAM, "10.5.0.2")
    with listener, inside.connected(STREAM, "169.254.1.2", port), listener.accept()[0] as accepted:
        assert accepted.getpeername()[0] == "10.5.0.2"
    container.process.kill()
    container.process.wait()
    for _ in range(2):
        assert shared.plugin("teardown", container, 5) == (0, None)
    assert shared.links() == ["lo", "cable"]


def test_ports_come_and_go_with_a_container(shared: Shared, tmp_path: Path) -> None:
    """Podman's pipes are let go of; a container with another address keeps its ports."""
    shared.start_pasta()
    container = shared.container()
    shared.plugin("setup", container, 5)
    host = shared.sockets(shared.host)
    server, _ = shared.sockets(container).bound(STREAM, "0.0.0.0", 80)
    port = RootlessPort(shared, container, tmp_path, "10.89.7.5")
    assert port.is_ready and port.told == ""
    assert arrives(server, host) == GATEWAY
    shared.plugin("teardown", container, 5)
    shared.plugin("setup", container, 6)
    assert port.tell(b'"10.89.7.6"\n') == b"OK"
    assert arrives(server, host) == GATEWAY
    for nonsense in (b"", b"{", b"7", b'"nobody"', b"\xff" * 5000):
        assert port.tell(nonsense) not in (b"", b"OK")
    assert arrives(server, host) == GATEWAY
    assert port.end() == 0
    assert not list((tmp_path / "tmp/rp").iterdir())
    is_closed(host)


def is_closed(host: NamespaceSockets) -> None:
    until = time.monotonic() + PATIENCE
    while host.make(socket.AF_INET, STREAM).connect_ex(("127.0.0.1", 8080)) == 0:
        assert time.monotonic() < until, "somebody listens still"


def test_a_container_that_has_left_all_networks_has_its_port_again_on_the_next(shared: Shared, tmp_path: Path) -> None:
    shared.start_pasta()
    container = shared.container()
    shared.plugin("setup", container, 5)
    host = shared.sockets(shared.host)
    server, _ = shared.sockets(container).bound(STREAM, "0.0.0.0", 80)
    port = RootlessPort(shared, container, tmp_path, "10.89.7.5")
    shared.plugin("setup", container, 5, inner=True)
    shared.plugin("teardown", container, 5)
    assert b"no way back" in port.tell(b'"10.89.8.5"')
    is_closed(host)
    shared.plugin("teardown", container, 5, inner=True)
    assert port.tell(b'""') == b"OK"
    is_closed(host)
    shared.plugin("setup", container, 5)
    assert port.tell(b'"10.89.7.5"') == b"OK"
    assert arrives(server, host) == GATEWAY
    assert port.end() == 0


def test_a_port_leads_to_the_network_by_which_answers_go(shared: Shared, tmp_path: Path) -> None:
    """Of several, Podman names any."""
    shared.start_pasta()
    container = shared.container()
    for inner in (True, False):
        shared.plugin("setup", container, 5, inner)
    server, _ = shared.sockets(container).bound(STREAM, "10.89.7.5", 80)
    port = RootlessPort(shared, container, tmp_path, "10.89.8.5")
    assert arrives(server, shared.sockets(shared.host)) == GATEWAY
    assert port.end() == 0


def test_a_port_that_is_taken_is_told_on_standard_output(shared: Shared, tmp_path: Path) -> None:
    shared.start_pasta()
    container = shared.container()
    shared.plugin("setup", container, 5)
    host = shared.sockets(shared.host)
    with host.bound(STREAM, "0.0.0.0", 8080)[0]:
        port = RootlessPort(shared, container, tmp_path, "10.89.7.5")
        assert not port.is_ready and "8080" in port.told and "Address already in use" in port.told
        assert port.told.count("\n") == 1 and port.end() == 1


@pytest.mark.skipif(any(map(os.path.exists, PODMANS_OWN)), reason="Podman's own rootlessport is here")
@pytest.mark.parametrize(("inner", "protocol"), [(False, "sctp"), (True, "tcp"), (None, "tcp")])
def test_what_is_not_ours_needs_podmans_own(
    shared: Shared, tmp_path: Path, inner: bool | None, protocol: str
) -> None:
    """SCTP; a container on an internal network, which answers nobody far away; and one that another helper serves."""
    container = shared.container()
    shared.start_pasta()
    if inner is not None:
        shared.plugin("setup", container, 5, inner)
    port = RootlessPort(shared, container, tmp_path, "10.89.7.5", protocol=protocol)
    assert not port.is_ready and port.told.startswith("no rootlessport of Podman's own is in ") and port.end() == 1
