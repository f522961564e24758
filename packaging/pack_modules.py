# SPDX-License-Identifier: Apache-2.0
"""Writes the file that plugin/module_pack.py imports from, once the packages' folder is built.

Called by lockgate_build.py within setuptools' setup(). Adversary: nobody.

The first HEAD_BYTES are marshal's form of (code of module_pack, index), filled up with zeros; the code of each module
follows, also as marshal writes it. Names of sources are relative to the folder that holds `lockgate`.
"""

from __future__ import annotations
import __future__

import ast
import marshal
import sys
from pathlib import Path
from types import CodeType
from typing import ClassVar

from setuptools.command.build_py import build_py

HEAD_BYTES = 1 << 15  # the launcher reads that many
PACKAGE = "lockgate"
READER = "lockgate.plugin.module_pack"
NAME = f"modules.{sys.implementation.cache_tag}"

Index = dict[str, tuple[int, int, str, bool]]


def compiled(source: Path, name: str) -> CodeType:
    """As Python would, but for the statement `from __future__ import annotations`, which is an import of a file."""
    tree = ast.parse(source.read_bytes(), name)
    kept = [one for one in tree.body if not (isinstance(one, ast.ImportFrom) and one.module == "__future__")]
    flags = __future__.annotations.compiler_flag if len(kept) < len(tree.body) else 0
    tree.body = kept
    code: CodeType = compile(tree, name, "exec", flags=flags, dont_inherit=True)
    return code


def pack(folder: Path) -> Path:
    """Of all modules under folder/lockgate. Returns the file, which is in there."""
    bodies, index = b"", Index()
    codes = {}
    for source in sorted((folder / PACKAGE).rglob("*.py")):
        name = str(source.relative_to(folder))
        is_package = source.name == "__init__.py"
        module = ".".join(source.relative_to(folder).with_suffix("").parts[: -1 if is_package else None])
        codes[module] = name, is_package, compiled(source, name)
    codes[PACKAGE] = f"{PACKAGE}/__init__.py", True, compile("", PACKAGE, "exec")  # has no file of its own
    for module, (name, is_package, code) in codes.items():
        body = marshal.dumps(code)
        index[module] = HEAD_BYTES + len(bodies), len(body), name, is_package
        bodies += body
    head = marshal.dumps((codes[READER][2], index))
    if len(head) > HEAD_BYTES:
        raise SystemExit(f"{folder}: the index is {len(head)} bytes long, of which the launcher reads {HEAD_BYTES}")
    target = folder / PACKAGE / NAME
    target.write_bytes(head.ljust(HEAD_BYTES, b"\0") + bodies)
    return target


class BuildPackages(build_py):
    """Takes the place of build_py, of which it is the last step."""

    packed: ClassVar[list[str]] = []

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.packed[:] = [str(pack(Path(self.build_lib)))]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self.packed]
