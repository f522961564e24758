# SPDX-License-Identifier: Apache-2.0
"""The switch of a virtual network that more than one guest may join: which connection has which of its ports.

Called by gateway.py: for the link of the command line, for connections that the API hands over, and for vpnkit's. Who
is behind a port is the worker's to learn, and told here.
Adversary: who connects. One that leaves, or sends what is no frame, ends its own port and nothing else.

Invariants: a port has one connection; it is free again when the worker has let go of that.
Events: link.attach (link, port), and when the last one has gone link.detach (reason, port), else port.detach with the
same; link.refused (reason, request).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from lockgate.core import channel
from lockgate.core._datapath import lib
from lockgate.plugin.clients import Emit
from lockgate.plugin.stream import StreamServer, Worker, reason_of_end
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

PORTS: int = lib.LG_SWITCH_PORTS


class Switch:
    """All ports. `told` hears of each MAC address that is new, or that has gone with its port."""

    def __init__(self, worker: Worker, emit: Emit, told: Callable[[bytes, bool], None]) -> None:
        self._worker = worker
        self._emit = emit
        self._told = told
        self._over: dict[int, asyncio.Future[str]] = {}  # of the ports that are taken: why they ended
        self.entries: dict[bytes, int] = {}  # the port, by MAC address

    async def serve(self, link: socket.socket, framing: int) -> None:
        """A connection, until it is over; the socket stays the caller's."""
        port = next((number for number in range(1, PORTS + 1) if number not in self._over), 0)
        if not port:
            reason = f"all {PORTS} ports of the switch are taken"
            self._emit("link.refused", reason=reason, request="connect")
            return
        over = self._over[port] = asyncio.get_running_loop().create_future()
        stream = link.type == socket.SOCK_STREAM
        try:
            if stream:
                await self._worker.stream_attach(link.fileno(), framing, port)
            else:
                await self._worker.dgram_attach(link.fileno(), port)
            self._emit("link.attach", link="stream" if stream else "messages", port=port)
            reason = await over
            self._emit("port.detach" if len(self._over) > 1 else "link.detach", reason=reason, port=port)
        except WorkerError as error:
            self._emit("link.refused", reason=f"the worker refused the connection: {error}", request="connect")
        except WorkerGone:
            pass  # and with it the connection
        finally:
            del self._over[port]
            for mac in [mac for mac, where in self.entries.items() if where == port]:
                del self.entries[mac]
                self._told(mac, False)

    def learn(self, mac: bytes, port: int) -> None:
        """The worker has seen it there."""
        if port not in self._over:
            return
        new = mac not in self.entries
        self.entries[mac] = port
        if new:
            self._told(mac, True)

    def link_ended(self, payload: bytes, port: int) -> None:
        end = channel.parse_link_end(payload)
        over = self._over.get(port)
        if end is not None and over is not None and not over.done():
            over.set_result(reason_of_end(*end))

    def resume(self, worker: Worker) -> None:
        """The worker was replaced, and no connection has survived it."""
        self._worker = worker
        for over in self._over.values():
            if not over.done():
                over.set_result("the worker ended")


class SwitchServer(StreamServer):
    """Of the link of the command line, where others may join."""

    def __init__(self, switch: Switch, worker: Worker, emit: Emit, framing: int) -> None:
        super().__init__(worker, emit, framing)
        self._switch = switch

    def link_ended(self, payload: bytes, port: int = 0) -> None:
        self._switch.link_ended(payload, port)

    async def resume(self, worker: Worker, memory_lost: bool = False) -> None:
        self._worker = worker
        self._switch.resume(worker)

    async def _serve_client(self, client: socket.socket) -> None:
        await self._switch.serve(client, self._framing)
