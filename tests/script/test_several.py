# SPDX-License-Identifier: Apache-2.0
"""Several datagrams in one frame (UDP_L4 of virtio 1.3, 5.1.6): what a guest with USO sends, and what it gets."""

from __future__ import annotations

import struct

import pytest
from fake_core import lib
from segments import ip_packet
from test_accept_datagrams import Port
from test_datagrams import GUEST_PORT, PEER_PORT, UDP, Datagrams
from world import World

GSO_UDP_L4 = 5


@pytest.fixture(name="talk")
def fresh_talk(world: World, family: int) -> Datagrams:
    """The guest has said its first, and takes several in one frame."""
    talk = Datagrams(world, family)
    talk.sends(b"first")
    assert talk.sent() == [b"first"]
    world.set_link(uso4=True, uso6=True)
    return talk


def queue_several(talk: Datagrams, payload: bytes, each: int) -> None:
    """One frame of the guest's; the length in its UDP header is that of all, as Linux has it."""
    header = struct.pack("!HHHH", GUEST_PORT, PEER_PORT, 8 + len(payload), 0)
    frame = ip_packet(talk.guest, talk.remote, UDP, header + payload)
    lib.script_from_guest_several(frame, len(frame), each)


def cut(payload: bytes, each: int) -> list[bytes]:
    return [payload[at : at + each] for at in range(0, len(payload), each)]


def frames(talk: Datagrams) -> list[tuple[int, list[bytes]]]:
    """What the guest got: in each frame, the size that its header tells (0: it is one datagram), and the datagrams."""
    sizes = []
    for packet in talk.world.inbox:
        offload, header = packet.offload, packet.payload_offset + 8
        assert not offload.gso_type or (offload.gso_type, offload.header_length) == (GSO_UDP_L4, header)
        assert not offload.gso_type or offload.needs_csum
        sizes.append(offload.gso_size if offload.gso_type else 0)
    return [(size, cut(all_, size) if size else [all_]) for size, all_ in zip(sizes, talk.gets(), strict=True)]


# ---- from the guest ----


def test_a_frame_of_several_datagrams_is_one_message(talk: Datagrams, world: World) -> None:
    payload = b"".join(bytes([number]) * 1200 for number in range(10)) + b"end"
    before = world.calls("sendmmsg")
    queue_several(talk, payload, 1200)
    world.settle()
    assert talk.sent() == cut(payload, 1200)
    assert world.calls("sendmmsg") == before + 1 and world.counter("datagrams_from_guest") == 12


def test_frames_of_several_and_of_one_are_one_call_in_their_order(talk: Datagrams, world: World) -> None:
    first, last = bytes(range(250)) * 10, bytes(range(200)) * 9
    before = world.calls("sendmmsg")
    talk.queue(b"a" * 500)
    queue_several(talk, first, 500)
    talk.queue(b"b" * 500)
    queue_several(talk, last, 300)
    talk.queue(b"")
    world.settle()
    assert talk.sent() == [b"a" * 500, *cut(first, 500), b"b" * 500, *cut(last, 300), b""]
    assert world.calls("sendmmsg") == before + 1


@pytest.mark.parametrize("count", [63, 64, 65, 128])
def test_of_more_than_a_message_takes_nothing_is_lost(talk: Datagrams, world: World, count: int) -> None:
    """UDP_SEGMENT takes 64 on every kernel, Linux 6.9 and later send 128."""
    payload = b"".join(struct.pack("!H", number) * 50 for number in range(count))
    queue_several(talk, payload, 100)
    world.settle()
    assert talk.sent() == cut(payload, 100)


def test_more_than_any_guest_sends_are_dropped_and_counted(talk: Datagrams, world: World) -> None:
    """A frame of datagrams of one byte would only keep us busy."""
    queue_several(talk, bytes(129), 1)
    world.settle()
    assert not talk.sent() and world.counter("drop_length") == 1


@pytest.mark.parametrize("each", [1000, 1001, 65535])
def test_a_size_that_cuts_nothing_makes_one_datagram(talk: Datagrams, world: World, each: int) -> None:
    queue_several(talk, b"x" * 1000, each)
    queue_several(talk, b"", each)
    world.settle()
    assert talk.sent() == [b"x" * 1000, b""]


def test_a_path_that_refuses_segments_gets_each_by_itself(talk: Datagrams, world: World) -> None:
    lib.fake_datagram_no_segments(talk.fd)
    payload = b"".join(struct.pack("!H", number) * 50 for number in range(100))
    queue_several(talk, payload, 100)
    talk.queue(b"y")
    world.settle()
    assert talk.sent() == [*cut(payload, 100), b"y"]
    assert world.counter("datagrams_unsent") == 0


