# SPDX-License-Identifier: Apache-2.0
"""Writes a cpio archive in the "newc" form that a Linux kernel unpacks as its first root.

Called by image.py. Adversary: nobody. Invariants: the same entries give the same bytes; every parent folder stands
before what it holds, because the kernel creates nothing by itself. Format: Documentation/driver-api/
early-userspace/buffer-format.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath


class Archive:
    """Collects files, folders and links, and gives the archive's bytes."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def folder(self, path: str) -> None:
        """Adds a folder and those above it."""
        for parent in reversed(PurePosixPath(path).parents):
            if str(parent) != ".":
                self._entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b"", (0, 0)))
        self._entries.setdefault(path, (stat.S_IFDIR | 0o755, b"", (0, 0)))

    def file(self, path: str, content: bytes, mode: int = 0o755) -> None:
        """Adds a regular file; the folder comes by itself."""
        self._parents(path)
        self._entries[path] = (stat.S_IFREG | mode, content, (0, 0))

    def link(self, path: str, target: str) -> None:
        """Adds a symbolic link."""
        self._parents(path)
        self._entries[path] = (stat.S_IFLNK | 0o777, target.encode(), (0, 0))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Adds a device node: the kernel opens /dev/console before anything can be mounted."""
        self._parents(path)
        self._entries[path] = (stat.S_IFCHR | 0o600, b"", (major, minor))

    def _parents(self, path: str) -> None:
        parent = str(PurePosixPath(path).parent)
        if parent != ".":
            self.folder(parent)

    def content(self) -> bytes:
        """The whole archive, with its trailer."""
        out = bytearray()
        for number, (name, entry) in enumerate(self._entries.items(), start=1):
            out += _entry(name, number, *entry)
        return bytes(out + _entry("TRAILER!!!", 0, 0, b"", (0, 0)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _entry(name: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    # inode mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(content)
