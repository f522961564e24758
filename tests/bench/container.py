# SPDX-License-Identifier: Apache-2.0
"""A host and a container in namespaces that the benchmark makes, and a `pasta` between them as Podman starts it.

Called by the families of measures for `pasta`. Adversary: nobody.
Invariants: the host is root of a user namespace of its own, with one cable and a default route, and the container has a
network below it, so that each visit finds the same; a bridge network below the container's is as netavark makes one.
All is gone when the visit ends, and ends even if we are killed: every process waits for its standard input, or dies
with us.

The kernel is this machine's own, and so are its limits and sysctls: both helpers find what Podman's would find here.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import process_tree
import servers
from guest import DIES_WITH_US
from helper import HelperFailed
from image import OUTPUT, program_path
from measure import Side
from visit import PATIENCE

HOST, HOST_AS_SEEN = "192.0.2.2", "169.254.1.2"
BRIDGED, BRIDGE = "10.89.0.2", "10.89.0.1"
LOOPBACK, ANYWHERE = "127.0.0.1", "0.0.0.0"
BRIDGE_MTU = 1500
SETTLE_SECONDS = 3.0
# What Podman says besides the ports, and where; see PODMAN_PORTS for those.
PODMAN = ("--dns-forward", "169.254.1.1", "--no-map-gw", "--quiet", "--map-guest-addr", HOST_AS_SEEN)
PODMAN_PORTS = {"-t": "none", "-u": "none", "-T": "none", "-U": "none"}  # unless it has some

_HOST_NETWORK = f"""
ip link set lo up; ip link add cable type veth peer name end; ip link set end up; ip link set cable up
ip address add {HOST}/24 dev cable; ip route add default via 192.0.2.1
"""
_BRIDGE_NETWORK = """
ip link add podman1 type bridge; ip link set podman1 mtu {mtu} up; ip address add {bridge}/24 dev podman1
ip link add leg mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pid}; ip link set leg master podman1 up
echo 1 >/proc/sys/net/ipv4/ip_forward
nft 'add table ip nat; add chain ip nat out {{ type nat hook postrouting priority srcnat; }};
     add rule ip nat out ip saddr {bridge}/24 oifname != podman1 masquerade'
"""
_BRIDGED_NETWORK = f"""
ip link set lo up; ip link set eth0 up; ip address add {BRIDGED}/24 dev eth0; ip route add default via {BRIDGE}
"""


class LoadFailed(Exception):
    """A client ended with an error, or not at all."""


class Namespace:
    """A process in namespaces of its own, until its standard input ends."""

    def __init__(self, *command: str) -> None:
        keep = [*command, "sh", "-c", "echo; exec cat"]
        self.process = subprocess.Popen(keep, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        if self.process.stdout is None or not self.process.stdout.readline():
            raise HelperFailed(f"{' '.join(command)}: no namespaces here")
        self.pid = self.process.pid
        self.prefix = ("nsenter", "--preserve-credentials", "-U", "-n", "-m", "-t", str(self.pid))

    def does(self, script: str) -> str:
        """What a shell there says."""
        path = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        done = subprocess.run([*self.prefix, "sh", "-euc", script], capture_output=True, text=True, env=path)
        if done.returncode:
            raise LoadFailed(f"{script}: {done.stderr}")
        return done.stdout

    def place(self, address: str, port: int) -> servers.Place:
        """For a server."""
        return servers.Place(address, port, self.prefix, self.pid)

    def received_bytes(self, interface: str) -> int:
        """By an interface that it has."""
        lines = (line.split() for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines())
        return next(int(fields[1]) for fields in lines if fields[0] == f"{interface}:")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Client:
    """A load that comes from a namespace; see visit.Client."""

    namespace: Namespace
    gateway: str

    def load(self, command: str, seconds: float) -> str:
        """Fails unless the client ends well, in about so long a time."""
        with self.started(command) as process:
            try:
                output, errors = process.communicate(timeout=seconds + PATIENCE)
            except subprocess.TimeoutExpired as late:
                raise LoadFailed(f"{command} does not end") from late
        if process.returncode:
            raise LoadFailed(f"{command} ended with {process.returncode}: {output}{errors}")
        return str(output)

    @contextmanager
    def started(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """A client that has ended at the end of the block; it may be a script."""
        process = subprocess.Popen(
            [*self.namespace.prefix, *DIES_WITH_US, "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PATH": f"{OUTPUT}:{os.environ['PATH']}"},
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


class Helper:
    """One `pasta` that runs, until its network's file is removed; its first process is that of its PID file."""

    def __init__(self, folder: Path, command: str) -> None:
        self.pid, self._folder, self._command = int((folder / "pid").read_text()), folder, command
        self._pidfd = os.pidfd_open(self.pid)

    def watch(self, seconds: float) -> None:
        """Lets time pass, and fails if it ends meanwhile."""
        if self._ended(seconds):
            raise HelperFailed(f"{self._command} ended by itself")

    def settle(self) -> None:
        """Lets it do what is done once after a start, which is no cost of what is carried: our control comes a second
        later."""
        self.watch(SETTLE_SECONDS)

    def _ended(self, seconds: float) -> bool:
        watched = select.poll()
        watched.register(self._pidfd, select.POLLIN)
        return bool(watched.poll(seconds * 1000))

    def close(self) -> None:
        members = process_tree.tree(self.pid)
        (self._folder / "netns").unlink()
        ended = self._ended(PATIENCE)
        os.close(self._pidfd)
        process_tree.await_gone(members)
        shutil.rmtree(self._folder)
        if not ended:
            raise HelperFailed(f"{self._command} stays when its network has gone")


