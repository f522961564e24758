# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one host to another, and its connections go on: between two of ours, on two hosts that share an
address, of which the peer sees one at a time."""

from __future__ import annotations

import os
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import PASST, PATIENCE, Foreground
from two_hosts import GUEST, OPTIONS, Namespace, RepairHelper, TwoHosts
from vm import Connection, Vm

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, and TCP_REPAIR")


@pytest.fixture(name="hosts")
def two_hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    yield hosts
    hosts.close()


def peer_command() -> list[str]:
    """passt itself, of a newer distribution: as in tests/guest, LOCKGATE_PEER_RUN runs its arguments in that root."""
    run = os.environ.get("LOCKGATE_PEER_RUN")
    if not run:
        pytest.skip("no newer passt: LOCKGATE_PEER_RUN does not name one")
    return shlex.split(run)


@pytest.fixture(name="helper")
def helpers(folder: Path) -> Iterator[Callable[..., Foreground]]:
    """Starts a helper on a host, in a folder of its own: ours, or passt."""
    started: list[Foreground] = []

    def begin(host: Namespace, *arguments: str, command: str = PASST) -> Foreground:
        place = folder / str(len(started))
        place.mkdir()
        place.chmod(0o777)
        prefix = host.prefix if command == PASST else [*host.prefix, *peer_command()]
        started.append(Foreground(place, *OPTIONS, *arguments, prefix=prefix, command=command))
        return started[-1]

    yield begin
    for one in started:
        one.send(signal.SIGTERM)
        one.wait()
        print(one.errors())  # shown if the test failed
        one.close()


@pytest.fixture(name="repair")
def repair_helpers() -> Iterator[Callable[..., RepairHelper]]:
    made: list[RepairHelper] = []

    def connect(helper: Foreground, refuses: int | None = None) -> RepairHelper:
        made.append(RepairHelper(Path(f"{helper.socket}.repair"), refuses))
        return made[-1]

    yield connect
    for one in made:
        one.close()


@pytest.fixture(name="vm")
def machine() -> Vm:
    return Vm()


HEAD, FLOW, SOCKET = 16 + 42 + 4, 112, 52  # bytes of the stream


def received(sock: socket.socket, size: int) -> bytes:
    """So many bytes, which are under way."""
    sock.settimeout(PATIENCE)
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


def pattern(size: int, seed: int) -> bytes:
    return bytes((seed + 7 * at + at // 251) % 256 for at in range(size))


@pytest.fixture(name="talk")
def connections(vm: Vm) -> Callable[[socket.socket], tuple[Connection, socket.socket]]:
    """Opens a connection from the guest to a server: both ends of it."""
    ports = iter(range(40000, 50000))

    def connect(server: socket.socket) -> tuple[Connection, socket.socket]:
        connection = Connection(vm, GUEST, next(ports), *server.getsockname())
        connection.open()
        return connection, server.accept()[0]

    return connect


def move(hosts: TwoHosts, vm: Vm, target: Foreground) -> bytes:
    """As a monitor does it; the state that went over."""
    vm.stop()
    state = vm.save()
    vm.detach()
    vm.attach(target.socket)
    assert vm.load(state) == 0
    hosts.move()
    vm.start()
    return state


@pytest.mark.parametrize(
    ("source", "target"), [(PASST, PASST), ("passt", PASST), (PASST, "passt")], ids=["ours", "from passt", "to passt"]
)
def test_connections_go_on_at_another_host(
    hosts: TwoHosts,
    helper: Callable[..., Foreground],
    repair: Callable[..., RepairHelper],
    vm: Vm,
    talk: Callable[[socket.socket], tuple[Connection, socket.socket]],
    source: str,
    target: str,
) -> None:
    """Bytes that wait in either queue, or are under way to the guest, arrive once and in order; whichever of the two
    ends is passt itself."""
    here, there = helper(hosts.source, command=source), helper(hosts.target, command=target)
    helpers = repair(here), repair(there)
    vm.attach(here.socket)
    vm.start()
    connection, peer = talk(hosts.server())

    down, up = pattern(300_000, 3), pattern(5000, 5)
    peer.sendall(down[:100_000])
    assert connection.read(100_000) == down[:100_000]
    connection.send(up[:2000])
    connection.until_acked(2000)
    peer.sendall(down[100_000:200_000])  # more than the ring holds: some of it under way, the rest waits in the host
    vm.rings[0].wait()

    state = move(hosts, vm, there)
    assert len(state) == HEAD + FLOW + SOCKET + 100_000
    peer.sendall(down[200_000:])
    assert connection.read(200_000) == down[100_000:]
    connection.send(up[2000:])
    connection.until_acked(5000)
    assert received(peer, 5000) == up
    assert not connection.reset
    assert [one.modes[0] for one in helpers] == [(1, 1), (1, 1)]
