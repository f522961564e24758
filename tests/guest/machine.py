# SPDX-License-Identifier: Apache-2.0
"""The kinds of guest: which kernel, where its modules are, and the command line that boots it on a vhost-user socket.

Called by guest.py. Adversary: nobody.
Invariants: no root is needed, and nothing but Debian's packages. A kind that this machine cannot boot says why.

  uml        User-mode Linux of Debian's package user-mode-linux
  qemu       QEMU with Debian's cloud kernel; KVM where it works, else TCG
  qemu-stream  the same QEMU on a stream socket of frames instead of vhost-user's
  qemu-small, qemu-small-stream   both with receive buffers of one frame each, as an emulated Ethernet card has
  uml-peer, qemu-peer, qemu-peer-stream   the same from another root file system, of a newer distribution for instance:
             LOCKGATE_PEER_ROOT=folder and LOCKGATE_PEER_RUN="command" that runs its arguments inside that root
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from image import OUTPUT, ROOT, MissingIngredient, build

KINDS = ("uml", "qemu", "qemu-stream", "qemu-small", "qemu-small-stream", "uml-peer", "qemu-peer", "qemu-peer-stream")
KVM_TRIAL_SECONDS = 10
UML_SHARED_MEMORY_MIN = 1 << 30
QEMU = "/usr/bin/qemu-system-x86_64"
QEMU_PLAIN = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
CLOUD_KERNEL = "linux-image-cloud-amd64"


@dataclass(frozen=True)
class Boot:
    """What a command line is made of."""

    socket: Path  # of the network helper
    image: Path
    memory_mb: int
    channel_path: Path  # where QEMU connects its second serial line to
    channel_fd: int  # which descriptor User-mode Linux takes for it
    log: Path
    folder: Path  # for the monitor's own files
    mac: str | None
    netdev: tuple[str, ...] = ()  # instead of the kind's own words for the socket


@dataclass(frozen=True)
class Machine:
    """One kind of guest that can be booted here."""

    kind: str
    title: str
    modules: Path
    channel_by_fd: bool
    arguments: Callable[[Boot], list[str]]
    environment: dict[str, str]


def find(kind: str) -> Machine:
    """The machine of that kind; MissingIngredient says what is not here."""
    peer = "-peer" in kind
    root, run, environment = peer_root() if peer else (Path("/"), [], {})
    if kind.startswith("uml"):
        return _uml(kind, root, run, environment)
    if kind.startswith("qemu"):
        return _qemu(kind, root, run, environment)
    raise MissingIngredient(f"{kind}: expected one of {' '.join(KINDS)}")


def peer_root() -> tuple[Path, list[str], dict[str, str]]:
    """The newer root file system, the command that runs others in it, and that command's environment."""
    root, run = os.environ.get("LOCKGATE_PEER_ROOT"), os.environ.get("LOCKGATE_PEER_RUN")
    if not root or not run:
        raise MissingIngredient("no newer peers: LOCKGATE_PEER_ROOT and LOCKGATE_PEER_RUN do not name them")
    return Path(root), shlex.split(run), {"BIND": f"{os.environ.get('BIND', '')} {ROOT}".strip()}


def _uml(kind: str, root: Path, run: list[str], environment: dict[str, str]) -> Machine:
    kernel = root / "usr/bin/linux.uml"
    versions = sorted((root / "usr/lib/uml/modules").glob("*"))
    if not kernel.exists() or not versions:
        raise MissingIngredient(f"{kernel} is not there: it comes with Debian's package user-mode-linux")

    def arguments(boot: Boot) -> list[str]:
        return [
            *run,
            "/usr/bin/linux.uml",
            f"mem={boot.memory_mb}M",
            f"initrd={boot.image}",
            f"virtio_uml.device={boot.socket}:1",
            f"uml_dir={boot.folder}",
            "umid=guest",
            "con0=null,fd:1",
            "con=null",
            f"ssl0=fd:{boot.channel_fd},fd:{boot.channel_fd}",
            "ssl=null",
            "rdinit=/init",
            "channel=ttyS0",
        ]

    # Its memory is a file in /dev/shm, unless TMPDIR says otherwise; a container's may be too small for a machine.
    if shutil.disk_usage("/dev/shm").free < UML_SHARED_MEMORY_MIN:
        environment = {**environment, "TMPDIR": "/tmp"}
    return Machine(kind, f"User-mode Linux {versions[-1].name}", versions[-1], True, arguments, environment)


