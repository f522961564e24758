# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/ssh/key_file.py: which files have a private key that ssh can use alone, and what is said of others."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin.gateway.ssh import key_file
from lockgate.plugin.gateway.ssh.key_file import KeyFileError


def pem(kind: str, *lines: str) -> bytes:
    return "\n".join([f"-----BEGIN {kind}PRIVATE KEY-----", *lines, f"-----END {kind}PRIVATE KEY-----", ""]).encode()


def openssh(cipher: bytes = b"none") -> bytes:
    """As long as it is looked into."""
    key = b"openssh-key-v1\0" + struct.pack(">I", len(cipher)) + cipher + bytes(120)
    text = base64.b64encode(key).decode()
    return pem("OPENSSH ", *(text[at : at + 70] for at in range(0, len(text), 70)))


@pytest.fixture(name="path")
def key_path(tmp_path: Path) -> Path:
    return tmp_path / "key"


def fault(path: Path | str) -> str:
    with pytest.raises(KeyFileError) as failure:
        key_file.load(str(path))
    before = f'identity file "{path}" can\'t be loaded: '
    text = str(failure.value)
    assert text.startswith(before)
    return text.removeprefix(before)


@pytest.mark.parametrize("key", [openssh(), *(pem(kind, "MAA=") for kind in ("RSA ", "EC ", "DSA ", ""))])
def test_a_key_is_taken_as_it_is(path: Path, key: bytes) -> None:
    """In the format of OpenSSH, and in that of PEM."""
    path.write_bytes(key)
    assert key_file.load(str(path)) == key


def test_what_ssh_would_stumble_over_is_left_out(path: Path) -> None:
    """Words before and after the key, ends of line of another system, a last line without one."""
    path.write_bytes(b"A key of mine:\r\n" + openssh().rstrip().replace(b"\n", b"\r\n"))
    assert key_file.load(str(path)) == openssh()
    path.write_bytes(openssh() + b"and more\n")
    assert key_file.load(str(path)) == openssh()


@pytest.mark.parametrize(
    "key",
    [
        openssh(b"aes256-ctr"),
        pem("ENCRYPTED ", "MAA="),
        pem("RSA ", "Proc-Type: 4,ENCRYPTED", "DEK-Info: x", "", "MAA="),
    ],
)
def test_a_key_with_a_passphrase_is_refused_at_once(path: Path, key: bytes) -> None:
    """ssh would ask for it, again and again, and nobody would hear."""
    path.write_bytes(key)
    assert "passphrase" in fault(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no private key"),
        (b"ssh-ed25519 AAAA me@here\n", "no private key"),
        (b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", "no private key"),
        (pem("PGP ", "x"), "'PGP'"),
        (openssh()[:-20], "no end"),
        (pem("OPENSSH ", "MAA="), "damaged"),
        (pem("OPENSSH ", "?"), "damaged"),
        (bytes(key_file.SIZE_MAX + 1), f"more than {key_file.SIZE_MAX} bytes"),
    ],
)
def test_what_is_no_key_is_said(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    assert reason in fault(path)


def test_what_is_no_file_is_said_and_not_waited_for(path: Path, tmp_path: Path) -> None:
    """A FIFO would be."""
    assert fault(path) == "No such file or directory"
    assert fault(tmp_path) == "Is a directory"
    os.mkfifo(path)
    assert "regular" in fault(path)
    assert "null" in fault("/nowhere\0")


@given(st.binary(max_size=300))
def test_whatever_is_in_a_file_there_is_a_key_or_a_sentence(content: bytes) -> None:
    """Behind a line that looks like one of a key."""
    fd = os.memfd_create("key")
    try:
        os.write(fd, b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + content)
        with pytest.raises(KeyFileError):
            key_file.load(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
