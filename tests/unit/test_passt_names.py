# SPDX-License-Identifier: Apache-2.0
"""The contract `passt`: what its options say of names, resolvers and search domains. What they refuse is in
test_passt_options."""

from __future__ import annotations

import pytest
from host_samples import ip

from lockgate.plugin import address
from lockgate.plugin.contracts import passt
from lockgate.plugin.spec import NetworkSpec


def parse(*words: str) -> NetworkSpec:
    return passt.parse(["--vhost-user", *words], "passt")


def dns(text: str) -> tuple[bytes, ...]:
    return tuple(map(ip, text.split()))


@pytest.mark.parametrize(
    ("line", "dns4", "dns6"),
    [
        ("-D 10.0.0.53", "10.0.0.53", None),
        ("-D fd00::53", None, "fd00::53"),
        ("-D 10.0.0.54 -D fd00::53 -D 10.0.0.53", "10.0.0.54 10.0.0.53", "fd00::53"),
        ("-D 127.0.0.1 -D ::1", "127.0.0.1", "::1"),
        ("-D 10.0.0.1 -D 10.0.0.2 -D 10.0.0.3 -D 10.0.0.4", "10.0.0.1 10.0.0.2 10.0.0.3", None),
        ("-D none", "", ""),
        ("-D 10.0.0.53 -D none", "", ""),
        ("-D none -D 10.0.0.53", "10.0.0.53", ""),
    ],
)
def test_resolvers_add_up_until_none_takes_them_back(line: str, dns4: str | None, dns6: str | None) -> None:
    """Three of each family, further ones silently left out; None: the host's."""
    got = parse(*line.split())
    assert got.ipv4.dns == (None if dns4 is None else dns(dns4))
    assert got.ipv6.dns == (None if dns6 is None else dns(dns6))


def test_the_redirected_resolver_is_of_one_family() -> None:
    """The last of each option counts; --dns none takes both back, and what follows it counts again."""
    line = "--dns-forward 10.0.0.9 --dns-forward 10.0.0.53 --dns-host fd00::1 --dns-host ::1".split()
    got = parse(*line)
    assert (got.ipv4.dns_forward, got.ipv4.dns_host) == (ip("10.0.0.53"), address.UNSET)
    assert (got.ipv6.dns_forward, got.ipv6.dns_host) == (address.UNSET, ip("::1"))
    got = parse(*line, "-D", "none", "--dns-forward", "fd00::53")
    assert (got.ipv4.dns_forward, got.ipv6.dns_forward, got.ipv6.dns_host) == (
        address.UNSET,
        ip("fd00::53"),
        address.UNSET,
    )


@pytest.mark.parametrize(
    ("words", "domains"),
    [
        (["a.example"], ("a.example",)),
        (["a.example", "b.example"], ("a.example", "b.example")),
        ([" a.example  b.example\tc.example "], ("a.example", "b.example", "c.example")),
        (["a.example b.example", "c.example"], ("a.example", "b.example", "c.example")),
        (["a.example.", "a.example"], ("a.example",)),
        (["none"], ()),
        (["a.example", "none"], ()),
        (["none", "a.example"], ("a.example",)),
    ],
)
def test_search_domains_add_up_until_none_takes_them_back(words: list[str], domains: tuple[str, ...]) -> None:
    """One for each use, or several with blanks between them, as QEMU joins its list."""
    got = parse(*(word for text in words for word in ("-S", text)))
    assert (got.search, got.warnings) == (domains, [])


def test_search_domains_beyond_the_limit_are_warned_of() -> None:
    """Six; the helper starts all the same, as callers count on it."""
    got = parse("--search", " ".join(f"d{number}.example" for number in range(7)), "-S", "late.example")
    assert got.search == tuple(f"d{number}.example" for number in range(6))
    assert len(got.warnings) == 2
    assert "d6.example" in got.warnings[0] and "late.example" in got.warnings[1]


@pytest.mark.parametrize("option", ["--hostname", "--fqdn"])
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("vm", "vm"),
        ("vm.example.org.", "vm.example.org"),
        ("my_vm-1", "my_vm-1"),
        (".".join(["x" * 62] * 4) + ".y", ".".join(["x" * 62] * 4) + ".y"),
    ],
)
def test_names_of_up_to_253_characters_are_taken(option: str, text: str, name: str) -> None:
    """Without the dot that may end an absolute name."""
    got = parse(option, text)
    assert (got.hostname, got.fqdn) == ((name, "") if option == "--hostname" else ("", name))


@pytest.mark.parametrize("option", ["-H", "--hostname", "--fqdn"])
@pytest.mark.parametrize("before", [(), ("vm.example.org",)], ids=["alone", "after a name"])
def test_an_empty_name_is_none(option: str, before: tuple[str, ...]) -> None:
    """As with passt: the guest is given none, and a name before is taken back."""
    got = parse(*(word for text in (*before, "") for word in (option, text)))
    assert (got.hostname, got.fqdn) == ("", "")
