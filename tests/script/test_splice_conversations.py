# SPDX-License-Identifier: Apache-2.0
"""The short way of a TCP connection, from accept() to its end: two sockets, each half closed when the other says so,
and both reset when one is.

Adversary: peers that reset, do not read, or come by the dozen; an agent that is slow, or has nothing."""

from __future__ import annotations

import errno

import pytest
from fake_core import lib
from segments import SYN, address, parse_segment
from splice_world import (
    FAR,
    GUEST_PORT,
    LOOPBACK,
    NEAR,
    OTHER_LOOPBACK,
    PORT,
    TCP4,
    TCP6,
    SpliceWorld,
    stuck,
)
from world import GUEST, PEER, mapped16

EACH_SIDE = pytest.mark.parametrize("first", [NEAR, FAR], ids=["near", "far"])


@pytest.fixture(name="world")
def world_of_two_loopbacks(loopbacks: SpliceWorld) -> SpliceWorld:
    return loopbacks


# ---- it begins ----


def test_a_connection_from_loopback_is_joined_to_one_to_the_guests_address(world: SpliceWorld, family: int) -> None:
    joint = world.connect(world.port(family))
    kind = TCP4 if family == 4 else TCP6
    assert (joint.state, lib.script_asked(kind)) == ("WAITING", 1)
    world.agent_gives(kind)
    assert joint.state == "CONNECTING"
    far = joint.far.socket
    assert (bytes(far.address), far.port) == (mapped16(GUEST[family]), GUEST_PORT)
    joint.far_accepts()
    assert joint.state == "JOINED" and not world.inbox
    assert far.nodelay and joint.near.socket.nodelay
    assert world.counter("splice_opened") == 1 and world.counter("tcp_accepted") == 0


def test_bytes_go_both_ways(world: SpliceWorld) -> None:
    joint = world.joined()
    for size in (1, 100, 65536, 1_000_000):
        joint.near.says(size)
        joint.far.says(2 * size)
        for end in (joint.near, joint.far):
            end.takes()
            end.takes()
    assert joint.far.got == joint.near.said and joint.near.got == joint.far.said
    assert world.counter("splice_bytes_to_guest") == joint.near.said
    assert world.counter("splice_bytes_from_guest") == joint.far.said


def test_what_is_said_before_the_far_end_has_accepted_arrives(world: SpliceWorld) -> None:
    joint = world.connect(world.port())
    joint.near.says(1000)
    world.agent_gives()
    joint.near.says(1000)
    joint.near.closes()
    joint.far_accepts()
    assert (joint.far.got, joint.far.sees) == (2000, "FIN")


def test_the_peers_own_loopback_address_is_kept_where_the_view_says_so(world: SpliceWorld) -> None:
    """And the address that it asked for. 127.0.0.1 is what the kernel takes by itself."""
    world.view.flags |= lib.LG_VIEW_SPLICE_LOOPBACK
    port = world.port(at=bytes((127, 0, 0, 77)))
    world.connect(port, OTHER_LOOPBACK)
    usual = world.connect(port, LOOPBACK[4])
    world.agent_gives(count=2)
    other = next(one for one in world.splices() if one.fd[NEAR] != usual.near.fd)
    for fd, local in ((other.fd[FAR], mapped16(OTHER_LOOPBACK)), (usual.far.fd, bytes(16))):
        far = lib.fake_socket_at(fd)
        assert (bytes(far.address), bytes(far.local)) == (mapped16(bytes((127, 0, 0, 77))), local)


def test_an_address_that_cannot_be_bound_refuses(world: SpliceWorld) -> None:
    world.view.flags |= lib.LG_VIEW_SPLICE_LOOPBACK
    joint = world.connect(world.port(), OTHER_LOOPBACK)
    world.fail_next("bind", errno.EADDRNOTAVAIL)
    world.agent_gives()
    assert joint.near.sees == "RST"


def test_a_peer_whose_port_cannot_be_learnt_is_reset(world: SpliceWorld) -> None:
    port = world.port()
    world.fail_next("getsockname", errno.ENOBUFS)
    joint = world.connect(port)
    assert joint.near.sees == "RST" and not lib.script_asked(TCP4)


