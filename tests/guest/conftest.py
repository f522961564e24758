# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the guest tests: a booted network for each variant, shared by all tests that want nothing special of it.

Read by pytest. Adversary: nobody. Invariants: a variant that this machine lacks is skipped with the reason; the logs
of a failing test are named in its report and stay in build/guest-logs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from counters import Counters, NoCounters
from data_server import DataServer
from helper import LOGS
from network import VARIANTS, Network, Ports, usable
from resolver import ADDRESS, PORT, Resolver


@pytest.fixture(scope="session")
def server() -> Iterator[DataServer]:
    """One server for all: its payload takes a second to make."""
    started = DataServer()
    yield started
    started.close()


@pytest.fixture(scope="session")
def names() -> Iterator[Resolver]:
    """A resolver on this machine's loopback."""
    try:
        started = Resolver()
    except OSError as error:
        pytest.skip(f"the test's resolver cannot have port {PORT} of {ADDRESS}: {error.strerror}")
    yield started
    started.close()


@pytest.fixture(scope="session", params=VARIANTS, ids=lambda variant: variant.name)
def network(request: pytest.FixtureRequest, server: DataServer) -> Iterator[Network]:
    """A guest on its network, in every variant, as it comes up by itself; ports of this machine lead to it. pytest
    takes all tests with one before those with the next."""
    variant = usable(request.param)
    booted = Network(variant, server, logs=f"{variant.name}-shared", detection=True, ports=Ports.free())
    yield booted
    booted.close()


@pytest.fixture
def counters(network: Network) -> Iterator[Counters]:
    """Of the network's helper, once the guest has its addresses."""
    assert network.addressed
    try:
        page = Counters(network.helper.pid)
    except NoCounters as another:
        pytest.skip(f"this is about our own counters: {another}")
    yield page
    page.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Says where the guest's console and the helper's messages of a failing test are."""
    report = yield
    if report.failed:
        names = "\n".join(str(path) for path in sorted(LOGS.glob("*.log")) if path.stat().st_size)
        report.sections.append(("logs of guests and helpers", names))
    return report
