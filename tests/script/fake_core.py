# SPDX-License-Identifier: Apache-2.0
"""The data path between a fake kernel and a fake link, as a library for cffi: `from fake_core import ffi, lib`.

Used by world.py and by the kernel facts. All of core/datapath that speaks neither to control nor to a real link is
compiled with -DLG_FAKE_SYS, together with the C files of this folder, and kept in build/script under a name that says
what went into it. The build has the address and undefined-behaviour sanitizers where the compiler has them.

The library is loaded with symbols of its own first (RTLD_DEEPBIND): the sanitizer then sees the calls of this library
to malloc() and memcpy(), although Python was there before it, and assert() is caught by script.c.

Adversary: nobody. Invariant: what is built here differs from production in sys.h alone.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cffi

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATAPATH = ROOT / "core" / "datapath"

# The worker around the engine, and the link of a real guest: what tests/unit and tests/guest are for.
LINKS = {
    *("frame_ring", "link_dgram", "link_socket", "link_stream", "link_switch", "link_tap"),
    *("link_vhost", "link_vhost_setup", "memory", "pcap_ring", "vring"),
}
NOT_HERE = LINKS | {"agent_channel", "command", "command_line", "isolation", "namespace_command", "up", "worker"}

WARNINGS = ["-Wall", "-Wextra", "-Werror"]
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-DLG_FAKE_SYS", "-fPIC", "-g", *WARNINGS, "-I", str(DATAPATH)]
PLAIN = ["-O2"]
SANITIZED = [
    "-O1",
    "-DSCRIPT_SANITIZED",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fsanitize-recover=address,undefined",
]

# Where the address sanitizer of x86-64 wants to live (its shadow, and its allocator). It comes late into this process,
# and whether these are still free is up to the kernel's randomisation: with 32 bits of it they sometimes are not.
ASAN_RANGES = ((0x7FFF7000, 0x10007FFF8000), (0x600000000000, 0x640000000000))

# For the facts, which call the fake kernel without a core: from sys.h, in types that cffi knows.
SYSTEM_CALLS = """
    int sys_socket(int family, int type, int protocol);
    int sys_connect(int fd, const void *addr, uint32_t length);
    int sys_setsockopt(int fd, int level, int name, const void *value, uint32_t length);
    int sys_getsockopt(int fd, int level, int name, void *value, uint32_t *length);
    int64_t sys_discard(int fd, size_t length);
    int64_t sys_splice(int from, int to, size_t length);
    int sys_shutdown(int fd, int how);
    int sys_close(int fd);
    int sys_epoll_ctl(int epoll_fd, int op, int fd, uint32_t events, uint64_t data);
    int sys_eventfd_signal(int fd);
"""


def _cdef() -> str:
    """What the headers show to Python, as they stand."""
    text = SYSTEM_CALLS
    for header in (DATAPATH / "datapath.h", HERE / "fake_kernel.h", HERE / "script.h"):
        text += header.read_text().partition("/* cdef: begin */")[2].partition("/* cdef: end */")[0]
    return text


def _compiles(flags: list[str]) -> bool:
    command = ["gcc", *flags, "-shared", "-fPIC", "-x", "c", "-", "-o", "/dev/null"]
    return subprocess.run(command, input="int x;", text=True, capture_output=True).returncode == 0


def _address_space_is_free() -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if any(start < there_end and end > there for there, there_end in ASAN_RANGES):
            return False
    return True


def _choose() -> tuple[list[str], str]:
    """The flags of this build, and in words what it lacks."""
    if not _compiles(SANITIZED):
        return PLAIN, "without sanitizers: this gcc has none"
    if not _address_space_is_free():
        return PLAIN, "without sanitizers: this process lies where the address sanitizer wants to be"
    return SANITIZED, "with -fsanitize=address,undefined"


def _sources() -> list[Path]:
    core = [path for path in sorted(DATAPATH.glob("*.c")) if path.stem not in NOT_HERE]
    return [*core, *sorted(HERE.glob("*.c"))]


def _fingerprint(flags: list[str]) -> str:
    seen = hashlib.sha256(" ".join([*FLAGS, *flags]).encode())
    for path in [*_sources(), *sorted(DATAPATH.glob("*.h")), *sorted(HERE.glob("*.h"))]:
        seen.update(path.name.encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def _compile(source: Path, folder: Path, flags: list[str]) -> str:
    target = folder / f"{source.stem}.o"
    done = subprocess.run(["gcc", *FLAGS, *flags, "-c", "-o", str(target), str(source)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile with -DLG_FAKE_SYS:\n{done.stderr}")
    return str(target)


def _build(library: Path, flags: list[str]) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    for old in library.parent.glob("*.so"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=library.parent) as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        objects = list(pool.map(lambda source: _compile(source, folder, flags), _sources()))
        made = folder / library.name
        subprocess.run(["gcc", *flags, "-shared", "-o", str(made), *objects], check=True)
        made.rename(library)


def _load() -> tuple[Any, Any, str]:
    flags, how = _choose()
    library = ROOT / "build" / "script" / f"fake_core-{_fingerprint(flags)}.so"
    if not library.exists():
        _build(library, flags)
    interface = cffi.FFI()
    interface.cdef(_cdef())
    return interface, interface.dlopen(str(library), os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND), how


ffi, lib, HOW_BUILT = _load()