@EACH_SIDE
def test_a_socket_that_cannot_be_watched_resets_the_peer(world: SpliceWorld, first: int) -> None:
    port = world.port(outward=True)
    if first == FAR:
        world.fail_next("epoll_ctl", errno.ENOMEM)
    joint = world.connect(port)
    if first == NEAR:
        world.fail_next("epoll_ctl", errno.ENOMEM)
        joint.far_accepts()
    assert joint.near.sees == "RST"


# ---- what does not take it ----


def test_without_the_flag_it_goes_over_the_link(world: SpliceWorld) -> None:
    world.view.flags &= ~lib.LG_VIEW_SPLICE
    world.connect(world.port())
    (packet,) = world.inbox
    world.inbox.clear()
    assert parse_segment(packet).flags == SYN and not world.splices()


def test_a_port_with_a_target_goes_over_the_link(world: SpliceWorld) -> None:
    world.connect(world.port(target=address("192.0.2.99")))
    (packet,) = world.inbox
    world.inbox.clear()
    assert packet.destination == address("192.0.2.99")


def test_a_peer_of_another_host_goes_over_the_link(world: SpliceWorld) -> None:
    world.connect(world.port(at=bytes((192, 0, 2, 200))), PEER[4])
    (packet,) = world.inbox
    world.inbox.clear()
    assert packet.source == PEER[4]


def test_a_port_that_leads_out_refuses_whoever_is_not_of_its_loopback(world: SpliceWorld) -> None:
    """However it may have come there: it would reach what the host has for itself alone."""
    port = world.port(outward=True, at=bytes((192, 0, 2, 200)))
    for source in (PEER[4], GUEST[4], bytes(4)):
        assert world.connect(port, source).near.sees == "RST"
    assert not world.splices() and not world.inbox


def test_without_tcp_the_peer_is_reset(world: SpliceWorld) -> None:
    world.view.flags &= ~lib.LG_VIEW_TCP
    assert world.connect(world.port()).near.sees == "RST"


def test_a_guest_without_an_address_resets_the_peer(world: SpliceWorld) -> None:
    port = world.port()
    for name in ("guest4", "guest6"):
        for at in range(16):
            getattr(world.view, name)[at] = 0
    assert world.connect(port).near.sees == "RST"


# ---- ports that lead out ----


def test_a_port_that_leads_out_connects_to_the_same_address_of_the_hosts(world: SpliceWorld, family: int) -> None:
    """Without an agent, whatever the flags of the view say of the other direction."""
    world.view.flags &= ~lib.LG_VIEW_SPLICE
    joint = world.connect(world.port(family, outward=True))
    far = joint.far.socket
    assert (bytes(far.address), far.port) == (mapped16(LOOPBACK[family]), GUEST_PORT)
    joint.far_accepts()
    joint.near.says(100)
    joint.far.says(200)
    assert (joint.far.got, joint.near.got) == (100, 200)
    assert world.counter("splice_bytes_from_guest") == 100 and world.counter("splice_bytes_to_guest") == 200


def test_a_port_that_leads_out_has_no_other_family(world: SpliceWorld) -> None:
    joint = world.connect(world.port(outward=True))
    joint.far_refuses()
    assert joint.near.sees == "RST" and world.calls("connect") == 1


def test_without_a_descriptor_the_peer_is_reset(world: SpliceWorld) -> None:
    port = world.port(outward=True)
    world.fail_next("socket", errno.EMFILE)
    assert world.connect(port).near.sees == "RST"
    assert world.close_reasons() == ["no_descriptor"]


# ---- it is refused ----


def test_who_is_refused_in_both_families_is_reset(world: SpliceWorld, family: int) -> None:
    joint = world.connect(world.port(family))
    for kind, expected in ((TCP4, 4), (TCP6, 6)) if family == 4 else ((TCP6, 6), (TCP4, 4)):
        assert not joint.near.socket.closed and lib.script_asked(kind) == 1
        world.agent_gives(kind)
        assert bytes(joint.far.socket.address) == mapped16(GUEST[expected])
        joint.far_refuses()
    assert joint.near.sees == "RST"
    assert world.counter("splice_refused") == 1 and world.close_reasons() == ["refused"]


