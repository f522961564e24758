# SPDX-License-Identifier: Apache-2.0
"""The sshd of a guest, as it is seen through a port of the host's loopback: a real one, for which nobody has to be
root, and a socket that it leads to.

Called by test_ssh_forwards.py. Adversary: nobody. Invariants: an sshd is started for each connection and serves that
alone, so that the port is ours from first to last, whether there is an sshd or not. Each is a process group, which a
signal reaches whole: sshd forks once more after it has let ssh in, and a child that was forked as its parent was
looked up and killed would keep the connection.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

PROGRAM = "/usr/sbin/sshd"
OTHER = "daemon"  # as whom root runs it; `nobody` may not log in where systemd speaks for that account

_RESET_ON_CLOSE = struct.pack("=ii", 1, 0)  # struct linger, socket(7)
_CONFIGURATION = """\
HostKey {0}/host_key
AuthorizedKeysFile {0}/authorized_keys
AllowStreamLocalForwarding yes
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""


class GuestSshd:
    """Refuses connections at `port`, until start()."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identity = folder / "identity"
        self._entry = pwd.getpwuid(os.geteuid()) if os.geteuid() else pwd.getpwnam(OTHER)
        self.user = self._entry.pw_name
        for name in ("identity", "host_key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        if os.geteuid() == 0:
            (folder / "host_key").chmod(0o644)  # another is to read it; sshd minds the mode of its own files alone
        (folder / "identity.pub").rename(folder / "authorized_keys")
        (folder / "sshd_config").write_text(_CONFIGURATION.format(folder))
        self._running = False
        self._starting = threading.Lock()  # held from the look at _running until the new one is among _processes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def start(self) -> None:
        self._running = True

    def stop(self) -> None:
        """Nobody answers for a while; connections stay."""
        with self._starting:
            for process in self._processes:
                os.killpg(process.pid, signal.SIGSTOP)

    def end(self) -> None:
        """As a guest that is reset; connections break."""
        with self._starting:
            self._running = False
            for process in self._processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._processes.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.end()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, self._starting:
                if self._running:
                    self._serve(connection.fileno())
                else:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def _serve(self, fd: int) -> None:
        words = [PROGRAM, "-i", "-f", str(self.folder / "sshd_config")]
        other = {} if os.geteuid() else {"user": self._entry.pw_uid, "group": self._entry.pw_gid, "extra_groups": []}
        with open(self.folder / "sshd.log", "ab") as log:
            process = subprocess.Popen([*words, "-e"], stdin=fd, stdout=fd, stderr=log, process_group=0, **other)  # type: ignore[call-overload]
        self._processes.append(process)


class GuestSocket:
    """In the place of a guest's service: says what it is told, once it is told that this is all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o777)
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.path.unlink()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=_answer, args=(client,), daemon=True).start()


def _answer(client: socket.socket) -> None:
    with client:
        try:
            said = b""
            while piece := client.recv(65536):
                said += piece
            client.sendall(said[::-1])
        except OSError:
            pass  # a client that has gone