def test_frames_in_pieces_are_cut_at_the_right_byte(talk: Datagrams, world: World) -> None:
    """The guest's memory is scattered, and a datagram ends within a piece."""
    world.set_link(piece_bytes=333)
    payload = bytes(range(256)) * 40
    queue_several(talk, payload, 700)
    world.settle()
    assert talk.sent() == cut(payload, 700)


# ---- to the guest ----


def test_what_the_kernel_joined_is_one_frame(talk: Datagrams, world: World) -> None:
    payload = b"a" * 1000 + b"b" * 1000 + b"c" * 10
    talk.peer_sends(payload, segment=1000)
    assert frames(talk) == [(1000, cut(payload, 1000))]
    assert world.counter("datagrams_to_guest") == 3


def test_joined_ones_that_may_be_cut_have_numbers_that_no_other_has(world: World) -> None:
    """Whoever takes a frame apart counts up from the number in its header."""
    talk = Datagrams(world, 4)
    talk.sends(b"first")
    world.set_link(uso4=True, uso6=True)
    for _ in range(2):
        talk.peer_sends(bytes(4 * 1400), segment=1400)
        talk.peer_sends(bytes(1400))
    numbers: list[int] = []
    for packet in world.inbox:
        (first,) = struct.unpack("!H", packet.frame[18:20])
        numbers += range(first, first + (4 if packet.offload.gso_type else 1))
    assert len(numbers) == len(set(numbers)) == 10


def test_one_that_was_not_joined_is_a_plain_frame(talk: Datagrams) -> None:
    talk.peer_sends(b"x" * 1000, b"")
    assert frames(talk) == [(0, [b"x" * 1000]), (0, [b""])]


def test_a_guest_that_takes_them_of_the_other_family_gets_each_by_itself(talk: Datagrams, world: World) -> None:
    world.set_link(uso4=talk.family == 6, uso6=talk.family == 4)
    payload = b"a" * 1000 + b"b" * 500
    talk.peer_sends(payload, segment=1000)
    assert frames(talk) == [(0, [part]) for part in cut(payload, 1000)]


def test_datagrams_beyond_the_guests_mtu_are_not_joined(talk: Datagrams) -> None:
    """It could not pass them on."""
    headers = 28 if talk.family == 4 else 48
    for each, joined in ((1500 - headers, True), (1501 - headers, False)):
        payload = b"z" * (2 * each)
        talk.peer_sends(payload, segment=each)
        alone = [(0, [part]) for part in cut(payload, each)]
        assert frames(talk) == ([(each, cut(payload, each))] if joined else alone)


def test_a_frame_has_as_many_as_the_guests_buffers_hold_and_the_rest_waits(talk: Datagrams, world: World) -> None:
    world.set_link(buffer_bytes=1536)
    lib.script_set_room(3)
    payload = b"".join(struct.pack("!H", number) * 500 for number in range(20))
    talk.peer_sends(payload, segment=1000)
    got = frames(talk)
    assert got == [(1000, cut(payload, 1000)[:4])]
    datagrams = got[0][1]
    while len(datagrams) < 20:
        lib.script_give_room(2)
        world.settle()
        more = frames(talk)
        assert more, "nobody told the engine of room"
        datagrams += [one for _, several in more for one in several]
    assert datagrams == cut(payload, 1000)
    lib.script_give_room(1 << 20)


def test_buffers_that_do_not_merge_and_hold_one_get_each_by_itself(talk: Datagrams, world: World) -> None:
    world.set_link(buffer_bytes=1600, merge=False)
    payload = b"a" * 1000 + b"b" * 1000
    talk.peer_sends(payload, segment=1000)
    assert [one for _, several in frames(talk) for one in several] == cut(payload, 1000)


def test_what_comes_joined_to_a_port_is_one_frame(world: World, family: int) -> None:
    world.set_link(uso4=True, uso6=True)
    port = Port(world, family)
    port.peer_sends(b"a" * 1000 + b"b" * 7, segment=1000)
    (packet,) = world.inbox
    assert (packet.offload.gso_type, packet.offload.gso_size) == (GSO_UDP_L4, 1000)
    assert packet.payload[8:] == b"a" * 1000 + b"b" * 7


def test_what_comes_joined_to_a_port_is_taken_apart_for_a_guest_without(world: World, family: int) -> None:
    port = Port(world, family)
    port.peer_sends(b"a" * 1000 + b"b" * 7, segment=1000)
    assert [data for *_, data in port.guest_gets()] == [b"a" * 1000, b"b" * 7]


def test_joined_datagrams_of_nobody_are_counted_one_by_one(world: World, family: int) -> None:
    world.view.flags &= ~0x8  # LG_VIEW_UDP
    port = Port(world, family)
    port.peer_sends(b"x" * 2500, segment=1000)
    assert world.counter("datagrams_turned_away") == 3
