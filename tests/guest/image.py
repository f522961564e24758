# SPDX-License-Identifier: Apache-2.0
"""Builds the guest's first root: busybox, a few real programs with their libraries, kernel modules, and our /init.

Called by guest.py before a boot. Adversary: nobody.
Invariants: nothing but what Debian's packages put on this machine goes in; output only under build/guest; an image
whose ingredients did not change is not built again.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cpio import Archive

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUTPUT = ROOT / "build" / "guest"
PROGRAMS = {"curl": "curl", "ethtool": "ethtool", "iperf3": "iperf3"}  # by name, with Debian's package
DIGEST_LENGTH = 16
# From the .c files beside this one.
C_PROGRAMS = ("client", "await_address", "hold_connections", "echo_datagrams", "pace_datagrams", "pace_queries")
SCRIPTS = {"init": "init.sh", "bin/network-up": "network-up.sh", "bin/lease": "lease.sh"}

# In load order; those that a kernel has built in are not found and left out.
MODULES = (
    "crc-ccitt",
    "ipv6",
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
)


class MissingIngredient(Exception):
    """Something that a Debian package brings is not on this machine."""


def program_path(name: str, package: str) -> Path:
    """Where a program is, or a sentence that says which package has it."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise MissingIngredient(f"{name} is not installed: it comes with Debian's package {package}")
    return Path(found)


def libraries(program: Path) -> set[Path]:
    """What it is linked with, the dynamic linker among them."""
    listing = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    return {Path(word) for word in re.findall(r"(/\S+) \(0x", listing)}


def compiled(name: str) -> Path:
    """One of our guest programs, static so that it starts fast under emulation."""
    source, target = HERE / f"{name}.c", OUTPUT / name
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        compiler = program_path("cc", "gcc")
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
        with tempfile.NamedTemporaryFile(dir=OUTPUT, delete=False) as scratch:
            subprocess.run([compiler, *flags, "-o", scratch.name, source], check=True)
        os.chmod(scratch.name, 0o755)
        os.replace(scratch.name, target)
    return target


def _module(modules: Path, name: str) -> bytes | None:
    for path in sorted(modules.rglob(name + ".ko*")):
        content = path.read_bytes()
        return lzma.decompress(content) if path.suffix == ".xz" else content
    return None


def _ingredients(modules: Path, programs: Mapping[str, str], wanted: tuple[str, ...]) -> dict[str, bytes]:
    files = {"bin/busybox": program_path("busybox", "busybox-static").read_bytes()}
    for name in C_PROGRAMS:
        files[f"bin/{name}"] = compiled(name).read_bytes()
    for name, package in programs.items():
        path = program_path(name, package)
        files[f"usr/bin/{name}"] = path.read_bytes()
        files.update((str(library).lstrip("/"), library.read_bytes()) for library in libraries(path))
    for target, source in SCRIPTS.items():
        files[target] = (HERE / source).read_bytes()
    loaded = [(name, content) for name in (*MODULES, *wanted) if (content := _module(modules, name)) is not None]
    if "virtio_net" not in dict(loaded):
        raise MissingIngredient(f"no module virtio_net under {modules}: is that the folder of this kernel's modules?")
    for place, (name, content) in enumerate(loaded):
        files[f"modules/{place:02}-{name}.ko"] = content
    return files


def build(
    kind: str,
    modules: Path,
    more: Mapping[str, str] | None = None,
    more_modules: tuple[str, ...] = (),
    more_files: Mapping[str, bytes] | None = None,
) -> Path:
    """The image for one kind of kernel, whose modules lie under `modules`; `more` programs, each with its package,
    `more_modules` in the order in which they can be loaded, and `more_files` by their place."""
    more, more_files = more or {}, more_files or {}
    files = {**_ingredients(modules, {**PROGRAMS, **more}, more_modules), **more_files}
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    name = "-".join([kind, *sorted(more), *more_modules, *(["files"] if more_files else [])])
    image = OUTPUT / f"{name}-{digest.hexdigest()[:DIGEST_LENGTH]}.cpio"
    if image.exists():
        return image
    archive = Archive()
    for folder in ("bin", "dev", "etc", "proc", "sys", "tmp", "usr/bin"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.link("bin/sh", "busybox")
    for name, content in files.items():
        archive.file(name, content)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for old in OUTPUT.glob(f"{name}-{'?' * DIGEST_LENGTH}.cpio"):
        old.unlink()
    with tempfile.NamedTemporaryFile(dir=OUTPUT, delete=False) as scratch:
        scratch.write(archive.content())
    os.chmod(scratch.name, 0o644)
    os.replace(scratch.name, image)
    return image
