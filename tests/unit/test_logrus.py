# SPDX-License-Identifier: Apache-2.0
"""plugin/logrus.py: a line of logrus's text format, and how Go quotes a string."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin import logrus

WHEN = 1796026580.9  # 2026-11-30T08:16:20 UTC


@pytest.fixture(autouse=True)
def _zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", getattr(request, "param", "UTC"))
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_line_has_time_level_and_message() -> None:
    """As a real gvproxy writes it when its standard error is no terminal."""
    line = logrus.line(logrus.INFO, "waiting for clients...", WHEN)
    assert line == 'time="2026-11-30T08:16:20Z" level=info msg="waiting for clients..."\n'


def test_what_needs_no_quotes_has_none() -> None:
    assert logrus.line(logrus.ERROR, "a-1._/@^+", WHEN).endswith(" msg=a-1._/@^+\n")
    assert logrus.line(logrus.ERROR, "a=1", WHEN).endswith(' msg="a=1"\n')
    assert logrus.line(logrus.ERROR, "", WHEN).endswith(" level=error\n")


@pytest.mark.parametrize(
    "_zone, shown",
    [
        ("UTC", "2026-11-30T08:16:20Z"),
        ("XXX-5:45", "2026-11-30T14:01:20+05:45"),
        ("XXX3:30", "2026-11-30T04:46:20-03:30"),
    ],
    indirect=["_zone"],
)
def test_the_time_is_that_of_the_machines_zone(_zone: None, shown: str) -> None:
    assert logrus.timestamp(WHEN) == shown


@pytest.mark.parametrize(
    "text, quoted",
    [
        ("", '""'),
        ("plain words", '"plain words"'),
        ("é\"x'\\", '"é\\"x\'\\\\"'),
        ("\a\b\f\n\r\t\v\0\x7f", '"\\a\\b\\f\\n\\r\\t\\v\\x00\\x7f"'),
        (os.fsdecode(b'\xff\n\t"\x01\x7f\xc2\xa0\xe2\x80\x8b'), '"\\xff\\n\\t\\"\\x01\\x7f\\u00a0\\u200b"'),
        ("\U0001f600\ue000\u0301\U000e0001\x80", '"\U0001f600\\ue000\u0301\\U000e0001\\u0080"'),
    ],
)
def test_strings_are_quoted_as_go_does(text: str, quoted: str) -> None:
    """Seen in the messages of a real gvproxy: what is printable stays, bytes that are no UTF-8 are told as such."""
    assert logrus.quote(text) == quoted


def test_several_strings_stand_in_brackets() -> None:
    assert logrus.quote_list(["gvproxy", "-mtu", 'a"']) == '["gvproxy" "-mtu" "a\\""]'


@given(st.text() | st.binary().map(os.fsdecode))
def test_a_line_is_one_line_whatever_it_says(text: str) -> None:
    line = logrus.line(logrus.WARNING, text, WHEN)
    assert line.endswith("\n") and line[:-1].isprintable()


@pytest.mark.parametrize("name, level", [("warn", "warning"), ("WARNING", "warning"), ("Panic", "panic"), ("", None)])
def test_levels_have_names_in_any_case(name: str, level: str | None) -> None:
    assert logrus.level_of(name) == level
    assert logrus.level_of(f"{name}x") is None