_SMALL_BUFFERS = "".join(f",{name}=off" for name in ("mrg_rxbuf", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"))
_VHOST_USER = "-chardev socket,id=net,path={} -netdev vhost-user,id=net,chardev=net"
_STREAM = "-netdev stream,id=net,server=off,addr.type=unix,addr.path={}"


def _qemu(kind: str, root: Path, run: list[str], environment: dict[str, str]) -> Machine:
    program = root / QEMU.lstrip("/")
    if not program.exists():
        raise MissingIngredient(f"{program} is not there: it comes with Debian's package qemu-system-x86")
    kernel, modules = cloud_kernel()
    version = subprocess.run(
        [*run, QEMU, "--version"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    ).stdout.split()[3]
    accelerator = "kvm" if kvm_boots(run, environment, version, kernel, modules) else "tcg"
    stream = kind.endswith("-stream")

    def arguments(boot: Boot) -> list[str]:
        memory = f"memory-backend-memfd,id=memory,share=on,size={boot.memory_mb}M"
        device = "virtio-net-pci,netdev=net" + (f",mac={boot.mac}" if boot.mac else "")
        device += _SMALL_BUFFERS if "-small" in kind else ""
        if accelerator == "tcg" and not stream and int(version.split(".")[0]) < 8:
            device += ",vectors=0"  # 7.2 under TCG crashes by itself once the guest uses MSI-X with a vhost-user device
        return [
            *run,
            QEMU,
            *[*QEMU_PLAIN, "-m", f"{boot.memory_mb}M"],
            *["-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"],
            *["-object", memory, "-numa", "node,memdev=memory"],
            *(boot.netdev or (_STREAM if stream else _VHOST_USER).format(boot.socket).split()),
            *["-device", device],
            *["-serial", f"file:{boot.log}"],
            *["-chardev", f"socket,id=channel,path={boot.channel_path},server=off", "-serial", "chardev:channel"],
            *["-kernel", str(kernel), "-initrd", str(boot.image)],
            *["-append", "console=ttyS0 quiet panic=-1 rdinit=/init channel=ttyS1"],
        ]

    title = f"QEMU {version} with {accelerator.upper()}{', stream link' if stream else ''}, Linux {modules.name}"
    return Machine(kind, title, modules, False, arguments, environment)


def kvm_boots(run: list[str], environment: dict[str, str], version: str, kernel: Path, modules: Path) -> bool:
    """Whether KVM really boots this kernel: a nested machine may have a /dev/kvm that answers, and guests that hang.

    A guest that only powers itself off is tried once for each start of this machine.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    known = OUTPUT / f"kvm-boots-qemu-{version}"
    this_start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if known.exists() and known.read_text().split()[0] == this_start:
        return known.read_text().split()[1] == "yes"
    trial = [*run, QEMU, *QEMU_PLAIN, "-m", "512M", "-accel", "kvm", "-cpu", "host"]
    trial += ["-kernel", str(kernel), "-initrd", str(build("kvm-trial", modules))]
    trial += ["-append", "quiet panic=-1 rdinit=/bin/busybox -- poweroff -f"]
    quiet = subprocess.DEVNULL
    try:
        status = subprocess.run(
            trial, stdin=quiet, stdout=quiet, stderr=quiet, timeout=KVM_TRIAL_SECONDS, env={**os.environ, **environment}
        ).returncode
    except subprocess.TimeoutExpired:
        status = 1
    known.write_text(f"{this_start} {'yes' if status == 0 else 'no'}\n")
    return status == 0


def cloud_kernel() -> tuple[Path, Path]:
    """Debian's cloud kernel and its modules, unpacked under build/guest from the package (not installed)."""
    unpacked = OUTPUT / "cloud-kernel"
    if not unpacked.is_dir():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=OUTPUT) as scratch:
            _download(Path(scratch))
            package = next(Path(scratch).glob("*.deb"))
            subprocess.run(["dpkg", "-x", package, Path(scratch, "root")], check=True)
            Path(scratch, "root").rename(unpacked)
    kernel = next((unpacked / "boot").glob("vmlinuz-*"), None)
    modules = next((unpacked / "lib/modules").glob("*"), None)
    if kernel is None or modules is None:
        raise MissingIngredient(f"{unpacked} has no kernel: remove it, and it is fetched again")
    return kernel, modules


def _download(folder: Path) -> None:
    """`apt-get download` of the package that the cloud kernel's metapackage stands for; no root needed."""
    depends = subprocess.run(["apt-cache", "depends", CLOUD_KERNEL], capture_output=True, text=True).stdout
    packages = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line]
    if not packages:
        raise MissingIngredient(f"apt knows no package {CLOUD_KERNEL}: run apt-get update first")
    fetched = subprocess.run(
        ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", packages[0]],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if fetched.returncode != 0:
        raise MissingIngredient(f"apt-get download {packages[0]}: {fetched.stderr.strip()}")
