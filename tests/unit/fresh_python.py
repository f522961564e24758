# SPDX-License-Identifier: Apache-2.0
"""A Python that has imported nothing yet, as a helper is at its start.

Called by the tests of what is imported before READY, where each module costs its tenth of a millisecond. Adversary:
nobody.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lockgate.plugin


def imported(folder: Path, program: str) -> set[str]:
    """The modules that the program loads. `folder` is empty at first; lockgate.core is not to be found there."""
    package = folder / "lockgate"
    package.mkdir()
    (package / "plugin").symlink_to(Path(lockgate.plugin.__file__).resolve().parent)
    whole = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); before = set(sys.modules)\n"
        f"{program}\n"
        "print(*sorted(set(sys.modules) - before - {'lockgate'}))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", whole], stdout=subprocess.PIPE, text=True, check=True)
    return set(done.stdout.split())
