# SPDX-License-Identifier: Apache-2.0
"""core/datapath/up.c in a worker of its own: frames and events that go up to control, frames that come down for the
guest, and what becomes of them when one side does not keep up."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from core_pieces import ffi, lib
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from virtqueue import INDIRECT, NEXT, RINGS, WRITE, Descriptor, Driver, Memory
from worker_child import Worker

RECEIVEQ, TRANSMITQ = lib.RECEIVEQ, lib.TRANSMITQ
FEATURES = 1 << lib.VIRTIO_NET_F_MRG_RXBUF | 1 << lib.VIRTIO_RING_F_INDIRECT_DESC
UP = struct.Struct("=IIII")  # struct lg_up: type, port, length, reserved
NET_HEADER = bytes(12)
OUR_MAC, GATEWAY = "9a:55:9a:55:9a:55", "192.0.2.1"
TABLE, FROM_GUEST, TO_GUEST = RINGS.guest + 0x10000, RINGS.guest + 0x20000, RINGS.guest + 0x80000
BUFFER = 2048


def mac(number: int) -> str:
    return f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"


def dhcp(source: int = 1, payload: bytes = b"discover") -> bytes:
    packet = Ether(src=mac(source), dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255")
    return bytes(packet / UDP(sport=68, dport=67) / Raw(payload))


class Guest:
    """A worker with both rings, and the guest's drivers of them."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.memory = Memory()
        self.kicks, self.errs = ([os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)] for _ in range(2))
        self.receive, self.transmit = Driver(self.memory, 64), Driver(self.memory, 256, 0, RINGS.guest + 0x8000)
        view = {
            "mtu": 1500,
            "flags": lib.LG_VIEW_IPV4 | lib.LG_VIEW_DHCP,
            "our_mac": bytes.fromhex(OUR_MAC.replace(":", "")),
        }
        assert self.worker.result(lib.LG_CMD_NET_VIEW, view=view) == 0
        regions = [self.memory.region(at)[0] for at in range(len(self.memory.fds))]
        assert self.worker.result(lib.LG_CMD_MEM_TABLE, self.memory.fds, count=len(regions), region=regions) == 0
        assert self.worker.result(lib.LG_CMD_LINK_FEATURES, value=FEATURES) == 0

    def start(self, *queues: int) -> None:
        for queue in queues:
            driver = self.transmit if queue == TRANSMITQ else self.receive
            setup = driver.setup(queue, lib.LG_VRING_HAS_KICK | lib.LG_VRING_HAS_ERR, driver.used_index())
            fields = {
                name: getattr(setup, name) for name in ("index", "size", "base", "flags", "desc", "avail", "used")
            }
            assert self.worker.result(lib.LG_CMD_VRING_START, [self.kicks[queue], self.errs[queue]], **fields) == 0

    def send(self, *frames: bytes) -> None:
        """Puts frames into the transmitq and waits until the worker has given all buffers back."""
        for frame in frames:
            head = self.transmit.offered % self.transmit.size
            at = FROM_GUEST + head * BUFFER % 0x50000
            self.memory.write(at, NET_HEADER + frame)
            self.transmit.describe(head, Descriptor(at, len(NET_HEADER + frame)))
            self.transmit.offer(head)
        self.finish()

    def finish(self) -> None:
        os.eventfd_write(self.kicks[TRANSMITQ], 1)
        while self.transmit.used_index() != self.transmit.offered:
            self.step()
        self.step()

    def step(self) -> None:
        """The worker has been through its loop: it answers no command in the middle."""
        assert self.worker.result(lib.LG_CMD_EVENTS, value=0) == 0

    def offer(self, count: int) -> None:
        for head in range(count):
            self.receive.describe(head, Descriptor(TO_GUEST + head * BUFFER, BUFFER, WRITE))
        self.receive.offer(*range(count))

    def received(self) -> list[bytes]:
        """Frames that were put into the guest's buffers, each of which holds one."""
        self.step()
        self.step()
        return [self.memory.read(TO_GUEST + head * BUFFER, size)[12:] for head, size in self.receive.take_back()]

    def records(self) -> list[tuple[int, bytes]]:
        """All that has come up, by type."""
        found = []
        while select.select([self.worker.up], [], [], 0)[0]:
            record = self.worker.up.recv(UP.size + lib.LG_UP_BYTES_MAX)
            kind, port, length, _ = UP.unpack_from(record)
            assert port == 0 and length == len(record) - UP.size, (
                "a record says how long it is, and is as long as it says"
            )
            found.append((kind, record[UP.size :]))
        return found

    def close(self) -> None:
        self.worker.close()
        self.memory.close()
        for fd in (*self.kicks, *self.errs):
            os.close(fd)


