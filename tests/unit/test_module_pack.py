# SPDX-License-Identifier: Apache-2.0
"""plugin/module_pack.py and packaging/pack_modules.py: modules out of one file are as those out of many.

Adversary: nobody. Packages are made up here, and imported by a Python that has nothing else to import from.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pack_modules
import pytest

import lockgate.plugin

INSTALLED = Path(lockgate.plugin.__file__).parents[2]
COMMAND = Path(sys.executable).with_name("gvproxy")
READER = Path(lockgate.plugin.__file__).with_name("module_pack.py")

ONE = '"""What one is."""\nfrom __future__ import annotations\nx: int = 1\ndef f(): 1 / 0\n'

# What the launcher's code does, with another folder.
BEGIN = """
import marshal, os, posix, sys
folder, path = sys.argv[1:]
fd = posix.open(path, posix.O_RDONLY)
head, file = posix.read(fd, HEAD), posix.fstat(fd)
posix.close(fd)
code, index, groups = marshal.loads(head)
exec(code)
pack = ModulePack(file, path, folder, index, head)
sys.meta_path.insert(0, pack)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """lockgate.plugin with its reader, and a module of ours."""
    folder = tmp_path / "lockgate" / "plugin"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "module_pack.py").write_text(READER.read_text())
    (folder / "one.py").write_text(ONE)
    return tmp_path


def said(
    tree: Path, code: str, head: int = pack_modules.INDEX_BYTES, groups: dict[str, list[str]] | None = None
) -> str:
    """What code prints in a Python that imports from the packed tree."""
    return imported(tree, code, pack_modules.pack(tree, groups or {}), head)


def imported(tree: Path, code: str, pack: Path, head: int = pack_modules.INDEX_BYTES) -> str:
    words = [sys.executable, "-I", "-S", "-c", BEGIN.replace("HEAD", str(head)) + code, str(tree), str(pack)]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=tree).stdout


def test_a_module_has_its_name_place_text_and_annotations(tree: Path) -> None:
    """The statement of __future__ is left out, its meaning is not."""
    show = "import lockgate.plugin.one as one; print(one.__name__, one.__file__, one.__doc__, one.__annotations__)"
    where = tree / "lockgate" / "plugin" / "one.py"
    assert said(tree, show) == f"lockgate.plugin.one {where} What one is. {{'x': 'int'}}\n"
    assert said(tree, f"{show}; print('__future__' in sys.modules)").endswith("False\n")


@pytest.mark.parametrize("more", [0, 1, 1 << 17])
def test_what_was_read_along_with_the_index_is_not_read_again(tree: Path, more: int) -> None:
    """Whole, or else from the file: two is the last module."""
    (tree / "lockgate" / "plugin" / "two.py").write_text("y = 2\n")
    show = """
import lockgate.plugin
opens = posix.open
posix.open = lambda *words: print("read") or opens(*words)
from lockgate.plugin import two
print(two.y)
"""
    assert said(tree, show, pack_modules.INDEX_BYTES + more) == ("2\n" if more > 1 else "read\n2\n")


def test_a_package_has_a_path_along_which_others_are_found(tree: Path) -> None:
    """As the compiled module is, which is in no pack."""
    show = f"""
import lockgate.plugin as plugin
print(*plugin.__path__)
open({str(tree / "lockgate" / "plugin" / "two.py")!r}, "w").write("")
from lockgate.plugin import two
print(two.__spec__.loader.__class__.__name__)
"""
    assert said(tree, show) == f"{tree / 'lockgate' / 'plugin'}\nSourceFileLoader\n"


def test_a_traceback_names_the_source_where_it_lies(tree: Path) -> None:
    show = """
import traceback
from lockgate.plugin import one
try: one.f()
except ZeroDivisionError: print(traceback.format_exc())
"""
    assert f'File "{tree}/lockgate/plugin/one.py", line 4, in f\n    def f(): 1 / 0' in said(tree, show)


@pytest.mark.parametrize(
    "change",
    ["os.unlink(path)", "data = open(path, 'rb').read(); os.unlink(path); open(path, 'wb').write(data[::-1])"],
    ids=["removed", "replaced"],
)
def test_a_pack_that_is_not_the_same_any_more_is_left_alone(tree: Path, change: str) -> None:
    """An update under way: what Python would find without it counts."""
    show = f"""
import lockgate.plugin
{change}
from lockgate.plugin import one
print(one.__spec__.loader.__class__.__name__)
"""
    assert said(tree, show) == "SourceFileLoader\n"


