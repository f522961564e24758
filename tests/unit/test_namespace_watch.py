# SPDX-License-Identifier: Apache-2.0
"""plugin/namespace/namespace_watch.py with files, processes, and a namespace that is mounted as callers do it."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import Namespace

from lockgate.plugin.namespace.namespace_watch import INTERVAL_MILLISECONDS, NamespaceWatch

PATIENCE = 20


def wakes(watch: NamespaceWatch, seconds: float = 0) -> bool:
    return bool(select.select([watch.fileno()], [], [], seconds)[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "netns-1").touch()
    return tmp_path / "netns-1"


@pytest.fixture
def watch(path: Path) -> Iterator[NamespaceWatch]:
    made = NamespaceWatch(str(path))
    yield made
    made.close()


def test_the_removal_of_the_path_is_told_at_once(path: Path, watch: NamespaceWatch) -> None:
    """And stays: what comes under that name later is another namespace's."""
    assert (watch.interval, wakes(watch), watch.gone()) == (None, False, False)
    path.unlink()
    assert wakes(watch, PATIENCE)
    path.touch()
    assert watch.gone() and watch.gone()


def test_a_path_that_is_moved_away_is_gone_too(path: Path, watch: NamespaceWatch) -> None:
    """Nobody else will remove it."""
    path.rename(path.with_name("netns-2"))
    assert wakes(watch, PATIENCE) and watch.gone()


def test_what_happens_to_other_names_wakes_the_loop_once(path: Path, watch: NamespaceWatch) -> None:
    """Each namespace of a user is in the same folder."""
    other = path.with_name("netns-10")
    other.touch()
    other.unlink()
    assert wakes(watch, PATIENCE)
    assert not watch.gone() and not wakes(watch)


def test_a_folder_that_goes_takes_its_names_along(path: Path) -> None:
    """Also if it is reached by a link, which then leads elsewhere."""
    inner = path.parent / "inner"
    inner.mkdir()
    (inner / "netns").touch()
    link = path.parent / "link"
    link.symlink_to(inner)
    watch = NamespaceWatch(str(link / "netns"))
    link.unlink()
    assert not watch.gone()
    (inner / "netns").unlink()
    inner.rmdir()
    assert wakes(watch, PATIENCE) and watch.gone()
    watch.close()


def test_a_path_that_is_gone_before_it_is_watched_is_gone(path: Path) -> None:
    """Between its opening and the watch."""
    path.unlink()
    watch = NamespaceWatch(str(path))
    assert watch.gone()
    watch.close()
    with pytest.raises(FileNotFoundError):
        NamespaceWatch(str(path / "deeper"))


def test_the_end_of_a_process_is_told_at_once() -> None:
    """Before it is reaped; nothing wakes until then."""
    namespace = Namespace("--user", "--map-root-user", "--net")
    watch = NamespaceWatch(namespace.path())
    assert (watch.interval, wakes(watch), watch.gone()) == (None, False, False)
    namespace.end()
    assert wakes(watch, PATIENCE) and watch.gone()
    watch.close()
    namespace.close()


def test_a_path_of_proc_that_is_not_a_processs_is_looked_at_each_second() -> None:
    """As that of a thread. Inotify could be had there, and would never say anything."""
    ended = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    watch = NamespaceWatch(f"/proc/{ended.pid}/task/{ended.pid}/ns/net")
    assert (watch.fileno(), watch.interval) == (-1, INTERVAL_MILLISECONDS)
    assert not watch.gone()
    ended.communicate()
    assert watch.gone()
    watch.close()


def test_a_path_into_which_we_may_not_look_is_still_there(
    path: Path, watch: NamespaceWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is with processes of others."""
    blind = NamespaceWatch("/proc/self/task/../ns/net")
    assert blind.interval == INTERVAL_MILLISECONDS

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert not blind.gone()
    monkeypatch.undo()
    blind.close()


def test_without_inotify_a_path_is_looked_at_each_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have used up all instances."""

    class Exhausted:
        lg_watch_open = staticmethod(lambda: -errno.EMFILE)

    monkeypatch.setattr("lockgate.plugin.namespace.namespace_watch.lib", Exhausted)
    watch = NamespaceWatch(str(path))
    assert (watch.fileno(), watch.interval, watch.gone()) == (-1, INTERVAL_MILLISECONDS, False)
    path.unlink()
    assert watch.gone()
    watch.close()


def test_a_mounted_namespace_is_gone_when_its_path_is_removed() -> None:
    """As Podman does it, rootless: unmounting says nothing, the removal of the file does."""
    script = """
set -e
mount -t tmpfs none /mnt
touch /mnt/netns
mount --bind /proc/self/ns/net /mnt/netns
echo; read _
umount -l /mnt/netns
echo; read _
rm /mnt/netns
echo; read _
"""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "--net", "sh", "-c", script]
    with subprocess.Popen(unshare, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as caller:
        assert caller.stdin is not None and caller.stdout is not None
        if not caller.stdout.readline():
            pytest.skip("this machine does not let us make user namespaces")
        watch = NamespaceWatch(f"/proc/{caller.pid}/root/mnt/netns")
        assert watch.interval is None and not watch.gone()
        caller.stdin.write(b"\n")
        assert caller.stdout.readline()
        assert not watch.gone()
        caller.stdin.write(b"\n")
        assert wakes(watch, PATIENCE) and watch.gone()
        watch.close()
        caller.stdin.write(b"\n")
