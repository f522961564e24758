# SPDX-License-Identifier: Apache-2.0
"""Which connections move with their guest, by what they are in the middle of: closing, losing segments, and over IPv6.

Adversary: nobody. As test_migration.py, with the same two hosts and one peer.
"""

from __future__ import annotations

import os

import pytest
from test_migration import (
    FLOW,
    HEAD,
    SOCKET,
    Pair,
    Talk,
    connections,
    helpers,
    machine,
    pattern,
    received,
    repair_helpers,
    two_hosts,
    two_of_ours,
)
from two_hosts import PEER, PEER6

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, and TCP_REPAIR")

FIXTURES = (connections, helpers, machine, repair_helpers, two_hosts, two_of_ours)
each_address = pytest.mark.parametrize("address", [PEER, PEER6], ids=["ipv4", "ipv6"])


@each_address
@pytest.mark.parametrize("sack", [False, True], ids=["", "sack"])
def test_a_connection_moves_with_a_segment_lost_on_the_way(pair: Pair, talk: Talk, address: str, sack: bool) -> None:
    """To the guest, which has asked for it with each that came after; and from it, with one that came ahead of a gap.
    Both ends send again what is missing."""
    connection, peer = talk(pair.hosts.server(address=address), sack)
    down, up = pattern(30_000, 3), pattern(4200, 5)
    peer.sendall(down)
    connection.lose()
    for _ in range(3):
        connection.take()
    connection.send(up[:1400])
    connection.until_acked(1400)
    connection.seq += 1400  # lost before it has come
    connection.send(up[2800:])
    connection.seq -= 2800
    state = pair.move()
    assert len(state) > HEAD + FLOW + SOCKET
    connection.send(up[1400:])
    assert connection.read(len(down)) == down
    connection.until_acked(len(up))
    assert received(peer, len(up)) == up and not connection.reset
    connection.end()
    assert peer.recv(1) == b""
    peer.close()
    while not connection.peer_ended:
        connection.take()
