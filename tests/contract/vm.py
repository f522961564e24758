# SPDX-License-Identifier: Apache-2.0
"""A VM that fits into a test: a front end, its memory and two rings, and in them a guest with one TCP connection.

Called by the migration tests. It can be taken off one helper and put on another, memory and all, as a monitor does that
migrates. Adversary: nobody. Invariants: everything is waited for by the call eventfd; the guest answers what it gets in
the order in which it came, keeps no timer, and asserts that no byte of a connection is missing or comes as another.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
from pathlib import Path
from typing import Protocol

from running import PATIENCE, PROTOCOL_FEATURES, REPLY_ACK, FrontEnd

GET_VRING_BASE, SET_VRING_CALL, SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE = 11, 13, 42, 43
LOG_SHMFD, DEVICE_STATE = 1 << 1, 1 << 19
SAVE, LOAD = 0, 1
NO_DESCRIPTOR = 0x100

SIZE, USER = 1 << 21, 1 << 32
RING_SIZE = 64
BUFFER = 2048
RINGS, BUFFERS = 0x0, 0x10000  # ring i at RINGS + 0x4000 * i; its buffers at BUFFERS + 0x20000 * i
GUEST_MAC, GATEWAY_MAC = b"\x52\x54\x00\x12\x34\x56", b"\x9a\x55\x9a\x55\x9a\x55"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}  # by the version of IP
WINDOW_SCALE = b"\1\3\3\7"  # options of a SYN, behind the MSS
SACK_PERMITTED = b"\1\1\4\2"


def raw(text: str) -> bytes:
    """An address of either version."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def ip_header(ends: tuple[bytes, bytes], length: int) -> bytes:
    """Of a TCP segment of this length, from the first end to the second."""
    if len(ends[0]) == 16:
        return struct.pack("!IHBB", 6 << 28, length, 6, 64) + ends[0] + ends[1]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0x4000, 64, 6, 0, *ends)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def tcp_of(frame: bytes) -> bytes:
    """Its segment; empty: it has none."""
    if frame[12:14] == ETHERTYPES[4] and frame[23] == 6:
        return frame[34 : 14 + int.from_bytes(frame[16:18], "big")]
    if frame[12:14] == ETHERTYPES[6] and frame[20] == 6:
        return frame[54 : 54 + int.from_bytes(frame[18:20], "big")]
    return b""


def checksum(data: bytes) -> int:
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


