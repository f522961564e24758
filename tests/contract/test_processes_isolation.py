# SPDX-License-Identifier: Apache-2.0
"""What each process of `passt` may still do once it runs, and what is said where the machine refuses a layer."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from running import PASST, Foreground, FrontEnd, descriptors, ended, namespace, pss_bytes, run, status, tree

Start = Callable[..., Foreground]

NOBODY = 65534
NO_CAPABILITIES = "0" * 16

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to look into processes that are not dumpable")


@pytest.fixture
def served(start: Start) -> Foreground:
    """A helper whose control is known to have started."""
    helper = start("-q")
    FrontEnd.connect(helper.socket).negotiate()
    return helper


def test_the_worker_has_no_capability_left(served: Foreground) -> None:
    """Neither now nor, with an empty bounding set and no_new_privs, ever again."""
    facts = status(served.children()["passt-worker"])
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert facts[kind] == NO_CAPABILITIES, kind
    assert facts["NoNewPrivs"] == "1"


def test_control_has_no_capability_left(served: Foreground) -> None:
    """The same, in the namespaces of the machine."""
    facts = status(served.children()["passt-control"])
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert facts[kind] == NO_CAPABILITIES, kind
    assert facts["NoNewPrivs"] == "1"


@as_root
def test_the_worker_lives_in_namespaces_of_its_own(served: Foreground) -> None:
    """User, mount, PID, IPC and UTS are its own; the network is the caller's, whose sockets it uses."""
    worker, keeper = served.children()["passt-worker"], served.process.pid
    for kind in ("user", "mnt", "pid", "ipc", "uts"):
        assert namespace(worker, kind) != namespace(keeper, kind), kind
    assert namespace(worker, "net") == namespace(keeper, "net")
    assert status(worker)["NSpid"].split()[-1] == "1"


@as_root
def test_the_worker_sees_an_empty_read_only_root(served: Foreground) -> None:
    """One tmpfs, without an entry, and nothing of the host under it."""
    worker = served.children()["passt-worker"]
    assert os.listdir(f"/proc/{worker}/root/") == []
    (mount,) = Path(f"/proc/{worker}/mounts").read_text().splitlines()
    fields = mount.split()
    assert fields[1:3] == ["/", "tmpfs"] and "ro" in fields[3].split(",")
    assert os.readlink(f"/proc/{worker}/cwd") == "/"


@as_root
def test_the_worker_holds_only_its_own_descriptors(served: Foreground) -> None:
    """Channels, the counters' page, an epoll; of the caller's only standard error, for a sanitizer's report."""
    for fd, target in descriptors(served.children()["passt-worker"]).items():
        if fd == 2:
            continue
        allowed = ("socket:", "/memfd:lockgate-", "anon_inode:[eventpoll]", "/null")
        assert target.startswith(allowed), (fd, target)


@as_root
def test_the_worker_cannot_be_looked_into_by_its_user(served: Foreground) -> None:
    """Not dumpable: its files in /proc belong to root, so that no process of the same user may attach to it."""
    worker = served.children()["passt-worker"]
    assert os.stat(f"/proc/{worker}/mem").st_uid == 0 and os.stat(f"/proc/{worker}/environ").st_uid == 0


@as_root
def test_root_of_the_machine_goes_on_as_nobody(start: Start) -> None:
    """A warning even with -q; every process has all its ids changed and no supplementary group."""
    helper = start("-q")
    FrontEnd.connect(helper.socket).negotiate()
    for pid in tree(helper.process.pid):
        facts = status(pid)
        assert facts["Uid"].split() == facts["Gid"].split() == [str(NOBODY)] * 4
        assert facts["Groups"] == ""
    assert "nobody" in helper.line()


@as_root
def test_modules_that_only_root_can_read_are_enough(start: Start, folder: Path) -> None:
    """A checkout in /root: all that control imports, it imports before it leaves root. With -d, structlog too."""
    private = folder / "private"
    packages = Path(structlog.__file__).parent.parent
    (private / "bin").mkdir(parents=True)
    private.chmod(0o700)
    shutil.copy(PASST, private / "bin")
    (private / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), private)
    (private / packages.relative_to(sys.prefix)).parent.mkdir(parents=True)
    (private / packages.relative_to(sys.prefix)).symlink_to(packages)
    helper = start("-d", command=str(private / "bin" / "passt"))
    FrontEnd.connect(helper.socket).negotiate()


