# SPDX-License-Identifier: Apache-2.0
"""The command line of `gvproxy`, beside that of a real one: grammar, usage text, fatal errors.

The real one is gvproxy 0.8.1 of Debian; the contract is that of 0.8.9 and later. What differs on purpose, and is not
compared, or only in part:
- 0.8.1 says fatal errors at level error, behind the version line. Newer ones, and we, at level fatal, and before it.
- Messages about a link name the flag in 0.8.1 (listen-vfkit), its kind in newer ones.
- "Usage of" is followed by the path of the program there, by its name here. The help texts are our own.
- 0.8.1 has fewer flags.
- -mtu out of range is not noticed by 0.8.1.
Adversary: nobody. The real one is run with what ends it at once, and with no port, no socket and no file of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from running import PATIENCE

from lockgate.plugin.contracts.gvproxy_options import FLAGS

Answer = tuple[int, str, str]  # exit status, standard output, standard error
Real = Callable[[Sequence[str | bytes]], Answer]


GVPROXY = Path(sys.executable).with_name("gvproxy")


@pytest.fixture(name="real", scope="module")
def real_gvproxy() -> Real:
    root = os.environ.get("LOCKGATE_PEER_ROOT")
    program = Path(root or "/nonexistent") / "usr/bin/gvproxy"
    if not os.access(program, os.X_OK):
        pytest.skip("no real gvproxy: LOCKGATE_PEER_ROOT names no root with /usr/bin/gvproxy")
    return lambda words: answer_of(program, words)


def answer_of(program: Path, words: Sequence[str | bytes]) -> Answer:
    done = subprocess.run([program, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    return done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr).replace(str(program), "gvproxy")


def ours(words: Sequence[str | bytes]) -> Answer:
    return answer_of(GVPROXY, words)


def first_line(answer: Answer) -> tuple[int, str, str]:
    status, out, err = answer
    assert "\nUsage of gvproxy:\n  -" in err
    return status, out, err.partition("\n")[0]


GRAMMAR: list[list[str | bytes]] = [
    ["-x"],
    ["--x="],
    ["-é"],
    [b"-\xff"],
    ["---x"],
    ["-=x"],
    ["--=x"],
    ["-="],
    ["-listen"],
    ["-mtu"],
    ["-mtu="],
    ["-mtu", "-debug"],
    ["-debug=maybe"],
    ["-debug="],
    ['-debug=may"be'],
    ["-version", "-x"],
    ["-forward-sock", "a", "-debug", "--mtu=b"],
    [b"-mtu", "\n\t\"\x01\x7f\u00a0\u200b\U0001f600\ue000\u0301\\'".encode() + b"\xff\xed\xa0\x80"],
]


@pytest.mark.parametrize("words", GRAMMAR, ids=repr)
def test_mistakes_are_told_in_the_same_words(real: Real, words: list[str | bytes]) -> None:
    assert first_line(ours(words)) == first_line(real(words))


@pytest.mark.parametrize(
    "text",
    ["abc", "", "08", "0_8", "_1", "1_", "1__0", " 1", "1 ", "0x", "0b", "0o", "+-1", "--1", "1e3", "0x-1", "٣", "0_"]
    + ["9" * 20, "9" * 20 + "x", "9223372036854775808", "-9223372036854775809", "18446744073709551616x", "0x1g"],
)
def test_numbers_that_are_none_are_told_in_the_same_words(real: Real, text: str) -> None:
    words = ["-ssh-port", text]
    assert first_line(ours(words)) == first_line(real(words))


@pytest.mark.parametrize(
    "text",
    ["0", "-0", "00", "+80", "017", "0_7", "0o17", "0O1_7", "0x10", "-0x10", "0X_1f", "0b1_1", "0B1", "1_0"]
    + ["9223372036854775807", "-9223372036854775808"],
)
def test_numbers_that_are_some_are_none_that_the_ssh_port_can_have(real: Real, text: str) -> None:
    words = ["-ssh-port", text]
    assert fatal(ours(words), "fatal") == fatal(real(words), "error")


@pytest.mark.parametrize(
    "words",
    [
        ["-version"],
        ["--version=T"],
        ["-version=false", "--version", "word", "-x"],
        ["-version", "-ssh-port", "1"],
        ["-version", "--", "-x"],
        ["-version", "-", "-x"],
        ["-version", "", "-x"],
        ["-debug", "-version", "-forward-sock=a"],
    ],
    ids=repr,
)
def test_the_version_is_told_by_the_same_command_lines(real: Real, words: list[str]) -> None:
    """In the same words, but for the number."""
    assert ours(words) == (0, "gvproxy version v0.8.9\n", "")
    status, out, err = real(words)
    assert (status, re.sub(r"v[0-9.]+", "v0.8.9", out), err) == (0, "gvproxy version v0.8.9\n", "")


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["-help=3"], ["-debug", "-h=", "-x"]], ids=repr)
def test_help_is_asked_for_by_the_same_command_lines(real: Real, words: list[str]) -> None:
    """And has the same form: each flag by name, its kind, its default."""

    def shape(answer: Answer) -> tuple[int, str, str, list[str]]:
        status, out, err = answer
        head, *lines = err.splitlines()
        flags = lines[::2]
        assert all(line.startswith("    \t") for line in lines[1::2]) and err.endswith("\n")
        return status, out, head, flags

    status, out, head, flags = shape(real(words))
    our_status, our_out, our_head, our_flags = shape(ours(words))
    assert (our_status, our_out, our_head) == (status, out, head) == (0, "", "Usage of gvproxy:")
    assert [flag for flag in our_flags if flag in flags] == flags, "every flag of theirs, in their order"
    assert len(our_flags) == len(FLAGS)
    port = "  -ssh-port int\n    \t{} (default 2222)\n"
    for err in (ours(words)[2], real(words)[2]):
        assert re.search(re.escape(port).replace(r"\{\}", ".*"), err)


def fatal(answer: Answer, level: str) -> tuple[int, str]:
    """Status and message of the last line."""
    status, out, err = answer
    assert out == ""
    found = re.fullmatch(r'time="[0-9T:-]+(?:Z|[+-][0-9:]+)" level=(\w+) msg=(.*)', err.splitlines()[-1])
    assert found and found[1] == level
    return status, found[2]


def renamed(answer: tuple[int, str]) -> tuple[int, str]:
    """As newer ones say it."""
    status, message = answer
    for before, after in (
        (r"invalid value for listen-(\w+):", r"invalid value for \1 listen address:"),
        (r"listen-(\w+) must be", r"\1 listen address must be"),
        (r'"-forward-sock', r'"--forward-sock'),
        (r"Identity file ([^ \"]+)", r'identity file \\"\1\\"'),
    ):
        message = re.sub(before, after, message)
    return status, message


FATAL = [
    "-ssh-port 80",
    "-ssh-port 65536",
    "-ssh-port -2",
    "-listen-qemu unix://{there}",
    "-listen-bess unixpacket://{there}",
    "-listen-vfkit unixgram://{there}",
    "-listen-qemu unix://{there}?x#y",
    "-listen-vpnkit unix://{new} -listen-qemu unix://{new}",
    "-listen-bess unixpacket://{new} -listen-qemu unix://{new}",
    "-listen-bess unixpacket://{new} -listen-vpnkit unix://{new}",
    "-listen-vfkit unix://{new}",
    "-listen-bess tcp://127.0.0.1:1",
    "-listen-qemu unix://%zz",
    "-listen-qemu :",
    "-listen-bess unixpacket:///%4",
    "-listen-vfkit %zz",
    "-listen-qemu tcp://a:b",
    "-listen-qemu tcp://[::1",
    "-listen-qemu tcp://[::1]a:1",
    "-listen-qemu tcp://a%41:1",
    "-listen-qemu 1tcp:x",
    "-listen-qemu unix:///a\x01b",
    "-forward-sock {new}",
    "-forward-sock {new} -forward-sock {new} -forward-dest b -forward-user c -forward-identity {there}",
    "-forward-sock {new} -forward-dest b -forward-user c -forward-identity {new}",
]


@pytest.mark.parametrize("text", FATAL)
def test_fatal_errors_are_the_same(real: Real, tmp_path: Path, text: str) -> None:
    """Status 1, and nothing has been made."""
    there = tmp_path / "there"
    there.touch()
    words = text.format(there=there, new=tmp_path / "new").split()
    answer = fatal(ours(words), "fatal")
    assert answer == renamed(fatal(real(words), "error"))
    assert answer[0] == 1 and [*tmp_path.iterdir()] == [there]


@pytest.mark.parametrize(
    "words",
    [
        ["-listen", "foo://x"],
        ["-listen", ""],
        ["-listen", "%%"],
        ["-listen-qemu", "foo://x"],
        ["-listen-vpnkit", ":"],
        ["-listen-vpnkit", "foo:"],
        ["-listen-qemu", "tcp://:99999"],
        ["-listen-qemu", "tcp://a"],
    ],
    ids=repr,
)
def test_what_cannot_be_had_ends_both_with_status_0(real: Real, words: list[str]) -> None:
    """An old fault of gvproxy that callers have got used to."""
    words = [*words, "-ssh-port", "-1"]
    answer = fatal(ours(words), "error")
    assert answer == fatal(real(words), "error")
    assert answer[0] == 0 and answer[1].startswith('"gvproxy exiting: ')