class Ring:
    """The driver's side of one queue. Descriptor i always has buffer i."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self._memory = memory
        # Both sides look at the indexes at any time. Through this they are read and written as a whole; struct does it
        # byte by byte where a byte order is named, and a half of an index is another index.
        self._words = memoryview(memory).cast("H")
        self.index = index
        self.desc = RINGS + 0x4000 * index
        self.avail, self.used = self.desc + 0x1000, self.desc + 0x2000
        self._buffers = BUFFERS + 0x20000 * index
        self.offered = self.taken = 0
        self.kick, self.call = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _put(self, at: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self._memory, at, *values)

    def offer(self, slot: int, data: bytes | None) -> None:
        """Gives the device a buffer: with data to read, or to be written."""
        at = self._buffers + BUFFER * slot
        if data is not None:
            self._memory[at : at + len(data)] = data
        length, flags = (BUFFER, 2) if data is None else (len(data), 0)
        self._put(self.desc + 16 * slot, "<QIHH", at, length, flags, 0)
        self._put(self.avail + 4 + 2 * (self.offered % RING_SIZE), "<H", slot)
        self.offered += 1
        self._words[(self.avail + 2) // 2] = self.offered % 65536

    def notify(self) -> None:
        os.eventfd_write(self.kick, 1)

    def take_back(self) -> list[tuple[int, bytes]]:
        """(slot, what was written into it) of each buffer that came back."""
        index = self._words[(self.used + 2) // 2]
        back = []
        while self.taken % 65536 != index:
            slot, length = struct.unpack_from("<II", self._memory, self.used + 4 + 8 * (self.taken % RING_SIZE))
            at = self._buffers + BUFFER * slot
            back.append((slot, bytes(self._memory[at : at + length])))
            self.taken += 1
        return back

    def wait(self) -> None:
        waiting = select.poll()
        waiting.register(self.call, select.POLLIN)
        assert waiting.poll(PATIENCE * 1000), f"ring {self.index}: the helper says nothing"
        os.eventfd_read(self.call)


class Vm:
    """See the module. attach() and detach() as often as it migrates."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE)
        self.memory = mmap.mmap(self.fd, SIZE)
        self.rings = [Ring(self.memory, 0), Ring(self.memory, 1)]
        self.bases = [0, 0]
        self._free = list(range(RING_SIZE))
        self.arrived: list[bytes] = []
        for slot in range(RING_SIZE):
            self.rings[0].offer(slot, None)

    # ---- the monitor ----

    def attach(self, path: Path) -> None:
        """Connects and agrees on features; the rings do not run yet."""
        self.front_end = FrontEnd.connect(path)
        assert self.front_end.ask(1) & PROTOCOL_FEATURES
        wanted = REPLY_ACK | LOG_SHMFD | DEVICE_STATE
        assert self.front_end.ask(15) & wanted == wanted
        assert self.front_end.ask(16, wanted, need_reply=True) == 0
        self.front_end.reach_worker()
        self.front_end.tell(5, struct.pack("=IIQQQQ", 1, 0, 0, SIZE, USER, 0), [self.fd])

    def start(self) -> None:
        for ring in self.rings:
            at = (USER + ring.desc, USER + ring.used, USER + ring.avail)
            self.front_end.tell(8, struct.pack("=II", ring.index, RING_SIZE))
            self.front_end.tell(9, struct.pack("=IIQQQQ", ring.index, 0, *at, 0))
            self.front_end.tell(10, struct.pack("=II", ring.index, self.bases[ring.index]))
            self.front_end.tell(SET_VRING_CALL, struct.pack("=Q", ring.index), [ring.call])
            self.front_end.tell(12, struct.pack("=Q", ring.index), [ring.kick])
            self.front_end.tell(18, struct.pack("=II", ring.index, 1))
            ring.notify()

    def stop(self) -> None:
        """The rings stand still, and the helper has said where."""
        for ring in self.rings:
            self.front_end.sock.sendall(struct.pack("=III", GET_VRING_BASE, 1, 8) + struct.pack("=II", ring.index, 0))
            reply = self.front_end.sock.recv(20, socket.MSG_WAITALL)
            self.bases[ring.index] = struct.unpack_from("=I", reply, 16)[0]

    def transfer(self, direction: int, fd: int) -> int:
        """SET_DEVICE_STATE_FD; the helper has a copy of the descriptor then. Its answer."""
        header = struct.pack("=III", SET_DEVICE_STATE_FD, 1, 8)
        socket.send_fds(self.front_end.sock, [header + struct.pack("=II", direction, 0)], [fd])
        return int(struct.unpack_from("=Q", self.front_end.sock.recv(20, socket.MSG_WAITALL), 12)[0])

    def check(self) -> int:
        return self.front_end.ask(CHECK_DEVICE_STATE)

    def save(self) -> bytes:
        """The helper's state, as a monitor gets it."""
        here, there = os.pipe()
        assert self.transfer(SAVE, there) == NO_DESCRIPTOR
        os.close(there)
        with open(here, "rb") as pipe:
            state = pipe.read()
        assert self.check() == 0, "the state was not saved"
        return state

    def load(self, state: bytes) -> int:
        """What CHECK_DEVICE_STATE says after it."""
        here, there = os.pipe()
        assert self.transfer(LOAD, here) == NO_DESCRIPTOR
        os.close(here)
        try:
            with open(there, "wb") as pipe:
                pipe.write(state)
        except BrokenPipeError:
            pass  # it has seen enough
        return self.check()

    def detach(self) -> None:
        self.front_end.close()

    # ---- the guest's frames ----

    def send(self, frame: bytes) -> None:
        ring = self.rings[1]
        while not self._free:
            self._free += [slot for slot, _ in ring.take_back()]
            if not self._free:
                ring.wait()
        ring.offer(self._free.pop(0), bytes(12) + frame)
        ring.notify()

    def receive(self) -> bytes:
        """The next frame."""
        ring = self.rings[0]
        while not self.arrived:
            for slot, data in ring.take_back():
                self.arrived.append(data[12:])
                ring.offer(slot, None)
            if self.arrived:
                ring.notify()
            else:
                ring.wait()
        return self.arrived.pop(0)