def test_a_service_of_the_other_family_is_found(world: SpliceWorld, family: int) -> None:
    """Also if connect() itself refuses the first: the namespace may have been left without an address there."""
    kinds = (TCP4, TCP6) if family == 4 else (TCP6, TCP4)
    for failing in (False, True):
        joint = world.connect(world.port(family))
        if failing:
            world.fail_next("connect", errno.ENETUNREACH)
        world.agent_gives(kinds[0])
        if not failing:
            joint.far_refuses()
        world.agent_gives(kinds[1])
        joint.far_accepts()
        joint.near.says(100)
        assert joint.far.got == 100


def test_a_guest_with_one_address_is_asked_there_alone(world: SpliceWorld) -> None:
    for at in range(16):
        world.view.guest6[at] = 0
    joint = world.connect(world.port(6))
    world.agent_gives(TCP4)
    assert bytes(joint.far.socket.address) == mapped16(GUEST[4])
    joint.far_refuses()
    assert joint.near.sees == "RST"


# ---- the agent ----


def test_an_agent_that_cannot_be_asked_resets_the_peer(world: SpliceWorld) -> None:
    lib.script_agent_fails(errno.ENOTCONN)
    assert world.connect(world.port()).near.sees == "RST"
    lib.script_agent_fails(0)
    assert not world.connect(world.port()).near.socket.closed


def test_an_agent_that_refuses_resets_all_that_wait(world: SpliceWorld) -> None:
    port = world.port()
    joints = [world.connect(port) for _ in range(3)]
    assert lib.script_asked(TCP4) == 1
    world.agent_refuses(error=errno.EMFILE)
    assert [joint.near.sees for joint in joints] == ["RST"] * 3
    assert world.close_reasons() == ["no_descriptor"] * 3


def test_more_that_wait_than_sockets_come_are_served_by_the_next_answer(world: SpliceWorld) -> None:
    port = world.port()
    joints = [world.connect(port) for _ in range(5)]
    assert lib.script_asked(TCP4) == 1
    world.agent_gives(count=2)
    assert [joint.state for joint in joints] == ["CONNECTING"] * 2 + ["WAITING"] * 3
    assert lib.script_asked(TCP4) == 1
    world.agent_gives(count=10)
    assert [joint.state for joint in joints] == ["CONNECTING"] * 5
    assert lib.script_pooled(TCP4) == 7


def test_an_answer_after_which_nobody_can_be_asked_serves_as_far_as_it_goes(world: SpliceWorld) -> None:
    port = world.port()
    joints = [world.connect(port) for _ in range(3)]
    lib.script_agent_fails(errno.ENOTCONN)
    world.agent_gives(count=1)
    assert joints[0].state == "CONNECTING"
    assert [joint.near.sees for joint in joints[1:]] == ["RST"] * 2


def test_sockets_are_asked_for_before_the_last_has_gone(world: SpliceWorld) -> None:
    port = world.port()
    world.connect(port)
    world.agent_gives(count=32)
    asked = []
    while lib.script_pooled(TCP4):
        asked.append(lib.script_asked(TCP4))
        world.connect(port)
    assert asked == [0] * 16 + [1] * 15, "the pool is low at 16"
    world.agent_gives(count=64)
    assert lib.script_pooled(TCP4) == 64
    world.agent_gives(count=64)
    assert lib.script_pooled(TCP4) == 64, "more than it has a use for"


def test_a_refusal_that_nobody_waited_for_costs_nobody_a_connection(world: SpliceWorld) -> None:
    """The question was asked in advance; what keeps the agent from answering may have passed."""
    port = world.port()
    world.connect(port)
    world.agent_gives(count=2)
    world.connect(port)
    assert lib.script_pooled(TCP4) == 0 and lib.script_asked(TCP4) == 1
    world.agent_refuses()
    joint = world.connect(port)
    assert not joint.near.socket.closed and lib.script_asked(TCP4) == 1
    world.agent_gives()
    assert joint.state == "CONNECTING"


