# SPDX-License-Identifier: Apache-2.0
"""A folder that the helper may use, helpers that are gone after each test, a host and a container for `pasta`, and one
host with Podman for all tests.

Read by pytest. Adversary: nobody.
"""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pasta_caller
import pytest
from cables import Cables, make_cables
from host_namespace import Namespace
from monitor import Monitor
from podman_host import PodmanHost, peer_words
from running import Foreground


@pytest.fixture(autouse=True, scope="session")
def ordinary_signals() -> Iterator[None]:
    """As a caller at a terminal has them: a test run in the background inherits ignored ones, and so would helpers."""
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, since a socket's path has 107 bytes; open to nobody, as whom a helper started by root goes on."""
    path = Path(tempfile.mkdtemp(prefix="lockgate-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path, onerror=_unless_gone)


def _unless_gone(_remove: Callable[..., object], _path: str, failure: tuple[type, BaseException, object]) -> None:
    """A helper that is still ending removes its own files meanwhile."""
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Foreground]]:
    """Starts helpers in the foreground, and ends them."""
    started: list[Foreground] = []

    def begin(*arguments: str, **options: object) -> Foreground:
        helper = Foreground(folder, *arguments, **options)  # type: ignore[arg-type]
        started.append(helper)
        return helper

    yield begin
    for helper in started:
        helper.close()


@pytest.fixture(scope="module")
def cables() -> Iterator[Cables]:
    made = make_cables()
    yield made
    made.close()


@pytest.fixture
def guest(cables: Cables, start: Callable[..., Foreground]) -> Iterator[Callable[..., Monitor]]:
    """Starts a helper on the host of the cables, and returns its guest."""
    monitors = []

    def begin(*options: str) -> Monitor:
        helper = start(*options, prefix=cables.prefix, stream=True)
        end = socket.socket(socket.AF_UNIX)
        end.connect(str(helper.socket))
        monitors.append(Monitor(end))
        return monitors[-1]

    yield begin
    for monitor in monitors:
        monitor.socket.close()


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Where tap devices can be made, with a network."""
    made = pasta_caller.host()
    yield made
    made.close()


@pytest.fixture
def container(host: Namespace) -> Iterator[Namespace]:
    """On that host, without a network."""
    made = pasta_caller.container(host)
    yield made
    made.close()


@pytest.fixture(scope="session")
def podman_host() -> Iterator[PodmanHost]:
    """One for all tests: to install our tree there takes a minute."""
    run = peer_words()
    folder = Path(tempfile.mkdtemp(prefix="lockgate-"))
    folder.chmod(0o755)
    host = PodmanHost(folder, run)
    try:
        host.install()
        host.make_image()
        yield host
    finally:
        host.close()
        shutil.rmtree(folder)
