# SPDX-License-Identifier: Apache-2.0
"""core/datapath/checksum.c against RFC 1071 as it is written, and against scapy."""

from __future__ import annotations

import struct

from core_pieces import EXAMPLES, iovec_array, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.utils import checksum


def one_complement_sum(data: bytes) -> int:
    """RFC 1071, 1: the bytes as big-endian words of 16 bits, added with end-around carry."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def folded(total: int) -> int:
    """What the C side calls folded, as a number: it is in network order as it lies in memory."""
    return int.from_bytes(int(lib.checksum_fold(total)).to_bytes(2, "little"), "big")


@settings(max_examples=5 * EXAMPLES)
@given(st.binary(max_size=200))
@example(b"\xff" * 64)
@example(b"\xff\xff\x00\x00")
def test_a_sum_is_that_of_rfc_1071(data: bytes) -> None:
    """Any bytes, of even and odd length, add up as the RFC says."""
    assert folded(lib.checksum_add(0, data, len(data))) == one_complement_sum(data)
    assert folded(lib.checksum_add(0, data, len(data))) ^ 0xFFFF == checksum(data)


@settings(max_examples=5 * EXAMPLES)
@given(st.lists(st.binary(max_size=9), max_size=12), st.integers(0, 100))
@example([b"\x01", b"\x02", b"\x03", b"\x04"], 4)
@example([b"", b"\xff\xff\xff", b"", b"\xff"], 4)
def test_odd_pieces_add_up_to_the_sum_of_their_bytes(parts: list[bytes], length: int) -> None:
    """Where a piece ends does not matter, nor does a piece without bytes; what is beyond the length is not counted."""
    whole = b"".join(parts)
    length = min(length, len(whole))
    array, kept = iovec_array(parts)
    assert folded(lib.checksum_add_pieces(0, array, length)) == one_complement_sum(whole[:length])
    assert len(kept) == len(parts)


@settings(max_examples=5 * EXAMPLES)
@given(st.integers(0, 2**64 - 1))
@example(2**64 - 1)
@example(0x1_FFFF_FFFF)
@example(0xFFFF_FFFF_0000_0001)
def test_folding_keeps_the_sum_of_all_words(total: int) -> None:
    """All carries of a 64-bit sum come back in, up to the last."""
    expected = total
    while expected > 0xFFFF:
        expected = (expected & 0xFFFF) + (expected >> 16)
    assert lib.checksum_fold(total) == expected


@settings(max_examples=EXAMPLES)
@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.binary(max_size=60))
def test_the_ipv4_pseudo_header_is_scapys(source: bytes, destination: bytes, payload: bytes) -> None:
    """Pseudo-header and data together give the sum that scapy computes for a TCP segment."""
    total = lib.checksum_pseudo(source, destination, 4, 6, len(payload))
    total = lib.checksum_add(total, payload, len(payload))
    packet = IP(src=".".join(map(str, source)), dst=".".join(map(str, destination))) / TCP()
    assert folded(total) ^ 0xFFFF == in4_chksum(6, packet[IP], payload)


@settings(max_examples=EXAMPLES)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.binary(max_size=60))
def test_the_ipv6_pseudo_header_is_scapys(source: bytes, destination: bytes, payload: bytes) -> None:
    """The same over IPv6 addresses."""
    total = lib.checksum_pseudo(source, destination, 16, 6, len(payload))
    total = lib.checksum_add(total, payload, len(payload))
    header = IPv6(b"\x60\0\0\0\0\0\x06\x40" + source + destination)
    header.payload = TCP()
    assert folded(total) ^ 0xFFFF == in6_chksum(6, header, payload)
