# SPDX-License-Identifier: Apache-2.0
"""QEMU moves a running guest from one host to another in the middle of a download: what it has received in the end is
what was sent, on the one connection. Needs a QEMU that transfers a vhost-user back end's state (11.0 or newer)."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import image
import machine
import pytest
from guest import DIES_WITH_US, Guest
from running import Foreground
from two_hosts import OPTIONS, PEER, Namespace, RepairHelper, TwoHosts

BYTES = 60_000_000
MOVES_AFTER = BYTES // 5
BOOT_SECONDS, MOVE_SECONDS, DOWNLOAD_SECONDS = 60, 30, 60
# netcat ends at the end of the stream, but not before its own input has ended: its other half must be open to move.
DOWNLOAD = "mkfifo /tmp/never; exec 3<>/tmp/never; nc {} {} <&3 | sha256sum"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, and TCP_REPAIR")


class Monitor:
    """One QEMU with its control socket."""

    def __init__(self, found: machine.Machine, initramfs: Path, helper: Foreground, folder: Path, *more: str) -> None:
        channel, control = folder / "channel", folder / "control"
        log = folder / "console"
        boot = machine.Boot(helper.socket, initramfs, 256, channel, -1, log, folder, "52:54:00:12:34:56")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as commands:
            for sock, path in ((listener, channel), (commands, control)):
                sock.bind(str(path))
                sock.listen()
                sock.settimeout(BOOT_SECONDS)
            self.process = subprocess.Popen(
                [*DIES_WITH_US, *found.arguments(boot), "-qmp", f"unix:{control}", *more],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **found.environment, "BIND": f"{found.environment.get('BIND', '')} {folder}"},
                start_new_session=True,
            )
            self._qmp, _ = commands.accept()
            self.guest = Guest("migration", found, self.process, log)
            self.guest._channel, _ = listener.accept()
        self._lines = self._qmp.makefile("rw")
        self._lines.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """What QEMU returns; events are passed over."""
        self._lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def until(self, event: str) -> None:
        """Waits for one of its events."""
        self._qmp.settimeout(MOVE_SECONDS)
        while json.loads(self._lines.readline()).get("event") != event:
            pass
        self._qmp.settimeout(None)

    def close(self) -> None:
        self.guest.kill()
        self._lines.close()
        self._qmp.close()


class Download:
    """The far end: sends as fast as the guest takes it."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._piece = os.urandom(1 << 20)
        self._reached = os.eventfd(0)
        self.sent = hashlib.sha256()
        self.connections = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._server.accept()
        self.connections += 1
        with sock:
            left = BYTES
            while left:
                piece = self._piece[:left]
                sock.sendall(piece)
                self.sent.update(piece)
                if left > BYTES - MOVES_AFTER >= left - len(piece):
                    os.eventfd_write(self._reached, 1)
                left -= len(piece)

    def until_under_way(self) -> None:
        waiting = select.poll()
        waiting.register(self._reached, select.POLLIN)
        assert waiting.poll(DOWNLOAD_SECONDS * 1000), "the download does not go on"

    def close(self) -> None:
        self._thread.join()
        os.close(self._reached)
        self._server.close()


@pytest.fixture(name="hosts")
def two_hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    yield hosts
    hosts.close()


def begin(host: Namespace, folder: Path) -> tuple[Foreground, RepairHelper]:
    folder.mkdir()
    folder.chmod(0o777)
    helper = Foreground(folder, *OPTIONS, prefix=host.prefix)
    return helper, RepairHelper(Path(f"{helper.socket}.repair"))


def test_a_download_goes_on_while_qemu_moves_its_guest(hosts: TwoHosts, folder: Path) -> None:
    """The memory that we write meanwhile moves with it: QEMU knows of it by the dirty log."""
    try:
        found = machine.find("qemu-peer")
    except image.MissingIngredient as missing:
        pytest.skip(str(missing))
    initramfs = image.build("qemu-peer", found.modules)
    started = [begin(hosts.source, folder / "source"), begin(hosts.target, folder / "target")]
    (here, _), (there, _) = started
    monitors = [Monitor(found, initramfs, here, folder / "source")]
    try:
        guest = monitors[0].guest
        assert "@@ready" in guest._line(time.monotonic() + BOOT_SECONDS)
        guest.network_up("inet")
        download = Download(hosts.server())
        guest.start(DOWNLOAD.format(PEER, download._server.getsockname()[1]))
        download.until_under_way()

        monitors.append(Monitor(found, initramfs, there, folder / "target", "-incoming", "defer"))
        way = f"unix:{folder}/way"
        monitors[1].command("migrate-incoming", uri=way)
        monitors[0].command("migrate", uri=way)
        monitors[1].until("RESUME")
        hosts.move()
        monitors[0].close()

        moved = monitors[1].guest
        moved._number = guest._number
        result = moved.finish(DOWNLOAD_SECONDS)
        download.close()
        assert (result.status, result.output.split()[0]) == (0, download.sent.hexdigest())
        assert download.connections == 1
    finally:
        for monitor in monitors:
            monitor.close()
        for helper, repair in started:
            helper.send(signal.SIGTERM)
            helper.wait()
            print(helper.errors())  # shown if the test failed
            helper.close()
            repair.close()
