# SPDX-License-Identifier: Apache-2.0
"""A host with an ordinary user, for a Podman without root: namespaces of processes, mounts and networks of its own.

Called by podman_host.py and podman_machine.py. Adversary: nobody.
Invariants: all that runs there ends with its first process; of the root file system nothing changes, because what is
written lies in folders of ours that hide its own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from namespace_sockets import NamespaceSockets
from running import ended, name, status, tree

PODMAN_PATIENCE = 120  # seconds: it starts a dozen processes for each command
USER = 1000
LOOPBACK = """
ip link set lo up
echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range  # as systemd sets it
"""
# In the root. A user of ours, who may have the ids of a container; /opt and /run are ours too.
BEGIN = f"""
mount --make-rshared /
mount -t tmpfs -o mode=755 none /run; mkdir -p /run/user/{USER}; chown {USER}:{USER} /run/user/{USER}
mount --bind "$0/opt" /opt
for file in passwd group subuid subgid; do grep -v '^[^:]*:[^:]*:{USER}:' /etc/$file >/run/$file || :; done
echo "tester:x:{USER}:{USER}::$0/home:/bin/sh" >>/run/passwd; echo "tester:x:{USER}:" >>/run/group
echo tester:100000:65536 | tee /run/subuid >/run/subgid
for file in passwd group subuid subgid; do mount --bind /run/$file /etc/$file; done
linked=$(readlink -m /etc/resolv.conf); mkdir -p "${{linked%/*}}"; touch "$linked"  # of what may lie in /run
echo "nameserver $1" >/run/resolver; mount --bind /run/resolver "$linked"
sh -c 'echo; exec cat'; :  # a shell stays, which reaps what is left to it
"""
OWN_NAMESPACES = "unshare --mount --net --pid --fork --kill-child --mount-proc --propagation=private".split()
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")


class RootlessHost:
    """`sockets` are the host's. `run` is what runs a command in the root, with `environment`; `network` a script that
    makes the host's; `resolver` the address of one."""

    def __init__(
        self, folder: Path, run: list[str], network: str, resolver: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.home = folder, folder / "home"
        for part in ("opt", "home"):
            (folder / part).mkdir()
        os.chown(self.home, USER, USER)
        begin = (*run, "sh", "-euc", BEGIN, str(folder), resolver)
        begin = (*OWN_NAMESPACES, "sh", "-euc", network + '\nexec "$@"', "sh", *begin)
        there = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(begin, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=there)
        assert self.process.stdout is not None and self.process.stdout.readline(), "the host does not start"
        self.pid = tree(self.process.pid)[1]
        self.prefix = ("nsenter", "--mount", "--net", "--pid", "--target", str(self.pid))
        self.sockets = NamespaceSockets(("nsenter", "--net", "--target", str(self.pid)))
        self._first = set(tree(self.pid))

    def does(self, *words: str, patience: int = PODMAN_PATIENCE, may_warn: bool = False) -> str:
        """Its standard output. A warning is a failure, as in Podman's own tests."""
        done = subprocess.run([*self.prefix, *words], timeout=patience, capture_output=True, text=True)
        warned = "level=" in done.stderr and not may_warn
        assert done.returncode == 0 and not warned, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def podman(self, *words: str, environment: tuple[str, ...] = ()) -> str:
        """As the user."""
        own = (f"HOME={self.home}", f"XDG_RUNTIME_DIR=/run/user/{USER}", "STORAGE_DRIVER=vfs")
        where = (f"--chdir={self.home}", *own, *environment)
        return self.does(*AS_USER, "env", *where, "podman", *words)

    def pid_here(self, pid: int) -> int:
        """Of a process that Podman knows by that number."""
        return next(here for here in tree(self.pid) if status(here)["NSpid"].split()[-1] == str(pid))

    def processes(self) -> dict[int, str]:
        """The names of all that were started since, and still run."""
        found = {}
        for pid in set(tree(self.pid)) - self._first:
            try:
                if not status(pid)["State"].startswith("Z"):
                    found[pid] = name(pid)
            except (FileNotFoundError, ProcessLookupError):
                pass  # ended meanwhile
        return found

    def awaits_no(self, names: str) -> None:
        """Those processes that are called so, or start so, are about to end, and no other comes."""
        for pid in self.named(names):
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            assert ended(pidfd), f"{name(pid)} still runs"
            os.close(pidfd)
        assert not self.named(names)

    def named(self, names: str) -> list[int]:
        """All processes whose name starts so."""
        return [pid for pid, called in self.processes().items() if called.startswith(names)]

    def close(self) -> None:
        self.sockets.close()
        self.process.kill()
        self.process.communicate()
