# SPDX-License-Identifier: Apache-2.0
"""packaging/launcher.c: what the four commands hand to Python, whatever the caller's environment holds.

Adversary: the caller's environment. A shell script stands in for the interpreter and prints what it gets.
"""

from __future__ import annotations

import os
import signal
import subprocess
import venv
from pathlib import Path

import pytest
from c_parts import ROOT

BIN = ROOT / ".venv" / "bin"
CALL = "from lockgate.plugin.launch import main\nmain()\n"  # what the line of code ends with
HEARS_INTERRUPTS = ("env", "--default-signal=INT")  # also where the tests run in the background of a shell
SHOW = '#!/bin/bash\nprintf "%s\\n" "$(tr "\\0" "|" </proc/$$/cmdline)"\n'


@pytest.fixture
def command(compiled_launcher: Path, tmp_path: Path) -> Path:
    """A copy beside a python3 that shows its arguments."""
    python = tmp_path / "python3"
    python.write_text(SHOW)
    python.chmod(0o755)
    target = tmp_path / "passt"
    target.write_bytes(compiled_launcher.read_bytes())
    target.chmod(0o755)
    return target


def shown(command: Path, *words: str, name: str | None = None) -> list[str]:
    """What the stand-in for Python was started with: bash shows itself first, then the script."""
    output = subprocess.run(
        [name or str(command), *words], executable=command, check=True, capture_output=True, text=True
    )
    return output.stdout.strip().strip("|").split("|")[2:]


def test_python_gets_the_isolated_flag_the_entry_and_all_words_as_typed(command: Path) -> None:
    """-I, -S, the code, the command's name, and then the caller's words, empty ones too."""
    isolated, without_site, code, entry, *words = shown(command, "-f", "", "a b")
    assert (isolated, without_site, code) == ("-I", "-S", "-c") and entry.endswith(CALL)
    assert words == ["passt", "-f", "", "a b"]


def test_the_name_that_was_typed_is_handed_on_without_its_folder(command: Path) -> None:
    """It decides the contract, also when a link or an exec gives another name than the file's."""
    assert shown(command, name="/somewhere/pasta.avx2")[4] == "pasta.avx2"
    link = command.parent / "gvproxy"
    link.symlink_to(command)
    assert subprocess.run([link], capture_output=True, text=True).stdout.split("|")[6] == "gvproxy"


def test_a_link_from_elsewhere_finds_the_interpreter_beside_the_real_file(command: Path, tmp_path: Path) -> None:
    """A link in /usr/local/bin to a command in a virtual environment."""
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "passt"
    link.symlink_to(command)
    assert subprocess.run([link, "-f"], capture_output=True, text=True).stdout.count("-I|-S|-c") == 1


