# SPDX-License-Identifier: Apache-2.0
"""The callers whose VM is libkrun's, as processes: their words, their descriptors, their way to wait.

Called by test_callers_krun.py; the guest is krun.py's. Adversary: nobody. The host is one of two ends of a cable, in a
namespace, and nothing but the caller's own words is on a command line: its addresses are what the guest gets.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import krun
from namespace_sockets import NamespaceSockets
from running import PASST, ended, tree

ENVIRONMENT = {**os.environ, "PATH": f"{Path(PASST).parent}:{os.environ['PATH']}"}
WITH_RESOLV_CONF = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
# A container's first process, which outlives the VM so that nothing ends just because it has.
OUTLIVING = '"$@"; exec tail -f /dev/null'
CONTAINER = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", OUTLIVING, "sh")
# crun in it: it launches the helper, waits for it, and becomes the VM.
CRUN = """
import os, socket, sys
parent, child = socket.socketpair()
for end in parent, child:
    end.set_inheritable(True)
words = [{"PARENT": str(parent.fileno()), "CHILD": str(child.fileno())}.get(word, word) for word in sys.argv[1:]]
passt, vm = words[: words.index(";")], words[words.index(";") + 1 :]
launched = os.fork()
if not launched:
    parent.close()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    os.execvp("passt", passt)
child.close()
print(os.waitstatus_to_exitcode(os.waitpid(launched, 0)[1]), flush=True)
os.execvp(vm[0], vm)
"""


@dataclass
class Host:
    """Where callers are, and `far`, whom their cable leads to."""

    prefix: tuple[str, ...]
    folder: Path
    sockets: NamespaceSockets
    far: NamespaceSockets

    def with_resolver(self, address: str) -> tuple[str, ...]:
        """What runs a command there, if this is in its resolv.conf."""
        path = self.folder / "resolv.conf"
        path.write_text(f"nameserver {address}\n")
        path.chmod(0o644)
        return (*self.prefix, "unshare", "--mount", "sh", "-c", WITH_RESOLV_CONF, str(path))


class Called:
    """A guest and its helper. `foreground`: the caller's own child; `held`: its end, if the caller never closes it."""

    def __init__(
        self,
        guest: krun.Guest,
        helper: int,
        foreground: subprocess.Popen[bytes] | None = None,
        held: socket.socket | None = None,
    ) -> None:
        self.guest, self.helper, self.held = guest, helper, held
        self._foreground = foreground
        self.pidfd = os.pidfd_open(helper)

    def processes(self) -> list[int]:
        """The helper's."""
        return tree(self.helper)

    def kill_vm(self) -> None:
        """All that it had is closed by that."""
        os.kill(self.guest.pid, signal.SIGKILL)

    def kill(self) -> None:
        """The helper's first process; the others go with it."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def exit_status(self) -> int | None:
        """None: it is nobody's child."""
        assert ended(self.pidfd)
        return self._foreground.wait() if self._foreground else None

    def close(self) -> None:
        self.kill()
        self.exit_status()
        os.close(self.pidfd)
        if self.held:
            self.held.close()
        self.guest.close()


@dataclass(frozen=True)
class Caller:
    """`words` in their order; `resolver` is in the host's resolv.conf, and `given` what the guest is told of it."""

    words: str
    resolver: str
    given: tuple[str, ...]
    tcp: tuple[int, int] | None = None  # forwarded: of the host, of the guest
    udp: tuple[int, int] | None = None
    maps_gateway: bool = True
    is_muvm: bool = False

    @property
    def daemonises(self) -> bool:
        return "-f" not in self.words.split()

    def starts(self, host: Host, stdin: int = subprocess.DEVNULL, leaked: int | None = None) -> Called:
        launch = self._as_crun if self.daemonises else self._in_foreground
        return launch(host, stdin, () if leaked is None else (leaked,))

    def configures(self, called: Called) -> krun.Lease:
        return called.guest.configured_by_muvm() if self.is_muvm else called.guest.configured_by_init()

    def _in_foreground(self, host: Host, stdin: int, leaked: tuple[int, ...]) -> Called:
        """Nobody waits for it. muvm never closes the helper's end, and tells it nothing but -q about its own output."""
        ours, theirs = socket.socketpair()
        words = self.words.replace("CHILD", str(theirs.fileno())).split()
        helper = subprocess.Popen(
            [*host.with_resolver(self.resolver), "passt", *words],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            env=ENVIRONMENT,
            pass_fds=[theirs.fileno(), *leaked],
        )
        if not self.is_muvm:
            theirs.close()
        return Called(krun.started(host.prefix, ours), helper.pid, helper, theirs if self.is_muvm else None)

    def _as_crun(self, host: Host, stdin: int, leaked: tuple[int, ...]) -> Called:
        passt, vm = ["passt", *self.words.split()], krun.device_command("PARENT")
        crun = [sys.executable, "-I", "-S", "-c", CRUN, *passt, ";", *vm]
        container = subprocess.Popen(
            [*host.with_resolver(self.resolver), *CONTAINER, *crun],
            stdin=stdin,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=ENVIRONMENT,
            pass_fds=leaked,
        )
        try:
            return self._in_container(container)
        except BaseException:
            container.kill()
            container.communicate()
            raise

    def _in_container(self, container: subprocess.Popen[bytes]) -> Called:
        """The helper has no parent but the container's first process, once crun has heard of its success."""
        assert container.stdout is not None and container.stdout.readline() == b"0\n", "the container does not start"
        _, first, *_ = tree(container.pid)
        vm, helper = map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())
        return Called(krun.Guest(container, vm), helper)


CALLERS = {
    "muvm": Caller(
        "-q -f --fd CHILD -t 8080-8080:80-80 -t [::1]/8081-8081:81-81 -u 5300-5301:53-54",
        resolver="127.0.0.53",  # systemd-resolved's
        given=("10.8.1.2",),
        tcp=(8080, 80),
        udp=(5301, 54),
        is_muvm=True,
    ),
    "libkrun": Caller("-f --fd CHILD", resolver="10.99.0.1", given=("10.99.0.1",)),
    "libkrun-nitro": Caller("-t all -f --fd CHILD", resolver="10.8.1.2", given=("10.8.1.2",), tcp=(1080, 1080)),
    "crun": Caller(
        "-t all -u all --no-dhcp-dns --no-map-gw --fd CHILD",
        resolver="10.8.1.2",
        given=(),
        tcp=(1080, 1080),
        udp=(1081, 1081),
        maps_gateway=False,
    ),
    "crun-nitro": Caller(
        "-t all --no-map-gw --fd CHILD", resolver="10.8.1.2", given=("10.8.1.2",), tcp=(1080, 1080), maps_gateway=False
    ),
}
