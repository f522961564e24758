# SPDX-License-Identifier: Apache-2.0
"""Writes the file that plugin/module_pack.py imports from, once the packages' folder is built.

Called by lockgate_build.py within setuptools' setup(). Adversary: nobody.

The first INDEX_BYTES are marshal's form of (code of module_pack, index, groups), filled up with zeros. The groups
follow, each a list of (name, is it a package, code) as marshal writes it, and then the code of each module by itself,
of those in a group as well: others import them too. What `gvproxy` imports while its caller waits lies in what the
launcher reads at once. Names of sources are relative to the folder that holds `lockgate`.

Functions have neither their docstrings nor annotations there: nobody asks for them, and to read them in takes a sixth
of the time. Classes keep theirs, without which dataclasses would import more.
"""

from __future__ import annotations
import __future__

import ast
import marshal
import subprocess
import sys
from importlib.util import MAGIC_NUMBER
from itertools import accumulate, chain
from pathlib import Path
from types import CodeType

from setuptools.command.build_py import build_py

INDEX_BYTES = 1 << 15  # for all modules that there may come
PACKAGE = "lockgate"
READER = "lockgate.plugin.module_pack"
# What a command imports in any case, by a part of its name.
FIRST = {
    "": ("lockgate.plugin.launch",),
    "gvproxy": ("lockgate.plugin.contracts.gvproxy", "lockgate.plugin.gateway.awaited"),
}
NAME = f"modules.{sys.implementation.cache_tag}.{MAGIC_NUMBER.hex()}"  # versions under development change the number


def compiled(source: Path, name: str) -> CodeType:
    """As Python would that was started without -O, but for what is said above, and the statement
    `from __future__ import annotations`, which is an import of a file."""
    tree = ast.parse(source.read_bytes(), name)
    for one in ast.walk(tree):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            _strip(one)
    kept = [one for one in tree.body if not (isinstance(one, ast.ImportFrom) and one.module == "__future__")]
    flags = __future__.annotations.compiler_flag if len(kept) < len(tree.body) else 0
    tree.body = kept
    code: CodeType = compile(tree, name, "exec", flags=flags, dont_inherit=True, optimize=0)
    return code


def _strip(function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    if ast.get_docstring(function, clean=False) is not None:
        function.body[:1] = [] if function.body[1:] else [ast.copy_location(ast.Pass(), function.body[0])]
    function.returns = None
    for node in ast.walk(function.args):
        if isinstance(node, ast.arg):
            node.annotation = None


def imported_first(folder: Path) -> dict[str, list[str]]:
    """What FIRST imports: each module after those that it imports itself, which is when Python says that it has."""
    code = f"import sys; sys.path.append(sys.argv[1]); import {', '.join(chain(*FIRST.values()))}"
    words = [sys.executable, "-I", "-S", "-B", "-X", "importtime", "-c", code, str(folder)]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
        raise SystemExit(f"{folder}: cannot import what commands import first:\n{reason}")
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    groups = {}
    for part, last in FIRST.items():
        end = names.index(last[-1]) + 1
        groups[part], names = [name for name in names[:end] if name.partition(".")[0] == PACKAGE], names[end:]
    return groups


def pack(folder: Path, first: dict[str, list[str]]) -> Path:
    """Of all modules under folder/lockgate, with those of `first` in groups. Returns the file, which is in there."""
    codes = {PACKAGE: (True, compile("", PACKAGE, "exec"))}  # has no file of its own
    for source in (folder / PACKAGE).rglob("*.py"):
        is_package = source.name == "__init__.py"
        place = source.relative_to(folder)
        module = ".".join(place.with_suffix("").parts[: -1 if is_package else None])
        codes[module] = is_package, compiled(source, str(place))
    bodies = [marshal.dumps([(name, *codes[name]) for name in names]) for names in first.values()]
    bodies += [marshal.dumps(codes[name][1]) for name in sorted(codes)]
    places = list(zip(accumulate(map(len, bodies), initial=INDEX_BYTES), map(len, bodies), strict=False))
    groups = dict(zip(first, places, strict=False))
    index = {name: (*place, codes[name][0]) for name, place in zip(sorted(codes), places[len(first) :], strict=True)}
    head = marshal.dumps((codes[READER][1], index, groups))
    if len(head) > INDEX_BYTES:
        raise SystemExit(f"{folder}: the index is {len(head)} bytes long, expected at most {INDEX_BYTES}")
    target = folder / PACKAGE / NAME
    target.write_bytes(head.ljust(INDEX_BYTES, b"\0") + b"".join(bodies))
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
