# SPDX-License-Identifier: Apache-2.0
"""A keeper and a control that have forwards by SSH and nothing else: what a virtual network does for them.

Run by test_ssh_forwards.py as a program. Its argument is JSON: `forwards` (path, destination, user, identity for each),
`port` of the host's loopback that leads to the guest's sshd, `place` for ssh's folder. On standard input, a line each:
`guest came`, `guest left`, and `tunnel` with a path, a user, a destination and a key file. Says `ready`, then what a
person would see.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import Any

from lockgate.core._datapath import lib
from lockgate.plugin import keeper, log
from lockgate.plugin.gateway.ssh import key_file, ssh_child
from lockgate.plugin.gateway.ssh.ssh_forward import SshForwards
from lockgate.plugin.gateway.ssh.ssh_spawner import SshSpawner
from lockgate.plugin.made_files import MadeFiles
from lockgate.plugin.ports import Ports

BACKLOG = 16


class Control:
    """In its own process."""

    def __init__(self, given: dict[str, Any], listeners: list[Any], folder: str, lines: log.Log) -> None:
        self.given = given
        self.listeners = [socket.socket(fileno=os.dup(one.fileno())) for one in listeners]
        self.folder = folder
        self.lines = lines

    def main(self, ends: keeper.Ends) -> int:
        if not ends.wait_for_start():
            return 0
        lib.lg_control_confine(b"gvproxy-control")
        asyncio.run(self.run(socket.socket(fileno=ends.keeper.detach())))
        return 0

    async def run(self, channel: socket.socket) -> None:
        loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        self.forwards = SshForwards(self.folder, lambda record: _send(channel, record), self.lines.debug)
        for listener, (path, destination, _, _) in zip(self.listeners, self.given["forwards"], strict=True):
            self.forwards.add_known(listener, path, destination)
        os.set_blocking(0, False)
        loop.add_reader(0, self.on_words)
        loop.add_reader(channel, self.on_keeper, channel)
        await self.over.wait()

    def on_words(self) -> None:
        for line in os.read(0, 65536).decode().splitlines():
            words = line.split("\t")
            if words[0] == "tunnel":
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(words[1])
                listener.listen()
                self.forwards.add_tunnel(listener, words[1], self.given["port"], *words[2:])
            else:
                (self.forwards.guest_came if words[0] == "guest came" else self.forwards.guest_left)()
            self.lines.debug(f"heard {words[0]}")

    def on_keeper(self, channel: socket.socket) -> None:
        record, fds, _, _ = socket.recv_fds(channel, keeper.RECORD_MAX, 1)
        if not record:
            self.over.set()
        elif not self.forwards.on_record(record, fds):
            self.lines.error(f"what is {record!r}?")


def _send(channel: socket.socket, record: bytes) -> None:
    try:
        channel.send(record)
    except OSError:
        pass  # the keeper is gone


def main() -> int:
    given = json.loads(sys.argv[1])
    lines, made = log.Log("gvproxy", log.DEBUG, False), MadeFiles()
    lib.lg_process_name(b"gvproxy")
    try:
        listeners = [made.replace(forward[0], "-forward-sock", BACKLOG) for forward in given["forwards"]]
        folder = made.private_folder([given["place"]], "lockgate-ssh-")
        known = [
            ssh_child.Target(user, destination, given["port"], key_file.load(identity))
            for _, destination, user, identity in given["forwards"]
        ]
        program = ssh_child.find_program(os.environ["PATH"])
        plan = keeper.Plan(
            name="gvproxy",
            capture=False,
            worker_flags=0,
            flow_limit=16,
            foreground=True,
            resumable=True,
            listeners=listeners,
            ports=Ports([], None),
            connections=[],
            ssh=SshSpawner(program, folder, known, lambda port: port == given["port"]),
        )
        control = Control(given, listeners, folder, lines)
        return keeper.Keeper(plan, lines, control.main, lambda: None, lambda: lines.info("ready")).run()
    finally:
        made.take_back()


if __name__ == "__main__":
    os._exit(main())
