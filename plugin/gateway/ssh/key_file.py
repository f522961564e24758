# SPDX-License-Identifier: Apache-2.0
"""A file with a private key for SSH: whether there is one in it that can be used without anybody's help.

Called by opened.py before READY, with the caller's rights, and by the keeper for a tunnel that the API asks for; hence
the light imports. Adversary: whoever names a file through the API; what is no private key is not handed on to anything.
Invariants: never waits (a FIFO is no key file), never reads more than SIZE_MAX bytes.

The key is kept as it is to be shown to ssh: without what stands around it, and with the newline at its end. ssh wants
that, and wants a file of which others have no rights; other programs that read the same key are not so strict.
"""

from __future__ import annotations

import binascii
import errno
import os
import stat

SIZE_MAX = 65536  # the largest RSA keys that anybody makes have 13 KB

_BEGIN, _END, _LAST = b"-----BEGIN ", b"-----END ", b"PRIVATE KEY-----"
_KINDS = (b"OPENSSH ", b"RSA ", b"EC ", b"DSA ", b"")  # of what can be read without a passphrase
_LOCKED = b"ENCRYPTED "
_MAGIC = b"openssh-key-v1\0"  # then the name of a cipher, after its length
_NO_CIPHER = _MAGIC + b"\0\0\0\x04none"

_PASSPHRASE = "it is locked with a passphrase, which nobody can be asked for"


class KeyFileError(Exception):
    """Why there is no key; the text is one sentence, without the full stop."""


def load(path: str) -> bytes:
    """The key in a file. Raises KeyFileError."""
    try:
        return _key_in(_read(path))
    except OSError as failure:
        reason = failure.strerror or str(failure)
    except ValueError as fault:  # also of a path with a NUL in it
        reason = str(fault)
    raise KeyFileError(f'identity file "{path}" can\'t be loaded: {reason}')


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(kind):
            raise ValueError("that is not a regular file")
        content = os.read(fd, SIZE_MAX + 1)
    finally:
        os.close(fd)
    if len(content) > SIZE_MAX:
        raise ValueError(f"it has more than {SIZE_MAX} bytes")
    return content


def _key_in(content: bytes) -> bytes:
    """From its first line to its last. Raises ValueError."""
    lines = [line.strip() for line in content.splitlines()]
    first = next((n for n, line in enumerate(lines) if line.startswith(_BEGIN) and line.endswith(_LAST)), None)
    if first is None:
        raise ValueError("it has no private key in it (expected one in the format of OpenSSH, or of PEM)")
    kind = lines[first][len(_BEGIN) : -len(_LAST)]
    if kind == _LOCKED:
        raise ValueError(_PASSPHRASE)
    if kind not in _KINDS:
        raise ValueError(f"ssh does not know keys of the kind {kind.strip().decode('ascii', 'replace')!a}")
    try:
        last = lines.index(_END + kind + _LAST, first)
    except ValueError:
        raise ValueError("the key in it has no end") from None
    if _is_locked(kind, lines[first + 1 : last]):
        raise ValueError(_PASSPHRASE)
    return b"\n".join(lines[first : last + 1]) + b"\n"


def _is_locked(kind: bytes, body: list[bytes]) -> bool:
    if kind != b"OPENSSH ":
        return any(line.startswith(b"Proc-Type:") and line.endswith(b"ENCRYPTED") for line in body)
    try:
        key = binascii.a2b_base64(b"".join(body))
    except binascii.Error:
        key = b""
    if not key.startswith(_MAGIC):
        raise ValueError("the key in it is damaged")
    return not key.startswith(_NO_CIPHER)