@pytest.fixture(name="guest")
def fresh_guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def of_kind(records: list[tuple[int, bytes]], kind: int) -> list[bytes]:
    return [body for found, body in records if found == kind]


def test_a_frame_for_control_goes_up_as_it_is_and_the_guest_is_seen(guest: Guest) -> None:
    """The whole frame, without the net header; and once, whom it came from."""
    guest.start(TRANSMITQ)
    guest.send(dhcp(), dhcp())
    records = guest.records()
    assert of_kind(records, lib.LG_UP_PUNT) == [dhcp(), dhcp()]
    (seen,) = of_kind(records, lib.LG_UP_SEEN)
    assert len(seen) == ffi.sizeof("struct lg_seen") and seen[:6] == bytes.fromhex(mac(1).replace(":", ""))
    assert guest.worker.count("punts") == 2


def test_a_frame_in_a_thousand_pieces_goes_up_whole_or_is_counted_as_lost(guest: Guest) -> None:
    """One sendmsg() takes no more than 1024 pieces, the record's own head among them."""
    guest.start(TRANSMITQ)
    for first in (12, 13):  # the net header alone in its piece, or with the first byte of the frame
        whole = NET_HEADER + dhcp(payload=bytes(2000))[: first - 12 + lib.LINK_PIECES - 1]
        frame = bytearray(whole)
        frame[12 + 16 : 12 + 18] = (len(whole) - 12 - 14).to_bytes(2, "big")
        cuts = [(0, first), *((at, 1) for at in range(first, len(frame)))]
        head, table = guest.transmit.offered, b""
        for at, (start, size) in enumerate(cuts):
            guest.memory.write(FROM_GUEST + 2 * start, bytes(frame[start : start + size]))
            more = NEXT if at + 1 < len(cuts) else 0
            table += Descriptor(FROM_GUEST + 2 * start, size, more, at + 1 if more else 0).packed()
        guest.memory.write(TABLE, table)
        guest.transmit.describe(head, Descriptor(TABLE, len(table), INDIRECT))
        guest.transmit.offer(head)
        guest.finish()
        punts = of_kind(guest.records(), lib.LG_UP_PUNT)
        assert punts == ([bytes(frame[12:])] if first == 12 else [])
    assert (guest.worker.count("punts"), guest.worker.count("punts_lost")) == (1, 1)


def test_control_that_does_not_read_loses_punts_but_not_what_is_seen(guest: Guest) -> None:
    """The channel holds some hundred records; later ones are counted as lost. The last address comes all the same."""
    guest.start(TRANSMITQ)
    for first in range(0, 2000, 200):
        guest.send(*(dhcp(number, bytes(1000)) for number in range(first, first + 200)))
    lost = guest.worker.count("punts_lost")
    assert lost > 0
    records = guest.records()
    last = bytes.fromhex(mac(1999).replace(":", ""))
    while not any(seen.startswith(last) for seen in of_kind(records, lib.LG_UP_SEEN)):
        select.select([guest.worker.up], [], [], 30)
        more = guest.records()
        assert more, "what is seen of the guest is sent until it fits"
        records += more
    assert len(of_kind(records, lib.LG_UP_PUNT)) + lost == 2000 == guest.worker.count("punts") + lost


def test_a_frame_from_control_reaches_the_guest(guest: Guest) -> None:
    """Zero padded to sixty bytes; several come in order."""
    guest.offer(4)
    guest.start(RECEIVEQ)
    frames = [bytes(Ether(src=OUR_MAC, dst=mac(1)) / ARP(psrc=GATEWAY, op=2)), dhcp(payload=bytes(1400))]
    for frame in frames:
        guest.worker.up.send(UP.pack(lib.LG_UP_FRAME, 0, len(frame), 0) + frame)
    assert guest.received() == [frames[0].ljust(60, b"\0"), frames[1]]
    assert guest.worker.count("frames_injected") == 2


