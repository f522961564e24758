# SPDX-License-Identifier: Apache-2.0
"""Control's ends of the two channels to one worker: commands and their replies, frames and events.

Called by control.py, which makes one object for each worker; the vhost-user session speaks to it as its Worker.
Adversary: a worker that the guest has broken. A record that does not fit is counted and dropped; a reply to nothing is
too. What it floods costs a bounded piece of work per turn of the loop.

Invariants: replies are matched by number, so that any number of commands may be under way; after the end of the channel
every waiting and every later command raises WorkerGone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from lockgate.core import channel
from lockgate.core._datapath import lib
from lockgate.plugin.neighbours import Mirror
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockgate.core import flow_records
    from lockgate.plugin.vhost_user.memory import SharedRegion
    from lockgate.plugin.vhost_user.messages import Region
    from lockgate.plugin.vhost_user.vring import VringStart

_RECORDS_A_TURN = 64  # of one channel, before other work of the loop gets its turn


class WorkerChannels:
    """One worker's life, as control sees it."""

    def __init__(self, cmd: socket.socket, up: socket.socket, on_up: Callable[[channel.Up], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._cmd = cmd
        self._up = up
        self._on_up = on_up
        self._seq = 0
        self._waiting: dict[int, asyncio.Future[channel.Reply]] = {}
        self._unsent: deque[tuple[int, bytes, Sequence[int]]] = deque()
        self._gone = False
        self.lost = 0  # frames for the guest that found no room in the channel
        self.malformed = 0  # records of the worker that made no sense
        self._loop.add_reader(cmd, self._on_cmd_ready)
        self._loop.add_reader(up, self._on_up_ready)

    def close(self) -> None:
        """The worker is gone, or is not wanted any more. May be called twice."""
        if self._gone:
            return
        self._gone = True
        for end in (self._cmd, self._up):
            self._loop.remove_reader(end)
            self._loop.remove_writer(end)
            end.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerGone())
        self._waiting.clear()
        self._unsent.clear()

    # ---- commands ----

    async def request(self, command: channel.Command, fds: Sequence[int] = ()) -> channel.Reply:
        """Sends one command and waits for its reply. Raises WorkerError or WorkerGone."""
        if self._gone:
            raise WorkerGone
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        seq = self._seq
        future: asyncio.Future[channel.Reply] = self._loop.create_future()
        self._waiting[seq] = future
        self._unsent.append((seq, command.numbered(seq), fds))
        self._send_unsent()
        try:
            reply = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                _close(future.result().fds)  # it came in the same turn, and nobody will have it
            raise
        finally:
            self._waiting.pop(seq, None)
        if reply.kind != lib.LG_CMD_FLOWS_FREEZE:
            _close(reply.fds)  # a worker that sends descriptors with anything else is broken
        if reply.result < 0:
            raise WorkerError(-reply.result)
        return reply

    def _send_unsent(self) -> None:
        """In order. What the channel does not take now waits for room; the worker always comes to read in the end."""
        while self._unsent and not self._gone:
            seq, record, fds = self._unsent[0]
            if seq in self._waiting:  # else whoever asked has given up, and the descriptors are not ours to send
                try:
                    socket.send_fds(self._cmd, [record], fds)
                except BlockingIOError:
                    self._loop.add_writer(self._cmd, self._send_unsent)
                    return
                except OSError:
                    self.close()
                    return
            self._unsent.popleft()
        if not self._gone:
            self._loop.remove_writer(self._cmd)

    def _on_cmd_ready(self) -> None:
        """As many replies a turn as records of the other channel, which lead to requests: these do not pile up."""
        for _ in range(_RECORDS_A_TURN):
            fds: list[int] = []
            try:
                record, fds, _, _ = socket.recv_fds(self._cmd, channel.REPLY_BYTES_MAX + 1, channel.REPLY_FDS_MAX)
            except BlockingIOError:
                return
            except OSError:
                record = b""
            if not record:
                _close(fds)
                self.close()
                return
            self._on_reply(record, fds)

    def _on_reply(self, record: bytes, fds: list[int]) -> None:
        reply = channel.parse_reply(record, fds)
        future = None if reply is None else self._waiting.get(reply.seq)
        if reply is None or future is None:
            self.malformed += 1
        elif not future.done():
            future.set_result(reply)
            return
        _close(fds)

    # ---- frames and events ----

    def send_frame(self, frame: bytes, port: int = 0) -> None:
        """To the guest; lost, as on any network, when the worker does not keep up."""
        if self._gone:
            return
        try:
            self._up.send(channel.pack_up(lib.LG_UP_FRAME, frame, port))
        except OSError:
            self.lost += 1

    def _on_up_ready(self) -> None:
        for _ in range(_RECORDS_A_TURN):
            try:
                record = self._up.recv(channel.UP_RECORD_MAX)
            except BlockingIOError:
                return
            except OSError:
                record = b""
            if not record:
                self._loop.remove_reader(self._up)  # the end of the cmd channel says the rest
                return
            up = channel.parse_up(record)
            if up is None:
                self.malformed += 1
            else:
                self._on_up(up)
            if self._gone:
                return

    # ---- what the control plane asks ----

    async def net_view(self, view: bytes) -> None:
        await self.request(channel.net_view(view))

    async def neighbours(self, mirror: Mirror) -> None:
        await self.request(channel.neighbours(mirror.count, mirror.others4, mirror.others6, mirror.packed))

    async def events(self, level: int) -> None:
        """0 none, 1 events, 2 one for each frame too."""
        await self.request(channel.value(lib.LG_CMD_EVENTS, level))

    async def capture(self, on: bool) -> None:
        await self.request(channel.value(lib.LG_CMD_PCAP, int(on)))

    async def stream_attach(self, fd: int, framing: int = 0, port: int = 0) -> None:
        """A connected stream socket becomes the link, or that port of its switch; `fd` stays the caller's. `framing`:
        lib.LG_STREAM_*."""
        await self.request(channel.value(lib.LG_CMD_STREAM_ATTACH, framing, port), [fd])

    async def dgram_attach(self, fd: int, port: int = 0) -> None:
        """The same of a socket that keeps messages apart."""
        await self.request(channel.bare(lib.LG_CMD_DGRAM_ATTACH, port), [fd])

    async def serve(self, frame: bytes, fd: int) -> None:
        """A guest's connection to a service of its gateway: its SYN, which was punted, and a connected TCP socket that
        leads to the service; `fd` stays the caller's."""
        await self.request(channel.serve(frame), [fd])

    async def dial(self, guest: bytes, guest_port: int, gateway_port: int, fd: int) -> None:
        """A connection to the guest from that port of the gateway; likewise."""
        await self.request(channel.dial(guest, guest_port, gateway_port), [fd])

    async def tap_attach(self, fd: int, uso: bool) -> None:
        """A tap device becomes the link; `fd` stays the caller's."""
        await self.request(channel.value(lib.LG_CMD_TAP_ATTACH, lib.LG_TAP_USO if uso else 0), [fd])

    async def splice_agent(self, fd: int) -> None:
        """A channel to whoever makes sockets in the guest's namespace; `fd` stays the caller's."""
        await self.request(channel.bare(lib.LG_CMD_SPLICE_AGENT), [fd])

    # ---- what the table of forwards asks: plugin.forward_table.Worker; LG_LISTEN_MAX of them at a time ----

    async def listen(
        self,
        protocol: int,
        target: bytes,
        slots: Sequence[int],
        ports: Sequence[int],
        fds: Sequence[int],
        outward: bool = False,
    ) -> None:
        """What connects to these sockets reaches these ports of the guest, or (outward) of the host's loopback; the
        descriptors stay the caller's."""
        await self.request(channel.listen(lib.LG_CMD_LISTEN, protocol, target, slots, ports, outward=outward), fds)

    async def listen_target(self, protocol: int, target: bytes, slots: Sequence[int], ports: Sequence[int]) -> None:
        """Sockets that are there lead elsewhere from now on."""
        await self.request(channel.listen(lib.LG_CMD_LISTEN_TARGET, protocol, target, slots, ports))

    async def listen_close(self, first: int, count: int) -> None:
        """Of `count` slots, those that have a socket."""
        await self.request(channel.value(lib.LG_CMD_LISTEN_CLOSE, first | count << 32))

    # ---- what a migration asks, which has imported flow_records by then ----

    async def seen(self, seen: bytes) -> None:
        await self.request(channel.seen(seen))

    async def freeze(self, cursor: int) -> tuple[list[tuple[flow_records.TcpFlow, int]], int]:
        """A page of flows that are frozen from now on, each with a copy of its socket; and the next cursor, or 0."""
        from lockgate.core import flow_records

        reply = await self.request(channel.value(lib.LG_CMD_FLOWS_FREEZE, cursor))
        flows = flow_records.parse_frozen(reply.record, len(reply.fds))
        if flows is None:
            self.malformed += 1
            _close(reply.fds)
            raise WorkerError(errno.EBADMSG)
        return list(zip(flows, reply.fds, strict=True)), reply.value

    async def thaw(self, flow: int = 0) -> None:
        """A frozen flow, by its id, or all of them."""
        await self.request(channel.value(lib.LG_CMD_FLOWS_THAW, flow))

    async def forget(self, flow: int = 0) -> None:
        await self.request(channel.value(lib.LG_CMD_FLOWS_FORGET, flow))

    async def adopt(self, flow: flow_records.TcpFlow, fd: int) -> None:
        """A flow from elsewhere, and its socket, of which the worker gets a copy."""
        from lockgate.core import flow_records

        await self.request(flow_records.flow_adopt(flow), [fd])

    # ---- what the vhost-user session asks: plugin.vhost_user.worker.Worker ----

    async def link_features(self, features: int) -> None:
        await self.request(channel.value(lib.LG_CMD_LINK_FEATURES, features))

    async def link_reset(self) -> None:
        await self.request(channel.bare(lib.LG_CMD_LINK_RESET))

    async def mem_table(self, regions: Sequence[SharedRegion]) -> None:
        fds = [region.fd for region in regions]
        await self.request(channel.memory(lib.LG_CMD_MEM_TABLE, [region.at for region in regions]), fds)

    async def mem_add(self, region: SharedRegion) -> None:
        await self.request(channel.memory(lib.LG_CMD_MEM_ADD, [region.at]), [region.fd])

    async def mem_remove(self, region: Region) -> None:
        await self.request(channel.memory(lib.LG_CMD_MEM_REMOVE, [region]))

    async def vring_start(self, ring: VringStart) -> None:
        flags = (
            lib.LG_VRING_HAS_KICK
            | (0 if ring.call_fd is None else lib.LG_VRING_HAS_CALL)
            | (0 if ring.err_fd is None else lib.LG_VRING_HAS_ERR)
            | (lib.LG_VRING_ENABLED if ring.enabled else 0)
            | (lib.LG_VRING_LOG if ring.logged else 0)
            | (lib.LG_VRING_BASE_FROM_USED if ring.base_from_used else 0)
        )
        command = channel.vring(
            index=ring.index,
            size=ring.size,
            base=ring.base,
            flags=flags,
            desc=ring.desc,
            avail=ring.avail,
            used=ring.used,
            log_addr=ring.log_addr,
        )
        await self.request(command, [fd for fd in (ring.kick_fd, ring.call_fd, ring.err_fd) if fd is not None])

    async def vring_stop(self, index: int) -> int:
        return (await self.request(channel.value(lib.LG_CMD_VRING_STOP, index))).value

    async def vring_enable(self, index: int, enabled: bool) -> None:
        await self.request(channel.value(lib.LG_CMD_VRING_ENABLE, index | enabled << 32))

    async def vring_call(self, index: int, fd: int | None) -> None:
        await self.request(channel.value(lib.LG_CMD_VRING_CALL, index), [] if fd is None else [fd])

    async def vring_err(self, index: int, fd: int | None) -> None:
        await self.request(channel.value(lib.LG_CMD_VRING_ERR, index), [] if fd is None else [fd])

    async def dirty_log(self, fd: int | None, size: int, offset: int, event_fd: int | None) -> None:
        fds = [] if fd is None else [fd] if event_fd is None else [fd, event_fd]
        await self.request(channel.dirty_log(size, offset), fds)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
