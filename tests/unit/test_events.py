# SPDX-License-Identifier: Apache-2.0
"""plugin/events.py: names and fields of events, and how they are rendered."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core._datapath import ffi, lib
from lockgate.plugin import events, log

IPV4 = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1))
IPV6 = b"\xfd" + bytes(14) + b"\1"


def record(kind: int, **fields: Any) -> bytes:
    return bytes(ffi.buffer(ffi.new("struct lg_event *", {"kind": kind, **fields})))


def test_a_flow_is_told_by_its_two_ends() -> None:
    """IPv4 and IPv6 as people write them, with the port, and the protocol by its name."""
    ends = {"guest_addr": IPV4, "remote_addr": IPV6, "guest_port": 40000, "remote_port": 443}
    assert events.from_worker(record(lib.LG_EVENT_FLOW_OPEN, flow=7, protocol=17, **ends)) == (
        "flow.open",
        {"flow": 7, "protocol": "udp", "guest": "192.0.2.1:40000", "remote": "[fd00::1]:443"},
    )


def test_a_stall_is_told_with_its_reason() -> None:
    """By the name that the C core gives to it."""
    reasons = [ffi.string(lib.lg_stall_name(number)).decode() for number in range(4)]
    for number, name in enumerate(reasons):
        told = events.from_worker(record(lib.LG_EVENT_FLOW_STALL, flow=1, reason=number))
        assert told == ("flow.stall", {"flow": 1, "reason": name})
    assert "window" in reasons


def test_the_end_of_a_flow_is_told_with_what_it_moved() -> None:
    """And with the error that ended it, in words."""
    payload = record(lib.LG_EVENT_FLOW_CLOSE, flow=1, bytes_to_guest=10, bytes_from_guest=20, error=errno.ECONNRESET)
    told = events.from_worker(payload)
    assert told is not None and told[0] == "flow.close"
    assert told[1]["bytes_to_guest"] == 10 and told[1]["bytes_from_guest"] == 20
    assert told[1]["error"] == "Connection reset by peer"


def test_a_connection_that_no_guest_took_is_told_as_gvproxy_does() -> None:
    ends = {"guest_addr": IPV4, "remote_addr": IPV4, "guest_port": 22, "remote_port": 50000}
    told = []
    for error in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EACCES):
        name, fields = events.from_worker(record(lib.LG_EVENT_FLOW_UNANSWERED, error=error, **ends)) or ("", {})
        assert (name, fields["peer"], fields["guest"]) == ("flow.unanswered", "192.0.2.1:50000", "192.0.2.1:22")
        told.append(fields["error"])
    dial = "connect tcp 192.0.2.1:22: "
    assert told == [
        f"{dial}connection was refused",
        f"{dial}no route to host",
        "context deadline exceeded",
        f"{dial}Permission denied",
    ]


def test_every_kind_of_event_has_a_name() -> None:
    """All that datapath.h defines, none of them twice."""
    kinds = {getattr(lib, name) for name in dir(lib) if name.startswith("LG_EVENT_")}
    names = [told[0] for kind in kinds if (told := events.from_worker(record(kind))) is not None]
    assert len(names) == len(set(names)) == len(kinds)


@given(st.binary(min_size=ffi.sizeof("struct lg_event"), max_size=ffi.sizeof("struct lg_event")))
def test_any_bytes_of_the_right_length_are_told_or_left_out(payload: bytes) -> None:
    """A broken worker cannot make control fall: numbers without a name are shown as numbers."""
    events.from_worker(payload)


def test_a_line_is_text_or_json(capfd: pytest.CaptureFixture[str]) -> None:
    """Name and typed fields; JSON keeps their types."""
    events.Events(log.Log("passt", log.DEBUG, json=True)).emit("link.attach", features=["CSUM"], port=0)
    told = json.loads(capfd.readouterr().err)
    assert told["event"] == "link.attach" and told["features"] == ["CSUM"] and told["port"] == 0
    events.Events(log.Log("passt", log.DEBUG, json=False)).emit("dhcp.ack", address="192.0.2.2")
    line = capfd.readouterr().err
    assert "dhcp.ack" in line and "address=192.0.2.2" in line and line.count("\n") == 1


def test_in_a_log_file_an_event_is_a_debug_line(tmp_path: Path) -> None:
    """With the file's own clock, and key=value."""
    lines = log.Log("passt", log.DEBUG, json=False)
    lines.stderr = False
    lines.file = log.LogFile(str(tmp_path / "log"), 1 << 20, "passt 1.2")
    events.Events(lines).emit("ra.sent", port=0)
    assert (tmp_path / "log").read_text().splitlines()[1].endswith(":          event=ra.sent port=0")


def test_in_a_log_with_a_form_of_its_own_an_event_is_one_of_its_lines(capfd: pytest.CaptureFixture[str]) -> None:
    lines = log.Log("gvproxy", log.DEBUG, json=False, form=lambda level, text, _: f"{level}: {text}\n")
    events.Events(lines).emit("flow.open", flow=1)
    assert capfd.readouterr().err == "debug: event=flow.open flow=1\n"


def test_what_a_guest_wrote_stays_on_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    """A line end or an escape sequence in a field does not reach the terminal as such."""
    events.Events(log.Log("passt", log.DEBUG, json=False)).emit("dhcp.ack", hostname="a\nflow.open\x1b[2J")
    line = capfd.readouterr().err
    assert line.count("\n") == 1 and "\x1b" not in line


def test_without_debugging_nothing_is_rendered_or_imported() -> None:
    """Neither structlog nor, with debugging, what structlog would import for beauty if it found it."""
    program = """
import sys, types
from lockgate.plugin import events, log
quiet = events.Events(log.Log("passt", log.INFO, False))
quiet.emit("ra.sent")
assert not quiet.on and "structlog" not in sys.modules
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("rich", "twisted", "better_exceptions"), name
sys.meta_path.insert(0, Refuse())
assert events.Events(log.Log("passt", log.DEBUG, False)).on and "structlog" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
