# SPDX-License-Identifier: Apache-2.0
"""A host with `podman machine` whose gvproxy is this tree's, installed as contrib/podman/README.md says.

Called by the tests with podman machine. Adversary: nobody.
Invariants: Podman is this machine's own, or that of a newer distribution's root (LOCKGATE_PEER_ROOT and _RUN), and it
runs without root. No KVM is needed: Podman's `qemu-system-x86_64` is a script that has QEMU emulate the processor, and
that boots our own kernel and first root beside the empty disk which Podman takes for an image. GVPROXY=path has another
gvproxy tried in the place of ours, to see what the reference does.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from image import MissingIngredient
from machine import peer_root
from machine_image import KERNEL_ARGUMENTS, machine_image
from peer_command import folder_with_commands
from podman_host import TREE
from rootless_host import LOOPBACK, USER, RootlessHost
from running import PATIENCE

KINDS = ("podman", "podman-peer")
NAME = "guest"
RUNTIME = f"/run/user/{USER}"
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
RESOLVER = "127.0.0.1"
# What the root must have, and the package that it is in.
NEEDS = {
    "podman": "podman",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
QEMU = """\
#!/bin/sh
for word; do
    shift
    case $word in
    kvm) word=tcg ;;
    host) word=max ;;
    esac
    set -- "$@" "$word"
done
exec /usr/bin/qemu-system-x86_64 "$@" -kernel {kernel} -initrd {image} -append "{arguments}" -serial file:{console}
"""
# Folders of the host are not shared with the guest: that would need drivers there, and a virtiofsd here.
HERE = """
[machine]
volumes = []
"""


class PodmanMachine(RootlessHost):
    """With one machine, made and not started."""

    def __init__(self, folder: Path, run: list[str], environment: Mapping[str, str]) -> None:
        super().__init__(folder, run, LOOPBACK, RESOLVER, environment)
        self.console = self.home / "console.log"
        self.knows_us = int(self.podman("--version").split()[-1].split(".")[0]) >= 5
        self.kills = not self.knows_us  # its helper, when a machine is stopped

    def podman(self, *words: str, environment: tuple[str, ...] = ()) -> str:
        return super().podman(*words, environment=(f"PATH={self.folder}/bin:{SYSTEM_PATH}", *environment))

    def install(self) -> None:
        for_all, for_machines = ("podman", "50-lockgate.conf"), ("podman-machine", "50-lockgate-machine.conf")
        folder, drop_in = for_all if self.knows_us else for_machines
        helpers = self.folder / "opt/lockgate/libexec" / folder
        helpers.mkdir(parents=True)
        if another := os.environ.get("GVPROXY"):
            shutil.copy(another, helpers / "gvproxy")
        else:
            (helpers / "gvproxy").symlink_to(folder_with_commands() / "gvproxy")
        settings = self.home / ".config/containers/containers.conf.d"
        settings.mkdir(parents=True)
        shutil.copy(TREE / "contrib/podman" / drop_in, settings)
        (settings / "90-here.conf").write_text(HERE)
        self._install_qemu()
        self.does("qemu-img", "create", "-q", "-f", "qcow2", f"{self.home}/empty.qcow2", "1M")
        self.does("chown", "-R", f"{USER}:{USER}", str(self.home))

    def _install_qemu(self) -> None:
        kernel, image = machine_image()
        script = self.folder / "bin/qemu-system-x86_64"
        script.parent.mkdir()
        script.write_text(QEMU.format(kernel=kernel, image=image, arguments=KERNEL_ARGUMENTS, console=self.console))
        script.chmod(0o755)

    def make(self) -> None:
        image = f"{self.home}/empty.qcow2"
        own = ("--image", image, "--volume", "") if self.knows_us else ("--image-path", image, "--timezone", "Etc/UTC")
        self.podman("machine", "init", "--cpus=1", "--memory=512", "--disk-size=1", *own, NAME)

    def start(self) -> None:
        self.podman("machine", "start", NAME)

    def stop(self) -> None:
        self.podman("machine", "stop", NAME)

    def guest(self, script: str, user: str = "core") -> str:
        """What a script prints in the guest."""
        return self.podman("machine", "ssh", f"--username={user}", NAME, script)

    def inspect(self) -> dict[str, Any]:
        (told,) = json.loads(self.podman("machine", "inspect", NAME))
        return dict(told)

    def path(self, path: str) -> Path:
        """Of a file there, by which the test finds it."""
        return Path(f"/proc/{self.pid}/root{path}")

    @property
    def api_socket(self) -> str:
        return str(self.inspect()["ConnectionInfo"]["PodmanSocket"]["Path"])

    @property
    def ssh_port(self) -> int:
        return int(self.inspect()["SSHConfig"]["Port"])

    def api(self) -> socket.socket:
        """A client of Podman's API in the guest."""
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(PATIENCE)
        end.connect(str(self.path(self.api_socket)))
        return end

    def files(self) -> set[str]:
        """What is in the user's folder for running programs."""
        folder = self.path(RUNTIME)
        return {str(path.relative_to(folder)) for path in folder.rglob("*")}

    def ports(self) -> set[tuple[str, int]]:
        """Where anybody listens, or could be sent datagrams."""
        found = set()
        for protocol, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
            for line in Path(f"/proc/{self.pid}/net/{protocol}").read_text().splitlines()[1:]:
                _, local, _, its_state = line.split()[:4]
                if its_state == state:
                    found.add((protocol, int(local.rpartition(":")[2], 16)))
        return found


def _root(kind: str) -> tuple[list[str], Mapping[str, str]]:
    """What runs a command where Podman is, and that one's environment; or the test is skipped, with the reason."""
    if os.geteuid():
        pytest.skip("we are not root, and make no namespaces of our own here")
    try:
        _, run, environment = peer_root() if kind == "podman-peer" else (None, [], {})
    except MissingIngredient as missing:
        pytest.skip(str(missing))
    for command, package in NEEDS.items():
        look = [*run, "sh", "-c", f"command -v {command}"]
        if subprocess.run(look, capture_output=True, env={**os.environ, **environment}).returncode:
            pytest.skip(f"there is no {command}: it comes with Debian's package {package}")
    return run, environment


@contextmanager
def podman_machine(kind: str) -> Iterator[PodmanMachine]:
    """One that was made, and is not started."""
    run, environment = _root(kind)
    folder = Path(tempfile.mkdtemp(prefix="lockgate-"))
    folder.chmod(0o755)
    host = PodmanMachine(folder, run, environment)
    try:
        host.install()
        host.make()
        yield host
    finally:
        host.close()
        shutil.rmtree(folder)
