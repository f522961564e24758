# SPDX-License-Identifier: Apache-2.0
"""The one guest that comes by a socket of datagrams (vfkit, krunkit, libkrun): who it is, is known from its first.

Called by control.py, like the servers of other links. Adversary: whoever may write to the socket's path: the first who
does is the guest, as with gvproxy, and the kernel takes nothing from anybody else after that.
"""

from __future__ import annotations

import errno
import socket

from lockgate.plugin.clients import readable
from lockgate.plugin.stream import StreamServer

GREETING = b"VFKT"
_FIRST_BYTES = 65600


class DatagramServer(StreamServer):
    """Ends when the guest has gone, which only a frame that cannot be sent shows."""

    async def serve(self, sock: socket.socket, *, one_off: bool) -> None:
        """`sock` is bound and stays the caller's."""
        sock.setblocking(False)
        while True:
            await readable(sock)
            try:
                first, sender = sock.recvfrom(_FIRST_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                raise OSError(errno.EINVAL, "it has been shut down: we are about to end") from None
            refusal = _connect(sock, sender)
            if refusal or first.startswith(GREETING):
                sock.recv(_FIRST_BYTES)
            if not refusal:
                break
            self._emit("link.refused", reason=refusal, request="first datagram")
        await self._serve_client(sock)


def _connect(sock: socket.socket, sender: str | bytes | None) -> str:
    """Why whoever sent that cannot be the guest; empty: it is, from now on."""
    if not sender:
        return "it is bound to no name, so that nothing can be sent to it"
    try:
        sock.connect(sender)
    except OSError as failure:
        return f"nothing can be sent to it: {failure.strerror}"
    return ""
