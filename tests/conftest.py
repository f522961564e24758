# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: our own environment variables are not inherited, and hypothesis has no deadline. And the
launcher, compiled once for those who give it another interpreter.

Read by pytest. Adversary: nobody. A deadline would be a timed assertion: it fails on a busy machine, not on a fault.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from c_parts import LAUNCHER, OURS, ROOT
from hypothesis import settings

settings.register_profile("lockgate", deadline=None, print_blob=True)
settings.load_profile("lockgate")

for variable in ("LOCKGATE_LOG_FORMAT", "LOCKGATE_TCP_PEEK", "LOCKGATE_TCP_REORDER", "LOCKGATE_SANITIZE"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def compiled_launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a machine without /usr/bin/python3; to be copied beside a python3, under the name of a command."""
    target = tmp_path_factory.mktemp("launcher") / "launcher"
    system = '-DSYSTEM_PYTHON="/nonexistent/python3"'
    subprocess.run(["cc", *OURS, system, "-o", target, *(ROOT / one for one in LAUNCHER)], check=True)
    return target
