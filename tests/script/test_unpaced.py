# SPDX-License-Identifier: Apache-2.0
"""Where the kernel spaces out by timers what a socket sends (BBR), one whose peer is on this machine is spared that.

Adversary: nobody. Invariant: nobody else's socket is touched, nor anybody's where the kernel does not do so.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conversation import Conversation
from fake_core import ffi, lib
from splice_world import SpliceWorld
from test_accept import Host
from world import GUEST, MAPPED, PEER, World, mapped16

Talk = Callable[..., Conversation]

BY_DEFAULT, MACHINES, UNPACED = "", "bbr", "reno"
paces = pytest.mark.world(paces=True)


def congestion(socket: ffi.CData) -> str:
    """That was chosen for it; BY_DEFAULT: none was."""
    return bytes(ffi.string(socket.congestion)).decode()


# ---- connections of the guest's ----


@paces
def test_a_connection_to_the_hosts_loopback_is_unpaced_from_its_beginning(talk: Talk, family: int) -> None:
    """Once BBR has begun, the kernel goes on to space out what any other sends there."""
    conversation = talk(remote=MAPPED[family])
    conversation("+0 < S 0:0(0)")
    assert congestion(conversation.socket) == UNPACED and not conversation.socket.congestion_late


@paces
def test_so_is_one_to_the_hosts_own_address(world: World, talk: Talk, family: int) -> None:
    """Which the guest has as well, and therefore knows by another name."""
    mapped = bytes((192, 0, 2, 77)) if family == 4 else bytes.fromhex("20010db8") + bytes(11) + b"\x77"
    ffi.memmove(getattr(world.view, f"map_guest{family}"), mapped16(mapped), 16)
    conversation = talk(remote=mapped)
    conversation("+0 < S 0:0(0)")
    assert bytes(conversation.socket.address) == mapped16(GUEST[family])
    assert congestion(conversation.socket) == UNPACED and not conversation.socket.congestion_late


@paces
def test_a_connection_to_elsewhere_is_paced_as_the_machine_wants(talk: Talk, family: int) -> None:
    conversation = talk(remote=PEER[family])
    conversation("+0 < S 0:0(0)")
    assert congestion(conversation.socket) == BY_DEFAULT


def test_where_nothing_is_paced_the_machines_choice_stands(talk: Talk, family: int) -> None:
    conversation = talk(remote=MAPPED[family])
    conversation("+0 < S 0:0(0)")
    assert congestion(conversation.socket) == BY_DEFAULT


# ---- connections to the guest's ports ----


@paces
def test_who_connects_from_the_hosts_own_address_is_answered_unpaced_from_the_beginning(
    world: World, family: int
) -> None:
    host = Host(world, family)
    assert congestion(lib.fake_socket_at(host.listener)) == UNPACED
    host.peer_connects(GUEST[family])
    assert congestion(host.socket) == UNPACED and not host.socket.congestion_late
    host.guest_answers(host.segment())


@paces
def test_who_connects_from_elsewhere_is_answered_as_the_machine_wants(world: World, family: int) -> None:
    host = Host(world, family)
    host.peer_connects(PEER[family])
    assert congestion(host.socket) == MACHINES
    host.guest_answers(host.segment())


@paces
def test_what_a_route_has_chosen_for_a_peer_from_elsewhere_stands(world: World, family: int) -> None:
    host = Host(world, family)
    host.fd = lib.fake_peer_connect(host.listener, mapped16(PEER[family]), 55555)
    host.socket.congestion = b"cubic"
    world.settle()
    assert congestion(host.socket) == "cubic"
    host.guest_answers(host.segment())


def test_a_port_that_an_earlier_worker_has_unpaced_gets_the_machines_choice_back(world: World, family: int) -> None:
    """The default has changed meanwhile; control holds what listens from one worker to the next."""
    listener = lib.fake_listen()
    lib.fake_socket_at(listener).congestion = b"reno"
    assert lib.script_listen(0, listener, 6, 8080, bytes(16)) == 0
    assert congestion(lib.fake_socket_at(listener)) == MACHINES


def test_where_nothing_is_paced_a_port_is_left_alone(world: World, family: int) -> None:
    host = Host(world, family)
    assert congestion(lib.fake_socket_at(host.listener)) == BY_DEFAULT
    host.peer_connects(PEER[family])
    assert congestion(host.socket) == BY_DEFAULT
    host.guest_answers(host.segment())


# ---- joined loopbacks ----


@paces
@pytest.mark.parametrize("outward", [False, True], ids=["inward", "outward"])
def test_both_sockets_of_joined_loopbacks_are_unpaced(loopbacks: SpliceWorld, family: int, outward: bool) -> None:
    joint = loopbacks.joined(loopbacks.port(family, outward=outward))
    for end in (joint.near, joint.far):
        assert congestion(end.socket) == UNPACED and not end.socket.congestion_late


def test_and_neither_where_nothing_is_paced(loopbacks: SpliceWorld) -> None:
    joint = loopbacks.joined()
    assert [congestion(end.socket) for end in (joint.near, joint.far)] == [BY_DEFAULT, BY_DEFAULT]
