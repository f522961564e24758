# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one host to another, and its connections go on: between two of ours, on two hosts that share an
address, of which the peer sees one at a time."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import PATIENCE, Foreground
from two_hosts import GUEST, OPTIONS, Namespace, RepairHelper, TwoHosts
from vm import Connection, Vm

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, and TCP_REPAIR")


@pytest.fixture(name="hosts")
def two_hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    yield hosts
    hosts.close()


@pytest.fixture(name="helper")
def helpers(folder: Path) -> Iterator[Callable[..., Foreground]]:
    """Starts a helper on a host, in a folder of its own."""
    started: list[Foreground] = []

    def begin(host: Namespace, *arguments: str) -> Foreground:
        place = folder / str(len(started))
        place.mkdir()
        place.chmod(0o777)
        started.append(Foreground(place, *OPTIONS, *arguments, prefix=host.prefix))
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


def test_a_download_and_an_upload_go_on(
    hosts: TwoHosts, helper: Callable[..., Foreground], repair: Callable[..., RepairHelper], vm: Vm
) -> None:
    """Bytes that wait in either queue, or are under way to the guest, arrive once and in order."""
    source, target = helper(hosts.source), helper(hosts.target)
    helpers = repair(source), repair(target)
    server = hosts.server()
    vm.attach(source.socket)
    vm.start()
    connection = Connection(vm, GUEST, 40000, *server.getsockname())
    connection.open()
    peer, _ = server.accept()

    down, up = pattern(300_000, 3), pattern(5000, 5)
    peer.sendall(down[:100_000])
    assert connection.read(100_000) == down[:100_000]
    connection.send(up[:2000])
    connection.until_acked(2000)
    peer.sendall(down[100_000:200_000])  # more than the ring holds: some of it under way, the rest waits in the host
    vm.rings[0].wait()

    vm.stop()
    state = vm.save()
    assert len(state) == HEAD + FLOW + SOCKET + 100_000
    vm.detach()
    vm.attach(target.socket)
    assert vm.load(state) == 0
    hosts.move()
    vm.start()

    peer.sendall(down[200_000:])
    assert connection.read(200_000) == down[100_000:]
    connection.send(up[2000:])
    connection.until_acked(5000)
    assert received(peer, 5000) == up
    assert not connection.reset
    assert [one.modes for one in helpers] == [[(1, 1)], [(1, 1), (0, 1)]]
