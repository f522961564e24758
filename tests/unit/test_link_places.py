# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/places.py: at which addresses of the host a URL of tcp listens."""

from __future__ import annotations

import socket

import pytest

from lockgate.plugin.contracts.place import Url, place
from lockgate.plugin.gateway import places
from lockgate.plugin.made_files import MadeFiles


def reached(text: str) -> list[str]:
    """By which of the two loopback addresses somebody is there."""
    listener = places.listen(place(Url(text)), "-listen", MadeFiles())
    found = []
    for host in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((host, listener.getsockname()[1])).close()
        except ConnectionRefusedError:
            continue
        found.append(host)
    listener.close()
    return found


@pytest.mark.parametrize("host", ["", "0.0.0.0", "[::]"])
def test_any_address_is_one_of_both_families(host: str) -> None:
    """As with gvproxy: many a client tries ::1 alone, or first."""
    assert reached(f"tcp://{host}:0") == ["127.0.0.1", "::1"]


@pytest.mark.parametrize("host, address", [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")])
def test_an_address_is_that_one_alone(host: str, address: str) -> None:
    assert reached(f"tcp://{host}:0") == [address]


def test_a_kernel_without_ipv6_has_all_addresses_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.plugin.address.has_ipv6", lambda: False)
    assert reached("tcp://:0") == ["127.0.0.1"]
