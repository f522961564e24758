# SPDX-License-Identifier: Apache-2.0
"""What there is when the link's socket of gvproxy appears, for which Podman waits, and what comes behind it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from gvproxy_guest import GVPROXY, Gvproxy
from running import PATIENCE

import lockgate.plugin

PACKAGES = str(Path(lockgate.plugin.__file__).parents[2])
ADDRESS = "127.77.0.1"  # nobody else's
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n"

# Runs what the launcher runs, and ends where the link's socket is bound: "what is there" is then printed, of the
# modules those that the command line does not take, which tests/unit/test_gvproxy_options.py knows.
UNTIL_THE_LINK = """
import posix, sys
link, folder, packages = sys.argv[-3:]
del sys.argv[-3:]
sys.path.append(packages)
from lockgate.plugin.contracts import gvproxy
gvproxy.parse(sys.argv[2:], sys.argv[1])
before = set(sys.modules)
def stop(event, details):
    if event == "socket.bind" and details[1] == link:
        print(*sorted(posix.listdir(folder)))
        print(*sorted(set(sys.modules) - before))
        print(open(f"{folder}/log").read(), flush=True)
        posix._exit(0)
sys.addaudithook(stop)
from lockgate.plugin.launch import main
main()
"""


def podmans(folder: Path) -> list[str]:
    """The words of podman machine."""
    (folder / "key").write_text(KEY)
    ssh = ["-forward-sock", f"{folder}/api", "-forward-dest", "/run/podman.sock", "-forward-user", "core"]
    files = ["-pid-file", f"{folder}/pid", "-log-file", f"{folder}/log"]
    return ["-mtu", "1500", "-listen-qemu", f"unix://{folder}/link", *ssh, "-forward-identity", f"{folder}/key", *files]


def at_the_link(folder: Path, *more: str) -> tuple[list[str], set[str], str]:
    """The files in the folder, the modules that have been imported for them, and the log."""
    words = ["gvproxy", *podmans(folder), *more, f"{folder}/link", str(folder), PACKAGES]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", UNTIL_THE_LINK, *words],
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    files, modules, log = done.stdout.split("\n", 2)
    return files.split(), set(modules.split()), log


def test_only_what_it_takes_is_imported_before_the_links_socket(folder: Path) -> None:
    """Each module costs its tenth of a millisecond, of the time that Podman waits; os costs 0.8, the C module 0.7."""
    _, modules, _ = at_the_link(folder, "-ssh-port", "-1")
    assert modules == {
        "_stat",
        "lockgate.plugin.forwards",
        "lockgate.plugin.gateway.awaited",
        "lockgate.plugin.gateway.places",
        "lockgate.plugin.launch",
        "lockgate.plugin.log",
        "lockgate.plugin.made_files",
    }


def test_log_pid_file_and_api_are_there_before_the_links_socket(folder: Path) -> None:
    api = ["-listen", f"unix://{folder}/all", "-services", f"unix://{folder}/services"]
    files, _, log = at_the_link(folder, "-ssh-port", "-1", *api)
    assert files == ["all", "key", "log", "pid", "services"]
    assert 'msg="gvproxy version' in log


def test_the_ports_are_bound_before_the_links_socket(folder: Path) -> None:
    """One that is taken is known before Podman starts a machine."""
    config = folder / "config"
    config.write_text(f'stack:\n  forwards:\n    "{ADDRESS}:7000": "192.168.127.2:80"\n')
    words = ["-config", str(config), "-listen-qemu", f"unix://{folder}/link"]
    calls = traced(folder, "bind", *words, "-pid-file", f"{folder}/missing/pid")
    assert calls == [], "the PID file comes first"
    with ExitStack() as ends:
        ends.callback(Gvproxy("-config", str(config)).close)
        calls = traced(folder, "bind", *words)
    assert calls and all(ADDRESS in call and "EADDRINUSE" in call for call in calls)


def traced(folder: Path, names: str, *words: str) -> list[str]:
    """The system calls of those names that a gvproxy makes whose start fails."""
    trace = folder / "trace"
    command = ["strace", "-f", "-qq", "-e", f"trace={names}", "-e", "signal=none", "-o", str(trace), GVPROXY, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert "gvproxy exiting: " in done.stderr
    return [line.partition(" ")[2] for line in trace.read_text().splitlines() if "(" in line]


@pytest.mark.parametrize("taken_back", ["link", "all"])
def test_what_fails_behind_the_links_socket_takes_it_back(folder: Path, taken_back: str) -> None:
    """A key that is none is looked at behind it, as with the reference."""
    (folder / "none").write_text("ssh-ed25519 AAAA\n")
    ssh = ["-forward-sock", f"{folder}/api", "-forward-dest", "/x", "-forward-user", "core"]
    links = ["-listen-qemu", f"unix://{folder}/link", "-listen", f"unix://{folder}/all", "-pid-file", f"{folder}/pid"]
    words = ["-ssh-port", "-1", *links, *ssh, "-forward-identity", f"{folder}/none"]
    calls = traced(folder, "bind,unlink", *words)
    path = f'"{folder}/{taken_back}"'
    last = [call.partition("(")[0].strip() for call in calls if path in call]
    assert last[-2:] == ["bind", "unlink"]
    assert sorted(one.name for one in folder.iterdir()) == ["none", "trace"]


def test_more_ports_than_the_soft_limit_on_open_files_allows(folder: Path) -> None:
    """As Go programs do, it raises that."""
    lines = [f'    "{ADDRESS}:{port}": "192.168.127.2:80"\n' for port in range(7000, 7100)]
    config = folder / "config"
    config.write_text("stack:\n  forwards:\n" + "".join(lines))
    few = "sh", "-c", 'ulimit -Sn 90 && exec "$0" "$@"', GVPROXY
    with ExitStack() as ends:
        ends.callback(Gvproxy("-config", str(config), command=few).close)


def test_a_relative_pid_file_in_a_folder_that_is_gone(folder: Path) -> None:
    """One line says so, as of any other file that cannot be made."""
    (folder / "gone").mkdir()
    words = ["sh", "-c", 'cd gone && rmdir ../gone && exec "$0" "$@"', GVPROXY, "-ssh-port", "-1", "-pid-file", "pid"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "PID file pid cannot be written" in done.stderr.splitlines()[-1]


def test_the_pid_file_is_written_where_a_start_of_our_number_was_killed_at_it(folder: Path) -> None:
    """In a container, each has the same number."""
    pid_file = folder / "pid"
    killed = "sh", "-c", f'echo 1 > "{pid_file}.$$" && exec "$0" "$@"', GVPROXY
    with ExitStack() as ends:
        helper = Gvproxy("-pid-file", str(pid_file), command=killed)
        ends.callback(helper.close)
        assert pid_file.read_text() == str(helper.pid) and list(folder.iterdir()) == [pid_file]


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "%ff%fe"])
def test_a_name_that_no_host_can_have(folder: Path, host: str) -> None:
    """Python has no encoding of such a one for getaddrinfo()."""
    words = ["-ssh-port", "-1", "-listen", f"tcp://{host}:7", "-pid-file", f"{folder}/pid"]
    done = subprocess.run([GVPROXY, *words], capture_output=True, text=True, timeout=PATIENCE)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 0 and f"gvproxy exiting: cannot listen tcp://{host}:7: " in last
    assert list(folder.iterdir()) == []


def test_a_limit_on_open_files_that_leaves_no_room_for_ports(folder: Path) -> None:
    """Whoever wants none needs none."""
    few = "sh", "-c", 'ulimit -n 90 && exec "$0" "$@"', GVPROXY
    with ExitStack() as ends:
        ends.callback(Gvproxy("-listen-qemu", f"unix://{folder}/link", command=few).close)