@dataclass(frozen=True)
class Start:
    """How a `pasta` came up."""

    helper: Helper
    seconds: float  # from its exec until it has exited and nobody holds its output


# What brings it to its root and namespaces does not count, nor how the network gets its file.
_BIND_TELL_AND_EXEC = ("sh", "-c", 'mount --bind "$0" "$1"; shift; echo && exec "$@"')


def start(side: Side, host: Namespace, container: Namespace, ports: dict[str, str]) -> Start:
    """As Podman: the network has a file, and the helper is ready when it has exited."""
    enter = ("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(host.pid), "unshare", "--mount")
    folder = Path(tempfile.mkdtemp(prefix="lockgate-"))
    file = folder / "netns"
    file.touch()
    asked = [word for option in (PODMAN_PORTS | ports).items() for word in option]
    words = [*side.words, "--config-net", *asked, *PODMAN, "--pid", str(folder / "pid"), "--netns", str(file)]
    process = subprocess.Popen(
        [*side.runner, *enter, *_BIND_TELL_AND_EXEC, f"/proc/{container.pid}/ns/net", str(file), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    began = time.monotonic()
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        process.kill()
        raise HelperFailed(f"{side.command} is not ready after {PATIENCE} s, or somebody holds its output") from late
    seconds = time.monotonic() - began
    if process.returncode:
        shutil.rmtree(folder)
        raise HelperFailed(f"{side.command} ended with {process.returncode}: {output.decode()}")
    return Start(Helper(folder, side.command), seconds)


@contextmanager
def hosting() -> Iterator[Namespace]:
    """A host without a container."""
    with ExitStack() as ends:
        host = Namespace("unshare", "--user", "--map-root-user", "--net", "--mount")
        ends.callback(host.close)
        host.does(_HOST_NETWORK)
        yield host


@contextmanager
def container_of(host: Namespace) -> Iterator[Namespace]:
    """An empty network; programs there may write to /mnt."""
    container = Namespace(*host.prefix, "unshare", "--net", "--mount")
    try:
        container.does("mount -t tmpfs none /mnt")
        yield container
    finally:
        container.close()


class Visit:
    """A container behind its helper. Use `visiting`."""

    def __init__(self, host: Namespace, container: Namespace, helper: Helper) -> None:
        self.host, self.container, self.helper = host, container, helper

    @contextmanager
    def bridged(self) -> Iterator[Namespace]:
        """A container on a bridge network, whose outer end is the container of this visit."""
        program_path("nft", "nftables")
        with container_of(self.host) as inner:
            self.container.does(_BRIDGE_NETWORK.format(mtu=BRIDGE_MTU, bridge=BRIDGE, pid=inner.pid))
            inner.does(_BRIDGED_NETWORK)
            yield inner


@contextmanager
def visiting(side: Side, ports: dict[str, str] | None = None) -> Iterator[Visit]:
    """Ports by option: {"-t": "8080-8080:80-80"}."""
    with hosting() as host, container_of(host) as container:
        started = start(side, host, container, ports or {})
        try:
            yield Visit(host, container, started.helper)
        finally:
            started.helper.close()
