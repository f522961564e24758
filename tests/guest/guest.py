# SPDX-License-Identifier: Apache-2.0
"""A running guest: boots a real kernel whose only network is a vhost-user socket, and runs commands in it.

Called by the tests and the demo. Adversary: nobody.
Invariants: the console goes to build/guest-logs/NAME.console.log and nowhere else; commands go over a serial line of
their own (init.sh has the protocol); every wait ends with an answer, with the guest's death, or with its time.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import image
import machine
from helper import LOGS

# VIRTIO_NET_F_* and the transport's bits, by number (virtio 1.3, 5.1.3 and 6)
FEATURE_NAMES = {
    0: "CSUM",
    1: "GUEST_CSUM",
    2: "CTRL_GUEST_OFFLOADS",
    3: "MTU",
    5: "MAC",
    7: "GUEST_TSO4",
    8: "GUEST_TSO6",
    9: "GUEST_ECN",
    10: "GUEST_UFO",
    11: "HOST_TSO4",
    12: "HOST_TSO6",
    13: "HOST_ECN",
    14: "HOST_UFO",
    15: "MRG_RXBUF",
    16: "STATUS",
    17: "CTRL_VQ",
    18: "CTRL_RX",
    19: "CTRL_VLAN",
    21: "GUEST_ANNOUNCE",
    22: "MQ",
    23: "CTRL_MAC_ADDR",
    28: "INDIRECT_DESC",
    29: "EVENT_IDX",
    32: "VERSION_1",
    33: "ACCESS_PLATFORM",
    54: "GUEST_USO4",
    55: "GUEST_USO6",
    56: "HOST_USO",
    57: "HASH_REPORT",
    63: "STANDBY",
}
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")  # in front of a command: even if we are killed, it ends
COMMAND_BYTES_MAX = 3000  # the guest's line discipline takes 4095 at a time


class GuestFailed(Exception):
    """The guest died, did not answer in time, or a command that had to work did not."""


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended."""

    status: int
    output: str


