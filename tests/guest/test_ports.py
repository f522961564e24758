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
from data_server import DataServer
from echo_server import LOOPBACK
from free_ports import free_ports
from network import GATEWAY, VARIANTS, Network, usable

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
WEB, ECHO, NOBODY = 8080, 7007, 9999  # of the guest
FILE_BYTES = 3_000_000
PATIENCE = 10


@dataclass(frozen=True)
class Forwarding:
    """A guest that serves, and the ports of this machine that lead to it."""

    network: Network
    web: int
    echo: int
    nobody: int
    digest: str


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.name)
def forwarding(request: pytest.FixtureRequest, server: DataServer) -> Iterator[Forwarding]:
    (web, nobody), (echo,) = free_ports(socket.SOCK_STREAM, 2), free_ports(socket.SOCK_DGRAM, 1)
    options = f"-t {web}:{WEB},{nobody}:{NOBODY} -u {echo}:{ECHO}"
    network = Network(usable(request.param), server, more_options=options)
    assert network.addressed
    served = f"head -c {FILE_BYTES} /dev/urandom >/tmp/file && httpd -p {WEB} -h /tmp && sha256sum /tmp/file"
    digest = network.guest.output(served).split()[0]
    listening = f"netstat -uln | grep -q ':{ECHO} '"
    network.guest.output(f"echo_datagrams -l {ECHO} >/dev/null 2>&1 & until {listening}; do :; done")
    yield Forwarding(network, web, echo, nobody, digest)
    network.close()


@FAMILIES
def test_a_download_from_the_guest_arrives_whole(forwarding: Forwarding, family: int) -> None:
    host = {4: "127.0.0.1", 6: "[::1]"}[family]
    with urllib.request.urlopen(f"http://{host}:{forwarding.web}/file", timeout=PATIENCE) as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == forwarding.digest


@FAMILIES
def test_the_guest_sees_the_hosts_loopback_as_its_gateway(forwarding: Forwarding, family: int) -> None:
    """And a peer's own port."""
    kind, address = LOOPBACK[family]
    with socket.socket(kind) as peer:
        peer.settimeout(PATIENCE)
        peer.connect((address, forwarding.web))
        peer.sendall(b"GET /file HTTP/1.0\r\n")  # not its end: the connection stays
        port = peer.getsockname()[1]
        shown = forwarding.network.run(f"until netstat -tn | grep ':{port} '; do :; done", PATIENCE).output
    assert f"{GATEWAY[family]}:{port} " in shown


@FAMILIES
def test_a_port_where_the_guest_does_not_listen_is_reset(forwarding: Forwarding, family: int) -> None:
    """The host's kernel had accepted; then the guest refused."""
    kind, address = LOOPBACK[family]
    with socket.socket(kind) as peer:
        peer.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):
            peer.connect((address, forwarding.nobody))
            peer.recv(1)


@FAMILIES
def test_datagrams_to_the_guest_are_answered_from_the_port_that_was_asked(forwarding: Forwarding, family: int) -> None:
    kind, address = LOOPBACK[family]
    with socket.socket(kind, socket.SOCK_DGRAM) as peer:
        peer.settimeout(PATIENCE)
        peer.connect((address, forwarding.echo))  # another source would not be heard
        for size in (1, 1400, 9000):
            peer.send(b"x" * size)
            assert peer.recv(1 << 16) == b"x" * size
