# SPDX-License-Identifier: Apache-2.0
"""Each harness for so many inputs that a fault which is easy to find is found, always the same ones: run.py goes on
from there for as long as somebody likes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import run
from seeds import SEEDS

RUNS = 20_000


@pytest.mark.skipif(not shutil.which("clang"), reason="clang, which has libFuzzer, is not installed")
@pytest.mark.parametrize("name", SEEDS)
def test_a_harness_finds_nothing_in_its_first_inputs(name: str, tmp_path: Path) -> None:
    """Seeds and what libFuzzer makes of them with a fixed seed of its own, under both sanitizers."""
    try:
        run.build(name)
    except subprocess.CalledProcessError as failure:
        pytest.fail(f"the harness does not compile:\n{failure.stderr}")
    run.write_seeds(name, tmp_path)
    done = run.run(name, tmp_path, f"-runs={RUNS}", "-seed=1")
    assert done.returncode == 0, done.stderr[-20000:]
    assert f"#{RUNS}" in done.stderr, "all inputs were run"
