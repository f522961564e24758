# SPDX-License-Identifier: Apache-2.0
"""The worker's start as its parent sees it: the shared pages, the channels, and the spawn.

Called by the keeper, before READY and again whenever a worker is replaced; so it imports nothing heavy.
Adversary: the worker itself, once the guest has broken it. Hence the pages that others map are sealed in their size
(a worker that shrank them would end its readers by SIGBUS), and each worker gets channels of its own.
"""

from __future__ import annotations

import _socket
import fcntl
import os

from lockgate.core._datapath import ffi, lib

_QUEUED_RECORDS = 16  # of the largest size; the kernel clamps this to net.core.wmem_max


def _sealed_pages(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class SharedPages:
    """What outlives a worker: its counters and, with a capture, the ring of captured frames and its event."""

    __slots__ = ("counters_fd", "pcap_fd", "pcap_event_fd")

    def __init__(self, capture: bool) -> None:
        self.counters_fd = _sealed_pages("lockgate-counters", lib.LG_COUNTER_BYTES)
        self.pcap_fd = self.pcap_event_fd = -1
        if capture:
            self.pcap_fd = _sealed_pages("lockgate-pcap", lib.LG_PCAP_HEAD_BYTES + lib.LG_PCAP_RING_BYTES)
            self.pcap_event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def channel() -> tuple[_socket.socket, _socket.socket]:
    """Both ends of one channel: records with their borders and their end kept, room for several of the largest."""
    kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    ends = _socket.socketpair(_socket.AF_UNIX, kind)
    for end in ends:
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _QUEUED_RECORDS * lib.LG_UP_BYTES_MAX)
    return ends


class Channels:
    """The channels between one worker and control: two ends for each of them."""

    __slots__ = ("cmd", "up", "worker_ends")

    def __init__(self) -> None:
        self.cmd, cmd = channel()
        self.up, up = channel()
        self.worker_ends = (cmd, up)

    def worker_descriptors(self) -> tuple[int, int]:
        cmd, up = self.worker_ends
        return cmd.fileno(), up.fileno()

    def close_worker_ends(self) -> None:
        """In every process but the worker; else the end of the worker would not show as end of file."""
        for end in self.worker_ends:
            end.close()

    def close_control_ends(self) -> None:
        """In every process but control, once that has them."""
        self.cmd.close()
        self.up.close()


class Worker:
    """One worker process, and its channel to the keeper."""

    __slots__ = ("pid", "keeper")

    def __init__(
        self, pages: SharedPages, channels: Channels, flags: int, flows: int, name: str, keep_stderr: bool
    ) -> None:
        self.keeper, keeper = channel()
        cmd_fd, up_fd = channels.worker_descriptors()
        config = ffi.new(
            "struct lg_worker_config *",
            {
                "cmd_fd": cmd_fd,
                "up_fd": up_fd,
                "keeper_fd": keeper.fileno(),
                "counters_fd": pages.counters_fd,
                "pcap_fd": pages.pcap_fd,
                "pcap_event_fd": pages.pcap_event_fd,
                "flags": flags,
                "flow_limit": flows,
            },
        )
        self.pid: int = lib.lg_worker_spawn(config, os.fsencode(name), 2 if keep_stderr else -1)
        keeper.close()
        channels.close_worker_ends()
        if self.pid < 0:
            self.keeper.close()
            raise OSError(-self.pid, os.strerror(-self.pid))
