# SPDX-License-Identifier: Apache-2.0
"""The PEP 517 backend: what pip calls to turn this tree into a wheel, an editable wheel or a source archive.

Called by pip and by `python -m build`; pyproject.toml names it. Adversary: nobody.
Invariants: only setuptools' public `setup()` is used, so that version 66 (Debian 12) and the newest both work;
nothing is written into the tree, except for an editable install (see build_editable). Where setuptools does the
ordinary work, what it cannot be told in pyproject.toml is in c_parts.py, the C data path and the commands, and in
pack_modules.py.

meson-python and scikit-build-core lost: each wants a file of its own at the root or a version that Debian 12 lacks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import editable_wheel
from c_parts import COMMANDS, BuildCommands, BuildDatapath, Sdist, datapath_extension
from pack_modules import BuildPackages
from setuptools import setup

ROOT = Path(__file__).resolve().parent.parent


def version() -> str:
    """The constant of plugin/version.py, read without importing the package (it may need what is not built yet)."""
    names: dict[str, object] = {}
    source = ROOT / "plugin" / "version.py"
    exec(compile(source.read_text(), str(source), "exec"), names)
    found = names.get("VERSION")
    if not isinstance(found, str):
        raise SystemExit(f'{source}: expected a line VERSION = "…" that names the version')
    return found


def packages() -> list[str]:
    """Every import package: a folder of plugin/ or core/ that has an __init__.py."""
    found = [path.parent for top in ("plugin", "core") for path in sorted((ROOT / top).rglob("__init__.py"))]
    return [".".join(("lockgate", *folder.relative_to(ROOT).parts)) for folder in found]


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    """setup() of setuptools 66 reads sys.argv for its own name, and pip's place is the tree's root."""
    before, place = sys.argv, Path.cwd()
    sys.argv = ["setup.py", *words]
    os.chdir(ROOT)
    try:
        yield
    finally:
        sys.argv = before
        os.chdir(place)


def _run_setup(command: str, options: dict[str, str], scratch: str) -> None:
    words = [command, *(f"--{name}={value}" for name, value in options.items())]
    with _arguments(words):
        setup(
            version=version(),
            packages=packages(),
            script_args=words,
            cmdclass={
                "build_ext": BuildDatapath,
                "build_py": BuildPackages,
                "build_scripts": BuildCommands,
                "sdist": Sdist,
            },
            ext_modules=[datapath_extension(Path(scratch))],
            scripts=list(COMMANDS),
            options={
                "build": {"build_base": scratch},  # never build/lib: it keeps modules that are long gone
                "egg_info": {"egg_base": scratch},
                "bdist_wheel": {"py_limited_api": "cp311"},
            },
        )


def _build(command: str, directory: str, suffix: str, options: dict[str, str]) -> Path:
    with tempfile.TemporaryDirectory(prefix="lockgate-build-") as scratch:
        produced = Path(scratch, "dist")
        _run_setup(command, {"dist-dir": str(produced), **options}, scratch)
        found = sorted(produced.glob("*" + suffix))
        if len(found) != 1:
            raise SystemExit(f"{command}: expected one {suffix} in {produced}, found {len(found)}")
        return Path(shutil.move(str(found[0]), directory))


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: str | None = None) -> str:
    """PEP 517: the wheel, with lockgate.core._datapath and the commands, without C sources."""
    return _build("bdist_wheel", wheel_directory, ".whl", {}).name


def build_editable(wheel_directory: str, config_settings: object = None, metadata_directory: str | None = None) -> str:
    """PEP 660: a wheel that points into this tree; the built C module goes to core/, where git ignores it."""
    with tempfile.TemporaryDirectory(prefix="lockgate-editable-") as scratch:
        wheel = _build("bdist_wheel", scratch, ".whl", {})
        return editable_wheel.point_into_tree(wheel, ROOT, Path(wheel_directory))


def build_sdist(sdist_directory: str, config_settings: object = None) -> str:
    """PEP 517: the source archive, with everything that `make test` needs."""
    return _build("sdist", sdist_directory, ".tar.gz", {"formats": "gztar"}).name


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    """Nothing beyond build-system.requires."""
    return []


get_requires_for_build_editable = get_requires_for_build_wheel
get_requires_for_build_sdist = get_requires_for_build_wheel
