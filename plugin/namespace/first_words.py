# SPDX-License-Identifier: Apache-2.0
"""What the first worker of a namespace is told, before READY and without control's imports.

Called in control's process by start.py, as long as that is a copy of the wrapper, hence the light imports. Later
workers are told by control.py. Adversary: nobody; the worker has not seen a byte of a guest.

Whoever waits for READY gets a network that is complete, and the two processors to itself: control's imports are as long
as the start of a small container, and would take from that what it is measured by.
"""

from __future__ import annotations

import _socket
import os
import select
import struct

from lockgate.core import channel
from lockgate.core._datapath import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lockgate.plugin.forwards import Listener
    from lockgate.plugin.namespace.inside import Inside


def tell(cmd: _socket.socket, view: bytes, listeners: Sequence[Listener], inside: Inside) -> None:
    """`view` is a whole lg_net_view. Raises ConnectionError if the worker is gone, another OSError if it refuses, and
    AgentError."""
    worker = _Worker(cmd)
    worker.ask(channel.net_view(view))
    end = inside.open_worker_channel()
    if end is not None:
        worker.ask(channel.bare(lib.LG_CMD_SPLICE_AGENT), [end.fileno()])
        end.close()
    for first, batch in _batches(listeners):
        rule, slots = batch[0].rule, range(first, first + len(batch))
        ports = [rule.to_first + one.port - rule.first for one in batch]
        command = channel.listen(lib.LG_CMD_LISTEN, rule.protocol, rule.target, slots, ports, outward=rule.outward)
        worker.ask(command, [one.fd for one in batch])
    device = inside.device
    if device is None:
        return
    worker.ask(channel.seen(device.seen))
    worker.ask(channel.value(lib.LG_CMD_TAP_ATTACH, lib.LG_TAP_USO if device.uso else 0), [device.fd])


class _Worker:
    """One command at a time, and its reply."""

    def __init__(self, cmd: _socket.socket) -> None:
        self._cmd = cmd
        self._waiting = select.poll()
        self._waiting.register(cmd, select.POLLIN)

    def ask(self, command: channel.Command, fds: Sequence[int] = ()) -> None:
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
        self._cmd.sendmsg([command.numbered(0)], rights)
        self._waiting.poll()
        record = self._cmd.recv(channel.REPLY_BYTES_MAX)
        reply = channel.parse_reply(record)
        if reply is None:
            raise ConnectionResetError
        if reply.result < 0:
            raise OSError(-reply.result, os.strerror(-reply.result))


def _batches(listeners: Sequence[Listener]) -> Iterator[tuple[int, Sequence[Listener]]]:
    """Neighbours of one rule, as many as one record carries, and the number of the first: its slot, as control's table
    of forwards counts them too."""
    first = 0
    for end in range(1, len(listeners) + 1):
        full = end - first == lib.LG_LISTEN_MAX
        if full or end == len(listeners) or listeners[end].rule is not listeners[first].rule:
            yield first, listeners[first:end]
            first = end
