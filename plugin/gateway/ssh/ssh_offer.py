# SPDX-License-Identifier: Apache-2.0
"""The first bytes of a client of a forward: given to ssh, and taken back if ssh turns out to be dead.

Called by ssh_forward.py for each client, before the two are joined.
Adversary: the client, and the guest; neither can make this hold more than FIRST_BYTES.

An ssh whose guest was reset a while ago looks alive: it takes connections, asks the guest for a channel, and hears only
then that there is nobody any more. Until a channel is open, ssh reads nothing from the connection; and if it closes one
with something unread, the kernel says so (ECONNRESET). Hence: what the client has written is peeked at and sent on, but
not read out until it is certain that ssh has taken it. If ssh has not, all of it is there for the next one.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct

FIRST_BYTES = 4096  # ssh reads more than that at once: it has all of it, or nothing
_LOOK_MIN, _LOOK_MAX = 0.001, 0.25  # seconds after which to ask whether it has; nothing else would tell
_SIOCOUTQ = 0x5411  # unix(7): what the other end has not read


async def offer(client: socket.socket, end: socket.socket) -> bool:
    """Whether what `end` is connected to has a guest behind it. If not, nothing of what the client wrote is lost."""
    try:
        return await _offer(client, end)
    except ConnectionError:
        return False


async def _offer(client: socket.socket, end: socket.socket) -> bool:
    await _readable(client, end)
    if is_readable(end):
        return bool(end.recv(1, socket.MSG_PEEK))  # the guest speaks first; or hangs up
    first = client.recv(FIRST_BYTES, socket.MSG_PEEK)
    if not first:
        return True  # it has no more to say than that
    sent = end.send(first)
    await _taken(end)
    if is_readable(end):
        end.recv(1, socket.MSG_PEEK)  # raises ConnectionResetError if ssh has not read it
    client.recv(sent)
    return True


async def _taken(end: socket.socket) -> None:
    """Until the other end has read all, or has something to say."""
    pause = _LOOK_MIN
    while _unread(end) and not await _readable(end, seconds=pause):
        pause = min(2 * pause, _LOOK_MAX)


def _unread(end: socket.socket) -> int:
    answer: int = struct.unpack("=i", fcntl.ioctl(end, _SIOCOUTQ, bytes(4)))[0]
    return answer


async def _readable(*sockets: socket.socket, seconds: float | None = None) -> bool:
    """Until there is something to be read from one of them, for so long at most; whether there is."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[bool] = loop.create_future()

    def wake(result: bool) -> None:
        if not over.done():
            over.set_result(result)

    timer = None if seconds is None else loop.call_later(seconds, wake, False)
    for one in sockets:
        loop.add_reader(one, wake, True)
    try:
        return await over
    finally:
        for one in sockets:
            loop.remove_reader(one)
        if timer is not None:
            timer.cancel()


def is_readable(sock: socket.socket) -> bool:
    """Or has come to its end; of a socket that listens: whether somebody waits there."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
