# SPDX-License-Identifier: Apache-2.0
"""TCP from a real guest to this machine's loopback: every byte, both directions, both families, and every way to end.

Adversary: nobody. Sizes are chosen around one byte, one ordinary segment, and the largest IP packet.
"""

from __future__ import annotations

import errno
import re
import socket

import pytest
from data_server import PAYLOAD_BYTES
from network import Network

SIZES = [1, 1447, 1448, 1449, 65535, 65536, 65537, 1_000_003]
EMULATED_BYTES = 50_000_000  # at most for an emulated processor: more than all queues on the way hold
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
CONNECTIONS = 10
REFUSED_WITHIN_MS = 1000
ANSWER_SECONDS = 180  # an emulated processor takes its time over sha256


def prepared(network: Network, family: int, size: int) -> str:
    """Downloads `size` bytes into a file of the guest; the digest that the guest computes of it."""
    command = f"{network.client(family, f'GET {size}')} </dev/null >/tmp/data && sha256sum /tmp/data"
    result = network.run(command, ANSWER_SECONDS)
    assert result.status == 0, result.output
    return result.output.split()[0]


@FAMILIES
@pytest.mark.parametrize("size", [*SIZES, pytest.param(PAYLOAD_BYTES, id="large")])
def test_as_many_bytes_arrive_in_each_direction_as_were_sent_and_the_same(
    network: Network, family: int, size: int
) -> None:
    """A download, then an upload of what came: both have the sha256 of what the server has."""
    if network.variant.kind.startswith("qemu"):
        size = min(size, EMULATED_BYTES)
    expected = network.server.payload.sha256(size)
    assert prepared(network, family, size) == expected
    result = network.run(f"{network.client(family, f'PUT {size}')} </tmp/data", ANSWER_SECONDS)
    assert (result.status, result.output.strip()) == (0, expected)


@FAMILIES
def test_a_guest_that_closed_its_direction_still_gets_the_answer(network: Network, family: int) -> None:
    """The server answers only after it has seen the guest's FIN."""
    size = SIZES[-1]
    expected = prepared(network, family, size)
    result = network.run(f"{network.client(family, 'SUM')} </tmp/data")
    assert (result.status, result.output.strip()) == (0, expected)


@FAMILIES
def test_a_peer_that_closed_its_direction_still_gets_what_the_guest_sends(network: Network, family: int) -> None:
    """The guest sends nothing but its request before it has seen the peer's FIN; then a megabyte arrives whole."""
    size = SIZES[-1]
    expected = prepared(network, family, size)
    result = network.run(f"{network.client(family, f'FIRST {size}', flags='-e')} </tmp/data | sha256sum")
    assert (result.status, result.output.split()[0]) == (0, expected)
    length, digest = network.server.received.get(timeout=10)
    assert (length, digest) == (size, expected)


@FAMILIES
def test_a_port_where_nobody_listens_refuses_at_once(network: Network, family: int) -> None:
    """ECONNREFUSED, within a second of the guest's clock: a guest that retries its SYN would take longer."""
    host = {4: ("127.0.0.1", socket.AF_INET), 6: ("::1", socket.AF_INET6)}[family]
    with socket.socket(host[1]) as unused:
        unused.bind((host[0], 0))  # bound and never listening: nobody else can take the port meanwhile
        result = network.run(f"{network.client(family, 'GET 1', port=unused.getsockname()[1])} </dev/null")
    found = re.search(r"connect: (\d+) .* after (\d+) ms", result.output)
    assert found is not None, result.output
    assert int(found[1]) == errno.ECONNREFUSED
    assert int(found[2]) < REFUSED_WITHIN_MS


@FAMILIES
def test_ten_connections_at_once_do_not_mix_up_their_bytes(network: Network, family: int) -> None:
    """Ten downloads of different sizes run at the same time; each has the sum of its own size."""
    sizes = [SIZES[-1] + number for number in range(CONNECTIONS)]
    one = f"({network.client(family, 'GET $size')} </dev/null | sha256sum >/tmp/sum.$size) &".replace("'", '"')
    command = f"for size in {' '.join(map(str, sizes))}; do {one} done; wait; "
    result = network.run(command + "; ".join(f"cat /tmp/sum.{size}" for size in sizes), ANSWER_SECONDS)
    sums = [line.split()[0] for line in result.output.splitlines()]
    assert sums == [network.server.payload.sha256(size) for size in sizes]
