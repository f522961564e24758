# SPDX-License-Identifier: Apache-2.0
"""Datagrams and pings beyond an ordinary MTU, from a real guest, which cuts them in pieces.

They come back in one frame each, or, where its receive buffers hold no more than its MTU, in pieces, too.

Adversary: nobody. The largest datagram of all is 45 pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from data_server import DataServer
from echo_server import EchoServer
from network import GATEWAY, VARIANT, Network, usable

MTU = 1500
SIZES = (MTU - 47, 2960, 8000, 65000, 65507)
NAMES = "uml-sanitized", "qemu-stream", "qemu-small", "qemu-small-stream", "uml-peer", "qemu-peer", "qemu-peer-stream"


@pytest.fixture(scope="module", name="narrow", params=NAMES)
def network_of_an_ordinary_mtu(request: pytest.FixtureRequest, server: DataServer) -> Iterator[Network]:
    booted = Network(usable(VARIANT[request.param]), server, more_options=f"--mtu {MTU}")
    yield booted
    booted.close()


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_datagrams_beyond_the_mtu_come_back_as_they_went(narrow: Network, family: int) -> None:
    server = EchoServer(family)
    try:
        result = narrow.run(f"echo_datagrams {GATEWAY[family]} {server.port} {' '.join(map(str, SIZES))}")
    finally:
        server.close()
    assert (result.status, result.output.strip()) == (0, f"echoed {len(SIZES)}")


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_pings_beyond_the_mtu_are_answered(narrow: Network, family: int) -> None:
    for size in (8000, 65000):
        result = narrow.run(f"ping -{family} -s {size} -c 2 -i 0.1 -W 5 {GATEWAY[family]}")
        assert result.status == 0 and "2 packets received" in result.output, result.output
