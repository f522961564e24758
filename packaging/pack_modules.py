# SPDX-License-Identifier: Apache-2.0
"""Writes the file that plugin/module_pack.py imports from, once the packages' folder is built.

Called by lockgate_build.py within setuptools' setup(). Adversary: nobody.

The first INDEX_BYTES are marshal's form of (code of module_pack, index), filled up with zeros; the code of each module
follows, also as marshal writes it. Those come first that `gvproxy` imports while its caller waits: the launcher reads
them along with the index. Names of sources are relative to the folder that holds `lockgate`.
"""

from __future__ import annotations
import __future__

import ast
import marshal
import subprocess
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import CodeType

from setuptools.command.build_py import build_py

INDEX_BYTES = 1 << 15  # for all modules that there may come
PACKAGE = "lockgate"
READER = "lockgate.plugin.module_pack"
FIRST = ("lockgate.plugin.launch", "lockgate.plugin.contracts.gvproxy", "lockgate.plugin.gateway.awaited")
NAME = f"modules.{sys.implementation.cache_tag}.{MAGIC_NUMBER.hex()}"  # versions under development change the number

Index = dict[str, tuple[int, int, bool]]


def compiled(source: Path, name: str) -> CodeType:
    """As Python would that was started without -O, but for the statement `from __future__ import annotations`, which
    is an import of a file."""
    tree = ast.parse(source.read_bytes(), name)
    kept = [one for one in tree.body if not (isinstance(one, ast.ImportFrom) and one.module == "__future__")]
    flags = __future__.annotations.compiler_flag if len(kept) < len(tree.body) else 0
    tree.body = kept
    code: CodeType = compile(tree, name, "exec", flags=flags, dont_inherit=True, optimize=0)
    return code


def imported_first(folder: Path) -> list[str]:
    """What FIRST imports, in that order."""
    code = f"import sys; sys.path.append(sys.argv[1]); import {', '.join(FIRST)}; print(*sys.modules)"
    words = [sys.executable, "-I", "-S", "-B", "-c", code, str(folder)]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def pack(folder: Path, first: list[str]) -> Path:
    """Of all modules under folder/lockgate, those of `first` before all others. Returns the file, which is in there."""
    codes = {PACKAGE: (True, compile("", PACKAGE, "exec"))}  # has no file of its own
    for source in (folder / PACKAGE).rglob("*.py"):
        is_package = source.name == "__init__.py"
        place = source.relative_to(folder)
        module = ".".join(place.with_suffix("").parts[: -1 if is_package else None])
        codes[module] = is_package, compiled(source, str(place))
    order = [*(name for name in first if name in codes), *sorted(codes.keys() - set(first))]
    bodies = {name: marshal.dumps(codes[name][1]) for name in order}
    index, at = Index(), INDEX_BYTES
    for name, body in bodies.items():
        index[name] = at, len(body), codes[name][0]
        at += len(body)
    head = marshal.dumps((codes[READER][1], index))
    if len(head) > INDEX_BYTES:
        raise SystemExit(f"{folder}: the index is {len(head)} bytes long, expected at most {INDEX_BYTES}")
    target = folder / PACKAGE / NAME
    target.write_bytes(head.ljust(INDEX_BYTES, b"\0") + b"".join(bodies.values()))
    return target


class BuildPackages(build_py):
    """Takes the place of build_py, of which it is the last step."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.packed: list[str] = []

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib)
            self.packed = [str(pack(folder, imported_first(folder)))]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self.packed]
