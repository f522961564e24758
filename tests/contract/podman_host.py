# SPDX-License-Identifier: Apache-2.0
"""A host with rootless Podman whose pasta is this tree's, installed as contrib/podman/README.md says.

Called by the tests with podman, and by the benchmark. Adversary: nobody. Podman is that of a newer distribution's root
(LOCKGATE_PEER_ROOT, and LOCKGATE_PEER_RUN, which runs its arguments there).
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from namespace_sockets import NamespaceSockets
from rootless_host import LOOPBACK, USER, RootlessHost

TREE = Path(__file__).parents[2]
PACKAGE = ("plugin", "core", "packaging", "pyproject.toml", "LICENSE", "README.md")
ADDRESSES, FAR = {4: "10.77.0.2", 6: "fd77::2"}, {4: "10.77.0.1", 6: "fd77::1"}
IMAGE = "localhost/busybox"
INSTALL_PATIENCE = 400  # the data path is compiled
SIZE = 10_000_000
# What the root must have, as a test of the shell, and the package that it is in.
NEEDS = {
    "command -v podman": "podman",
    "command -v newuidmap": "uidmap",
    "command -v gcc": "gcc",
    "command -v busybox": "busybox-static",
    "python3 -c 'import venv, ensurepip'": "python3-venv",
    "python3 -c 'import cffi, setuptools, wheel'": "python3-cffi python3-setuptools python3-wheel",
    "python3 -c 'import yaml, structlog, h11'": "python3-yaml python3-structlog python3-h11",
    'test -e "$(python3 -c \'import sysconfig; print(sysconfig.get_path("include"))\')/Python.h"': "python3-dev",
}
NETWORK = f"""
mount -t tmpfs -o mode=755 none /run; mkdir -p /run/netns
{LOOPBACK}
ip netns add far; ip link add up0 type veth peer name up1 netns far
ip -n far link set lo up; ip -n far link set up1 up; ip link set up0 up
ip -n far address add {FAR[4]}/24 dev up1; ip -n far address add {FAR[6]}/64 dev up1 nodad
ip address add {ADDRESSES[4]}/24 dev up0; ip address add {ADDRESSES[6]}/64 dev up0 nodad
ip route add default via {FAR[4]}; ip -6 route add default via {FAR[6]}
"""
INSTALL = """
python3 -m venv --system-site-packages /opt/lockgate
/opt/lockgate/bin/pip install -q --no-build-isolation --no-index --no-deps "$0/tree"
mkdir -p /opt/lockgate/libexec/podman
ln -s ../../bin/pasta /opt/lockgate/libexec/podman/pasta
ln -s ../../bin/lockgate /opt/lockgate/libexec/podman/rootlessport
mkdir -p /opt/lockgate/libexec/netavark
ln -s ../../bin/lockgate /opt/lockgate/libexec/netavark/lockgate
"""
# Of the image: links that are good inside.
FILES = """
cd "$0"; mkdir -p bb/bin; cp "$(command -v busybox)" bb/bin/busybox
for name in $(bb/bin/busybox --list); do test $name = busybox || ln -s busybox bb/bin/$name; done
"""
# Not the helper's business: there is no systemd here, and the control groups belong to somebody else.
HERE = """
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
cgroups = "disabled"
"""


class PodmanHost(RootlessHost):
    """`far` are the sockets of its gateway."""

    def __init__(self, folder: Path, run: list[str]) -> None:
        super().__init__(folder, run, NETWORK, FAR[4])
        # Its name is in the mount namespace before the root was entered, where the first process' parent stays.
        self.far = NamespaceSockets(("nsenter", f"--net=/proc/{self.process.pid}/root/run/netns/far"))

    def sockets_of(self, path: str) -> tuple[str, str]:
        """What runs a command of this machine in a network of the host's, by its path there."""
        return "nsenter", f"--net=/proc/{self.pid}/root{path}"

    def install(self) -> None:
        for part in PACKAGE:
            source, copy = TREE / part, self.folder / "tree" / part
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copy(source, copy)
        self.does("sh", "-euc", INSTALL, str(self.folder), patience=INSTALL_PATIENCE)
        settings = self.home / ".config/containers/containers.conf.d"
        settings.mkdir(parents=True)
        shutil.copy(TREE / "contrib/podman/50-lockgate.conf", settings)
        (settings / "90-here.conf").write_text(HERE)
        self.does("chown", "-R", f"{USER}:{USER}", str(self.home))

    def make_image(self) -> None:
        self.does("sh", "-euc", FILES, str(self.home))
        self.does("tar", "-C", f"{self.home}/bb", "-cf", f"{self.home}/bb.tar", ".")
        self.podman("import", f"{self.home}/bb.tar", IMAGE)

    @contextmanager
    def container(self, *options: str, command: str = "exec sleep 1000") -> Iterator[Container]:
        """One that lives until the end of the block."""
        name = self.podman("run", "-d", "--cap-add=net_raw", *options, IMAGE, "sh", "-c", command).strip()
        try:
            yield Container(self, name)
        finally:
            self.podman("rm", "-f", "-t", "0", name)

    def helpers(self) -> list[int]:
        """All processes of each pasta that is there."""
        return self.named("pasta")

    def awaits_no_helper(self) -> None:
        self.awaits_no("pasta")

    def close(self) -> None:
        self.far.close()
        super().close()


class Container:
    def __init__(self, host: PodmanHost, name: str) -> None:
        self.host, self.name = host, name

    def does(self, script: str) -> str:
        return self.host.podman("exec", self.name, "sh", "-euc", script)

    @contextmanager
    def sockets(self) -> Iterator[NamespaceSockets]:
        (told,) = json.loads(self.host.podman("inspect", self.name))
        made = NamespaceSockets(self.host.sockets_of(f"/proc/{told['State']['Pid']}/ns/net"))
        try:
            yield made
        finally:
            made.close()


def exchange(one: socket.socket, other: socket.socket) -> None:
    """Both ends send, and say that it is all; then each has got what the other one sent."""
    sent = [os.urandom(SIZE) for _ in range(2)]

    def sends(end: socket.socket, data: bytes) -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    def received(end: socket.socket) -> str:
        digest = hashlib.sha256()
        while data := end.recv(1 << 16):
            digest.update(data)
        return digest.hexdigest()

    with one, other, ThreadPoolExecutor(4) as pool:
        for end, data in zip((one, other), sent, strict=True):
            pool.submit(sends, end, data)
        got = [pool.submit(received, end) for end in (other, one)]
        assert [future.result() for future in got] == [hashlib.sha256(data).hexdigest() for data in sent]


def peer_words() -> list[str]:
    """What runs a command in the root; or the test is skipped, with the reason."""
    if os.geteuid() or not os.environ.get("LOCKGATE_PEER_ROOT") or not os.environ.get("LOCKGATE_PEER_RUN"):
        pytest.skip("no newer podman: LOCKGATE_PEER_ROOT and LOCKGATE_PEER_RUN name no root, or we are not root")
    if not os.path.exists("/dev/net/tun") or os.stat("/dev/net/tun").st_mode & 0o006 != 0o006:
        pytest.skip("/dev/net/tun is not there for everybody: no tap devices without root here")
    run = shlex.split(os.environ["LOCKGATE_PEER_RUN"])
    for test, package in NEEDS.items():
        if subprocess.run([*run, "sh", "-c", test], capture_output=True).returncode:
            pytest.skip(f"the root has no {package}")
    return run