class Guest:
    """One booted guest. Use `boot`."""

    def __init__(self, name: str, booted: machine.Machine, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.machine = booted
        self.log = log
        self.kernel = ""
        self.boot_seconds = 0.0
        self._process = process
        self._channel = socket.socket()
        self._received = bytearray()
        self._number = 0

    @classmethod
    def boot(
        cls,
        name: str,
        kind: str | machine.Machine,
        socket_path: Path,
        memory_mb: int = 768,
        mac: str | None = None,
        timeout: float = 60,
        more_programs: Mapping[str, str] | None = None,
        more_modules: tuple[str, ...] = (),
        more_files: Mapping[str, bytes] | None = None,
    ) -> Guest:
        """Starts a guest of that kind on the helper's socket and waits until it takes commands."""
        found = machine.find(kind) if isinstance(kind, str) else kind
        initramfs = image.build(found.kind, found.modules, more_programs, more_modules, more_files)
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{name}.console.log"
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lockgate-") as folder:
            ours, theirs = socket.socketpair()
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(Path(folder, "channel")))
            listener.listen()
            plan = machine.Boot(
                socket_path, initramfs, memory_mb, Path(folder, "channel"), theirs.fileno(), log, Path(folder), mac
            )
            with theirs, listener, open(log, "wb") as console:
                guest = cls(name, found, _start(found, plan, theirs, console.fileno()), log)
                try:
                    guest._channel = ours if found.channel_by_fd else guest._accepted(listener, timeout)
                    theirs.close()
                    guest.kernel = guest._line(started + timeout).removeprefix("@@ready ")
                except BaseException:
                    guest.kill()
                    raise
        guest.boot_seconds = time.monotonic() - started
        return guest

    def _accepted(self, listener: socket.socket, timeout: float) -> socket.socket:
        listener.settimeout(timeout)
        try:
            return listener.accept()[0]
        except TimeoutError:
            raise self._failure(f"QEMU did not open its serial line within {timeout} s") from None

    @property
    def pid(self) -> int:
        """Of the monitor; User-mode Linux's own."""
        return self._process.pid

    def run(self, command: str, timeout: float = 30) -> Result:
        """Runs a shell command; its status, and its output with what went to standard error."""
        self.start(command)
        return self.finish(timeout)

    def output(self, command: str, timeout: float = 30) -> str:
        """The output of a command that has to succeed."""
        result = self.run(command, timeout)
        if result.status != 0:
            raise self._failure(f"`{command}` ended with status {result.status}:\n{result.output}")
        return result.output.strip()

    def start(self, command: str) -> None:
        """Sends a command without waiting; the next call must be `finish`."""
        encoded = base64.b64encode(command.encode())
        if len(encoded) > COMMAND_BYTES_MAX:
            raise ValueError(
                f"a command of {len(encoded)} bytes in base64, at most {COMMAND_BYTES_MAX} fit the channel"
            )
        self._number += 1
        try:
            self._channel.sendall(b"%d %s\n" % (self._number, encoded))
        except OSError as error:
            raise self._failure(f"the guest takes no command: {error}") from error

    def finish(self, timeout: float = 30) -> Result:
        """Waits for the command that `start` sent."""
        deadline = time.monotonic() + timeout
        number, status, size = (int(word) for word in self._line(deadline).removeprefix("@@").split())
        if number != self._number:
            raise self._failure(f"an answer to command {number}, expected {self._number}")
        while len(self._received) < size:
            self._receive(deadline)
        output = bytes(self._received[:size])
        del self._received[:size]
        return Result(status, output.decode(errors="replace"))

    def network_up(self, families: str = "inet inet6", timeout: float = 30) -> None:
        """Lease by DHCP, address by autoconfiguration: done when every family named has a global address."""
        self.output(f"network-up {timeout:.0f} {families}", timeout + 10)

    def lease(self) -> dict[str, str]:
        """What DHCP gave: ip, mask, router, dns, mtu and so on."""
        pairs = (line.partition("=") for line in self.output("cat /tmp/lease").splitlines())
        return {name: value for name, _, value in pairs}

    def gateway(self, family: int = 4) -> str:
        """The default route's next hop; of IPv6 with %eth0."""
        route = self.output(f"ip -{family} route show default")
        found = re.search(r"via (\S+)", route)
        if found is None:
            raise self._failure(f"no default route for IPv{family}: {route!r}")
        return found[1] + ("%eth0" if found[1].startswith("fe80") else "")

    def features(self) -> list[str]:
        """The virtio features that guest and helper agreed on."""
        bits = self.output("cat /sys/class/net/eth0/device/features")
        return [FEATURE_NAMES.get(bit, f"bit{bit}") for bit, value in enumerate(bits) if value == "1"]

    def power_off(self, timeout: float = 20) -> None:
        """Lets the kernel end in order, which closes the vhost-user connection."""
        self.start("poweroff -f")
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._failure(f"the guest is still on after {timeout} s") from None
        self.kill()

    def kill(self) -> None:
        """Ends the guest as a crash would. User-mode Linux runs its programs as children: all are in its session."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._channel.close()

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._received:
            self._receive(deadline)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received[:] = rest
        return line.decode(errors="replace")

    def _receive(self, deadline: float) -> None:
        self._channel.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._channel.recv(1 << 16)
        except TimeoutError:
            raise self._failure("no answer in time") from None
        except OSError as error:
            raise self._failure(f"the channel broke: {error}") from error
        if not data:
            raise self._failure("the guest is gone")
        self._received += data

    def _failure(self, what: str) -> GuestFailed:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
        return GuestFailed(f"{self.name}: {what}\nits console ({self.log}) ends with:\n{tail}")


def _start(found: machine.Machine, plan: machine.Boot, theirs: socket.socket, console: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*DIES_WITH_US, *found.arguments(plan)],
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        pass_fds=[theirs.fileno()] if found.channel_by_fd else [],
        env={**os.environ, **found.environment},
        start_new_session=True,
    )
