# SPDX-License-Identifier: Apache-2.0
"""IP addresses in 16 bytes (plugin/address.py), against the standard library's ipaddress."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockgate.plugin import address

IPV4 = st.ip_addresses(v=4) | st.integers(0, (1 << 32) - 1).map(ipaddress.IPv4Address)
IPV6 = st.ip_addresses(v=6) | st.integers(0, (1 << 128) - 1).map(ipaddress.IPv6Address)
TEXT = st.text(alphabet="0123456789abcdef:.%/[] \0x", max_size=24) | st.text(max_size=6)


def packed(one: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    return address.IPV4_MAPPED + one.packed if one.version == 4 else one.packed


def standard(text: str) -> bytes | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.scope_id is not None:
        return None
    return packed(found)


@given(IPV4 | IPV6)
@example(ipaddress.ip_address("fe80::1"))
@example(ipaddress.ip_address("febf::1"))
@example(ipaddress.ip_address("fec0::1"))
@example(ipaddress.ip_address("fe00::1"))
def test_an_address_is_what_the_standard_library_says(one: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Text both ways, and each property."""
    ours = packed(one)
    if isinstance(one, ipaddress.IPv6Address) and one.ipv4_mapped:
        one = one.ipv4_mapped  # the same to us
    assert address.parse(str(one)) == ours
    assert ipaddress.ip_address(address.to_text(ours)) == one
    assert address.is_ipv4(ours) == (one.version == 4)
    assert address.is_unspecified(ours) == one.is_unspecified
    assert address.is_loopback(ours) == one.is_loopback
    assert address.is_multicast(ours) == one.is_multicast
    assert address.is_link_local(ours) == one.is_link_local


@given(TEXT)
@example("10.0.0.01")
@example("0x7f.1")
@example("::ffff:1.2.3.4")
@example("1::2%lo")
@example("\ud800")
def test_text_that_is_no_address_is_none(text: str) -> None:
    """Whatever it is, and no exception."""
    assert address.parse(text) == standard(text)


def test_the_families_are_told_apart_by_the_text() -> None:
    assert address.parse_ipv4("::1") is None
    assert address.parse_ipv6("127.0.0.1") is None


@pytest.mark.parametrize("length", range(33))
def test_a_netmask_is_its_number_of_ones(length: int) -> None:
    mask = ipaddress.ip_network(f"0.0.0.0/{length}").netmask
    assert address.netmask_prefix_length(packed(mask)) == length


@given(st.integers(0, (1 << 32) - 1))
def test_a_netmask_has_no_one_behind_a_zero(bits: int) -> None:
    ones = f"{bits:032b}".rstrip("0")
    expected = None if "0" in ones else len(ones)
    assert address.netmask_prefix_length(packed(ipaddress.IPv4Address(bits))) == expected


def test_a_link_local_address_is_made_from_a_mac_as_kernels_do() -> None:
    assert address.to_text(address.link_local_of(bytes.fromhex("62a318c632a2"))) == "fe80::60a3:18ff:fec6:32a2"
