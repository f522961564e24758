# SPDX-License-Identifier: Apache-2.0
"""plugin/made_files.py: sockets that take the place of others, a folder of our own. The rest is in tests/contract."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockgate.plugin import socket_holder
from lockgate.plugin.made_files import FileError, MadeFiles


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_socket_that_replaces_is_its_owners_alone(tmp_path: Path) -> None:
    """Whatever the umask, which is as before afterwards."""
    before = os.umask(0)
    try:
        made = MadeFiles()
        listener = made.replace(str(tmp_path / "s"), "-forward-sock", 5)
        assert mode(tmp_path / "s") == 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
    listener.close()
    made.take_back()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_takes_the_place_of_a_file_a_link_and_a_living_socket(tmp_path: Path) -> None:
    """And what a link leads to stays as it is."""
    path, other = tmp_path / "s", tmp_path / "other"
    other.write_text("kept")
    with socket.socket(socket.AF_UNIX) as living:

        def live() -> None:
            living.bind(str(path))
            living.listen()

        makers: list[Callable[[], None]] = [path.touch, lambda: path.symlink_to(other), live]
        for make in makers:
            make()
            made = MadeFiles()
            made.replace(str(path), "-forward-sock", 5).close()
            assert stat.S_ISSOCK(path.lstat().st_mode)
            made.take_back()
            assert [one.name for one in tmp_path.iterdir()] == ["other"]
    assert other.read_text() == "kept"


def test_what_is_somebody_elses_by_then_stays(tmp_path: Path) -> None:
    path, made = tmp_path / "s", MadeFiles()
    made.replace(str(path), "-forward-sock", 5).close()
    path.rename(tmp_path / "away")
    path.touch()
    made.take_back()
    assert path.exists()


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="that is a folder"):
        MadeFiles().replace(str(tmp_path), "-forward-sock", 5)


def test_a_socket_that_is_closed_while_we_look_for_its_holder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: nobody was found, and the start was told that another helper lives."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as leaving:
        leaving.bind(str(path))
        leaving.listen()

        def is_leaving(_: str) -> bool:
            leaving.close()
            return False

        monkeypatch.setattr(socket_holder, "is_leaving", is_leaving)
        MadeFiles().listen(str(path), "--socket").close()


@pytest.fixture(name="place")
def short_place() -> Iterator[Path]:
    """pytest's own folders have long names."""
    with tempfile.TemporaryDirectory(prefix="lockgate-") as place:
        yield Path(place)


def test_a_folder_of_our_own_is_gone_with_all_that_is_in_it(place: Path) -> None:
    made = MadeFiles()
    folder = Path(made.private_folder([str(place)], "lockgate-"))
    assert folder.parent == place and mode(folder) == 0o700
    (folder / "1.key").touch()
    (folder / "1.sock").symlink_to("/nowhere")
    made.take_back()
    assert list(place.iterdir()) == []


def test_a_folder_of_our_own_is_made_where_that_is_possible(place: Path) -> None:
    """Not where there is none, and not where a socket in it would have too long a path."""
    long, missing = place / ("x" * 60), place / "missing"
    long.mkdir()
    made = MadeFiles()
    folder = made.private_folder([str(missing), str(long), str(place)], "lockgate-")
    assert Path(folder).parent == place
    with pytest.raises(FileError, match="too long"):
        made.private_folder([str(long)], "lockgate-")
    with pytest.raises(FileError, match="No such file"):
        made.private_folder([str(missing)], "lockgate-")
    made.take_back()
    assert list(place.iterdir()) == [long]


def test_what_a_killed_helper_has_left_is_removed(place: Path) -> None:
    """Its lock has gone with it. What a living one has stays, and so does what only looks like it."""
    left, other = place / "lockgate-0123", place / "lockgate-file"
    left.mkdir()
    (left / "0.key").touch()
    other.touch()
    made, living = MadeFiles(), MadeFiles()
    folder = Path(living.private_folder([str(place)], "lockgate-"))
    (folder / "0.sock").touch()
    made.private_folder([str(place)], "lockgate-")
    assert not left.exists() and other.exists() and (folder / "0.sock").exists()
    living.take_back()
    made.take_back()
    assert list(place.iterdir()) == [other]
