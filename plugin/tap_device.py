# SPDX-License-Identifier: Apache-2.0
"""What is known of a tap device that is set up.

Made by link_namespace.py before READY, hence apart from tap.py, which is asyncio's. Adversary: nobody."""

from __future__ import annotations


class Device:
    """A tap device that is set up: its descriptor, and what its namespace is seen by, before it has sent anything."""

    __slots__ = ("fd", "seen", "uso")

    def __init__(self, fd: int, uso: bool, seen: bytes) -> None:
        self.fd = fd
        self.uso = uso  # it takes and gives several datagrams in one frame
        self.seen = seen  # a whole lg_seen
