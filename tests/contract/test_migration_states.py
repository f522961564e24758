# SPDX-License-Identifier: Apache-2.0
"""Which connections move with their guest, by what they are in the middle of: closing, losing segments, and over IPv6.

Adversary: nobody. As test_migration.py, with the same two hosts and one peer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest
from running import PASST, Foreground
from test_migration import (
    FLOW,
    HEAD,
    SOCKET,
    Pair,
    Talk,
    connections,
    helpers,
    machine,
    move,
    pattern,
    received,
    repair_helpers,
    two_hosts,
    two_of_ours,
)
from two_hosts import PEER, PEER6, RepairHelper, TwoHosts
from vm import Connection, Vm

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


def ended(connection: Connection) -> bool:
    """Once the guest has the peer's last word."""
    while not (connection.peer_ended or connection.reset):
        connection.take()
    return not connection.reset


@each_address
@pytest.mark.parametrize("when", ["before it is told", "told but not taken", "taken"])
def test_a_connection_whose_peer_has_said_its_last_moves(pair: Pair, talk: Talk, address: str, when: str) -> None:
    """The guest gets the rest and the end, once, wherever it was told of it, and goes on to send."""
    connection, peer = talk(pair.hosts.server(address=address))
    down, up = pattern(200_000 if when == "before it is told" else 3000, 3), pattern(30_000, 5)
    peer.sendall(down)
    peer.shutdown(socket.SHUT_WR)
    if when == "before it is told":
        pair.vm.rings[0].wait()
    else:
        assert connection.read(len(down)) == down
        if when == "taken":
            assert ended(connection)
        else:
            connection.lose_end()
        connection.send(up[:1000])
        connection.until_acked(1000)
    state = pair.move()
    assert len(state) >= HEAD + FLOW + SOCKET
    if when == "before it is told":
        assert connection.read(len(down)) == down
        connection.send(up[:1000])
    assert ended(connection)
    connection.send(up[1000:])
    assert received(peer, len(up)) == up
    connection.end()
    assert peer.recv(1) == b"" and not connection.reset


@each_address
@pytest.mark.parametrize("slow", [False, True], ids=["", "with a queue before it"])
def test_a_connection_whose_guest_has_said_its_last_moves(pair: Pair, talk: Talk, address: str, slow: bool) -> None:
    """The peer gets the rest and the end, and goes on to send."""
    connection, peer = talk(pair.hosts.server(4096 if slow else 0, address))
    up, down = pattern(30_000 if slow else 3000, 3), pattern(100_000, 5)
    connection.send(up)
    connection.end()
    connection.until_acked(len(up) + 1)
    if not slow:
        assert received(peer, len(up)) == up and peer.recv(1) == b""
    peer.sendall(down[:1000])
    assert connection.read(1000) == down[:1000]
    assert len(pair.move()) >= HEAD + FLOW + SOCKET
    if slow:
        assert received(peer, len(up)) == up and peer.recv(1) == b""
    peer.sendall(down[1000:])
    peer.shutdown(socket.SHUT_WR)
    assert connection.read(len(down) - 1000) == down[1000:]
    assert ended(connection)


def test_a_connection_of_which_both_have_said_their_last_moves(pair: Pair, talk: Talk) -> None:
    """While there is something left of one of them: the guest's is in the queue still, for a peer that reads slowly."""
    connection, peer = talk(pair.hosts.server(4096))
    up, down = pattern(30_000, 3), pattern(100_000, 5)
    connection.send(up)
    connection.end()
    connection.until_acked(len(up) + 1)
    peer.sendall(down)
    peer.shutdown(socket.SHUT_WR)
    pair.vm.rings[0].wait()
    assert len(pair.move()) > HEAD + FLOW + SOCKET
    assert received(peer, len(up)) == up and peer.recv(1) == b""
    assert connection.read(len(down)) == down
    assert ended(connection)


@pytest.mark.parametrize(("source", "target"), [("passt", PASST), (PASST, "passt")], ids=["from passt", "to passt"])
def test_halves_of_connections_move_between_passt_and_us(
    hosts: TwoHosts,
    helper: Callable[..., Foreground],
    repair: Callable[..., RepairHelper],
    vm: Vm,
    talk: Talk,
    source: str,
    target: str,
) -> None:
    """One whose peer has said its last, and one whose guest has."""
    here, there = helper(hosts.source, command=source), helper(hosts.target, command=target)
    repair(here)
    repair(there)
    vm.attach(here.socket)
    vm.start()
    server = hosts.server()
    speaker, silent_peer = talk(server)
    silent_peer.sendall(b"bye")
    silent_peer.shutdown(socket.SHUT_WR)
    assert speaker.read(3) == b"bye" and ended(speaker)
    listener, peer = talk(server)
    listener.send(b"bye")
    listener.end()
    listener.until_acked(4)
    assert received(peer, 3) == b"bye"
    assert len(move(hosts, vm, there)) == HEAD + 2 * (FLOW + SOCKET)
    speaker.send(b"on")
    assert received(silent_peer, 2) == b"on"
    peer.sendall(b"on")
    assert listener.read(2) == b"on"
