# SPDX-License-Identifier: Apache-2.0
"""A host of a test's own: namespaces with one cable, whose other end lies there too, and an /etc of their own.

Used by tests in this folder. Adversary: nobody. Made as rootless callers are, by root of a new user namespace.
"""

from __future__ import annotations

import subprocess

import pytest
from running import PATIENCE

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--mount")
NETWORK = """
mount -t tmpfs none /etc; echo nameserver 10.5.0.53 > /etc/resolv.conf
ip link set lo up; ip link add cable type veth peer name end; ip link set end up; ip link set cable up
ip address add 10.5.0.2/24 dev cable; ip route add default via 10.5.0.1
ip address add fd05::2/64 dev cable nodad; ip route add default via fd05::1
"""


class Namespace:
    """A process in namespaces of its own, until its standard input ends."""

    def __init__(self, *command: str) -> None:
        keep = [*command, "sh", "-c", "echo; exec cat"]
        self.process = subprocess.Popen(keep, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline()
        self.pid = self.process.pid
        self.prefix = ("nsenter", "--preserve-credentials", "-U", "-n", "-m", "-t", str(self.pid))

    def does(self, script: str) -> str:
        """What it says, in one line."""
        command = [*self.prefix, "sh", "-euc", script]
        done = subprocess.run(command, check=True, timeout=PATIENCE, stdout=subprocess.PIPE, text=True)
        return " ".join(done.stdout.split())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def host() -> Namespace:
    """With its network; where that cannot be, the test is skipped."""
    possible = subprocess.run([*NAMESPACES, "ip", "link", "add", "type", "veth"], capture_output=True)
    if possible.returncode:
        pytest.skip(f"no namespaces with cables here: {possible.stderr.decode().strip()}")
    made = Namespace(*NAMESPACES)
    made.does(NETWORK)
    return made