@pytest.mark.parametrize(
    ("length", "kind", "size"),
    [
        (13, 2, 13),
        (65551, 2, 65551),
        (60, 1, 60),
        (60, 2, 61),
        (60, 2, 59),
        (60, 2, 2**32 - 1),
        (0, 2, 0),
        (60, 99, 60),
    ],
)
def test_a_record_from_control_that_makes_no_sense_is_dropped(guest: Guest, length: int, kind: int, size: int) -> None:
    """Too short or too long for a frame, of another type, or lying about its length; the next is taken."""
    guest.offer(40)
    guest.start(RECEIVEQ)
    guest.worker.up.send(UP.pack(kind, 0, size, 0) + bytes(length))
    guest.worker.up.send(b"crumb")
    guest.worker.up.send(UP.pack(lib.LG_UP_FRAME, 0, 60, 0) + b"\x01" * 60)
    assert guest.received() == [b"\x01" * 60]


def test_a_frame_from_control_without_a_guest_is_counted(guest: Guest) -> None:
    """Nobody is attached; or somebody is, who has given no buffers."""
    frame = UP.pack(lib.LG_UP_FRAME, 0, 60, 0) + bytes(60)
    guest.worker.up.send(frame)
    guest.step()
    assert (guest.worker.count("frames_injected_lost"), guest.worker.count("drop_disconnected")) == (1, 1)
    guest.start(RECEIVEQ)
    guest.worker.up.send(frame)
    guest.step()
    assert (guest.worker.count("frames_injected_lost"), guest.worker.count("drop_disconnected")) == (2, 1)


def test_people_hear_once_of_a_ring_that_the_guest_broke(guest: Guest) -> None:
    """Which one and why, at any level of events; the front end by its eventfd; and the other ring goes on."""
    guest.offer(2)
    guest.start(RECEIVEQ, TRANSMITQ)
    guest.transmit.offer(999)
    for _ in range(3):
        os.eventfd_write(guest.kicks[TRANSMITQ], 1)
        guest.step()
    (event_bytes,) = of_kind(guest.records(), lib.LG_UP_EVENT)
    event: Any = ffi.new("struct lg_event *")
    ffi.memmove(event, event_bytes, len(event_bytes))
    assert (event.kind, event.value) == (lib.LG_EVENT_RING_STOPPED, TRANSMITQ)
    assert ffi.string(lib.lg_fault_name(event.reason)) == b"head_range"
    assert os.eventfd_read(guest.errs[TRANSMITQ]) == 1
    guest.worker.up.send(UP.pack(lib.LG_UP_FRAME, 0, 60, 0) + bytes(60))
    assert guest.received() == [bytes(60)]
    assert guest.worker.result(lib.LG_CMD_VRING_STOP, value=TRANSMITQ) == 0
    guest.transmit.jump(-1)
    guest.start(TRANSMITQ)
    guest.send(dhcp())
    assert of_kind(guest.records(), lib.LG_UP_PUNT) == [dhcp()], "set up anew, it works again"


def test_a_call_pipe_without_a_reader_does_not_end_the_worker(guest: Guest) -> None:
    """A front end may send any descriptor in the place of an eventfd, and close its own end."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    guest.offer(2)
    guest.start(RECEIVEQ)
    assert guest.worker.result(lib.LG_CMD_VRING_CALL, [writer], value=RECEIVEQ) == 0
    os.close(reader)
    guest.worker.up.send(UP.pack(lib.LG_UP_FRAME, 0, 60, 0) + bytes(60))
    assert guest.received() == [bytes(60)]
    os.close(writer)


def test_guests_of_a_switch_that_leave_at_once_are_each_told_of() -> None:
    """Nothing else happens that would wake the worker."""
    worker, guests = Worker(), []
    try:
        for port in (1, 2, 3):
            ours, theirs = socket.socketpair()
            record = ffi.new("struct lg_cmd_value *")
            record.header.type, record.header.port = lib.LG_CMD_STREAM_ATTACH, port
            assert worker.send(bytes(ffi.buffer(record)), [theirs.fileno()]).result == 0
            theirs.close()
            guests.append(ours)
        os.kill(worker.pid, signal.SIGSTOP)
        for guest in guests:
            guest.close()
        os.kill(worker.pid, signal.SIGCONT)
        told = [UP.unpack_from(worker.up.recv(UP.size + lib.LG_UP_BYTES_MAX))[:2] for _ in guests]
        assert sorted(told) == [(lib.LG_UP_LINK_END, port) for port in (1, 2, 3)]
    finally:
        worker.close()
