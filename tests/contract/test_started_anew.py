# SPDX-License-Identifier: Apache-2.0
"""A helper that was killed is started anew before the kernel has let go of what it held, as libvirt does it.

Adversary: nobody. A killed helper is played by what remains of one: a port's socket that no process has any more, and a
socket whose process has ended while another one still holds it. strace tells when that was in the way.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from gvproxy_guest import GVPROXY
from running import PASST, Child, kill, run

STRACE = ["strace", "-f", "-qq", "-e", "signal=none", "-e", "trace=bind,connect"]
CREDENTIALS = struct.Struct("=iII")  # unix(7)


@pytest.fixture(name="ends")
def exit_stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def await_bind(helper: Child, path: Path) -> None:
    """Until its own socket is there."""
    while "bind(" not in (line := helper.line_with(f'sun_path="{path}"')):
        pass
    assert " = 0" in line


class Remains:
    """A listening port that no process has a descriptor of, until it is let go."""

    def __init__(self) -> None:
        self._there, here = socket.socketpair()
        with here, socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
            socket.send_fds(here, [b"-"], [server.fileno()])

    def close(self) -> None:
        self._there.close()


@pytest.mark.parametrize("command", ["passt", "gvproxy"])
def test_a_port_of_which_only_the_kernel_knows_is_waited_for(folder: Path, ends: ExitStack, command: str) -> None:
    """Cause: libvirt started a killed passt again within a millisecond of its link's end, and was told that the port is
    held by another process. A worker lets go of the guest's memory first, and of its ports after that."""
    remains = ends.enter_context(closing(Remains()))
    link = folder / "s"
    words = {
        "passt": [PASST, "--vhost-user", "-f", "-s", str(link), "-t", f"127.0.0.1/{remains.port}"],
        "gvproxy": [GVPROXY, "-ssh-port", str(remains.port), "-listen-qemu", f"unix://{link}"],
    }
    helper = ends.enter_context(closing(Child([*STRACE, *words[command]])))
    helper.line_with("EADDRINUSE")
    remains.close()
    await_bind(helper, link)


def test_a_socket_whose_helper_has_ended_is_waited_for(folder: Path, ends: ExitStack) -> None:
    """Somebody still accepts connections there, who is ending."""
    link = folder / "s"
    left = ends.enter_context(socket.socket(socket.AF_UNIX))
    left.bind(str(link))
    if not (child := os.fork()):
        left.listen()
        os._exit(0)
    os.waitpid(child, 0)
    helper = ends.enter_context(closing(Child([*STRACE, PASST, "--vhost-user", "-f", "-s", str(link)])))
    assert "connect(" in (line := helper.line_with(f'sun_path="{link}"')) and " = 0" in line
    left.close()
    await_bind(helper, link)


def test_who_connects_sees_the_number_of_the_process_that_stays(folder: Path, ends: ExitStack) -> None:
    """That of the one that the caller waited for would say of each helper in the background that it has ended."""
    sockets = [folder / name for name in ("s", "s.repair", "conf")]
    done = run("--vhost-user", "-s", str(sockets[0]), "-c", str(sockets[2]), "-P", str(folder / "pid"))
    assert done.returncode == 0
    pid = int((folder / "pid").read_text())
    ends.callback(kill, pid)
    for path in sockets:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            seen = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
            assert CREDENTIALS.unpack(seen)[0] == pid, path.name
