# SPDX-License-Identifier: Apache-2.0
"""The pieces of the C core as Python functions: `from core_pieces import ffi, lib`.

Used by the tests of core/datapath. lockgate's own module shows Python only datapath.h; here the same sources are built
once more with core_pieces.cdef, so that a test can hold one ring or one timer wheel by itself. The result is kept in
build/unit under a name that says what went into it, and is built again when that changes.

With CORE_PIECES_SANITIZE=address,undefined in the environment the build has those sanitizers; the first of them must
also be preloaded, which test_sanitized.py does in a process of its own.

Adversary: nobody. Invariant: what is built here differs from production in nothing but that environment variable.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).resolve().parent.parent.parent
DATAPATH = ROOT / "core" / "datapath"
SANITIZE = os.environ.get("CORE_PIECES_SANITIZE", "")
MODULE = "_core_pieces"
FLAGS = ["-D_GNU_SOURCE", "-fPIC", "-fvisibility=hidden", "-I", str(DATAPATH)]
OURS = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
HEADERS = (
    "datapath",
    "checksum",
    "flow",
    "fragments",
    "frame_ring",
    "gather",
    "guest_table",
    "hold",
    "link_dgram",
    "link_socket",
    "link_stream",
    "link_switch",
    "link_tap",
    "link_vhost",
    "list",
    "packet",
    "pcap_ring",
    "pieces",
    "ranges",
    "siphash",
    "timer",
)
GENERATED = ["-std=gnu11"]  # cffi 1.15 calls alloca() undeclared in strict C11

_VARIANT = SANITIZE.replace(",", "-") or "plain"

# How often a property is tried: sanitizers cost a few times the time, and look for faults that need no rare value.
EXAMPLES = 40 if SANITIZE else 100


def _cdef() -> str:
    """What datapath.h shows to Python, and what the tests see beside it."""
    header = (DATAPATH / "datapath.h").read_text()
    shown = header.partition("/* cdef: begin */")[2].partition("/* cdef: end */")[0]
    return shown + Path(__file__).with_suffix(".cdef").read_text()


def _flags() -> list[str]:
    if not SANITIZE:
        return [*FLAGS, "-O2"]
    return [*FLAGS, "-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]


def _sources() -> list[Path]:
    return sorted(DATAPATH.glob("*.c"))


def _fingerprint() -> str:
    seen = hashlib.sha256(
        " ".join(_flags()).encode() + cffi.__version__.encode() + sysconfig.get_python_version().encode()
    )
    for path in [*sorted(DATAPATH.glob("*.[ch]")), Path(__file__), Path(__file__).with_suffix(".cdef")]:
        seen.update(path.read_bytes())
    return seen.hexdigest()[:16]


def _compile(source: Path, folder: Path) -> str:
    target = folder / f"{source.stem}.o"
    dialect = GENERATED if source.stem == MODULE else OURS
    include = sysconfig.get_paths()["include"]
    done = subprocess.run(
        ["gcc", *dialect, *_flags(), "-I", include, "-c", "-o", str(target), str(source)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
    return str(target)


def _build(library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    builder = cffi.FFI()
    builder.cdef(_cdef())
    builder.set_source(MODULE, "".join(f'#include "{name}.h"\n' for name in HEADERS))
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        folder = Path(scratch)
        generated = folder / f"{MODULE}.c"
        builder.emit_c_code(str(generated))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: _compile(source, folder), [generated, *_sources()]))
        made = folder / library.name
        subprocess.run(["gcc", *_flags(), "-shared", "-o", str(made), *objects], check=True)
        os.replace(made, library)
    for older in library.parent.glob(f"{MODULE}.{_VARIANT}.*.so"):
        if older != library:
            older.unlink()


def _load() -> Any:
    library = ROOT / "build" / "unit" / f"{MODULE}.{_VARIANT}.{_fingerprint()}.so"
    if not library.exists():
        _build(library)
    spec = importlib.util.spec_from_file_location(MODULE, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_module = _load()
ffi: cffi.FFI = _module.ffi
lib: Any = _module.lib


def iovec_array(parts: list[bytes]) -> tuple[Any, list[Any]]:
    """An array of struct iovec over copies of the parts, and what keeps their memory."""
    kept = [ffi.new("uint8_t[]", part or b"\0") for part in parts]
    array = ffi.new("struct iovec[]", max(1, len(parts)))
    for at, (part, memory) in enumerate(zip(parts, kept, strict=True)):
        array[at].iov_base, array[at].iov_len = memory, len(part)
    return array, kept


COUNTERS = [ffi.string(lib.lg_counter_name(index)).decode() for index in range(lib.lg_counter_count())]
