# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/descriptors.py: what is kept of a limit, and who has to do without."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from lockgate.plugin.gateway import descriptors
from lockgate.plugin.gateway.descriptors import Descriptors
from lockgate.plugin.gateway.http.http_server import CONNECTIONS_MAX


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))


@pytest.fixture(name="high")
def socket_with_a_high_number() -> Iterator[socket.socket]:
    """Higher than that of any other."""
    with socket.socket() as low:
        number = 200 + len(os.listdir("/proc/self/fd"))
        os.dup2(low.fileno(), number)
    with socket.socket(fileno=number) as sock:
        yield sock


def kept_from(number: int, told: Told) -> Descriptors:
    """Of which that number is the first that is kept."""
    limit = next(limit for limit in range(number, 2 * number) if limit - limit // 4 == number)
    return Descriptors(limit, 100, told)


def test_what_would_need_a_kept_descriptor_is_refused_and_closed(high: socket.socket) -> None:
    told = Told()
    with socket.socket() as low:
        with pytest.raises(OSError) as caught:
            kept_from(high.fileno(), told).check(low, high)
        assert caught.value.errno == errno.EMFILE
        assert (low.fileno(), high.fileno()) == (-1, -1)
    ((event, fields),) = told.events
    assert event == "descriptors.short" and set(fields) == {"limit", "kept"}


def test_what_does_not_need_one_is_left_alone(high: socket.socket) -> None:
    told = Told()
    with socket.socket() as low:
        kept_from(high.fileno() + 1, told).check(low, high)
        assert low.fileno() >= 0 and high.fileno() >= 0 and not told.events


def test_it_is_told_once() -> None:
    told = Told()
    few = Descriptors(0, 1, told)
    for _ in range(3):
        with pytest.raises(OSError):
            few.check(socket.socket())
    assert len(told.events) == 1


@pytest.mark.parametrize("places", [0, 1, 2, 20])
@pytest.mark.parametrize("limit", [0, 64, 256, 1024, 4096, 1 << 20])
def test_all_connections_of_the_api_fit_what_is_kept(limit: int, places: int) -> None:
    """With one at each place for which there is no room yet, and something left for control itself."""
    one = Descriptors(limit, places, Told())
    assert 1 <= one.connections <= CONNECTIONS_MAX and one._kept <= limit // 4
    if one.connections > 1:
        assert places * (one.connections + 1) < one._kept


def test_where_there_are_enough_nobody_notices() -> None:
    one = Descriptors(65536, 2, Told())
    assert one.connections == CONNECTIONS_MAX and one._kept < 65536 // 100


def test_the_limit_is_that_of_the_process() -> None:
    with open("/proc/self/limits") as file:
        (soft,) = (line.split()[3] for line in file if line.startswith("Max open files"))
    assert descriptors.limit_of_process() == int(soft)
