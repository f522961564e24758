# SPDX-License-Identifier: Apache-2.0
"""plugin/log.py: levels, the form of a line in each place, and a log file that keeps its limit."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from lockgate.plugin import log

LEVELS = ["error", "warning", "info", "debug"]


def say_all(lines: log.Log) -> None:
    for name in LEVELS:
        getattr(lines, name)(f"a {name}")


@pytest.mark.parametrize("level", range(4))
def test_only_lines_up_to_the_level_are_written(level: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Plain text on standard error, without a prefix, as the contract has it."""
    say_all(log.Log("passt", level, json=False))
    assert capfd.readouterr().err.splitlines() == [f"a {name}" for name in LEVELS[: level + 1]]


def test_json_lines_are_json_whatever_they_quote(capfd: pytest.CaptureFixture[str]) -> None:
    """Quotes, line ends, and bytes that are no UTF-8 (as Python decodes arguments)."""
    text = 'a "quoted"\n\udcff\\ end'
    log.Log("passt", log.INFO, json=True).warning(text)
    record = json.loads(capfd.readouterr().err)
    assert record["event"] == text and record["level"] == "warning"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["timestamp"])


def test_a_path_that_is_no_utf8_is_written_as_it_came(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The bytes of the argument, not an exception."""
    log.Log("passt", log.INFO, json=False).error(os.fsdecode(b"/tmp/\xff"))
    assert capfdbinary.readouterr().err == b"/tmp/\xff\n"


def test_the_file_has_seconds_and_a_prefix_of_nine_characters(tmp_path: Path) -> None:
    """The form that readers of passt's log files know."""
    lines = log.Log("passt", log.DEBUG, json=False)
    lines.stderr = False
    lines.file = log.LogFile(str(tmp_path / "log"), 1 << 20, "passt 1.2")
    say_all(lines)
    header, *rest = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(rf"passt 1\.2: /.* \({os.getpid()}\)", header)
    prefixes = ["ERROR:   ", "WARNING: ", "info:    ", "         "]
    for line, prefix, name in zip(rest, prefixes, LEVELS, strict=True):
        assert re.fullmatch(rf"\d+\.\d{{4}}: {prefix}a {name}", line)


def test_a_full_file_loses_its_oldest_lines_only(tmp_path: Path) -> None:
    """It stays within its limit, keeps its header, and its last line is the last that was written."""
    path, limit = tmp_path / "log", 40960
    file = log.LogFile(str(path), limit, "passt 1.2")
    header = path.read_bytes()
    for number in range(5000):
        file.write(f"line {number}\n".encode())
        assert path.stat().st_size <= limit
    content = path.read_bytes()
    assert content.startswith(header)
    numbers = [int(line.split()[1]) for line in content[len(header) :].decode().splitlines()]
    assert numbers == list(range(numbers[0], 5000))
    assert len(content) > limit * 6 // 10


def test_a_place_that_fails_is_passed_over(tmp_path: Path) -> None:
    """A log file on a full disk: the line still reaches the others, and nobody falls."""
    lines = log.Log("passt", log.INFO, json=False)
    lines.stderr = False
    lines.file = log.LogFile(str(tmp_path / "log"), 1 << 20, "passt 1.2")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, lines.file.fd)
    os.close(full)
    lines.error("nowhere to go")


def test_a_standard_error_that_nobody_reads_holds_up_nothing() -> None:
    """Cause of what this was found by: control waited for the reader of its pipe, and its guest for control."""
    reader, writer = os.pipe()
    kept = os.dup(2)
    os.dup2(writer, 2)
    try:
        lines = log.Log("passt", log.DEBUG, json=False)
        for _ in range(100):
            lines.debug("x" * 5000)
        before = os.read(reader, 1 << 20)
        lines.debug("heard again")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
    after = os.read(reader, 1 << 20).decode().splitlines()
    os.close(reader)
    whole = before.count(b"\n")
    assert 0 < whole < 100
    assert after == [f"{100 - whole} lines were lost here: nobody read them", "heard again"]


def test_events_are_wanted_only_where_they_are_heard(tmp_path: Path) -> None:
    """With --debug but all streams closed and no file, the worker is not asked for any."""
    lines = log.Log("passt", log.DEBUG, json=False)
    assert lines.heard
    lines.stderr = False
    assert not lines.heard
    lines.file = log.LogFile(str(tmp_path / "log"), 1 << 20, "passt 1.2")
    assert lines.heard
    assert not log.Log("passt", log.INFO, json=False).heard


def shout(level: str, text: str, when: float) -> str:
    assert abs(when - time.time()) < 60
    return f"{level} {text}!\n"


def test_a_log_may_have_a_form_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On standard error, and in a file that is emptied, and takes its place."""
    lines = log.Log("gvproxy", log.DEBUG, json=False, form=shout)
    say_all(lines)
    lines.event_to_stderr("event=1")
    (tmp_path / "log").write_text("old\n")
    lines.write_only_to(str(tmp_path / "log"))
    say_all(lines)
    lines.event_to_file("event=2")
    said = [f"{name} a {name}!" for name in LEVELS]
    assert capfd.readouterr().err.splitlines() == [*said, "debug event=1!"]
    assert (tmp_path / "log").read_text().splitlines() == [*said, "debug event=2!"]
    assert lines.file is not None and lines.descriptors() == [lines.file.fd]


def test_json_has_its_own_form(capfd: pytest.CaptureFixture[str]) -> None:
    lines = log.Log("gvproxy", log.INFO, json=True, form=shout)
    lines.info("said")
    lines.event_to_stderr("{}")
    first, second = capfd.readouterr().err.splitlines()
    assert json.loads(first)["event"] == "said" and second == "{}"


def test_a_file_without_a_place_is_the_callers_to_know_of(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        log.Log("gvproxy", log.INFO, json=False, form=shout).write_only_to(str(tmp_path / "no" / "log"))
