# SPDX-License-Identifier: Apache-2.0
"""packaging/: what a wheel and an editable wheel hold, and how a broken header is refused.

Adversary: nobody. The wheel is built once, by the hooks that pip calls.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import c_parts
import editable_wheel
import lockgate_build
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXECUTABLE = 0o111 << 16  # of ZipInfo.external_attr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pip install .` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    return folder / lockgate_build.build_wheel(str(folder))


def test_a_wheel_is_for_every_python_from_3_11_and_holds_no_c_source(wheel: Path) -> None:
    """abi3, one module, and only Python beside it."""
    assert "-cp311-abi3-linux_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith((".c", ".h", ".o"))] == []
    assert [name for name in names if name.endswith(".so")] == ["lockgate/core/_datapath.abi3.so"]


def test_two_builds_make_the_same_files(wheel: Path, tmp_path: Path) -> None:
    """Cause: the name of the folder that each of them makes for a while was in the compiled module."""
    again = tmp_path / lockgate_build.build_wheel(str(tmp_path))
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert one.namelist() == other.namelist()
        assert [name for name in one.namelist() if one.read(name) != other.read(name)] == []


def test_a_wheel_holds_every_python_file_of_the_two_packages(wheel: Path) -> None:
    """A new folder of modules needs no entry anywhere."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    here = {
        f"lockgate/{path.relative_to(ROOT)}"
        for top in ("plugin", "core")
        for path in (ROOT / top).rglob("*.py")
        if (path.parent / "__init__.py").exists()
    }
    assert inside == here


def test_all_commands_are_executable_programs(wheel: Path) -> None:
    """pip makes no script with its own start line of them, since they are ELF files."""
    with zipfile.ZipFile(wheel) as archive:
        commands = [entry for entry in archive.infolist() if ".data/scripts/" in entry.filename]
        assert sorted(Path(entry.filename).name for entry in commands) == sorted(c_parts.COMMANDS)
        for entry in commands:
            assert entry.external_attr & EXECUTABLE == EXECUTABLE
            assert archive.read(entry)[:4] == b"\x7fELF"


def test_an_editable_wheel_leads_to_the_tree_and_lists_all_that_it_holds(wheel: Path, tmp_path: Path) -> None:
    """No copy of a module inside, the commands still executable, a RECORD that is complete."""
    tree, made = tmp_path / "tree", tmp_path / "made"
    for folder in (tree / "core", tree / "plugin", made):
        folder.mkdir(parents=True)
    name = editable_wheel.point_into_tree(Path(shutil.copy(wheel, tmp_path)), tree, made)
    with zipfile.ZipFile(made / name) as archive:
        names = archive.namelist()
        assert [inside for inside in names if inside.startswith("lockgate/")] == []
        source = Path(archive.read("lockgate-editable.pth").decode().strip())
        record = next(inside for inside in names if inside.endswith("RECORD"))
        recorded = [line.split(",")[0] for line in archive.read(record).decode().splitlines()]
    assert (source / "lockgate" / "plugin").resolve() == tree / "plugin"
    assert (tree / "core" / "_datapath.abi3.so").exists()
    assert sorted(recorded) == sorted(names)


@pytest.mark.parametrize("text", ["", "/* cdef: begin */\n", "/* cdef: end */\n/* cdef: begin */\n"])
def test_a_header_without_its_two_marks_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The file is named, and what is expected in it."""
    header = tmp_path / "core" / "datapath" / "datapath.h"
    header.parent.mkdir(parents=True)
    header.write_text(text)
    monkeypatch.setattr(c_parts, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"datapath\.h: expected one line '/\* cdef: begin \*/' and, below it"):
        c_parts.cdef()
