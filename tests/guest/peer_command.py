# SPDX-License-Identifier: Apache-2.0
"""Our commands for another root file system, whose Python is not the one that it was built for.

Called by callers.py, and by the tests with podman machine. Adversary: nobody.
Invariants: a folder under build/ with the commands, a copy of the interpreter beside it (their launcher takes that
one), its standard library, and our packages; nothing is installed in the other root. The interpreter needs only the C
library and zlib there.
"""

from __future__ import annotations

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
        shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=shutil.ignore_patterns(*NOT_NEEDED))
        for name in ("dist-packages", "site-packages"):  # Debian's name, and everybody else's
            (library / name).symlink_to(ROOT / ".venv" / "lib" / version / "site-packages")
    programs.mkdir(exist_ok=True)
    shutil.copy2(Path(sys.executable).resolve(), programs / "python3")
    for name in COMMANDS:
        shutil.copy2(ROOT / ".venv" / "bin" / name, programs / name)
    return programs
