# SPDX-License-Identifier: Apache-2.0
"""Conversations in the manner of packetdrill: a guest and lockgate on one side, the peer's socket calls on the other.

    conversation('''
        +0   < S  0:0(0) win 65535 <mss 1460,wscale 7>      the guest sends
        +0   peer accepts                                   the far end of lockgate's socket does something
        +0   > S. 0:0(0) ack 1 <mss 1460,wscale 8>          lockgate must send this to the guest, now
        +1   > S. 0:0(0) ack 1 <mss 1460,wscale 8>          ... and this in exactly one second, and nothing before
    ''')

Each line has the seconds since the line before. Numbers are relative to the two initial sequence numbers, as Wireshark
shows them; `win` is the header's field, not scaled. A line that ends in "..." is in one batch with the next. Frames
that no line asked for fail the conversation, and so does one that is late, early or other than the line says. Payload
is a pattern that follows from its position (fake_kernel.h), in both directions, and is always compared.

Lines of the guest and of lockgate (FLAGS are letters of SFRPU and . for ACK; `mss ours` is what we offer):
    < FLAGS start:end(length) [ack N] [win N] [urg N] [<mss N,wscale N,sackOK,sack a:b c:d>]
    > FLAGS start:end(length) [ack N] [win N] [gso N] [<...>]     gso: one super-segment, of segments of N bytes
    > data start:end [ack N]         all of these bytes, each once and in order, in however many segments
    > icmp TYPE/CODE                 an error about this connection's SYN
    > nothing                        for the time that the line has
Lines of the peer:
    peer accepts | refuses ERRNO | sends N [urgent] | takes N|all | closes | resets
    peer got N                       bytes that its kernel took from us so far
    peer sees nothing | FIN | RST    how our side of its connection has ended
Lines of the host's kernel and of the link:
    kernel holds N                   bytes of the peer's that are still in our receive queue
    kernel queue N                   our send queue takes no more than N bytes
    kernel fails CALL ERRNO          the next such call
    link full | gives N              the guest's receive buffers: none; N more, and the room event
    link gives late N                N more just after lockgate has seen that there are none
    link detached | attached         the guest's driver goes and comes
What else may be asked, of this flow, and since the last such line:
    woken N [idle M]                 N events of its socket; M of them moved no byte and changed no state
    calls NAME N                     system calls
    stall NAME | interest BITS | flow TO_GUEST TO_HOST | flow gone | closed REASON

Used by the tests of this folder. Adversary: nobody.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import segments
from fake_core import ffi, lib
from segments import ACK, FIN, RST, SYN, Ends, Options, Packet, Segment
from world import GUEST, HALVES, PEER, STALLS, World, event_names

SEGMENT = re.compile(
    r"(?P<flags>[SFRPU.]+) +(?P<start>-?\d+):(?P<end>-?\d+)\((?P<length>\d+)\)"
    r"(?: +ack +(?P<ack>-?\d+))?(?: +win +(?P<win>\d+))?(?: +urg +(?P<urg>\d+))?(?: +gso +(?P<gso>\d+))?"
    r"(?: +<(?P<options>[^>]*)>)?"
)
DATA = re.compile(r"data +(?P<start>\d+):(?P<end>\d+)(?: +ack +(?P<ack>\d+))?")
LINE = re.compile(r"\+(?P<time>\d*\.?\d*) +(?P<what>.+?)(?P<more> *\.\.\.)?$")


class Mismatch(AssertionError):
    """The conversation went another way; the text says where."""


@dataclass
class Wanted:
    """A segment as a line has it, numbers relative."""

    flags: int
    start: int
    length: int
    ack: int | None
    window: int | None
    urgent: int
    gso: int
    options: Options | None


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def parse_options(text: str) -> Options:
    options = Options()
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, *values = item.split()
        if name == "mss":
            options.mss = int(values[0])
        elif name == "wscale":
            options.wscale = int(values[0])
        elif name == "sackOK":
            options.sack_ok = True
        elif name == "sack":
            options.sack = [(int(a), int(b)) for a, b in (value.split(":") for value in values)]
        elif name == "raw":
            options.raw = bytes.fromhex(values[0])
        else:
            raise ValueError(f"no such option: {item!r}")
    return options


def parse_wanted(text: str) -> Wanted:
    match = SEGMENT.fullmatch(text)
    if not match:
        raise ValueError(f"not a segment: {text!r}")
    start, length = int(match["start"]), int(match["length"])
    if start + length != int(match["end"]):
        raise ValueError(f"{start} and {length} bytes do not end at {match['end']}")
    return Wanted(
        flags=segments.flags_of(match["flags"]),
        start=start,
        length=length,
        ack=_number(match["ack"]),
        window=_number(match["win"]),
        urgent=int(match["urg"] or 0),
        gso=int(match["gso"] or 0),
        options=None if match["options"] is None else parse_options(match["options"]),
    )


class Conversation:
    """One connection of one guest; what else happens in the same world goes past it."""

    def __init__(
        self,
        world: World,
        family: int = 4,
        guest_port: int = 40000,
        remote_port: int = 80,
        guest_isn: int = 1000,
        remote: bytes | None = None,
    ) -> None:
        self.world = world
        self.ends = Ends(GUEST[family], guest_port, remote or PEER[family], remote_port)
        self.family = family
        self.guest_isn = guest_isn
        self.our_isn: int | None = None
        self.fd = -1
        self.clock_ms = world.now_ms
        self.window = 65535  # of the guest's, where a line says none
        self._wakeups_seen = 0
        self._calls_seen: dict[str, int] = {}
        self._words: dict[str, Callable[..., None]] = {
            name.removeprefix("_do_").replace("_", " "): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }

    @property
    def mtu_mss(self) -> int:
        return int(self.world.view.mtu) - (40 if self.family == 4 else 60)

    @property
    def our_mss(self) -> int:
        """Of many pages, whole ones."""
        most = self.mtu_mss
        return most if most < 8 * 4096 else most - most % 4096

    # ---- the script ----

    def __call__(self, script: str) -> Conversation:
        __tracebackhide__ = True  # what matters is the line of the script, which the text of the exception marks
        script = script.replace("mss ours", f"mss {self.our_mss}")
        lines = [line.strip() for line in script.strip().splitlines()]
        self.clock_ms = max(self.clock_ms, self.world.now_ms)
        for number, line in enumerate(lines):
            if not line or line.startswith("#"):
                continue
            try:
                self._run(line)
            except (AssertionError, ValueError) as problem:
                shown = [("=> " if n == number else "   ") + text for n, text in enumerate(lines)]
                raise Mismatch("\n".join([str(problem), *shown, *self._pending()])) from None
        return self

    def _run(self, line: str) -> None:
        match = LINE.fullmatch(line.split("#")[0].strip())
        if not match:
            raise ValueError(f"not a line of a conversation: {line!r}")
        seconds, what, more = float(match["time"] or 0), match["what"].strip(), bool(match["more"])
        if what.startswith(">"):
            self._expect(what[1:].strip(), seconds)
            return
        self._wait(seconds)
        if what.startswith("<"):
            self._none_pending()
            self._send(parse_wanted(what[1:].strip()))
            if not more:
                self.world.settle()
                self._learn()
            return
        self._act(what)
        if not more:
            self.world.settle()

    def _act(self, what: str) -> None:
        words = what.split()
        for count in (3, 2, 1):
            action = self._words.get(" ".join(words[:count]))
            if action:
                action(*words[count:])
                return
        raise ValueError(f"nobody can {what!r}")

    def _wait(self, seconds: float) -> None:
        self.clock_ms += round(seconds * 1000)
        if self.clock_ms > self.world.now_ms:
            self.world.advance((self.clock_ms - self.world.now_ms) / 1000)

    # ---- the guest's frames ----

    def _send(self, wanted: Wanted) -> None:
        options = wanted.options
        if options and options.sack:
            base = self.our_isn or 0
            options.sack = [((a + base) & 0xFFFFFFFF, (b + base) & 0xFFFFFFFF) for a, b in options.sack]
        head = self.ends.tcp_head(
            wanted.flags,
            self.guest_isn + wanted.start,
            (self.our_isn or 0) + (wanted.ack or 0),
            self.window if wanted.window is None else wanted.window,
            options,
            wanted.length,
            wanted.urgent,
        )
        stream = 2 * self.fd + 1 if self.fd >= 0 else 0
        self.world.send(head, stream, wanted.start - 1, wanted.length)

    def _learn(self) -> None:
        """The SYN has made a flow: its socket, and our initial sequence number."""
        flow = self.world.flow_of(self.ends)
        if flow is not None and (flow.fd != self.fd or self.our_isn is None) and flow.fd >= 0:
            self.fd, self.our_isn = flow.fd, int(flow.iss)
            self._wakeups_seen = lib.script_wakeups()

    # ---- frames to the guest ----

    def _is_mine(self, packet: Packet) -> bool:
        if packet.protocol != segments.PROTOCOL_TCP:
            return True
        ports = int.from_bytes(packet.payload[:2], "big"), int.from_bytes(packet.payload[2:4], "big")
        return (packet.source, packet.destination, *ports) == (
            self.ends.remote,
            self.ends.guest,
            self.ends.remote_port,
            self.ends.guest_port,
        )

    def _mine(self) -> list[Packet]:
        return [packet for packet in self.world.inbox if self._is_mine(packet)]

    def describe(self, packet: Packet) -> str:
        if packet.protocol != segments.PROTOCOL_TCP:
            return f"icmp {packet.payload[0]}/{packet.payload[1]}"
        segment = segments.parse_segment(packet)
        start = self._relative(segment.seq, self.our_isn)
        text = f"{segments.letters_of(segment.flags)} {start}:{start + segment.length}({segment.length})"
        if segment.flags & ACK:
            text += f" ack {self._relative(segment.ack, self.guest_isn)}"
        text += f" win {segment.window}"
        if segment.gso_size:
            text += f" gso {segment.gso_size}"
        if segment.options != Options():
            text += f" {segment.options}"
        return text

    def _pending(self) -> list[str]:
        return [f"there: +{(p.time_ms - self.clock_ms) / 1000} > {self.describe(p)}" for p in self._mine()[:8]]

    def _none_pending(self) -> None:
        mine = self._mine()
        assert not mine, f"a frame that no line asked for: {self.describe(mine[0])}"

    @staticmethod
    def _relative(number: int, base: int | None) -> int:
        distance = (number - (base or 0)) & 0xFFFFFFFF
        return distance - (1 << 32) if distance >> 31 else distance

    def _next(self, seconds: float) -> Packet:
        self.clock_ms += round(seconds * 1000)
        if not self._mine() and self.clock_ms > self.world.now_ms:
            self.world.advance((self.clock_ms - self.world.now_ms) / 1000, stop_at_frame=True)
        mine = self._mine()
        assert mine, "nothing came"
        late = mine[0].time_ms - self.clock_ms
        assert late == 0, f"it came {abs(late) / 1000} s too {'late' if late > 0 else 'early'}"
        self.world.inbox.remove(mine[0])
        return mine[0]

    def _expect(self, text: str, seconds: float) -> None:
        if text == "nothing":
            self._none_pending()
            self._wait(seconds)
            self._none_pending()
        elif text.startswith("icmp"):
            self._expect_icmp(text, self._next(seconds))
        elif text.startswith("data"):
            self._expect_data(text, seconds)
        else:
            self._expect_segment(text, self._next(seconds))

    def _expect_segment(self, text: str, packet: Packet) -> None:
        wanted, segment = parse_wanted(text), segments.parse_segment(packet)
        if self.our_isn is None:
            self.our_isn = segment.seq if segment.flags & (SYN | ACK) else 0
        assert segment.flags == wanted.flags, f"other flags: {self.describe(packet)}"
        relative = self._relative(segment.seq, self.our_isn)
        assert (relative, segment.length) == (wanted.start, wanted.length), f"other bytes: {self.describe(packet)}"
        assert segment.gso_size == wanted.gso, f"other segments: {self.describe(packet)}"
        self._compare_rest(wanted, segment, packet)

    def _compare_rest(self, wanted: Wanted, segment: Segment, packet: Packet) -> None:
        assert not wanted.urgent, "urgent data to the guest is in band"
        if wanted.ack is not None:
            assert self._relative(segment.ack, self.guest_isn) == wanted.ack, f"other ack: {self.describe(packet)}"
        if wanted.window is not None:
            assert segment.window == wanted.window, f"other window: {self.describe(packet)}"
        if wanted.options is not None:
            options = segment.options
            blocks = [(self._relative(a, self.guest_isn), self._relative(b, self.guest_isn)) for a, b in options.sack]
            there = Options(options.mss, options.wscale, options.sack_ok, blocks)
            assert there == wanted.options, f"other options: {self.describe(packet)}"
        self._compare_payload(segment)

    def _compare_payload(self, segment: Segment) -> None:
        if not segment.length:
            return
        frame, position = segment.packet.frame, self._relative(segment.seq, self.our_isn) - 1
        payload = ffi.from_buffer(frame) + segment.payload_offset
        match = lib.fake_pattern_match(2 * self.fd, position, payload, segment.length)
        shown = self.describe(segment.packet)
        assert match == segment.length, f"byte {position + match + 1} is not the peer's: {shown}"

    def _expect_data(self, text: str, seconds: float) -> None:
        match = DATA.fullmatch(text)
        if not match:
            raise ValueError(f"not data: {text!r}")
        at, end = int(match["start"]), int(match["end"])
        while at < end:
            packet = self._next(seconds)
            seconds = 0
            segment = segments.parse_segment(packet)
            start = self._relative(segment.seq, self.our_isn)
            assert start == at and 0 < segment.length <= end - at, f"not at {at}: {self.describe(packet)}"
            assert not segment.flags & (SYN | FIN | RST), f"other flags: {self.describe(packet)}"
            if match["ack"]:
                assert self._relative(segment.ack, self.guest_isn) == int(match["ack"]), self.describe(packet)
            self._compare_payload(segment)
            at += segment.length

    def _expect_icmp(self, text: str, packet: Packet) -> None:
        assert self.describe(packet) == " ".join(text.split()), f"another message: {self.describe(packet)}"
        ipv4 = self.family == 4
        body = packet.payload
        pseudo = b"" if ipv4 else segments.pseudo_header(packet.source, packet.destination, packet.protocol, len(body))
        assert segments.checksum(pseudo + body) == 0, "an ICMP checksum that is wrong"
        quoted = body[8:]
        header = 20 if ipv4 else 40
        ends = (quoted[12:16], quoted[16:20]) if ipv4 else (quoted[8:24], quoted[24:40])
        assert ends == (self.ends.guest, self.ends.remote), "an error about another connection"
        ports = self.ends.guest_port.to_bytes(2, "big") + self.ends.remote_port.to_bytes(2, "big")
        assert quoted[header : header + 8] == ports + self.guest_isn.to_bytes(4, "big"), "about another SYN"

    def finish(self) -> None:
        """No frame may be left over when the test is done."""
        self.clock_ms = self.world.now_ms
        if pending := self._pending():
            raise Mismatch("\n".join(["the conversation is over, but there is more:", *pending]))

    # ---- the peer ----

    @property
    def socket(self) -> Any:
        return lib.fake_socket_at(self.fd)

    def _peer(self, result: int) -> None:
        assert result >= 0, f"the peer cannot: {errno.errorcode.get(-result, result)}"

    def _do_peer_accepts(self) -> None:
        self._peer(lib.fake_peer_accept(self.fd))

    def _do_peer_refuses(self, error: str) -> None:
        self._peer(lib.fake_peer_refuse(self.fd, getattr(errno, error)))

    def _do_peer_sends(self, count: str, urgent: str = "") -> None:
        send = lib.fake_peer_send_urgent if urgent else lib.fake_peer_send
        sent = send(self.fd, int(count))
        assert sent == int(count), f"the peer could send {sent}"

    def _do_peer_takes(self, count: str) -> None:
        self._peer(lib.fake_peer_take(self.fd, 1 << 62 if count == "all" else int(count)))

    def _do_peer_closes(self) -> None:
        self._peer(lib.fake_peer_fin(self.fd))

    def _do_peer_resets(self) -> None:
        self._peer(lib.fake_peer_reset(self.fd))

    def _do_peer_got(self, count: str) -> None:
        assert self.socket.sent == int(count), f"the peer's kernel took {self.socket.sent} bytes"

    def _do_peer_sees(self, what: str) -> None:
        socket = self.socket
        if socket.closed:
            seen = "RST" if socket.aborted else "FIN"
        else:
            seen = "FIN" if socket.write_shut else "nothing"
        assert seen == what, f"the peer sees {seen}"

    # ---- the host's kernel and the link ----

    def _do_kernel_holds(self, count: str) -> None:
        held = self.socket.arrived - self.socket.taken
        assert held == int(count), f"the kernel holds {held} bytes"

    def _do_kernel_queue(self, count: str) -> None:
        lib.fake_send_limit(self.fd, int(count))

    def _do_kernel_fails(self, call: str, error: str) -> None:
        self.world.fail_next(call, getattr(errno, error))

    def _do_link_full(self) -> None:
        lib.script_set_room(0)

    def _do_link_gives(self, count: str) -> None:
        lib.script_give_room(int(count))

    def _do_link_gives_late(self, count: str) -> None:
        lib.script_give_room_late(int(count))

    def _do_link_detached(self) -> None:
        self.world.set_link(connected=False)

    def _do_link_attached(self) -> None:
        self.world.set_link(connected=True)
        lib.script_attach()

    # ---- what may be asked ----

    @property
    def flow(self) -> Any:
        flow = self.world.flow_of(self.ends)
        assert flow is not None, "the flow has gone"
        return flow

    def _do_woken(self, count: str, _idle: str = "idle", idle: str | None = None) -> None:
        woken = self.world.wakeups(self.fd, self._wakeups_seen)
        self._wakeups_seen = lib.script_wakeups()
        shown = ", ".join(event_names(wakeup.events) + (" (idle)" if wakeup.idle else "") for wakeup in woken)
        assert len(woken) == int(count), f"woken {len(woken)} times: {shown}"
        idles = sum(wakeup.idle for wakeup in woken)
        assert idle is None or idles == int(idle), f"{idles} of them idle: {shown}"

    def _do_calls(self, name: str, count: str) -> None:
        total = self.world.calls(name)
        since = total - self._calls_seen.get(name, 0)
        self._calls_seen[name] = total
        assert since == int(count), f"{name}() was called {since} times"

    def _do_forget(self) -> None:
        """What was called and woken so far is not counted."""
        self._wakeups_seen = lib.script_wakeups()
        self._calls_seen = {name: self.world.calls(name) for name in self.world.calls_known}

    def _do_stall(self, name: str) -> None:
        assert STALLS[self.flow.stall] == name, f"stalled for {STALLS[self.flow.stall]}"

    def _do_interest(self, bits: str) -> None:
        there = event_names(self.flow.interest)
        assert set(there.split("|")) == set(bits.split("|")), f"the interest is {there}"

    def _do_flow(self, to_guest: str, to_host: str = "") -> None:
        if to_guest == "gone":
            flow = self.world.flow_of(self.ends)
            assert flow is None, f"it is there: {HALVES[flow.to_guest]} {HALVES[flow.to_host]}"
            return
        halves = HALVES[self.flow.to_guest], HALVES[self.flow.to_host]
        assert halves == (to_guest, to_host), f"the halves are {' '.join(halves)}"

    def _do_closed(self, reason: str) -> None:
        reasons = self.world.close_reasons()
        assert reasons and reasons[-1] == reason, f"closed: {reasons}"

    # ---- what most conversations begin with ----

    def opened(self, options: str = "mss ours,wscale 7", window: int = 65535) -> Conversation:
        """The handshake, up to the guest's ACK; the window of all later lines that say none is `window`. To offer
        `mss ours` is to offer what the MTU leaves."""
        options = options.replace("mss ours", f"mss {self.mtu_mss}")
        offers = [item for item in options.split(",") if item]
        ours = ["mss ours"]
        ours += [item for item in ("wscale 8", "sackOK") if any(o.startswith(item[:6]) for o in offers)]
        self.window = window
        self(f"""
            +0 < S 0:0(0) win 65535 <{options}>
            +0 peer accepts
            +0 > S. 0:0(0) ack 1 <{",".join(ours)}>
            +0 < . 1:1(0) ack 1
            +0 forget
        """)
        return self
