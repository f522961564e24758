# SPDX-License-Identifier: Apache-2.0
"""What the contract `passt` asks the machine: who a user is, whether it has IPv6. And when counters may be printed."""

from __future__ import annotations

import errno
import grp
import pwd

import pytest
import refused

from lockgate.plugin import address
from lockgate.plugin.contracts import passt
from lockgate.plugin.spec import NetworkSpec


def parse(*words: str) -> NetworkSpec:
    return passt.parse(words, "passt")


def refusal(*words: str) -> str:
    return refused.refusal(lambda: parse(*words))


def test_counters_need_the_foreground_before_them() -> None:
    """In a sentence of its own, before the number is looked at."""
    assert parse("-f", "--stats", "0x10").stats_seconds == 16
    assert parse("-f").stats_seconds == 0
    for words in (["--stats", "x"], ["--stats", "1", "-f"]):
        assert refusal(*words).endswith("put --foreground before it")
    for text in ("", "0", "-1", "1s", "1048577"):
        assert refusal("-f", "--stats", text).startswith(f"--stats {text}: expected a number of seconds from 1 to ")


def test_another_user_is_named_by_number_or_name() -> None:
    """Without a group it is that of the user, or of the same number."""
    root = pwd.getpwuid(0)
    assert parse("--runas", "0").runas == (0, root.pw_gid)
    assert parse("--runas", f"{root.pw_name}:{grp.getgrgid(root.pw_gid).gr_name}").runas == (0, root.pw_gid)
    assert parse("--runas", "4294967294").runas == (4294967294, 4294967294)
    assert parse("--runas", "0x10:020").runas == (16, 16)
    assert parse().runas is None


@pytest.mark.parametrize(
    ("who", "which"),
    [
        ("", "a user, and nothing is none here"),
        (":0", "a user, and nothing is none here"),
        ("nosuchuser", "a user, and nosuchuser is none here"),
        ("4294967295", "a user, and 4294967295 is none here"),
        ("no\0user", "a user, and no\0user is none here"),
        ("0:", "a group after the colon, and nothing is none here"),
        ("0:nosuchgroup", "a group after the colon, and nosuchgroup is none here"),
        ("0:-1", "a group after the colon, and -1 is none here"),
    ],
)
def test_a_user_or_group_that_is_none_is_named(who: str, which: str) -> None:
    assert refusal("--runas", who) == f"--runas {who}: expected {which}"


def test_a_kernel_without_ipv6_has_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forwards are IPv4's alone; only who wants nothing else is refused."""
    monkeypatch.setattr(address, "has_ipv6", lambda: False)
    got = parse("-t", "80")
    assert (got.ipv4.enabled, got.ipv6.enabled) == (True, False)
    assert not got.forwards[0].dual_stack
    assert refusal("-6") == "--ipv6-only: this kernel has no IPv6; leave it out"


def test_other_faults_than_a_missing_family_are_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as no descriptor being left."""
    for error, there in ((errno.EAFNOSUPPORT, False), (errno.EMFILE, True)):

        def refuse(*_: object, number: int = error) -> None:
            raise OSError(number, "")

        monkeypatch.setattr("_socket.socket", refuse)
        assert address.has_ipv6() == there
