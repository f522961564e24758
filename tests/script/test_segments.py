# SPDX-License-Identifier: Apache-2.0
"""The frames of segments.py, with scapy as the judge: what it builds scapy reads, and what scapy builds it reads.

Adversary: ourselves, who wrote both sides of every conversation."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
import segments
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from segments import GUEST_MAC, OUR_MAC, Ends, Offload, Options
from world import GUEST, PEER

FAMILY = st.sampled_from([4, 6])
NUMBER = st.integers(0, 0xFFFFFFFF)
OPTIONS = st.builds(
    Options,
    mss=st.none() | st.integers(0, 65535),
    wscale=st.none() | st.integers(0, 255),
    sack_ok=st.booleans(),
    sack=st.lists(st.tuples(NUMBER, NUMBER), max_size=3),
)


@given(FAMILY, st.integers(0, 63), NUMBER, NUMBER, st.integers(0, 65535), OPTIONS, st.binary(max_size=50))
def test_scapy_reads_what_the_guest_writes(
    family: int, flags: int, seq: int, ack: int, window: int, options: Options, data: bytes
) -> None:
    """Every field and every option of a segment from the guest."""
    ends = Ends(GUEST[family], 40000, PEER[family], 80)
    frame = Ether(ends.tcp_head(flags, seq, ack, window, options, len(data)) + data)
    assert (frame.src, frame.dst) == (GUEST_MAC.hex(":"), OUR_MAC.hex(":"))
    ip, tcp = frame[IP if family == 4 else IPv6], frame[ScapyTCP]
    if family == 4:
        checked = IP(bytes(ip))
        del checked.chksum
        assert IP(bytes(checked)).chksum == ip.chksum
    assert (ip.src, ip.dst) == tuple(str(ip_address(raw)) for raw in (ends.guest, ends.remote))
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, int(tcp.flags), tcp.window) == (40000, 80, seq, ack, flags, window)
    assert bytes(tcp.payload) == data
    there = dict(tcp.options)
    assert there.get("MSS") == options.mss and there.get("WScale") == options.wscale
    assert ("SAckOK" in there) == options.sack_ok
    assert there.get("SAck", ()) == tuple(number for block in options.sack for number in block)


@pytest.mark.parametrize("family", [4, 6])
@given(st.integers(0, 63), NUMBER, NUMBER, st.integers(0, 65535), st.binary(max_size=101))
def test_the_guest_reads_what_scapy_writes(
    family: int, flags: int, seq: int, ack: int, window: int, data: bytes
) -> None:
    """Checksums and lengths included; a byte that is wrong is noticed."""
    ip = IP if family == 4 else IPv6
    addresses = [str(ip_address(raw)) for raw in (PEER[family], GUEST[family])]
    tcp = ScapyTCP(sport=80, dport=40000, seq=seq, ack=ack, flags=flags, window=window, options=[("MSS", 1460)])
    ethernet = Ether(src=OUR_MAC.hex(":"), dst=GUEST_MAC.hex(":"))
    frame = bytes(ethernet / ip(src=addresses[0], dst=addresses[1]) / tcp / data)
    segment = segments.parse_segment(segments.parse_packet(frame, Offload(), 0))
    assert (segment.flags, segment.seq, segment.ack, segment.window) == (flags, seq, ack, window)
    assert (segment.options.mss, segment.length, frame[segment.payload_offset :]) == (1460, len(data), data)
    broken = bytearray(frame)
    broken[-1] ^= 0x10
    with pytest.raises(AssertionError, match="checksum"):
        segments.parse_segment(segments.parse_packet(bytes(broken), Offload(), 0))
