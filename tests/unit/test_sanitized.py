# SPDX-License-Identifier: Apache-2.0
"""The tests of the C pieces once more, in a build with AddressSanitizer and UndefinedBehaviorSanitizer.

In a process of its own: AddressSanitizer's library must be loaded before any other, and the first fault ends it.
Python's allocator is malloc() there, so that also what cffi allocates has its limits watched.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SANITIZERS = "address,undefined"


def test_the_pieces_hold_under_the_sanitizers() -> None:
    """No byte outside its object, no index outside its array, no arithmetic that C leaves undefined."""
    files = sorted(path for path in HERE.glob("test_*.py") if re.search("^from core_pieces", path.read_text(), re.M))
    assert len(files) > 10 and Path(__file__) not in files
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout
    environment = {
        **os.environ,
        "CORE_PIECES_SANITIZE": SANITIZERS,
        "LD_PRELOAD": library.strip(),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself frees little at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--durations=15", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    print(done.stdout)