def test_without_an_interpreter_there_is_one_sentence_and_status_1(compiled_launcher: Path) -> None:
    """Nothing beside it, nothing at the system's place: both are named."""
    ended = subprocess.run([compiled_launcher, "-f"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "/nonexistent/python3" in ended.stderr and str(compiled_launcher) in ended.stderr


@pytest.mark.parametrize(
    "variable",
    [
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONPLATLIBDIR",
        "PYTHONSAFEPATH",
        "PYTHONEXECUTABLE",
        "__PYVENV_LAUNCHER__",
    ],
)
def test_a_variable_for_python_changes_nothing(tmp_path: Path, variable: str) -> None:
    """With the real command and a folder whose modules would end the process if they were ever read."""
    planted = tmp_path / "lockgate"
    planted.mkdir()
    for name in ("sitecustomize.py", "os.py", "lockgate/__init__.py"):
        (tmp_path / name).write_text("import sys; sys.exit('planted code ran')")
    command = BIN / "passt"
    plain = subprocess.run([command, "--version"], capture_output=True, cwd=tmp_path)
    touched = subprocess.run(
        [command, "--version"], capture_output=True, cwd=tmp_path, env={**os.environ, variable: str(tmp_path)}
    )
    assert (plain.returncode, touched.returncode) == (0, 0)
    assert plain.stdout == touched.stdout


def test_ps_shows_the_command_by_its_own_path() -> None:
    """argv[0] of the interpreter is the command beside it, which is also how Python finds its environment."""
    command = BIN / "lockgate"
    ended = subprocess.run(
        ["strace", "-qq", "-e", "trace=execve", "-s", "200", command], capture_output=True, text=True
    )
    assert f'python3", ["{command}", "-I", "-S", "-c"' in ended.stderr


OUR_PYTHON = BIN / "python3"


def entry_then(command: Path, code: str, name: str = "lockgate", python: Path = OUR_PYTHON) -> list[str]:
    """What the launcher makes of that command's name, with something else than our main() at the end of its code."""
    entry = shown(command)[3]
    assert entry.endswith(CALL)
    return [str(python), "-I", "-S", "-c", entry.removesuffix(CALL) + code, name]


def test_python_starts_without_site_in_our_environment(command: Path) -> None:
    """1.5 ms and 0.7 MB: our modules and cffi's are found where the launcher says that they are."""
    words = entry_then(command, "import lockgate.plugin.launch; print('site' in sys.modules)")
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_an_interrupt_before_our_own_code_ends_us_without_a_word(command: Path) -> None:
    """Cause: a traceback of KeyboardInterrupt, of an import. Whoever starts us without interrupts goes on without."""
    words = entry_then(command, "import os; os.kill(os.getpid(), 2); print('on')")
    done = subprocess.run([*HEARS_INTERRUPTS, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    ignoring = subprocess.run(["sh", "-c", 'trap "" INT && exec "$0" "$@"', *words], capture_output=True, text=True)
    assert (ignoring.returncode, ignoring.stdout, ignoring.stderr) == (0, "on\n", "")


@pytest.mark.parametrize("contract", ["passt", "pasta", "gvproxy"])
def test_what_was_read_of_our_modules_is_not_kept(command: Path, contract: str) -> None:
    """256 KB, which each helper would have for as long as it lives: the code had a name for them."""
    look = "[name for name, value in globals().items() if type(value) is bytes and len(value) > 4096]"
    code = f"import lockgate.plugin.contracts.{contract}, lockgate.plugin.start; print({look}, "
    code += "len(sys.meta_path[0]._head))"
    words = entry_then(command, code, contract)
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "[] 0\n"


def test_an_interrupt_waits_until_python_has_started(command: Path) -> None:
    """Cause: "Fatal Python error: init_sys_streams", and status 1."""
    (command.parent / "python3").write_text("#!/bin/sh\nkill -INT $$; echo goes on\n")
    assert subprocess.run([*HEARS_INTERRUPTS, command], capture_output=True, text=True).stdout == "goes on\n"


def test_an_interrupt_that_the_caller_holds_back_stays_so(command: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        words = entry_then(command, "import os; os.kill(os.getpid(), 2); print('on')")
        done = subprocess.run(words, capture_output=True, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_nothing_is_collected_while_a_helper_starts(command: Path) -> None:
    """0.2 ms: nothing there makes cycles worth collecting."""
    words = entry_then(command, "print(gc.isenabled())")
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_module_that_only_site_leads_to_is_found_all_the_same(command: Path, tmp_path: Path) -> None:
    """By way of a .pth file, as in an editable install; what is nowhere is still missing."""
    venv.create(tmp_path / "environment", with_pip=False)
    (packages,) = (tmp_path / "environment" / "lib").glob("python3*/site-packages")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far_away.py").write_text("place = 'elsewhere'")
    (packages / "far.pth").write_text(f"{elsewhere}\n")
    look = "import far_away; print(far_away.place)\ntry: import nowhere\nexcept ImportError: print('no')"
    words = entry_then(command, look, python=tmp_path / "environment" / "bin" / "python3")
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout == "elsewhere\nno\n"
