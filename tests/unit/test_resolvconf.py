# SPDX-License-Identifier: Apache-2.0
"""plugin/resolvconf.py: what is read from resolv.conf, and that nothing in it can do harm."""

from __future__ import annotations

import pytest
from host_samples import ip
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.plugin import address, resolvconf


def servers(text: str) -> list[str]:
    parsed = resolvconf.parse(text)
    return [address.to_text(server) for server in parsed.servers4 + parsed.servers6]


@pytest.mark.parametrize(
    "line",
    [
        "nameserver 192.0.2.53",
        "nameserver\t192.0.2.53",
        "  nameserver   192.0.2.53  ",
        "\t nameserver \t 192.0.2.53\t",
        "nameserver 192.0.2.53 # the office",
        "nameserver 192.0.2.53 ;the office",
        "nameserver ::ffff:192.0.2.53",
        "nameserver 192.0.2.53\r",
    ],
)
def test_a_nameserver_line_may_have_any_blanks(line: str) -> None:
    """Blanks and tabs before, between and behind the words make no difference, nor does a comment behind them."""
    assert servers(line) == ["192.0.2.53"]


@pytest.mark.parametrize(
    "line",
    [
        *("", "nameserver", "nameserver 192.0.2", "options ndots:2", "options nameserver 192.0.2.53"),
        *("#nameserver 192.0.2.53", "; nameserver 192.0.2.53", "  # nameserver 192.0.2.53", "nameserver #192.0.2.53"),
    ],
)
def test_a_line_that_names_no_server_is_passed_over(line: str) -> None:
    """Comments, other keywords and what is no address leave no trace."""
    assert servers(f"{line}\nnameserver 192.0.2.54\n") == ["192.0.2.54"]


def test_a_zone_is_kept_only_where_it_says_something() -> None:
    """Each interface can have the same link-local address anew; of any other address the zone is cut off."""
    parsed = resolvconf.parse("nameserver fe80::1%eth0\nnameserver 2001:db8::1%eth0\nnameserver fe80::1")
    assert parsed.servers6 == (ip("fe80::1"), ip("2001:db8::1"), ip("fe80::1"))
    assert parsed.zones6 == ("eth0", "", "")
    assert servers("nameserver 169.254.1.1%eth0\nnameserver %eth0") == ["169.254.1.1"]


def test_three_servers_of_each_family_are_kept() -> None:
    """The first three of each count, however they are mixed."""
    text = "".join(f"nameserver 192.0.2.{n}\nnameserver 2001:db8::{n}\n" for n in range(1, 6))
    assert servers(text) == [*(f"192.0.2.{n}" for n in (1, 2, 3)), *(f"2001:db8::{n}" for n in (1, 2, 3))]


def test_the_unspecified_address_means_the_host_itself() -> None:
    """As for the host's own resolver, 0.0.0.0 and :: are the loopback address."""
    parsed = resolvconf.parse("nameserver 0.0.0.0\nnameserver ::\n")
    assert (parsed.servers4, parsed.servers6) == ((ip("127.0.0.1"),), (ip("::1"),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search example.org lab.example.org", ("example.org", "lab.example.org")),
        ("\tsearch\texample.org.\tlab", ("example.org", "lab")),
        ("search a.example\nsearch b.example c.example", ("b.example", "c.example")),
        ("domain a.example", ("a.example",)),
        ("domain\ta.example # here\noptions ndots:1\nnameserver 192.0.2.53", ("a.example",)),
        ("domain a.example\nsearch b.example c.example", ("b.example", "c.example")),
        ("search a.example b.example # the office", ("a.example", "b.example")),
        ("#search a.example\n;domain b.example", ()),
        ("search a.example\ndomain b.example ignored.example", ("b.example",)),
        ("search .", ()),
        ("search a.example a.example b.example", ("a.example", "b.example")),
        ("search a..b bad\x7fname é.example " + "x" * 64 + ".org good.example", ("good.example",)),
        ("search " + " ".join(f"d{n}.example" for n in range(9)), tuple(f"d{n}.example" for n in range(6))),
    ],
)
def test_the_last_search_list_counts(text: str, expected: tuple[str, ...]) -> None:
    """The last `search` or `domain` line wins; what cannot be encoded, or exceeds the limits, is left out."""
    assert resolvconf.parse(text).search == expected


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["nameserver", "search", "domain", " ", "\t", "\n", "1.2.3.4", "::1", "a.b", "%"]))
)
def test_any_text_is_read(text: str | list[str]) -> None:
    """No text raises, and the limits hold for each."""
    parsed = resolvconf.parse("".join(text))
    assert len(parsed.servers4) <= 3 and len(parsed.servers6) <= 3 and len(parsed.search) <= 6
    assert len(parsed.zones6) == len(parsed.servers6)
    assert sum(len(name) + 2 for name in parsed.search) <= resolvconf.SEARCH_BYTES_MAX
    assert all(map(resolvconf.is_domain, parsed.search))
