# SPDX-License-Identifier: Apache-2.0
"""Ports of this machine that lead to a real guest: TCP and UDP, both families, and who the guest sees there.

Adversary: nobody. The ports are free ones of this machine's loopback, found before the helper starts.
"""

from __future__ import annotations

import hashlib
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from echo_server import LOOPBACK
from network import ECHO, GATEWAY, WEB, Network, Ports

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
FILE_BYTES = 3_000_000
PATIENCE = 10


@dataclass(frozen=True)
class Serving:
    """A guest that serves a file, and echoes datagrams."""

    network: Network
    ports: Ports
    digest: str


@pytest.fixture(scope="module")
def serving(network: Network) -> Iterator[Serving]:
    assert network.addressed and network.ports
    served = f"head -c {FILE_BYTES} /dev/urandom >/tmp/file && httpd -p {WEB} -h /tmp && sha256sum /tmp/file"
    digest = network.guest.output(served).split()[0]
    listening = f"netstat -uln | grep -q ':{ECHO} '"
    network.guest.output(f"echo_datagrams -l {ECHO} >/dev/null 2>&1 & until {listening}; do :; done")
    yield Serving(network, network.ports, digest)
    network.guest.output("killall httpd echo_datagrams; rm /tmp/file")


@FAMILIES
def test_a_download_from_the_guest_arrives_whole(serving: Serving, family: int) -> None:
    host = {4: "127.0.0.1", 6: "[::1]"}[family]
    with urllib.request.urlopen(f"http://{host}:{serving.ports.web}/file", timeout=PATIENCE) as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == serving.digest


@FAMILIES
def test_the_guest_sees_the_hosts_loopback_as_its_gateway(serving: Serving, family: int) -> None:
    """And a peer's own port."""
    kind, address = LOOPBACK[family]
    with socket.socket(kind) as peer:
        peer.settimeout(PATIENCE)
        peer.connect((address, serving.ports.web))
        peer.sendall(b"GET /file HTTP/1.0\r\n")  # not its end: the connection stays
        port = peer.getsockname()[1]
        shown = serving.network.run(f"until netstat -tn | grep ':{port} '; do :; done", PATIENCE).output
    assert f"{GATEWAY[family]}:{port} " in shown


@FAMILIES
def test_a_port_where_the_guest_does_not_listen_is_reset(serving: Serving, family: int) -> None:
    """The host's kernel had accepted; then the guest refused."""
    kind, address = LOOPBACK[family]
    with socket.socket(kind) as peer:
        peer.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):
            peer.connect((address, serving.ports.nobody))
            peer.recv(1)


@FAMILIES
def test_datagrams_to_the_guest_are_answered_from_the_port_that_was_asked(serving: Serving, family: int) -> None:
    kind, address = LOOPBACK[family]
    with socket.socket(kind, socket.SOCK_DGRAM) as peer:
        peer.settimeout(PATIENCE)
        peer.connect((address, serving.ports.echo))  # another source would not be heard
        for size in (1, 1400, 9000):
            peer.send(b"x" * size)
            assert peer.recv(1 << 16) == b"x" * size
