# SPDX-License-Identifier: Apache-2.0
"""Traffic between containers of rootless Podman, their host and whoever is far away.

Called by the tests with podman. Adversary: nobody. Sockets of a container are made in its network by the test itself.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from podman_host import FAR, Container, PodmanHost, exchange
from resolver import ANSWER, NAME, answer

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
HOST, RESOLVER = "169.254.1.2", "169.254.1.1"  # as containers see them
ANY = {4: "0.0.0.0", 6: "::"}
each_version = pytest.mark.parametrize("version", [4, 6])


def takes(host: PodmanHost, container: Container, to: tuple[str, int], port: int) -> str:
    """A connection from the host to a published port arrives, with all that both ends send. Whom the container saw."""
    version = 6 if ":" in to[0] else 4
    with container.sockets() as inside:
        listener, _ = inside.bound(STREAM, ANY[version], port)
        with listener:
            end = host.sockets.connected(STREAM, *to)
            accepted, peer = listener.accept()
            exchange(end, accepted)
    return str(peer[0])


def asks(client: socket.socket, server: socket.socket) -> str:
    """A datagram, and its answer. Whom the server saw."""
    client.send(b"question")
    question, source = server.recvfrom(100)
    server.sendto(b"answer to " + question, source)
    assert client.recv(100) == b"answer to question"
    return str(source[0])


def looks_up(host: PodmanHost, container: Container) -> None:
    """A name, which the host's resolver is asked for."""
    server, _ = host.far.bound(DATAGRAM, FAR[4], 53)
    with server, ThreadPoolExecutor(1) as pool:
        told = pool.submit(container.does, f"nslookup -type=a {NAME}.")
        question, source = server.recvfrom(512)
        server.sendto(answer(question), source)
        assert ANSWER in told.result()
