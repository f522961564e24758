# SPDX-License-Identifier: Apache-2.0
"""What a `gvproxy` costs that has nothing to do, and how long a start of it takes.

Called by the runner. Adversary: nobody.
Invariants: memory is that of all its processes, with a guest that has its address and is silent. A start is ready when
the link's socket is there, because Podman looks for nothing else before it starts the machine. The other line is for a
guest that would be there at once, and asks for the gateway's address.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import readiness
from container import SETTLE_SECONDS
from helper import HelperFailed
from machine_visit import GATEWAY, MAC, visiting
from measure import Family, Measure, Settings, Side, Values
from pasta_rest import MEGABYTE

PSS_LIMIT_MB = 30.0
READY_AIM = 1.2

# RFC 826: who has the gateway's address? Ethernet (1) and IPv4 with addresses of 6 and 4 bytes; a request is 1.
_LENGTH = struct.Struct("!I")  # before each frame
_ARP = bytes.fromhex("0806")
_GUEST = bytes.fromhex(MAC.replace(":", "")) + socket.inet_aton("192.168.127.2")
_REQUEST = bytes.fromhex("0001 0800 06 04 0001") + _GUEST + bytes(6) + socket.inet_aton(GATEWAY)
_QUESTION = b"\xff" * 6 + _GUEST[:6] + _ARP + _REQUEST


def rest_measures(settings: Settings) -> list[Measure]:
    """Memory, and CPU in a silence."""
    silence = f"CPU in {settings.idle_seconds:g} s of silence"
    return [
        Measure("rest.pss", "Memory at rest", "PSS of all processes", "MB", limit=PSS_LIMIT_MB),
        Measure("rest.cpu", silence, "a machine that is idle", "ms", has_ratio=False),
    ]


def run_rest(side: Side, settings: Settings, values: Values) -> None:
    """One visit."""
    with visiting(side, settings) as visit:
        visit.helper.watch(SETTLE_SECONDS)
        values["rest.cpu"] = visit.window(settings.idle_seconds).cpu_seconds * 1e3
        values["rest.pss"] = visit.own_pss_bytes() / MEGABYTE


def ready_measures(settings: Settings) -> list[Measure]:
    """What Podman sees, and what a guest would see that is there at once. A passt has no gateway of its own making."""
    to_socket = "exec to the link's socket"
    if settings.peer == "passt":
        return [Measure("ready", "Time to ready", to_socket, "ms")]
    return [
        Measure("ready", "Time to ready", to_socket, "ms", aim=READY_AIM),
        Measure("ready.answer", "Time to ready", "exec to the gateway's first answer", "ms"),
    ]


def run_ready(side: Side, settings: Settings, values: Values) -> None:
    """Without a guest."""
    values["ready"] = readiness.milliseconds(side, Path.exists)
    if settings.peer != "passt":
        values["ready.answer"] = readiness.milliseconds(side, _answers)


def _answers(link: Path) -> bool:
    """Whether there is somebody behind it; waits until the gateway has said what its address is."""
    with socket.socket(socket.AF_UNIX) as guest:
        guest.settimeout(readiness.PATIENCE)
        try:
            guest.connect(str(link))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        guest.sendall(_LENGTH.pack(len(_QUESTION)) + _QUESTION)
        while not _is_answer(_received(guest, *_LENGTH.unpack(_received(guest, _LENGTH.size)))):
            pass
    return True


def _received(guest: socket.socket, count: int) -> bytes:
    data = guest.recv(count, socket.MSG_WAITALL)
    if len(data) < count:
        raise HelperFailed("the helper has ended the link of a guest that asked for the gateway")
    return data


def _is_answer(frame: bytes) -> bool:
    return frame[12:14] == _ARP and frame[28:32] == socket.inet_aton(GATEWAY)


REST = Family("rest", "at rest", rest_measures, run_rest)
READY = Family("ready", "time to ready", ready_measures, run_ready)