class Wire(Protocol):
    """What frames go over: a Vm, or a monitor's end of a stream."""

    def send(self, frame: bytes) -> None: ...
    def receive(self) -> bytes: ...


class Connection:
    """A TCP connection that the guest opens, from the SYN on. Who has its wire may replace it."""

    mss = 1460

    def __init__(self, vm: Wire, guest: str, guest_port: int, remote: str, port: int, window: int = 0xFFFF) -> None:
        self.vm = vm
        self.ends = raw(guest), raw(remote)
        self.ports = guest_port, port
        self.seq, self.ack = 1000, 0
        self.window = window
        self.got = b""
        self.peer_ended = self.reset = False
        self.acked = 0  # of ours, as the far end has it

    @classmethod
    def accepted(cls, vm: Wire, guest: str, port: int) -> Connection:
        """The next connection to this port of the guest's, as it is established."""
        while True:
            frame = vm.receive()
            if frame[12:14] == b"\x08\x00" and frame[23] == 6 and frame[47] & SYN:
                break
        source, destination, seq = struct.unpack_from("!HHI", frame, 34)
        assert (frame[30:34], destination) == (socket.inet_aton(guest), port)
        connection = cls(vm, guest, port, socket.inet_ntoa(frame[26:30]), source)
        connection.ack = (seq + 1) & 0xFFFFFFFF
        connection.segment(SYN | ACK, options=connection.offer)
        connection.seq += 1
        return connection

    @property
    def offer(self) -> bytes:
        return struct.pack("!BBH", 2, 4, self.mss) + WINDOW_SCALE

    def open(self, sack: bool = False) -> None:
        self.segment(SYN, options=self.offer + (SACK_PERMITTED if sack else b""))
        self.seq += 1
        while not self.ack:
            self.take()
        self.segment(ACK)

    def segment(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        words = (20 + len(options)) // 4
        tcp = struct.pack("!HHIIHHHH", *self.ports, self.seq, self.ack, words << 12 | flags, self.window, 0, 0)
        tcp += options + data
        pseudo = self.ends[0] + self.ends[1] + struct.pack("!HH", 6, len(tcp))
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
        version = 6 if len(self.ends[0]) == 16 else 4
        self.vm.send(GATEWAY_MAC + GUEST_MAC + ETHERTYPES[version] + ip_header(self.ends, len(tcp)) + tcp)

    def send(self, data: bytes) -> None:
        """Without waiting for anything; what is too long for a segment goes in several."""
        for start in range(0, len(data), 1400):
            part = data[start : start + 1400]
            self.segment(ACK | PSH, part)
            self.seq += len(part)

    def end(self) -> None:
        """The guest has said its last."""
        self.segment(ACK | FIN)
        self.seq += 1

    def lose(self) -> None:
        """One segment of data, as if it had not come; what comes with it is."""
        while not (tcp := tcp_of(self.vm.receive())) or len(tcp) <= (tcp[12] >> 4) * 4:
            pass

    def lose_end(self) -> None:
        """The peer's, as if it had not come."""
        while not (tcp := tcp_of(self.vm.receive())) or not tcp[13] & FIN:
            pass

    def take(self, answer: bool = True) -> None:
        """One frame: a segment of this connection's, or something that is none of its business."""
        tcp = tcp_of(self.vm.receive())
        if not tcp:
            return
        source, destination, seq, ack, bits, _, _, _ = struct.unpack_from("!HHIIHHHH", tcp)
        if (destination, source) != self.ports:
            return
        flags, data = bits & 0x3F, tcp[(bits >> 12) * 4 :]
        self.reset = self.reset or bool(flags & RST)
        if flags & SYN:
            self.ack = (seq + 1) & 0xFFFFFFFF
            return
        self.acked = max(self.acked, ack - 1001)
        if seq == self.ack:
            self.got += data
            self.ack = (self.ack + len(data)) & 0xFFFFFFFF
            if flags & FIN:
                self.peer_ended = True
                self.ack = (self.ack + 1) & 0xFFFFFFFF
        if (data or flags & FIN) and answer:
            self.segment(ACK)

    def read(self, size: int) -> bytes:
        while len(self.got) < size and not (self.peer_ended or self.reset):
            self.take()
        data, self.got = self.got[:size], self.got[size:]
        return data

    def until_acked(self, size: int) -> None:
        while self.acked < size and not self.reset:
            self.take()
