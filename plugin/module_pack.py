# SPDX-License-Identifier: Apache-2.0
"""All modules of lockgate, compiled, in one file: what a start imports from.

Called by the code that packaging/launcher.c hands to Python; packaging/pack_modules.py writes the file, at whose
beginning this module lies, and says how it is made up. Adversary: nobody; who may write to the file may write to each
of the modules.

Python's own finder looks for each module in a list of its folder, asks for its source's age, and opens, checks and
reads a file: of the 21 that `gvproxy` imports while Podman waits, 1.5 of 10 ms. Those that a command imports in any
case come as one piece, and without Python's importlib, whose locks and searches would take another half. A zip file
lost: zipimport is slower than files. So did frozen modules: they belong to an interpreter of one's own.

Invariants: the file belongs to one version of Python's bytecode, by its name. Where it is missing, or damaged, or has
been replaced meanwhile, modules come from their own files.
"""

from __future__ import annotations

import _imp
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec  # importlib.machinery would import the rest of importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

    Index = dict[str, tuple[int, int, bool]]  # by module: where its code begins, the length of that, is it a package
    Groups = dict[str, tuple[int, int]]  # by a part of the command's name: where they are


class ModulePack:
    """A finder and loader, for sys.meta_path."""

    def __init__(self, file: posix.stat_result, path: str, folder: str, index: Index, head: bytes) -> None:
        """`file` is that of `path`, of which `head` is the beginning; sources lie under `folder`."""
        self._path = path
        self._folder = folder
        self._index = index
        self._head = memoryview(head)
        self._file = _identity(file)

    def bring(self, groups: Groups, command: str) -> None:
        """Imports what that command needs first, each module after those that it imports itself. One whose package is
        not there yet is left to importlib: the package's own group was damaged, or the package itself imports it."""
        for at, length in [place for part, place in groups.items() if part in command]:
            try:
                modules = marshal.loads(self._bytes(at, length))
            except (EOFError, OSError, TypeError, ValueError):
                continue  # they come one by one
            for name, is_package, code in modules:
                package = name.rpartition(".")[0]
                if name not in sys.modules and (not package or package in sys.modules):
                    self._run(self._spec(name, is_package, code))

    def _run(self, spec: ModuleSpec) -> None:
        """As importlib does, where nothing else runs yet."""
        module: Any = type(sys)(spec.name)
        module.__spec__, module.__loader__, module.__package__ = spec, self, spec.parent
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        sys.modules[spec.name] = module
        try:
            self.exec_module(module)
        except BaseException:
            del sys.modules[spec.name]
            raise
        package, _, last = spec.name.rpartition(".")
        if package:
            setattr(sys.modules[package], last, module)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """For Python. Reads the module, so that what cannot be read is looked for elsewhere."""
        found = self._index.get(name)
        if found is None:
            return None
        at, length, is_package = found
        try:
            return self._spec(name, is_package, marshal.loads(self._bytes(at, length)))
        except (EOFError, OSError, TypeError, ValueError):
            return None

    def _spec(self, name: str, is_package: bool, code: CodeType) -> ModuleSpec:
        place = f"{self._folder}/{name.replace('.', '/')}"
        origin = f"{place}/__init__.py" if is_package else f"{place}.py"
        _imp._fix_co_filename(code, origin)  # type: ignore[attr-defined]  # for tracebacks, as of a moved .pyc
        spec = ModuleSpec(name, self, origin=origin, loader_state=code, is_package=is_package)  # type: ignore[arg-type]
        if is_package:
            spec.submodule_search_locations = [place]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """For Python: an ordinary one."""

    def exec_module(self, module: ModuleType) -> None:
        """For Python. Were the specification said to have a location, Python would work out a place for a .pyc, too."""
        spec: Any = module.__spec__
        code, spec.loader_state = spec.loader_state, None  # what runs once need not stay
        module.__file__ = spec.origin
        exec(code, module.__dict__)

    def _bytes(self, at: int, length: int) -> memoryview | bytes:
        """Empty, if the file is another now: of another version of lockgate, with other modules elsewhere."""
        if at + length <= len(self._head):
            return self._head[at : at + length]
        self._head = memoryview(b"")  # the rest comes later, where time counts less than memory
        fd = posix.open(self._path, posix.O_RDONLY)  # anew: whoever starts a process closes what it does not know
        try:
            return posix.pread(fd, length, at) if _identity(posix.fstat(fd)) == self._file else b""
        finally:
            posix.close(fd)


class SiteAfterAll:
    """The last finder: where a module is nowhere else, `site` may know of another place."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """For Python."""
        if path is not None:
            return None
        sys.meta_path.remove(cls)
        import site

        site.main()
        found = (finder.find_spec(name, None) for finder in sys.meta_path)
        return next(filter(None, found), None)


def _identity(file: posix.stat_result) -> tuple[int, int, int]:
    return file.st_dev, file.st_ino, file.st_mtime_ns
