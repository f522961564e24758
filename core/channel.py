# SPDX-License-Identifier: Apache-2.0
"""Records between the processes, packed and unpacked by datapath.h itself: cffi reads the same text as the compiler.

Called by control (commands, replies, punts, events), and by first_words.py before READY, hence the light imports;
records of whole flows are in flow_records.py. Sans-io: bytes in and out; who sends them is control.py.
Adversary: a worker that the guest has broken. Each record's length is checked before it is looked into; one that does
not fit is None, for the caller to count.

Invariants: addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d, unset as zeros, and stay so; text is made of them only where
something is shown.
"""

from __future__ import annotations

from lockgate.core._datapath import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_REPLIES = {int(ffi.sizeof(f"struct {name}")) for name in ("lg_reply", "lg_flow_page", "lg_frozen_page")}
REPLY_BYTES_MAX = max(_REPLIES)
REPLY_FDS_MAX: int = lib.LG_FROZEN_PAGE

_UP_SIZE: int = ffi.sizeof("struct lg_up")
UP_RECORD_MAX = _UP_SIZE + lib.LG_UP_BYTES_MAX


def copied(structure: str, data: bytes) -> Any:
    """The structure at the head of `data`, in memory of its own (a view would not keep `data` alive)."""
    record = ffi.new(f"struct {structure} *")
    ffi.memmove(record, data, ffi.sizeof(f"struct {structure}"))
    return record


class Command:
    """One record for the worker, complete but for its number, which is given when it is sent."""

    __slots__ = ("_record", "_header", "kind")

    def __init__(self, kind: int, record: Any) -> None:
        self.kind = kind
        self._record = record
        self._header = ffi.cast("struct lg_cmd_header *", record)

    def fill(self, field: str, data: bytes) -> None:
        """A part that is packed already; its size is checked against the structure."""
        part = ffi.buffer(ffi.addressof(self._record, field))
        part[:] = data

    def numbered(self, seq: int) -> bytes:
        self._header.seq = seq
        return bytes(ffi.buffer(self._record))


def bare(kind: int, port: int = 0) -> Command:
    """LG_CMD_LINK_RESET and others: a header and nothing else."""
    return Command(kind, ffi.new("struct lg_cmd_header *", {"type": kind, "port": port}))


def _command(structure: str, kind: int, port: int, **content: Any) -> Command:
    return Command(kind, ffi.new(f"struct {structure} *", {"header": {"type": kind, "port": port}, **content}))


def value(kind: int, number: int, port: int = 0) -> Command:
    return _command("lg_cmd_value", kind, port, value=number)


def net_view(view: bytes, port: int = 0) -> Command:
    """`view` is a whole lg_net_view."""
    command = _command("lg_cmd_net_view", lib.LG_CMD_NET_VIEW, port)
    command.fill("view", view)
    return command


def neighbours(count: int, others4: bytes, others6: bytes, packed: bytes, port: int = 0) -> Command:
    """LG_CMD_NEIGHBOURS; `packed` are that many lg_neighbour, LG_NEIGHBOURS_MAX at most, in ascending order."""
    command = _command("lg_cmd_neighbours", lib.LG_CMD_NEIGHBOURS, port)
    table = ffi.new("struct lg_neighbours *", {"count": count, "others4": others4, "others6": others6})
    ffi.buffer(ffi.addressof(table, "entry"))[: len(packed)] = packed
    command.fill("table", bytes(ffi.buffer(table)))
    return command


def memory(kind: int, regions: Iterable[tuple[int, int, int, int]], port: int = 0) -> Command:
    """LG_CMD_MEM_*; a region is (guest_addr, size, user_addr, mmap_offset), the order of lg_mem_region."""
    listed = [tuple(region) for region in regions]
    return _command("lg_cmd_mem", kind, port, count=len(listed), region=listed)


def vring(port: int = 0, **content: int) -> Command:
    """LG_CMD_VRING_START; the fields of lg_cmd_vring."""
    return _command("lg_cmd_vring", lib.LG_CMD_VRING_START, port, **content)


def dirty_log(size: int, offset: int, port: int = 0) -> Command:
    return _command("lg_cmd_log", lib.LG_CMD_DIRTY_LOG, port, size=size, offset=offset)