@as_root
def test_a_capture_that_nobody_may_write_is_left_out(start: Start, folder: Path) -> None:
    """The file is opened with the rights of the user that we go on as: a warning says that it could not be, and the
    guest is served all the same."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    helper = start("-q", "-p", str(private / "capture"))
    assert "Permission denied" in helper.line_with("capture")
    FrontEnd.connect(helper.socket).negotiate()
    assert not (private / "capture").exists()


def unshare(*arguments: str) -> list[str]:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1)")
    return ["unshare", *arguments]


FORBID = ["sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]


@as_root
def test_a_refused_layer_is_named_and_the_others_are_put_on(start: Start) -> None:
    """Root of a container that forbids nested user namespaces: one warning says so, and what would allow them; mount
    and PID namespaces and the empty root are there all the same."""
    helper = start("-q", prefix=[*unshare("--user", "--map-root-user"), *FORBID])
    warning = helper.line()
    assert "user namespace: " in warning and "user.max_user_namespaces" in warning
    assert "root" not in warning
    FrontEnd.connect(helper.socket).negotiate()
    worker = helper.children()["passt-worker"]
    assert os.listdir(f"/proc/{worker}/root/") == []
    assert status(worker)["CapEff"] == NO_CAPABILITIES


@as_root
def test_without_any_namespace_the_helper_still_serves(start: Start) -> None:
    """A user without capabilities where user namespaces are forbidden: the warning lists all that is missing; what
    needs no permission (no capabilities, no_new_privs, closed descriptors) is done."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv(1)")
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    helper = start("-q", prefix=[*unshare("--user", "--map-root-user"), *FORBID, *powerless])
    warning = helper.line()
    assert "user namespace: " in warning and "empty root: " in warning
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    front_end.reach_worker()
    facts = status(helper.children()["passt-worker"])
    assert facts["CapEff"] == NO_CAPABILITIES and facts["NoNewPrivs"] == "1"
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0


def shadowing(place: str) -> list[str]:
    """What runs a command that finds nothing in this folder."""
    return unshare("--mount", "sh", "-c", f'mount -t tmpfs none {place} && exec "$@"', "sh")


def serves(helper: Foreground) -> None:
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    front_end.reach_worker()
    for role in ("passt-worker", "passt-control"):
        facts = status(helper.children()[role])
        assert facts["CapEff"] == NO_CAPABILITIES and facts["NoNewPrivs"] == "1"
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0


@as_root
def test_without_proc_the_helper_still_serves(start: Start) -> None:
    """The launcher finds its Python by what the kernel told it at its start. A user namespace needs /proc, and the
    warning says so; the worker's root is empty all the same."""
    helper = start("-q", prefix=shadowing("/proc"))
    assert "going on as nobody" in helper.line()
    warning = helper.line()
    assert warning.endswith(
        "(user namespace: No such file or directory): /proc is not mounted here, by which a user namespace is set up"
    )
    assert os.listdir(f"/proc/{helper.children()['passt-worker']}/root/") == []
    serves(helper)


@as_root
def test_root_of_a_user_namespace_without_proc_stays_who_it_is(start: Start) -> None:
    """Which it cannot know: it could as well be the machine's root. But nobody is not mapped there."""
    helper = start("-q", prefix=[*unshare("--user", "--map-root-user"), *shadowing("/proc")])
    assert helper.line().startswith("Started as root and going on as root: it may not become nobody here (")
    assert "/proc is not mounted here" in helper.line()
    serves(helper)


@as_root
def test_root_without_capabilities_says_that_it_stays_root(start: Start) -> None:
    """As in a container that has dropped them all."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv(1)")
    helper = start("-q", prefix=["setpriv", "--bounding-set=-all", "--inh-caps=-all"])
    warning = "Started as root and going on as root: it may not become nobody here (Operation not permitted)"
    assert helper.line() == warning
    assert "user namespace: " in helper.line()
    serves(helper)


@as_root
@pytest.mark.parametrize("foreground", [True, False])
def test_without_dev_the_helper_still_serves(start: Start, folder: Path, foreground: bool) -> None:
    """There is no /dev/null then, with which streams are replaced; a daemon keeps none of its caller's all the same,
    for run() returns only when nobody holds its pipes."""
    if foreground:
        serves(start("-q", prefix=shadowing("/dev")))
        return
    words = ["--vhost-user", "-q", "-1", "-s", str(folder / "s"), "-P", str(folder / "pid")]
    result = run(*words, prefix=shadowing("/dev"))
    assert result.returncode == 0
    helper = os.pidfd_open(int((folder / "pid").read_text()))
    front_end = FrontEnd.connect(folder / "s")
    front_end.negotiate()
    front_end.close()
    assert ended(helper)
    os.close(helper)


@as_root
def test_all_processes_at_rest_fit_in_20_megabytes(served: Foreground) -> None:
    """Proportional memory of the whole helper, as the contract's users count it."""
    assert pss_bytes(served.process.pid) <= 20_000_000
