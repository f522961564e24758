# SPDX-License-Identifier: Apache-2.0
"""core/datapath/link_switch.c: several guests on one link, who hears whom, and what a guest cannot do to another."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from core_pieces import COUNTERS, ffi, lib
from engine_end import EngineEnd

SOURCE = 300
OURS, BROADCAST, STRANGER = b"\x5a\x94\xef\xe4\x0c\xdd", b"\xff" * 6, b"\x5a\x94\xef\xe4\x0c\x77"
MULTICAST = b"\x33\x33\0\0\0\1"
MACS = [bytes((0x52, 0, 0, 0, 0, number)) for number in range(8)]


def frame(to: bytes, source: bytes, text: bytes = b"hello") -> bytes:
    return to + source + b"\x08\0" + text.ljust(46, b".")


class Network(EngineEnd):
    """The switch, and a guest at the other end of each of its sockets."""

    def __init__(self) -> None:
        self._mac = ffi.new("uint8_t[]", OURS)
        super().__init__("switch", SOURCE, self._mac)
        self.guests: dict[int, socket.socket] = {}

    def join(self, port: int, messages: bool = False) -> socket.socket:
        guest, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if messages else socket.SOCK_STREAM)
        guest.setblocking(False)
        if messages:
            assert lib.link_switch_attach_dgram(self.whole, port, ours.detach()) == 0
        else:
            assert lib.link_switch_attach_stream(self.whole, port, ours.detach(), 0) == 0
        self.guests[port] = guest
        return guest

    def says(self, port: int, *frames: bytes) -> list[bytes]:
        """What the engine gets of it."""
        guest = self.guests[port]
        for one in frames:
            guest.send(one if guest.type == socket.SOCK_SEQPACKET else struct.pack("!I", len(one)) + one)
        return self.turn()

    def turn(self) -> list[bytes]:
        for source, mask in self.epoll.poll(0):
            lib.link_switch_event(self.whole, source - SOURCE, mask)
        got: list[bytes] = []
        for _ in range(1000):
            got += self.batch()
            if not self.more[0]:
                break
        else:
            raise AssertionError("the switch never comes to rest")
        self.flush()
        return got

    def gateway_says(self, one: bytes) -> None:
        assert self.queue(one) == 0
        self.flush()

    def heard(self, port: int) -> list[bytes]:
        guest, data = self.guests[port], b""
        if guest.type == socket.SOCK_SEQPACKET:
            found = []
            while True:
                try:
                    found.append(guest.recv(1 << 17))
                except BlockingIOError:
                    return found
        while True:
            try:
                piece = guest.recv(1 << 20)
            except BlockingIOError:
                break
            data += piece
        frames = []
        while data:
            (length,) = struct.unpack("!I", data[:4])
            frames.append(data[4 : 4 + length])
            data = data[4 + length :]
        return frames

    def ended(self) -> list[int]:
        """The ports that are over, each detached as the worker does."""
        port, end, found = ffi.new("unsigned *"), ffi.new("struct lg_link_end *"), []
        while lib.link_switch_ended(self.whole, port, end):
            found.append(int(port[0]))
            lib.link_switch_detach(self.whole, port[0])
        return found

    def close(self) -> None:
        for port, guest in self.guests.items():
            lib.link_switch_detach(self.whole, port)
            guest.close()
        self.epoll.close()


@pytest.fixture(name="net")
def three_guests() -> Iterator[Network]:
    """Of which the third comes by messages."""
    network = Network()
    for port in range(3):
        network.join(port, messages=port == 2)
    yield network
    network.close()


def introduce(net: Network) -> None:
    """Each has spoken to the gateway once."""
    for port in net.guests:
        assert net.says(port, frame(OURS, MACS[port])) == [frame(OURS, MACS[port])]


def test_what_is_for_the_gateway_comes_up_and_goes_to_nobody_else(net: Network) -> None:
    introduce(net)
    assert [net.heard(port) for port in net.guests] == [[], [], []]


@pytest.mark.parametrize("group", [BROADCAST, MULTICAST])
def test_what_is_for_all_comes_up_and_goes_to_all_others(net: Network, group: bytes) -> None:
    said = frame(group, MACS[0])
    assert net.says(0, said) == [said]
    assert [net.heard(port) for port in net.guests] == [[], [said], [said]]


def test_guests_speak_with_each_other_past_the_gateway(net: Network) -> None:
    introduce(net)
    there, back = frame(MACS[2], MACS[0]), frame(MACS[0], MACS[2])
    assert net.says(0, there) == [] and net.heard(2) == [there]
    assert net.says(2, back) == [] and net.heard(0) == [back]
    assert net.heard(1) == []


def test_what_is_for_nobody_goes_nowhere(net: Network) -> None:
    introduce(net)
    assert net.says(0, frame(STRANGER, MACS[0])) == []
    assert [net.heard(port) for port in net.guests] == [[], [], []] and net.count("drop_address") == 1


def test_the_gateways_answer_goes_to_whom_it_is_for(net: Network) -> None:
    introduce(net)
    answer = frame(MACS[1], OURS)
    net.gateway_says(answer)
    assert [net.heard(port) for port in net.guests] == [[], [answer], []]


def test_the_gateway_speaks_to_all(net: Network) -> None:
    said = frame(BROADCAST, OURS)
    net.gateway_says(said)
    assert [net.heard(port) for port in net.guests] == [[said]] * 3


def test_nobody_speaks_in_the_gateways_name(net: Network) -> None:
    introduce(net)
    assert net.says(0, frame(MACS[1], OURS), frame(OURS, OURS)) == []
    assert net.heard(1) == [] and net.whole.entries == 3


def test_a_guest_that_moves_to_another_port_is_found_there(net: Network) -> None:
    introduce(net)
    net.says(1, frame(OURS, MACS[0]))
    net.gateway_says(frame(MACS[0], OURS))
    assert net.heard(1) == [frame(MACS[0], OURS)] and net.heard(0) == []


def test_control_is_told_of_each_guest_once_and_again_when_it_moves(net: Network) -> None:
    introduce(net)
    told = []
    while entry := lib.link_switch_untold(net.whole):
        told.append((bytes(entry.mac), int(entry.port)))
        entry.told, net.whole.untold = True, net.whole.untold - 1
    assert told == [(MACS[port], port) for port in range(3)]
    introduce(net)
    assert not lib.link_switch_untold(net.whole)
    net.says(1, frame(OURS, MACS[0]))
    assert int(lib.link_switch_untold(net.whole).port) == 1


def test_a_guest_that_invents_addresses_fills_its_share_of_the_table_and_no_more(net: Network) -> None:
    for number in range(2 * lib.SWITCH_PORT_ENTRIES):
        net.says(0, frame(OURS, b"\x52\1\0\0" + number.to_bytes(2)))
    assert net.whole.entries == lib.SWITCH_PORT_ENTRIES
    late = frame(OURS, MACS[1])
    assert net.says(1, late) == [late]
    net.gateway_says(frame(MACS[1], OURS))
    assert net.heard(1) == [frame(MACS[1], OURS)]


def test_a_guest_that_has_as_many_addresses_as_it_may_takes_none_of_the_others(net: Network) -> None:
    introduce(net)
    for number in range(lib.SWITCH_PORT_ENTRIES):
        net.says(0, frame(OURS, b"\x52\1\0\0" + number.to_bytes(2)))
    net.says(0, frame(OURS, MACS[1]))
    net.gateway_says(frame(MACS[1], OURS))
    assert net.heard(1) == [frame(MACS[1], OURS)] and net.heard(0) == []


def test_a_frame_that_is_too_long_for_a_streams_length_reaches_no_other_guest(net: Network) -> None:
    """A message may be longer than two bytes can say: what is behind it would be taken for frames."""
    said = frame(BROADCAST, MACS[2], b"x" * (lib.STREAM_FRAME_MAX - 13))
    assert net.says(2, said) == [said]
    assert net.heard(0) == net.heard(1) == [] and net.count("drop_length") == 2


@pytest.mark.parametrize("port", [0, 2])
def test_a_guest_that_leaves_is_forgotten_and_its_port_is_free(net: Network, port: int) -> None:
    introduce(net)
    net.guests[port].close()
    for _ in range(3):
        net.turn()
    assert net.ended() == [port] and net.whole.entries == 2
    net.gateway_says(frame(MACS[port], OURS))
    net.join(port)
    assert net.heard(port) == []
    introduce(net)


def test_a_guest_that_does_not_read_costs_its_own_frames_alone(net: Network) -> None:
    introduce(net)
    large = frame(MACS[1], MACS[0], b"x" * 60000)
    for _ in range(400):
        net.gateway_says(frame(MACS[1], OURS, b"y" * 60000))
    assert net.count("drop_no_room") > 0
    net.says(0, large)
    net.gateway_says(frame(MACS[2], OURS))
    assert net.heard(2) == [frame(MACS[2], OURS)]


def test_every_guest_gets_its_turn(net: Network) -> None:
    """A batch of each, in turn, while all have much to say."""
    for port in net.guests:
        if port != 2:
            one = frame(OURS, MACS[port])
            net.guests[port].send((struct.pack("!I", len(one)) + one) * 500)
    for source, mask in net.epoll.poll(0):
        lib.link_switch_event(net.whole, source - SOURCE, mask)
    order = []
    for _ in range(4):
        order.append({one[11] for one in net.batch()})
    assert order == [{0}, {1}, {0}, {1}]


@pytest.mark.parametrize("port", [lib.SWITCH_PORTS, 1 << 31])
def test_there_is_no_port_beyond_the_last(net: Network, port: int) -> None:
    ours, theirs = socket.socketpair()
    assert lib.link_switch_attach_stream(net.whole, port, ours.fileno(), 0) < 0
    ours.close()
    theirs.close()


# ---- addresses of IP ----


def ip(text: str) -> Any:
    return ffi.new("address *", {"byte": bytes(10) + b"\xff\xff" + socket.inet_aton(text)})


def test_who_has_an_address_is_who_sent_from_it_last() -> None:
    table = ffi.new("struct guest_table *")
    for number in range(8):
        lib.guest_table_learn(table, ip(f"192.168.127.{number}"), MACS[number])
    lib.guest_table_learn(table, ip("192.168.127.3"), MACS[5])
    assert bytes(ffi.buffer(lib.guest_table_find(table, ip("192.168.127.3")), 6)) == MACS[5]
    assert lib.guest_table_find(table, ip("192.168.127.9")) == ffi.NULL and table.count == 8


def testmore_addresses_than_there_is_room_for_displace_the_oldest() -> None:
    table = ffi.new("struct guest_table *")
    for number in range(lib.GUESTS_MAX + 1):
        lib.guest_table_learn(table, ip(f"10.0.{number >> 8}.{number & 255}"), MACS[1])
    assert table.count == lib.GUESTS_MAX
    assert lib.guest_table_find(table, ip("10.0.0.0")) == ffi.NULL
    assert lib.guest_table_find(table, ip("10.0.1.0")) != ffi.NULL


def test_a_question_of_one_guest_to_another_ends_the_sleeps_of_a_third_ones_stream(net: Network) -> None:
    """Once a slow upload kept the others' conversation waiting at each frame, for as long as it went on."""
    introduce(net)
    gather, now = ffi.new("struct gather *"), 1_000_000_000

    def step_of_upload() -> int:
        nonlocal now
        now += 130_000
        net.counters[COUNTERS.index("tcp_bytes_from_guest")] += 8000
        return int(lib.gather_after_step(gather, net.counters, False, now))

    assert lib.GATHER_NS in [step_of_upload() for _ in range(3 * lib.GATHER_STEPS)]
    for _ in range(3 * lib.GATHER_STEPS):
        net.says(0, frame(MACS[1], MACS[0], b"question"))
        net.says(1, frame(MACS[0], MACS[1], b"answer"))
        assert step_of_upload() == 0
