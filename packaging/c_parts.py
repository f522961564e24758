# SPDX-License-Identifier: Apache-2.0
"""How the C parts are built: the module lockgate.core._datapath and the commands.

Called by lockgate_build.py within setuptools' setup(). Adversary: nobody.
Invariants: the only description of the C interface is core/datapath/datapath.h, between its two cdef lines; every
file of ours is compiled with warnings as errors, the file that cffi generates is not.

LOCKGATE_SANITIZE=address,undefined in the environment builds the module with those sanitizers (see Makefile, test).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import cffi
from setuptools import Command, Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent.parent
DATAPATH = Path("core", "datapath")  # relative to ROOT, as setuptools wants its sources
LAUNCHER = (Path("packaging", "launcher.c"), Path("packaging", "awaited.c"))
LAUNCHER_HEADERS = (Path("packaging", "awaited.h"),)
REPAIR = (Path("packaging", "repair.c"),)
LAUNCHED = ("passt", "pasta", "gvproxy", "lockgate")
COMMANDS = (*LAUNCHED, "passt-repair")
MODULE = "lockgate.core._datapath"
CDEF_BEGIN, CDEF_END = "/* cdef: begin */", "/* cdef: end */"

OURS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
GENERATED = ["-std=gnu11", "-O2", "-fvisibility=hidden"]  # cffi 1.15 calls alloca() undeclared in strict C11

SOURCE_FOLDERS = (".ci", "contrib", "core", "packaging", "plugin", "tests")
SOURCE_FILES = (".clang-format", ".gitignore", "LICENSE", "Makefile", "README.md", "pyproject.toml")
NOT_SOURCE = {"__pycache__", ".pyc", ".so"}


def cdef() -> str:
    """The lines of datapath.h that cffi reads as they stand."""
    header = ROOT / DATAPATH / "datapath.h"
    lines = header.read_text().splitlines()
    marks = [[n for n, line in enumerate(lines) if line.strip() == mark] for mark in (CDEF_BEGIN, CDEF_END)]
    if [len(found) for found in marks] != [1, 1] or marks[0] > marks[1]:
        raise SystemExit(f"{header}: expected one line {CDEF_BEGIN!r} and, below it, one line {CDEF_END!r}")
    return "\n".join(lines[marks[0][0] + 1 : marks[1][0]]) + "\n"


def sanitizers() -> list[str]:
    """Flags for the compiler and the linker; empty in an ordinary build."""
    chosen = os.environ.get("LOCKGATE_SANITIZE", "")
    if not chosen:
        return []
    return [f"-fsanitize={chosen}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]


def datapath_extension(scratch: Path) -> Extension:
    """The extension module: the file that cffi writes into scratch, and all of core/datapath/*.c."""
    ffi = cffi.FFI()
    ffi.cdef(cdef())
    ffi.set_source(MODULE, '#include "datapath.h"\n')
    generated = scratch / "_datapath.c"
    ffi.emit_c_code(str(generated))
    return Extension(
        MODULE,
        sources=[str(generated)],
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / DATAPATH).glob("*.[ch]")),
        include_dirs=[str(DATAPATH)],
        define_macros=[("Py_LIMITED_API", "0x030b0000")],
        extra_compile_args=[*GENERATED, f"-ffile-prefix-map={scratch}=.", *sanitizers()],
        extra_link_args=sanitizers(),
        py_limited_api=True,
    )


class BuildDatapath(build_ext):
    """Compiles our own files with their own flags first, then lets setuptools compile and link the generated one."""

    def build_extension(self, ext: Extension) -> None:
        def compile_one(source: str) -> list[str]:
            return list(
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=[str(DATAPATH)],
                    extra_postargs=[*OURS, *sanitizers()],
                )
            )

        sources = [name for name in ext.depends if name.endswith(".c")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects = [name for names in pool.map(compile_one, sources) for name in names]
        super().build_extension(ext)


def _compile(sources: Iterable[Path], target: Path) -> None:
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = [*OURS, *shlex.split(os.environ.get("CFLAGS", "")), *shlex.split(os.environ.get("LDFLAGS", ""))]
    subprocess.run([*compiler, *flags, "-o", str(target), *(str(ROOT / one) for one in sources)], check=True)


class BuildCommands(Command):
    """Takes the place of build_scripts: passt-repair, and of the compiled launcher a copy under each other name.

    A wheel has no links, so there are four copies of 16 kB. setuptools' own class would read them as text.
    """

    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        self.build_dir = ""

    def finalize_options(self) -> None:
        self.build_dir = self.get_finalized_command("build").build_scripts

    def get_source_files(self) -> list[str]:
        return [str(path) for path in (*LAUNCHER, *LAUNCHER_HEADERS, *REPAIR)]

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_dir, name)) for name in COMMANDS]

    def run(self) -> None:
        folder = Path(self.build_dir)
        folder.mkdir(parents=True, exist_ok=True)
        first = folder / LAUNCHED[0]
        _compile(LAUNCHER, first)
        for name in LAUNCHED[1:]:
            (folder / name).write_bytes(first.read_bytes())
        _compile(REPAIR, folder / "passt-repair")
        for name in COMMANDS:
            (folder / name).chmod(0o755)


class Sdist(sdist):
    """A source archive of the whole tree: what a distribution builds and tests from."""

    def make_distribution(self) -> None:
        self.filelist.extend(name for name in SOURCE_FILES if (ROOT / name).exists())
        for folder in SOURCE_FOLDERS:
            for path in sorted((ROOT / folder).rglob("*")):
                if path.is_file() and not NOT_SOURCE & {*path.parts, path.suffix}:
                    self.filelist.append(str(path.relative_to(ROOT)))
        super().make_distribution()
