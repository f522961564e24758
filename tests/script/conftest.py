# SPDX-License-Identifier: Apache-2.0
"""A world for each test, and a conversation in it; every test ends with the world's own check that nothing is left.

Read by pytest. A test that takes `conversation` runs four times: IPv4 and IPv6, with SO_PEEK_OFF and without. A test
whose world is special says how: @pytest.mark.world(mtu=9000). Adversary: nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from conversation import Conversation
from fake_core import HOW_BUILT
from splice_world import SpliceWorld
from world import World, WorldOptions


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "world(**options): how the world of this test differs; see WorldOptions")


def pytest_report_header() -> str:
    return f"tests/script: the core is built {HOW_BUILT}"


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lets the fixtures know how the test went: after a failure it would only hide the reason to find more."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture(params=["peek_off", "reread"])
def peek_off(request: pytest.FixtureRequest) -> bool:
    """Whether the kernel has SO_PEEK_OFF for TCP."""
    return bool(request.param == "peek_off")


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def world(request: pytest.FixtureRequest, peek_off: bool) -> Iterator[World]:
    marker = request.node.get_closest_marker("world")
    options = replace(WorldOptions(peek_off=peek_off), **(marker.kwargs if marker else {}))
    world = World(options)
    yield world
    world.close(failed=request.node.stash.get(FAILED, True))


@pytest.fixture
def loopbacks(request: pytest.FixtureRequest) -> Iterator[SpliceWorld]:
    """One whose ports lead to a namespace by the short way."""
    marker = request.node.get_closest_marker("world")
    world = SpliceWorld(replace(WorldOptions(), **(marker.kwargs if marker else {})))
    yield world
    world.close(failed=request.node.stash.get(FAILED, True))


@pytest.fixture
def talk(world: World, family: int) -> Iterator[Callable[..., Conversation]]:
    """Makes further conversations in the same world."""
    made: list[Conversation] = []

    def begin(**changes: Any) -> Conversation:
        made.append(Conversation(world, family, **{"guest_port": 40000 + len(made), **changes}))
        return made[-1]

    yield begin
    for conversation in made:
        conversation.finish()


@pytest.fixture
def conversation(talk: Callable[..., Conversation]) -> Conversation:
    return talk()
