# SPDX-License-Identifier: Apache-2.0
"""Several datagrams in one call of a real guest's program (UDP_SEGMENT, UDP_GRO), in one frame where its kernel can.

Adversary: nobody. Linux negotiates USO since 6.2; what an older one sends is the same, a frame for each datagram.
"""

from __future__ import annotations

import pytest
from counters import Counters
from echo_server import EchoServer
from network import GATEWAY, Network

# None is so short that its frame is padded: Linux takes such a one past those before it that it is about to join.
EACH, SIZES = 1200, (40 * 1200, 1200 + 70, 30 * 1200 + 70)
DATAGRAMS = 40 + 2 + 31


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_several_datagrams_in_one_call_come_back_as_they_went(network: Network, family: int) -> None:
    """In fewer frames than datagrams, if the guest's kernel and its front end have agreed on that."""
    if network.variant.kind.endswith("-stream"):
        pytest.skip("Linux refuses UDP_SEGMENT where the card computes no checksums, as QEMU's on a stream")
    features = network.guest.features()
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
