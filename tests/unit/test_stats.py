# SPDX-License-Identifier: Apache-2.0
"""plugin/stats.py: the table of counters that --stats prints, from a page like the worker's."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator

import pytest

from lockgate.core._datapath import lib
from lockgate.plugin import log, stats


class Page:
    """What a worker would count, and the printer that looks at it."""

    def __init__(self, as_json: bool = False) -> None:
        self.fd = os.memfd_create("counters")
        os.ftruncate(self.fd, lib.LG_COUNTER_BYTES)
        self.printer = stats.Printer(self.fd, log.Log("passt", log.WARNING, as_json))

    def counts(self, **counters: int) -> None:
        for name, value in counters.items():
            os.pwrite(self.fd, struct.pack("=Q", value), stats.NAMES.index(name) * 8)


@pytest.fixture(name="page")
def fresh_page() -> Iterator[Page]:
    page = Page()
    yield page
    os.close(page.fd)


def test_names_are_those_of_the_worker() -> None:
    assert {"wakeups", "frames_from_guest", "tcp_opened", "flows"} <= set(stats.NAMES)
    assert len(set(stats.NAMES)) == lib.lg_counter_count() <= lib.LG_COUNTER_BYTES // 8


def test_all_and_what_was_added_since_the_last_time(page: Page, capfd: pytest.CaptureFixture[str]) -> None:
    """Only of what is not 0, in the worker's order; on standard error, also with -q."""
    page.counts(wakeups=3, flows=2)
    page.printer.print()
    head, *rows = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r" +all +since then  counter", head)
    assert [row.split() for row in rows] == [["3", "3", "wakeups"], ["2", "2", "flows"]]
    page.counts(wakeups=10, flows=0)
    page.printer.print()
    rows = capfd.readouterr().err.splitlines()[1:]
    assert [row.split() for row in rows] == [["10", "7", "wakeups"], ["0", "-2", "flows"]]
    assert {len(row) - len(row.split()[2]) for row in rows} == {len(head) - len("counter")}


def test_nothing_is_printed_while_nothing_happens(page: Page, capfd: pytest.CaptureFixture[str]) -> None:
    page.printer.print()
    page.counts(wakeups=1)
    page.printer.print()
    page.printer.print()
    assert capfd.readouterr().err.count("wakeups") == 1


def test_numbers_of_a_broken_worker_are_only_numbers(page: Page, capfd: pytest.CaptureFixture[str]) -> None:
    os.pwrite(page.fd, b"\xff" * lib.LG_COUNTER_BYTES, 0)
    page.printer.print()
    rows = capfd.readouterr().err.splitlines()[1:]
    assert len(rows) == len(stats.NAMES) and set(rows[0].split()) == {str(2**64 - 1), "-1", "wakeups"}


def test_for_programs_it_is_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    """With the keys of the other lines."""
    page = Page(as_json=True)
    page.counts(wakeups=3)
    page.printer.print()
    record = json.loads(capfd.readouterr().err)
    assert record["counters"] == {"wakeups": 3} and record["event"] == "stats" and record["level"] == "info"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["timestamp"])
    os.close(page.fd)