def listen(
    kind: int,
    protocol: int,
    target: bytes,
    slots: Sequence[int],
    ports: Sequence[int],
    port: int = 0,
    *,
    outward: bool = False,
) -> Command:
    """LG_CMD_LISTEN for as many sockets as there are ports of the guest, LG_LISTEN_MAX at most, which go along in
    order; LG_CMD_LISTEN_TARGET for such as are there. `target` is 16 bytes; all zeros: the guest as it is seen. With
    `outward`, they listen in the guest's namespace, and the ports are the host's."""
    named = {"slot": list(slots), "guest_port": list(ports), "outward": int(outward)}
    command = _command("lg_cmd_listen", kind, port, count=len(ports), protocol=protocol, **named)
    command.fill("target", target)
    return command


def serve(frame: bytes, port: int = 0) -> Command:
    """LG_CMD_GATEWAY_SERVE; `frame` is one that was punted."""
    head = frame[: lib.LG_FRAME_HEAD]
    return _command("lg_cmd_serve", lib.LG_CMD_GATEWAY_SERVE, port, length=len(frame), head_length=len(head), head=head)


def dial(guest: bytes, guest_port: int, gateway_port: int, port: int = 0) -> Command:
    """LG_CMD_GATEWAY_DIAL."""
    ports = {"guest_port": guest_port, "gateway_port": gateway_port}
    return _command("lg_cmd_dial", lib.LG_CMD_GATEWAY_DIAL, port, guest=guest, **ports)


def seen(payload: bytes, port: int = 0) -> Command:
    """LG_CMD_SEEN; `payload` is a whole lg_seen."""
    command = _command("lg_cmd_seen", lib.LG_CMD_SEEN, port)
    command.fill("seen", payload)
    return command


class Reply:
    """What the worker answered. `result` is 0 or a negative errno."""

    __slots__ = ("kind", "seq", "result", "value", "record", "fds")

    def __init__(self, record: bytes, fds: Sequence[int] = ()) -> None:
        reply = copied("lg_reply", record)
        self.kind = int(reply.type)
        self.seq = int(reply.seq)
        self.result = int(reply.result)
        self.value = int(reply.value)
        self.record = record  # of LG_CMD_FLOWS and LG_CMD_FLOWS_FREEZE: the whole page
        self.fds = fds  # of LG_CMD_FLOWS_FREEZE: whoever asked for them closes them


def parse_reply(record: bytes, fds: Sequence[int] = ()) -> Reply | None:
    return Reply(record, fds) if len(record) in _REPLIES else None


class Up:
    """One record of the lossy channel; frozen by convention."""

    __slots__ = ("kind", "port", "payload")

    def __init__(self, kind: int, port: int, payload: bytes) -> None:
        self.kind = kind
        self.port = port
        self.payload = payload


def parse_up(record: bytes) -> Up | None:
    if len(record) < _UP_SIZE:
        return None
    head = copied("lg_up", record)
    if head.length != len(record) - _UP_SIZE:
        return None
    return Up(int(head.type), int(head.port), record[_UP_SIZE:])


def pack_up(kind: int, payload: bytes, port: int = 0) -> bytes:
    head = ffi.new("struct lg_up *", {"type": kind, "port": port, "length": len(payload)})
    return bytes(ffi.buffer(head)) + payload


def pack_seen(mac: bytes, addr4: bytes, addr6: bytes, link_local: bytes) -> bytes:
    """An lg_seen."""
    record = ffi.new("struct lg_seen *", {"mac": mac, "addr4": addr4, "addr6": addr6, "link_local": link_local})
    return bytes(ffi.buffer(record))


class Seen:
    """What the worker has seen of the guest; frozen by convention."""

    __slots__ = ("mac", "addr4", "addr6", "link_local")

    def __init__(self, payload: bytes) -> None:
        seen = copied("lg_seen", payload)
        self.mac = bytes(seen.mac)
        self.addr4 = bytes(seen.addr4)
        self.addr6 = bytes(seen.addr6)
        self.link_local = bytes(seen.link_local)


def parse_seen(payload: bytes) -> Seen | None:
    return Seen(payload) if len(payload) == ffi.sizeof("struct lg_seen") else None


def parse_cam(payload: bytes) -> bytes | None:
    """Of an lg_cam: the MAC address."""
    return payload[:6] if len(payload) == ffi.sizeof("struct lg_cam") else None


def parse_link_end(payload: bytes) -> tuple[int, int] | None:
    """Of an lg_link_end: why the stream is over, as an errno or 0, and with EPROTO the length that was no frame's."""
    if len(payload) != ffi.sizeof("struct lg_link_end"):
        return None
    end = copied("lg_link_end", payload)
    return int(end.error), int(end.length)


def parse_event(payload: bytes) -> Any | None:
    """The lg_event itself, which is only read: it has as many fields as it has readers."""
    if len(payload) != ffi.sizeof("struct lg_event"):
        return None
    return copied("lg_event", payload)