GROUPS = {"": ["lockgate", "lockgate.plugin"], "two": ["lockgate.plugin.one", "lockgate.plugin.two"]}
TWO = "from lockgate.plugin import one\nfrom lockgate.plugin.one import x\ny = x + 1\n"


@pytest.mark.parametrize("command", ["one", "/bin/two.real"])
def test_a_command_has_its_modules_before_it_asks_for_them(tree: Path, command: str) -> None:
    """And they look to it, and to what it imports later, as if it had."""
    (tree / "lockgate" / "plugin" / "two.py").write_text(TWO)
    show = f"""
pack.bring(groups, {command!r})
print(*(name for name in sys.modules if name.partition(".")[0] == "lockgate"))
before = sys.modules.get("lockgate.plugin.two")
import lockgate.plugin.two
two = lockgate.plugin.two
print(before in (None, two), two.y, two.__file__, two.__package__, two.__spec__.name, two.__loader__ is pack)
"""
    brought = GROUPS[""] + GROUPS["two"] * ("two" in command)
    first, second, _ = said(tree, show, groups=GROUPS).split("\n")
    assert first == " ".join(brought)
    where = tree / "lockgate" / "plugin" / "two.py"
    assert second == f"True 2 {where} lockgate.plugin lockgate.plugin.two True"


def test_a_module_that_cannot_be_brought_leaves_nothing(tree: Path) -> None:
    (tree / "lockgate" / "plugin" / "two.py").write_text("1 / 0\n")
    show = """
try: pack.bring(groups, "two")
except ZeroDivisionError: print("lockgate.plugin.two" in sys.modules)
"""
    assert said(tree, show, groups=GROUPS) == "False\n"


def test_a_package_that_imports_its_own_module_first_is_brought_as_usual(tree: Path) -> None:
    """Python says of the module first that it has been imported; the package must be there before."""
    (tree / "lockgate" / "plugin" / "three").mkdir()
    (tree / "lockgate" / "plugin" / "three" / "__init__.py").write_text("from lockgate.plugin.three import inner\n")
    (tree / "lockgate" / "plugin" / "three" / "inner.py").write_text("z = 3\n")
    show = "pack.bring(groups, ''); print(sys.modules['lockgate.plugin.three'].inner.z)"
    package = "lockgate.plugin.three"
    brought = ["lockgate", "lockgate.plugin", f"{package}.inner", package]
    assert said(tree, show, groups={"": brought}) == "3\n"


def test_a_module_that_cannot_be_imported_ends_the_build_with_the_reason(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_modules, "FIRST", {"": ("lockgate.plugin.two",)})
    (tree / "lockgate" / "plugin" / "two.py").write_text("1 / 0\n")
    with pytest.raises(SystemExit, match=r"first:\nTraceback(?s:.*)two\.py(?s:.*)ZeroDivisionError"):
        pack_modules.imported_first(tree)


def test_functions_are_packed_without_what_nobody_asks_them_for(tree: Path) -> None:
    """Dataclasses ask a class, and would otherwise import inspect."""
    (tree / "lockgate" / "plugin" / "two.py").write_text('''
class A:
    """What A is."""
    b: int
    def c(self, d: str, *e: int, f: int = 1, **g: int) -> int:
        """What c does."""
        return f
    async def h(self) -> None:
        """What h does."""
''')
    show = """
from lockgate.plugin.two import A
print(A.__doc__, A.__annotations__, A.c.__doc__, A.c.__annotations__, A().c("x"), A.h.__doc__, A.h.__annotations__)
"""
    assert said(tree, show) == "What A is. {'b': <class 'int'>} None {} 1 None {}\n"


def test_what_podman_waits_for_is_read_at_once() -> None:
    """Along with the index, by the launcher's one read."""
    words = ["strace", "-f", "-qq", "-e", "trace=openat,read,pread64", str(COMMAND), "-services", "tcp:", "-mtu", "1"]
    lines = subprocess.run(words, capture_output=True, text=True).stderr.splitlines()
    opened = next(number for number, line in enumerate(lines) if pack_modules.NAME in line)
    assert "read(" in lines[opened + 1] and not any("pread64(" in line for line in lines[opened:])


def test_an_index_that_is_longer_than_its_place_is_refused(tree: Path) -> None:
    for number in range(1000):
        (tree / "lockgate" / f"module_{number:05}.py").touch()
    with pytest.raises(SystemExit, match="the index is .* bytes long, expected at most 32768"):
        pack_modules.pack(tree, {})


