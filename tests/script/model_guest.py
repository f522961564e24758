# SPDX-License-Identifier: Apache-2.0
"""A guest's TCP for one connection, obviously right and in no hurry: it acknowledges, repeats and reads when it is told
to. What it is sent it compares, byte for byte, with what the peer sent, and with the window that it gave.

Used by the tests of random sequences. Adversary: the core: a byte that comes twice as new, out of the window, or wrong,
an ACK of what the peer's kernel has not taken, and a window that is taken back are failures.

Invariants: positions count the bytes of a stream from 0; sequence numbers are made of them in one place, seq and ack.
"""

from __future__ import annotations

import segments
from fake_core import ffi, lib
from segments import ACK, FIN, RST, SYN, Ends, Options, Segment
from world import GUEST, PEER, World

SCALE = 7
MSS = 1000


class ModelGuest:
    def __init__(
        self, world: World, port: int = 40000, family: int = 4, sack: bool = True, isn: int = 0xFFFFF000
    ) -> None:
        self.world = world
        self.ends = Ends(GUEST[family], port, PEER[family], 80)
        self.sack = sack
        self.isn = isn  # the first bytes of most sequences cross 2^32
        self.our_isn = 0
        self.fd = -1
        self.opened = False
        self.reset = False  # by either side, as the guest knows it

        # from the peer
        self.got = 0
        self.ahead: list[tuple[int, int]] = []  # behind a gap: start, end; sorted and disjoint
        self.peer_fin: int | None = None
        self.window = 64000
        self.edge = 65535  # the highest position that any window of ours has reached
        self.losing = 0  # frames that will not arrive

        # to the peer
        self.sent = 0
        self.acked = 0
        self.may_send_to = 0
        self.scaled = False
        self.fin_sent = False
        self.fin_acked = False

    # ---- frames out ----

    def _frame(self, flags: int, position: int, length: int = 0, options: Options | None = None) -> None:
        fin_seen = self.peer_fin is not None and self.got == self.peer_fin
        head = self.ends.tcp_head(
            flags,
            self.isn + 1 + position,
            self.our_isn + 1 + self.got + fin_seen,
            self.window >> SCALE,
            options,
            length,
        )
        self.edge = max(self.edge, self.got + (self.window >> SCALE << SCALE))
        self.world.send(head, 2 * self.fd + 1, position, length)

    def open(self) -> None:
        options = Options(mss=MSS, wscale=SCALE, sack_ok=self.sack)
        self.world.send(self.ends.tcp_head(SYN, self.isn, 0, 65535, options))
        self.world.settle()
        flow = self.world.flow_of(self.ends)
        assert flow is not None
        self.fd, self.our_isn = flow.fd, int(flow.iss)
        assert lib.fake_peer_accept(self.fd) == 0
        self.world.settle()
        self.take_frames()
        self._frame(ACK, 0)
        self.world.settle()

    @property
    def socket(self) -> ffi.CData:
        return lib.fake_socket_at(self.fd)

    @property
    def next_position(self) -> int:
        return self.sent + self.fin_sent

    def acknowledge(self) -> None:
        """With the window as it is; and what lies behind a gap."""
        base = self.our_isn + 1
        blocks = [((base + a) & 0xFFFFFFFF, (base + b) & 0xFFFFFFFF) for a, b in self.ahead[:3]]
        self._frame(ACK, self.next_position, options=Options(sack=blocks) if self.sack and blocks else None)

    def send(self, length: int) -> None:
        """New bytes, as many as we may; in frames of at most 60000 bytes."""
        length = min(length, self.may_send_to - self.sent)
        while length > 0 and not self.fin_sent:
            part = min(length, 60000)
            self._frame(ACK, self.sent, part)
            self.sent += part
            length -= part

    def repeat(self, length: int) -> None:
        """What is not acknowledged, from its beginning; the FIN when that is all."""
        part = min(length, self.sent - self.acked, 60000)
        if part > 0:
            self._frame(ACK, self.acked, part)
        if self.fin_sent and not self.fin_acked and self.acked + part >= self.sent:
            self._frame(ACK | FIN, self.sent)

    def send_behind_gap(self, skip: int, length: int) -> None:
        """A frame is lost, and the one behind it is not."""
        room = self.may_send_to - self.sent
        if self.fin_sent or room <= skip:
            return
        length = min(length, room - skip, 60000)
        self._frame(ACK, self.sent + skip, length)
        self.sent += skip + length

    def finish(self) -> None:
        if not self.fin_sent:
            self.fin_sent = True
            self._frame(ACK | FIN, self.sent)

    def abort(self) -> None:
        self._frame(RST, self._reset_position())
        self.reset = True

    def _reset_position(self) -> int:
        """What lockgate expects next: where it has dropped something, a RST behind that would only be challenged."""
        flow = self.world.flow_of(self.ends)
        return 0 if flow is None else (flow.rcv_nxt - self.isn - 1) & 0xFFFFFFFF

    # ---- frames in ----

    def take_frames(self) -> None:
        port = self.ends.guest_port.to_bytes(2, "big")
        for packet in [packet for packet in self.world.inbox if packet.payload[2:4] == port]:
            self.world.inbox.remove(packet)
            segment = segments.parse_segment(packet)
            if self.losing and not segment.flags & (SYN | RST):
                self.losing -= 1
            else:
                self._take(segment)

    def _take(self, segment: Segment) -> None:
        if segment.flags & RST:
            self.reset = True
            return
        self._take_ack(segment)
        if segment.flags & SYN:
            assert not self.opened
            self.opened = True
            return
        start = self._signed(segment.seq - self.our_isn - 1)
        if segment.length:
            self._take_data(segment, start)
        if segment.flags & FIN:
            end = start + segment.length
            assert self.peer_fin in (None, end), "two ends of one stream"
            assert end == self.socket.arrived and self.socket.fin_received, "an end that the peer did not send"
            self.peer_fin = end

    @staticmethod
    def _signed(number: int) -> int:
        number &= 0xFFFFFFFF
        return number - (1 << 32) if number >> 31 else number

    def _take_ack(self, segment: Segment) -> None:
        acked = self._signed(segment.ack - self.isn - 1)
        socket = self.socket
        self.fin_acked |= self.fin_sent and acked == self.sent + 1
        acked -= self.fin_acked
        assert acked <= socket.sent, f"ACK of {acked} bytes, the peer's kernel took {socket.sent}"
        assert self.acked <= acked <= self.sent, f"ACK of {acked}, before {self.acked}, sent {self.sent}"
        self.acked = acked
        scale = 0 if segment.flags & SYN else 8
        edge = acked + self.fin_acked + (segment.window << scale)
        # What the shift cuts off may move the edge back a little (RFC 7323, 2.4); nothing else may.
        assert edge + (1 << scale) > self.may_send_to, f"the window ended at {self.may_send_to}, now at {edge}"
        self.may_send_to = max(edge, self.may_send_to)

    def _take_data(self, segment: Segment, start: int) -> None:
        end = start + segment.length
        assert end <= self.edge, f"bytes up to {end}, the window ended at {self.edge}"
        payload = ffi.from_buffer(segment.packet.frame) + segment.payload_offset
        match = lib.fake_pattern_match(2 * self.fd, start, payload, segment.length)
        assert match == segment.length, f"byte {start + match} is not the peer's"
        self.ahead.append((start, end))
        self.ahead.sort()
        while self.ahead and self.ahead[0][0] <= self.got:
            self.got = max(self.got, self.ahead.pop(0)[1])
        joined: list[tuple[int, int]] = []
        for start, end in self.ahead:
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((start, end))
        self.ahead = joined
