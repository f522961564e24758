# SPDX-License-Identifier: Apache-2.0
"""Several datagrams in one call of a real guest's program (UDP_SEGMENT, UDP_GRO), in one frame where its kernel can.

Adversary: nobody. Linux negotiates USO since 6.2; what an older one sends is the same, a frame for each datagram.
"""

from __future__ import annotations

import pytest
from counters import Counters
from echo_server import EchoServer
from network import GATEWAY, Network

EACH, SIZES = 1200, (40 * 1200, 1200 + 7, 30 * 1200 + 7)
DATAGRAMS = 40 + 2 + 31


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_several_datagrams_in_one_call_come_back_as_they_went(network: Network, family: int) -> None:
    """In fewer frames than datagrams, if the guest's kernel and its front end have agreed on that."""
    stream = network.variant.kind.endswith("-stream")
    features = [] if stream else network.guest.features()
    counters, server = Counters(network.helper.pid), EchoServer(family)
    try:
        before = counters.read()
        sizes = " ".join(map(str, SIZES))
        result = network.run(f"echo_datagrams -s {EACH} {GATEWAY[family]} {server.port} {sizes}")
        grown = counters.since(before)
    finally:
        server.close()
        counters.close()
    assert (result.status, result.output.strip()) == (0, f"echoed {len(SIZES)}")
    assert grown["datagrams_from_guest"] == grown["datagrams_to_guest"] == DATAGRAMS
    assert ("HOST_USO" in features) == (grown["frames_from_guest"] < DATAGRAMS)
    assert (f"GUEST_USO{family}" in features) == (grown["frames_to_guest"] < DATAGRAMS)