def test_a_command_reads_none_of_our_modules_from_a_file_of_its_own() -> None:
    """Each takes as long to find as to run."""
    words = ["strace", "-f", "-qq", "-e", "trace=open,openat", "-e", "signal=none", str(COMMAND), "-version"]
    trace = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    folder = f"{INSTALLED}/lockgate/"
    opened = [line.split('"')[1] for line in trace.splitlines() if folder in line and "= -1" not in line]
    assert set(opened) == {str(INSTALLED / "lockgate" / pack_modules.NAME)}


@pytest.fixture(name="environment")
def copied_environment(tmp_path: Path) -> Path:
    """Another one with our commands and modules, which has no pack."""
    packages = tmp_path / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    for name in os.listdir(INSTALLED):
        if name != "lockgate":
            (packages / name).symlink_to(INSTALLED / name)
    (packages / "lockgate").mkdir()
    for name in ("core", "plugin"):
        (packages / "lockgate" / name).symlink_to(INSTALLED / "lockgate" / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    command = tmp_path / "bin" / "gvproxy"
    command.write_bytes(COMMAND.read_bytes())
    command.chmod(0o755)
    return tmp_path


def shows_its_version(environment: Path) -> bool:
    """As the command with a pack does."""
    with_pack = subprocess.run([COMMAND, "-version"], capture_output=True, text=True, check=True)
    without = subprocess.run([environment / "bin" / "gvproxy", "-version"], capture_output=True, text=True)
    return (without.stdout, without.stderr) == (with_pack.stdout, with_pack.stderr)


def test_without_a_pack_for_this_python_our_modules_are_imported_as_usual(environment: Path) -> None:
    """A wheel is for all versions of Python, its pack for the one that built it."""
    assert shows_its_version(environment)


def _cut(pack: bytes, length: int) -> bytes:
    return pack[:length]


def _blanked(pack: bytes, begin: int) -> bytes:
    return pack[:begin] + bytes(len(pack) - begin)


def _hole(pack: bytes, begin: int) -> bytes:
    return pack[:begin] + bytes(4096) + pack[begin + 4096 :]


@pytest.mark.parametrize("damage", [_cut, _blanked, _hole])
@pytest.mark.parametrize("good", [0, 5000, pack_modules.INDEX_BYTES, pack_modules.INDEX_BYTES + 5000])
def test_a_damaged_pack_is_as_none(environment: Path, damage: Callable[[bytes, int], bytes], good: int) -> None:
    """What a crash of the machine, or a full disk, leaves of a file: its beginning, or zeros, or a block of
    them."""
    (lockgate,) = (environment / "lib").glob("python3*/site-packages/lockgate")
    pack = (INSTALLED / "lockgate" / pack_modules.NAME).read_bytes()
    (lockgate / pack_modules.NAME).write_bytes(damage(pack, good))
    assert shows_its_version(environment)


def test_a_damaged_pack_is_not_left_open(environment: Path) -> None:
    """With a closed standard input it would be that."""
    (lockgate,) = (environment / "lib").glob("python3*/site-packages/lockgate")
    (lockgate / pack_modules.NAME).write_bytes(bytes(5000))
    words = ["strace", "-f", "-qq", "-e", "trace=open,openat,close", str(environment / "bin" / "gvproxy"), "-version"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stderr.splitlines()
    (opened,) = [number for number, line in enumerate(lines) if pack_modules.NAME in line and "= -1" not in line]
    descriptor = lines[opened].rpartition("= ")[2]
    assert any(f"close({descriptor})" in line for line in lines[opened : opened + 2])


def test_what_is_packed_does_not_depend_on_how_python_was_started(tree: Path) -> None:
    """Cause: a wheel that was built under PYTHONOPTIMIZE=2 had neither assertions nor the docstrings without which
    dataclasses imports more."""
    (tree / "lockgate" / "plugin" / "one.py").write_text(f"{ONE}def g(): assert False\n")
    folder = str(Path(pack_modules.__file__).parent)
    code = "import pathlib, sys; sys.path.insert(0, sys.argv[2]); import pack_modules; "
    code += "pack_modules.pack(pathlib.Path(sys.argv[1]), {})"
    subprocess.run([sys.executable, "-OO", "-c", code, str(tree), folder], check=True)
    show = """
from lockgate.plugin import one
try: one.g()
except AssertionError: print(one.__doc__)
"""
    assert imported(tree, show, tree / "lockgate" / pack_modules.NAME) == "What one is.\n"
