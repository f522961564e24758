# SPDX-License-Identifier: Apache-2.0
"""Structured events: one line each, with a stable name and typed fields, for --debug and --trace.

Called by control for what happens in it (`dhcp.ack`, `link.attach`) and for what the worker reports (`flow.open`).
Names and fields are an interface: people filter by them, so they are changed like one. README lists them.
Adversary: the guest, which causes most events; what it wrote appears only as numbers, addresses and escaped text.

Invariants: without debugging nothing here costs anything (structlog, which does the rendering, is not even imported);
an event never changes what the helper does.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from lockgate.core import channel
from lockgate.core._datapath import ffi, lib
from lockgate.plugin.address import UNSET, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lockgate.plugin.log import Log

# structlog imports these when it finds them: rich alone costs 50 ms and megabytes in every container whose distribution
# has it. None of them adds anything to a line of ours.
_NOT_WANTED = ("rich", "better_exceptions", "twisted", "greenlet", "colorama")

_EVENT_NAMES = {
    lib.LG_EVENT_FLOW_OPEN: "flow.open",
    lib.LG_EVENT_FLOW_CONNECT: "flow.connect",
    lib.LG_EVENT_FLOW_STALL: "flow.stall",
    lib.LG_EVENT_FLOW_RESUME: "flow.resume",
    lib.LG_EVENT_FLOW_CLOSE: "flow.close",
    lib.LG_EVENT_FLOW_REFUSED: "flow.refused",
    lib.LG_EVENT_RETRANSMIT: "flow.retransmit",
    lib.LG_EVENT_RING_STOPPED: "ring.stopped",
    lib.LG_EVENT_FRAME_DROPPED: "frame.dropped",
    lib.LG_EVENT_NO_PING: "ping.refused",
    lib.LG_EVENT_FLOWS_FULL: "flows.full",
    lib.LG_EVENT_FLOW_UNANSWERED: "flow.unanswered",
}


_PROTOCOLS = {
    socket.IPPROTO_TCP: "tcp",
    socket.IPPROTO_UDP: "udp",
    socket.IPPROTO_ICMP: "icmp",
    socket.IPPROTO_ICMPV6: "icmpv6",
}


def endpoint_text(address: bytes, port: int) -> str:
    text = "" if address == UNSET else to_text(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


class Events:
    """Renders events into the log; silent, and free of cost, unless somebody listens."""

    def __init__(self, log: Log) -> None:
        self._writers = _writers(log) if log.heard else []

    @property
    def on(self) -> bool:
        return bool(self._writers)

    def emit(self, event: str, /, **fields: object) -> None:
        for write in self._writers:
            write(event, **fields)


def from_worker(payload: bytes) -> tuple[str, dict[str, object]] | None:
    """Name and fields of an lg_event; None if it is none: a worker that sends such is broken."""
    record = channel.parse_event(payload)
    name = None if record is None else _EVENT_NAMES.get(record.kind)
    return None if name is None else (name, _worker_fields(record))


def _worker_fields(record: Any) -> dict[str, object]:
    """The fields of an lg_event that its kind gives a meaning, by name."""
    fields: dict[str, object] = {}
    kind = record.kind
    if kind == lib.LG_EVENT_RING_STOPPED:
        return {"ring": int(record.value), "reason": _name(lib.lg_fault_name(record.reason), record.reason)}
    if kind == lib.LG_EVENT_FRAME_DROPPED:
        return {"reason": _name(lib.lg_counter_name(record.reason), record.reason)}
    if kind == lib.LG_EVENT_FLOWS_FULL:
        return {"limit": int(record.value)}
    if kind == lib.LG_EVENT_NO_PING:
        return {"error": os.strerror(abs(record.error))}
    fields["flow"] = int(record.flow)
    if kind == lib.LG_EVENT_FLOW_UNANSWERED:
        fields["guest"] = endpoint_text(bytes(record.guest_addr), record.guest_port)
        fields["peer"] = endpoint_text(bytes(record.remote_addr), record.remote_port)
        return fields | {"error": _dial_error(fields["guest"], abs(record.error))}
    if kind == lib.LG_EVENT_FLOW_OPEN:
        fields["protocol"] = _PROTOCOLS.get(record.protocol, str(record.protocol))
    if kind in (lib.LG_EVENT_FLOW_OPEN, lib.LG_EVENT_FLOW_CONNECT, lib.LG_EVENT_FLOW_CLOSE, lib.LG_EVENT_FLOW_REFUSED):
        fields["guest"] = endpoint_text(bytes(record.guest_addr), record.guest_port)
        fields["remote"] = endpoint_text(bytes(record.remote_addr), record.remote_port)
    if kind in (lib.LG_EVENT_FLOW_STALL, lib.LG_EVENT_FLOW_RESUME):
        fields["reason"] = _name(lib.lg_stall_name(record.reason), record.reason)
    if kind == lib.LG_EVENT_FLOW_CLOSE:
        fields["reason"] = _name(lib.lg_close_name(record.reason), record.reason)
        fields["bytes_to_guest"] = int(record.bytes_to_guest)
        fields["bytes_from_guest"] = int(record.bytes_from_guest)
    if kind == lib.LG_EVENT_RETRANSMIT:
        fields["bytes"] = int(record.value)
    if record.error:
        fields["error"] = os.strerror(abs(record.error))
    return fields


def _dial_error(guest: object, error: int) -> str:
    """As gvproxy says it."""
    if error == errno.ETIMEDOUT:
        return "context deadline exceeded"
    words = {errno.ECONNREFUSED: "connection was refused", errno.EHOSTUNREACH: "no route to host"}
    return f"connect tcp {guest}: {words.get(error) or os.strerror(error)}"


def _name(text: Any, number: int) -> str:
    """A name out of the C tables; the bare number if a broken worker made it up."""
    return ffi.string(text).decode() if text != ffi.NULL else str(number)


class _Sink:
    """What structlog takes for a logger: it calls the method that is named like the level."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.debug = write


def _writers(log: Log) -> list[Callable[..., object]]:
    """One for each place that takes debug lines."""
    structlog = _import_structlog()
    level = structlog.processors.add_log_level
    time = structlog.processors.TimeStamper(fmt="iso", utc=True)
    places: list[tuple[Callable[[str], None], list[Any]]] = []
    if log.stderr and log.json:
        places.append((log.event_to_stderr, [level, time, structlog.processors.JSONRenderer()]))
    elif log.stderr and log.form is not None:
        places.append((log.event_to_stderr, [_escape, _logfmt(structlog)]))
    elif log.stderr:
        console = structlog.dev.ConsoleRenderer(colors=os.isatty(2), sort_keys=False)
        places.append((log.event_to_stderr, [time, _escape, console]))
    if log.file is not None:  # which has its own clock and levels
        places.append((log.event_to_file, [_escape, _logfmt(structlog)]))
    wrapper = structlog.make_filtering_bound_logger(0)
    return [
        structlog.wrap_logger(_Sink(write), processors=processors, wrapper_class=wrapper).debug
        for write, processors in places
    ]


def _logfmt(structlog: Any) -> Any:
    return structlog.processors.LogfmtRenderer(key_order=("event",))


def _escape(logger: object, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What a guest wrote must not end the line or talk to the terminal. (JSON escapes by itself.)"""
    for name, value in fields.items():
        if isinstance(value, str) and not value.isprintable():
            fields[name] = ascii(value)
    return fields


def _import_structlog() -> Any:
    hidden = [name for name in _NOT_WANTED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        import structlog
    finally:
        for name in hidden:
            del sys.modules[name]
    return structlog
