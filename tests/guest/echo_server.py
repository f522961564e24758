# SPDX-License-Identifier: Apache-2.0
"""A UDP server on the host's loopback that sends everything back, what it reads joined as one message.

Called by the tests. Adversary: nobody.
"""

from __future__ import annotations

import socket
import struct
import threading

UDP_SEGMENT, UDP_GRO = 103, 104  # udp(7)
LOOPBACK = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}


class EchoServer:
    """Sends each datagram back to whoever it came from."""

    def __init__(self, family: int) -> None:
        kind, address = LOOPBACK[family]
        self._socket = socket.socket(kind, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self._socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        self.port = int(self._socket.getsockname()[1])
        self.sources: set[int] = set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            data, told, _, source = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            if data == b"the end":
                return
            self.sources.add(int(source[1]))
            sizes = [struct.unpack("i", size)[0] for level, kind, size in told if kind == UDP_GRO]
            joined = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", size)) for size in sizes if size < len(data)]
            self._socket.sendmsg([data], joined, 0, source)

    def close(self) -> None:
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as last:
            last.sendto(b"the end", self._socket.getsockname())
        self._thread.join()
        self._socket.close()
