# SPDX-License-Identifier: Apache-2.0
"""Builds what `podman machine` boots in these tests, in the place of Fedora CoreOS: the kernel and a first root.

Called by the tests with podman machine, which hand both to QEMU beside an empty disk. Adversary: nobody.
Invariants: nothing but what Debian's packages put on this machine goes in.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from image import HERE, OUTPUT, build, libraries, program_path
from machine import cloud_kernel

PROGRAMS = {"bash": "bash", "socat": "socat"}
MODULES = ("virtio_console", "qemu_fw_cfg", "evdev", "button")
SCRIPTS = {"bin/podman-machine": "podman-machine.sh", "bin/answer-ping": "answer-ping.sh"}
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 rdinit=/init then=/bin/podman-machine"
SSHD_CONFIG = """\
AuthorizedKeysFile /etc/ssh/keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
"""
NOTHING_TO_DO = "#!/bin/sh\n"


def _host_key() -> bytes:
    """The same in each boot, as a machine with a disk has it: Podman 4 has ssh compare it."""
    path = OUTPUT / "machine-host-key"
    if not path.exists():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        program = program_path("ssh-keygen", "openssh-client")
        subprocess.run([program, "-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f", path], check=True)
    return path.read_bytes()


def machine_image() -> tuple[Path, Path]:
    """The kernel and the image; MissingIngredient says what is not here."""
    files = {place: (HERE / source).read_bytes() for place, source in SCRIPTS.items()}
    programs = {"usr/sbin/sshd": program_path("sshd", "openssh-server")}
    # Newer versions have parts of their own, which are looked for at these places.
    programs |= {str(part).lstrip("/"): part for part in Path("/usr/lib/openssh").glob("sshd-*")}
    for place, program in programs.items():
        files[place] = program.read_bytes()
        files.update((str(library).lstrip("/"), library.read_bytes()) for library in libraries(program))
    files["etc/ssh/ssh_host_ed25519_key"] = _host_key()
    files["etc/ssh/sshd_config"] = SSHD_CONFIG.encode()
    files["usr/bin/systemctl"] = NOTHING_TO_DO.encode()
    kernel, modules = cloud_kernel()
    return kernel, build("podman-machine", modules, PROGRAMS, MODULES, files)
