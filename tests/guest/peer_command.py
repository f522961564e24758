# SPDX-License-Identifier: Apache-2.0
"""Our commands for another root file system, whose Python is not the one that it was built for.

Called by callers.py, and by the tests with podman machine. Adversary: nobody.
Invariants: a folder under build/ with the commands, a copy of the interpreter beside it (their launcher takes that
one), its standard library, and our packages; nothing is installed in the other root. The interpreter needs only the C
library and zlib there. All of it is whole at any moment: the two halves of the tests use it beside each other, and
callers start helpers again.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from image import ROOT

PLACE = ROOT / "build" / "peer-python"
COMMANDS = ("passt", "gvproxy")
NOT_NEEDED = (
    *("test", "tests", "dist-packages", "site-packages"),
    *("idlelib", "tkinter", "ensurepip", "config-*", "lib2to3"),
)


def folder_with_commands() -> Path:
    """The folder to put first in PATH there; made again for each run, since what it copies may be newer."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = PLACE / "lib" / version
    programs = PLACE / "bin"
    if not library.exists():
        _copy_library(library, ROOT / ".venv" / "lib" / version / "site-packages")
    programs.mkdir(parents=True, exist_ok=True)
    _copy_program(Path(sys.executable).resolve(), programs / "python3")
    for name in COMMANDS:
        _copy_program(ROOT / ".venv" / "bin" / name, programs / name)
    return programs


def _copy_library(library: Path, packages: Path) -> None:
    partial = library.with_name(f"{library.name}.{os.getpid()}")
    shutil.copytree(sysconfig.get_path("stdlib"), partial, ignore=shutil.ignore_patterns(*NOT_NEEDED))
    for name in ("dist-packages", "site-packages"):  # Debian's name, and everybody else's
        (partial / name).symlink_to(packages)
    try:
        partial.rename(library)
    except OSError:  # the other half of the tests was faster
        shutil.rmtree(partial)


def _copy_program(source: Path, place: Path) -> None:
    """Not into the file that is there: somebody may run it (ETXTBSY), or is about to, and would find half of it."""
    partial = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.copy2(source, partial)
    partial.rename(place)
