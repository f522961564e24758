# SPDX-License-Identifier: Apache-2.0
"""UDP and pings from a real guest to this machine's loopback, in every variant.

Adversary: nobody. Sizes are chosen around nothing, one byte, an ordinary MTU, and the largest datagram that there is.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
from echo_server import LOOPBACK, EchoServer
from network import GATEWAY, Network

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
SIZES = [0, 1, 512, 1471, 1472, 1473, 9000, 65000, 65507]


@pytest.fixture(name="echo", params=[4, 6], ids=["ipv4", "ipv6"])
def echo_server(request: pytest.FixtureRequest) -> Iterator[tuple[int, EchoServer]]:
    server = EchoServer(request.param)
    yield request.param, server
    server.close()


def test_datagrams_of_every_size_come_back_as_they_went(network: Network, echo: tuple[int, EchoServer]) -> None:
    """The last in two pieces: it is larger than the guest's MTU."""
    family, server = echo
    result = network.run(f"echo_datagrams {GATEWAY[family]} {server.port} {' '.join(map(str, SIZES))}")
    assert (result.status, result.output.strip()) == (0, f"echoed {len(SIZES)}")


def test_many_datagrams_of_one_socket_keep_their_order_and_their_port(
    network: Network, echo: tuple[int, EchoServer]
) -> None:
    family, server = echo
    result = network.run(f"echo_datagrams {GATEWAY[family]} {server.port} $(seq 1 400)")
    assert (result.status, result.output.strip()) == (0, "echoed 400")
    assert len(server.sources) == 1


@FAMILIES
def test_a_port_where_nobody_listens_refuses(network: Network, family: int) -> None:
    """The host's kernel says so by ICMP, and the guest's program hears it as ECONNREFUSED, not as silence."""
    kind, address = LOOPBACK[family]
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    result = network.run(f"echo_datagrams {GATEWAY[family]} {port} 10")
    assert (result.status, result.output.strip()) == (1, f"receive {errno.ECONNREFUSED}")


@FAMILIES
def test_the_gateway_answers_pings_by_itself(network: Network, family: int) -> None:
    result = network.run(f"ping -{family} -c 3 -i 0.1 -W 5 {GATEWAY[family]}")
    assert result.status == 0 and "3 packets received" in result.output, result.output
