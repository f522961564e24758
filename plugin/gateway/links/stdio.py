# SPDX-License-Identifier: Apache-2.0
"""A guest whose frames come by standard input and leave by standard output.

Called by gateway.py. The worker's link is one socket, so that the two streams are carried to one end of a pair here,
whatever they are; nothing is looked at. Adversary: whoever is at their other ends; the worker parses what comes.
"""

from __future__ import annotations

import asyncio
import os
import socket

_CHUNK = 64 << 10


async def carry(source: int, sink: int, pair: socket.socket) -> None:
    """Until either stream, or the pair, has come to its end. The descriptors stay the caller's, and do not block."""
    for descriptor in (source, sink):
        os.set_blocking(descriptor, False)
    pair.setblocking(False)
    directions = [asyncio.ensure_future(_inwards(source, pair)), asyncio.ensure_future(_outwards(pair, sink))]
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for direction in directions:
            direction.cancel()
        await asyncio.wait(directions)


async def _inwards(source: int, pair: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await _read(source):
            await loop.sock_sendall(pair, data)
    except OSError:
        pass  # the same as an end


async def _outwards(pair: socket.socket, sink: int) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(pair, _CHUNK):
            view = memoryview(data)
            while view:
                view = view[await _write(sink, view) :]
    except OSError:
        pass


async def _read(source: int) -> bytes:
    while True:
        try:
            return os.read(source, _CHUNK)
        except BlockingIOError:
            await _ready(source, reading=True)


async def _write(sink: int, data: memoryview) -> int:
    while True:
        try:
            return os.write(sink, data)
        except BlockingIOError:
            await _ready(sink, reading=False)


async def _ready(descriptor: int, *, reading: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        loop.add_reader(descriptor, wake) if reading else loop.add_writer(descriptor, wake)
    except PermissionError:
        return  # a file, which is always ready: epoll(7)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor) if reading else loop.remove_writer(descriptor)
