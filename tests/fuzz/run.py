# SPDX-License-Identifier: Apache-2.0
"""Builds the fuzz harnesses and runs them: `python tests/fuzz/run.py SECONDS [vring|frame|tcp ...]`, each for so long.

Called by people, and by test_fuzz.py. What was learned is kept in build/fuzz/NAME/corpus, and an input that failed in
build/fuzz/NAME/found: FUZZ_TRACE=1 build/fuzz/NAME/fuzz_NAME FILE shows what happens in it.

Adversary: nobody. Invariant: needs clang with its libFuzzer, and nothing else that the other tests do not need.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from seeds import SEEDS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATAPATH = ROOT / "core" / "datapath"
SCRIPT = HERE.parent / "script"
FOLDER = ROOT / "build" / "fuzz"

FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer"]
SANITIZERS = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
INCLUDES = [f"-I{folder}" for folder in (DATAPATH, HERE, SCRIPT)]

# The rings meet the real kernel, the engine that of tests/script; neither needs the worker around them.
RINGS = ("vring", "memory", "link_vhost", "link_vhost_setup", "pcap_ring", "pieces", "counters")
LINKS = {
    *("frame_ring", "link_dgram", "link_socket", "link_stream", "link_switch", "link_tap"),
    *("link_vhost", "link_vhost_setup", "memory", "pcap_ring", "vring"),
}
NOT_THE_ENGINE = LINKS | {"agent_channel", "command", "command_line", "isolation", "namespace_command", "up", "worker"}

LENGTHS = {"vring": 1400, "frame": 2000, "tcp": 1200}  # bytes of an input: room for some dozen steps
TIMEOUT = 20  # seconds for one input, which takes some hundred microseconds: more is a loop that does not end


def sources(name: str) -> list[Path]:
    if name == "vring":
        return [HERE / "fuzz_vring.c", *(DATAPATH / f"{piece}.c" for piece in RINGS)]
    engine = [path for path in sorted(DATAPATH.glob("*.c")) if path.stem not in NOT_THE_ENGINE]
    return [HERE / f"fuzz_{name}.c", HERE / "to_guest.c", *engine, *sorted(SCRIPT.glob("*.c"))]


def _command(fake: bool) -> list[str]:
    return ["clang", *FLAGS, *SANITIZERS, *(["-DLG_FAKE_SYS"] if fake else []), *INCLUDES]


@cache
def _compiled(source: Path, fake: bool) -> str:
    """Once for all harnesses of a run: two of them share the engine."""
    target = FOLDER / ("fake" if fake else "real") / f"{source.stem}.o"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [*_command(fake), "-c", "-o", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return str(target)


def build(name: str) -> Path:
    """The harness; raises CalledProcessError with the compiler's words."""
    fake = name != "vring"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compiled(source, fake), sources(name)))
    harness = FOLDER / name / f"fuzz_{name}"
    harness.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*_command(fake), "-o", str(harness), *objects], check=True, capture_output=True, text=True)
    return harness


def write_seeds(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for at, seed in enumerate(SEEDS[name]().values()):
        (folder / f"seed-{at}").write_bytes(seed)


def run(name: str, corpus: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs a harness that was built; its output, and 0 if nothing was found."""
    found = FOLDER / name / "found"
    found.mkdir(exist_ok=True)
    command = [str(FOLDER / name / f"fuzz_{name}"), f"-max_len={LENGTHS[name]}", f"-timeout={TIMEOUT}"]
    command += [f"-artifact_prefix={found}/", *options, str(corpus)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def main(arguments: list[str]) -> int:
    if not arguments or not arguments[0].isdecimal() or set(arguments[1:]) - set(SEEDS):
        print(f"usage: {sys.argv[0]} SECONDS [{'|'.join(SEEDS)} ...]", file=sys.stderr)
        return 2
    if not shutil.which("clang"):
        print("clang is not installed: on Debian, apt-get install clang libclang-rt-14-dev", file=sys.stderr)
        return 1
    failed = 0
    for name in arguments[1:] or SEEDS:
        build(name)
        corpus = FOLDER / name / "corpus"
        write_seeds(name, corpus)
        done = run(name, corpus, f"-max_total_time={arguments[0]}", "-print_final_stats=1")
        failed |= done.returncode
        told = done.stderr.splitlines()
        if done.returncode:
            print(f"{name}: found something, kept in {FOLDER / name / 'found'}")
            print("\n".join(line for line in told if "NEW_FUNC" not in line and not line.startswith("#")))
        else:
            runs = next((line.split()[-1] for line in told if "number_of_executed_units" in line), "?")
            print(f"{name}: {runs} inputs, nothing found")
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
