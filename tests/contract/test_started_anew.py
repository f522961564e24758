# SPDX-License-Identifier: Apache-2.0
"""A helper that was killed is started anew before the kernel has let go of what it held, as libvirt does it; and one
is started where another one lives, by mistake.

Adversary: nobody. A killed helper is played by a process whose first thread has ended, while another one keeps it
from closing its sockets: the kernel shows it as it does one that is ending. strace tells when that was in the way,
and stops for nothing else: who holds a port is looked for among all descriptors of this machine, which other tests
have many of.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from gvproxy_guest import GVPROXY
from running import PASST, Child, Foreground, FrontEnd, run

STRACE = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-e", "trace=bind,connect"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who can become somebody else")

# A port and a UNIX socket that listen until standard input ends, both of a process that has no descriptors to be seen.
DYING = """
import ctypes, os, socket, sys, threading
port = socket.create_server(("127.0.0.1", 0))
link = socket.socket(socket.AF_UNIX)
link.bind(sys.argv[1])
link.listen(0)
def end():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end).start()
libc = ctypes.CDLL(None)
libc.prctl(15, b"passt-worker", 0, 0, 0)
print(port.getsockname()[1], flush=True)
libc.syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""


@pytest.fixture(name="ends")
def exit_stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def await_bind(helper: Child, path: Path) -> None:
    """Until its own socket is there."""
    while "bind(" not in (line := helper.line_with(f'sun_path="{path}"')):
        pass
    assert " = 0" in line


class Dying:
    """What a helper still holds that is ending, until it is let go."""

    def __init__(self, path: Path) -> None:
        words = [sys.executable, "-c", DYING, str(path)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        while "Z" not in Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]:
            os.sched_yield()

    def close(self) -> None:
        self._process.communicate()


@pytest.mark.parametrize("command", ["passt", "gvproxy", "its API"])
def test_a_port_of_a_helper_that_is_ending_is_waited_for(folder: Path, ends: ExitStack, command: str) -> None:
    """Cause: libvirt started a killed passt again within a millisecond of its link's end, and was told that the port is
    held by another process. A worker lets go of the guest's memory first, and of its ports after that."""
    dying = ends.enter_context(closing(Dying(folder / "other")))
    link, api = folder / "s", (GVPROXY, "-ssh-port", "-1")
    words = {
        "passt": [PASST, "--vhost-user", "-f", "-s", str(link), "-t", f"127.0.0.1/{dying.port}"],
        "gvproxy": [GVPROXY, "-ssh-port", str(dying.port), "-listen-qemu", f"unix://{link}"],
        "its API": [*api, "-listen", f"tcp://127.0.0.1:{dying.port}", "-listen-qemu", f"unix://{link}"],
    }
    helper = ends.enter_context(closing(Child([*STRACE, *words[command]])))
    helper.line_with("EADDRINUSE")
    helper.line_with("EADDRINUSE")
    dying.close()
    await_bind(helper, link)


def test_a_socket_of_a_helper_that_is_ending_is_waited_for(folder: Path, ends: ExitStack) -> None:
    """Somebody still accepts connections there. It is looked at more than once; its backlog has room for one, as ours
    has."""
    link = folder / "s"
    dying = ends.enter_context(closing(Dying(link)))
    helper = ends.enter_context(closing(Child([*STRACE, PASST, "--vhost-user", "-f", "-s", str(link)])))
    for _ in range(3):
        assert "connect(" in helper.line_with(f'sun_path="{link}"')
    dying.close()
    await_bind(helper, link)


def test_a_living_helper_is_no_reason_to_wait(folder: Path, ends: ExitStack) -> None:
    """Even if the process has ended that called listen(), as with passt in the background."""
    link = folder / "s"
    left = ends.enter_context(socket.socket(socket.AF_UNIX))
    left.bind(str(link))
    if not (child := os.fork()):
        left.listen()
        os._exit(0)
    os.waitpid(child, 0)
    done = run("--vhost-user", "-f", "-s", str(link), prefix=STRACE)
    assert done.returncode == 1 and "is already in use" in done.stderr
    assert done.stderr.count(f'sun_path="{link}"') == 2  # before and after the look for its holder


def test_a_port_that_is_bound_and_does_not_listen_is_no_reason_to_wait(folder: Path, ends: ExitStack) -> None:
    """The kernel's tables do not have it."""
    holder = ends.enter_context(socket.socket())
    holder.bind(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    done = run("--vhost-user", "-f", "-s", str(folder / "s"), "-t", f"127.0.0.1/{port}", prefix=STRACE)
    assert done.returncode == 1 and done.stderr.count("EADDRINUSE") == 2


def test_a_helper_for_one_client_outlives_the_start_of_another(folder: Path, ends: ExitStack) -> None:
    """Whoever is started at the same path by mistake looks whether somebody is there. Cause: that look was a client,
    after which the first helper ended."""
    living = ends.enter_context(closing(Foreground(folder, "-1")))
    done = run("--vhost-user", "-f", "-s", str(living.socket))
    assert done.returncode == 1 and "is already in use" in done.stderr
    with closing(FrontEnd.connect(living.socket)) as front_end:
        front_end.negotiate()


@as_root
def test_a_socket_that_we_may_not_write_to_is_not_replaced(folder: Path, ends: ExitStack) -> None:
    """Another user's helper lives, in a folder where everybody may remove files."""
    folder.chmod(0o777)
    link = folder / "s"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(link))
        living.listen()
        other = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]
        done = run("--vhost-user", "-s", str(link), prefix=other)
        assert done.returncode == 1 and "is already in use" in done.stderr