def test_sockets_of_another_family_serve_nobody_who_waits(world: SpliceWorld) -> None:
    joint = world.connect(world.port())
    world.agent_gives(TCP6, 3)
    assert joint.state == "WAITING" and lib.script_pooled(TCP6) == 3


def test_a_peer_that_resets_while_it_waits_leaves_nothing(world: SpliceWorld) -> None:
    joint = world.connect(world.port())
    joint.near.says(100)
    joint.near.resets()
    world.agent_gives()
    if joint.lives:
        joint.far_accepts()
    assert not joint.lives


def test_the_view_may_change_while_a_connection_waits(world: SpliceWorld) -> None:
    """It stays on the way that it has begun; the next goes the new one."""
    port = world.port()
    joint = world.connect(port)
    world.view.flags &= ~lib.LG_VIEW_SPLICE
    world.connect(port)
    assert len(world.splices()) == 1 and parse_segment(world.inbox.pop()).flags == SYN
    for at in range(16):
        world.view.guest4[at] = mapped16(address("192.0.2.77"))[at]
        world.view.guest6[at] = 0
    world.agent_gives()
    assert bytes(joint.far.socket.address) == mapped16(GUEST[4])
    joint.far_refuses()
    assert joint.near.sees == "RST", "there is no other family any more"


def test_a_port_that_is_closed_leaves_its_connections(world: SpliceWorld) -> None:
    waits, joint = world.connect(port := world.port()), world.joined(world.port(outward=True))
    lib.script_listen_close(0, 2)
    world.agent_gives()
    waits.far_accepts()
    for one in (waits, joint):
        one.near.says(10)
        assert one.far.got == 10
    assert lib.fake_socket_at(port).closed


# ---- the table of flows ----


@pytest.mark.world(flow_limit=4)
def test_a_full_table_resets_the_newcomer(world: SpliceWorld) -> None:
    port = world.port(outward=True)
    joints = [world.joined(port) for _ in range(2)]
    assert world.connect(port).near.sees == "RST"
    assert world.counter("flows_refused") == 1
    assert all(joint.lives for joint in joints)


@pytest.mark.world(flow_limit=3)
def test_a_connection_has_two_sockets_and_takes_the_room_of_two(world: SpliceWorld) -> None:
    """The limit is what the worker may open."""
    port = world.port(outward=True)
    first = world.joined(port)
    assert world.connect(port).near.sees == "RST"
    first.near.resets()
    assert not first.lives and world.joined(port).lives


@pytest.mark.world(flow_limit=4)
def test_the_connection_that_was_idle_longest_makes_room(world: SpliceWorld) -> None:
    port = world.port(outward=True)
    first, second = (world.joined(port) for _ in range(2))
    world.advance(30)
    first.near.says(10)
    world.advance(31)
    third = world.connect(port)
    assert first.lives and third.lives and not second.lives
    assert second.near.sees == second.far.sees == "RST"
    assert world.close_reasons() == ["evicted"]


@pytest.mark.world(flow_limit=2)
def test_one_that_waits_for_a_socket_can_be_evicted(world: SpliceWorld) -> None:
    port = world.port()
    first = world.connect(port)
    world.advance(61)
    second = world.connect(port)
    assert first.near.sees == "RST" and second.state == "WAITING"
    world.agent_gives()
    assert second.state == "CONNECTING"


def test_what_is_left_is_closed_with_the_engine(world: SpliceWorld) -> None:
    """Those that wait, and those that have a pipe."""
    joint = stuck(world, world.port())
    ends = *joint.ends(), world.connect(world.port(6)).near
    world.closed = True
    lib.script_close()
    assert all(end.socket.closed for end in ends)
    assert lib.fake_pipes_open() == lib.fake_sockets_open() == 0


def test_ports_of_both_sides_may_have_the_same_peer(world: SpliceWorld) -> None:
    """Only the port of the key tells them apart: a namespace and the host have the same loopback addresses."""
    joints = []
    for outward in (False, True):
        world.peer_port = 60000
        joints.append(world.connect(world.port(outward=outward)))
    assert all(joint.lives for joint in joints)
    assert {one.remote_port for one in world.splices()} == {60001} and {one.guest_port for one in world.splices()} == {
        PORT
    }
