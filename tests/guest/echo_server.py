# SPDX-License-Identifier: Apache-2.0
"""A UDP server on the host's loopback that sends everything back. Called by the tests. Adversary: nobody."""

from __future__ import annotations

import socket
import threading

LOOPBACK = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}


class EchoServer:
    """Sends each datagram back to whoever it came from."""

    def __init__(self, family: int) -> None:
        kind, address = LOOPBACK[family]
        self._socket = socket.socket(kind, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self.port = int(self._socket.getsockname()[1])
        self.sources: set[int] = set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            data, source = self._socket.recvfrom(1 << 16)
            if data == b"the end":
                return
            self.sources.add(int(source[1]))
            self._socket.sendto(data, source)

    def close(self) -> None:
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as last:
            last.sendto(b"the end", self._socket.getsockname())
        self._thread.join()
        self._socket.close()
