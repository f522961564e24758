# SPDX-License-Identifier: Apache-2.0
"""Turns a finished wheel into an editable one: the packages are taken out, a .pth file that leads into the tree put in.

Called by lockgate_build.build_editable. Adversary: nobody.
Invariants: afterwards build/source/lockgate/{plugin,core} are links to the tree's folders, and core/ holds the built
module. setuptools' own way lost: its import hook for a package whose folder has another name imports pathlib, typing
and more in every process, which alone costs a start more than the interpreter does.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

PACKAGES = ("plugin", "core")


def link_source(root: Path) -> Path:
    """The folder to import from: build/source, where lockgate/plugin and lockgate/core are links."""
    source = root / "build" / "source"
    (source / "lockgate").mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        link = source / "lockgate" / name
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", "..", name))
    return source


def _record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


def point_into_tree(wheel: Path, root: Path, directory: Path) -> str:
    """Writes the editable wheel to `directory` and returns its file name."""
    record, lines = "", []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(directory / wheel.name, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                record = entry.filename
            elif entry.filename.startswith("lockgate/"):
                if entry.filename.endswith(".so"):
                    _replace(root / entry.filename.removeprefix("lockgate/"), content)
            else:
                new.writestr(entry, content)  # with its mode: the commands stay executable
                lines.append(_record_line(entry.filename, content))
        pth = f"{link_source(root)}\n".encode()
        new.writestr("lockgate-editable.pth", pth)
        lines += [_record_line("lockgate-editable.pth", pth), f"{record},,\n"]
        new.writestr(record, "".join(lines))
    return wheel.name


def _replace(path: Path, content: bytes) -> None:
    """A new file under the same name: a running helper keeps the old one mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
