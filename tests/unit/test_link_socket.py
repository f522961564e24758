# SPDX-License-Identifier: Apache-2.0
"""plugin/link_socket.py: where a monitor finds us that was told no path. The rest is in tests/contract."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.plugin import link_socket
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.log import WARNING, Log
from lockgate.plugin.made_files import FileError, MadeFiles


@pytest.fixture(name="place")
def series_of_three(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """pytest's own folders have long names."""
    with tempfile.TemporaryDirectory(prefix="lockgate-") as place:
        monkeypatch.setattr(link_socket, "_SERIES", f"{place}/{{}}")
        monkeypatch.setattr(link_socket, "_SERIES_NUMBERS", range(1, 4))
        yield Path(place)


def found() -> str:
    spec = vocabulary.NetworkSpec(contract="passt", link=vocabulary.STREAM)
    link = link_socket.SocketLink(spec, lambda: None)
    link.open(MadeFiles(), Log("passt", WARNING, json=False))
    return link.name


def listening(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.bind(str(path))
    one.listen()
    return one


def test_the_first_place_that_nobody_is_at_is_taken(place: Path) -> None:
    """What a helper left there that has ended is replaced."""
    listening(place / "2").close()
    with listening(place / "1"):
        assert found() == str(place / "2")


def test_a_place_that_cannot_be_had_is_passed_over(place: Path) -> None:
    """Cause: what the helper of another user had left in /tmp, where only that user may remove it, was the end of each
    start without a path."""
    (place / "1").mkdir()
    assert found() == str(place / "2")


def test_if_no_place_can_be_had_the_first_reason_is_told(place: Path) -> None:
    for number in range(1, 4):
        (place / str(number)).mkdir()
    with pytest.raises(FileError, match=f"{place}/1: that is a folder"):
        found()


def test_if_somebody_is_at_each_place_that_is_told(place: Path) -> None:
    others = [listening(place / str(number)) for number in range(1, 4)]
    with pytest.raises(vocabulary.StartError, match="are all in use"):
        found()
    for other in others:
        other.close()
