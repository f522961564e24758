# SPDX-License-Identifier: Apache-2.0
"""First inputs for the harnesses, in the small languages that these read: what a well-behaved guest does, from which
libFuzzer goes astray; and inputs that once found a fault.

Used by run.py. Adversary: nobody. Invariant: nothing here has to fit exactly; an input that a harness reads in another
way than was meant is a worse seed, not an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6ND_RS, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

RECEIVEQ, TRANSMITQ = 0, 1
NEXT, WRITE, INDIRECT = 1, 2, 4


# ---- fuzz_vring.c ----


def vring_step(kind: int, queue: int = RECEIVEQ, *rest: int) -> bytes:
    """One step: ten kinds, the queue in the upper half of the byte's range."""
    first = next(value for value in range(128 * queue, 128 * queue + 64) if value % 10 == kind)
    return bytes([first, *rest])


def describe(queue: int, place: int, where: int, length: int, flags: int, unit: int = 0, crumbs: bool = False) -> bytes:
    return vring_step(8, queue, place, where, length, unit | flags << 2 | crumbs << 7)


def vring_seeds() -> dict[str, bytes]:
    take, reserve, commit, flush = vring_step(0, 0, 0), vring_step(1), vring_step(3, 0, 0, 0), vring_step(5)
    everything = bytes([0b0101_1111, 0, 0, 0, 0])  # all features, capture; both rings of 128; no memory of its own
    frames = b"".join(
        describe(TRANSMITQ, 2 * at, 4 * at, 12, NEXT)
        + describe(TRANSMITQ, 2 * at + 1, 4 * at + 1, 60, 0)
        + vring_step(7, TRANSMITQ, 2 * at)
        for at in range(4)
    )
    table = describe(RECEIVEQ, 96, 0, 12, NEXT) + describe(RECEIVEQ, 97, 4, 50, 0)
    indirect = table + describe(TRANSMITQ, 0, 3, 2, INDIRECT, unit=1) + vring_step(7, TRANSMITQ, 0)
    crumbs = describe(TRANSMITQ, 0, 3, 5, INDIRECT, unit=3, crumbs=True) + vring_step(7, TRANSMITQ, 0)
    small = describe(TRANSMITQ, 1, 3, 25, INDIRECT, unit=1, crumbs=True) + vring_step(7, TRANSMITQ, 1) * 4
    buffers = b"".join(
        describe(RECEIVEQ, at, 4 * at + 2, 25, WRITE, unit=2) + vring_step(7, RECEIVEQ, at) for at in range(8)
    )
    send = reserve + bytes([40, 0, 4]) + reserve + bytes([40, 200, 0]) + commit + commit + flush
    crumbled = bytes([0b1101_1111, 0, 0])
    return {
        "frames": everything + frames + take + flush,
        "indirect": everything + indirect + take + flush,
        "merged": everything + buffers + send + vring_step(6),
        "one buffer each": bytes([0b0101_1110, 0, 0, 0, 0]) + buffers + send,
        "rolled back": everything + buffers + reserve + bytes([40, 0, 4]) + vring_step(4) + send,
        "too many crumbs": crumbled + bytes([2, 0, 0]) + crumbs + take + flush,
        "crumbs": crumbled + bytes([2, 0, 0]) + small + take + take + flush,
        "crumbs that join": crumbled + bytes([0, 0, 0]) + small + take + crumbs + take,
        "crumbs to the guest": crumbled
        + bytes([3, 0, 0])
        + describe(0, 0, 3, 5, INDIRECT, 3, True)
        + vring_step(7)
        + send,
        "many frames": everything + describe(TRANSMITQ, 0, 1, 60, 0) + vring_step(7, TRANSMITQ, 191) * 2 + take * 3,
        "restarted": everything + frames + vring_step(9, TRANSMITQ)[:0] + bytes([249, 1, 0]) + take,
    }


# ---- fuzz_frame.c ----

GUEST_MAC, OUR_MAC = "02:00:00:00:00:01", "9a:55:9a:55:9a:55"
GUEST, GATEWAY, PEER = "192.0.2.15", "192.0.2.1", "198.51.100.7"
GUEST6, GATEWAY6, PEER6, LINK_LOCAL = "2001:db8::f", "2001:db8::1", "2001:db8:100::7", "fe80::2"


def frame(packet: Packet, padding: int = 0) -> bytes:
    raw = bytes(Ether(src=GUEST_MAC, dst=OUR_MAC) / packet)
    return bytes([0]) + struct.pack("<H", len(raw)) + raw + bytes([padding])


def guest_frames() -> list[Packet]:
    options = [("MSS", 1460), ("SAckOK", b""), ("NOP", None), ("WScale", 7)]
    return [
        ARP(psrc=GUEST, pdst=GATEWAY),
        IP(src=GUEST, dst=GATEWAY) / ICMP() / Raw(bytes(40)),
        IPv6(src=GUEST6, dst=GATEWAY6) / ICMPv6EchoRequest(data=bytes(40)),
        IPv6(src=LINK_LOCAL, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=GATEWAY6),
        IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
        IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / BOOTP() / DHCP(options=["end"]),
        IP(src=GUEST, dst=PEER, flags="MF") / UDP(),
        IPv6(src=GUEST6, dst=PEER6) / IPv6ExtHdrFragment(m=1) / Raw(bytes(8)),
        IPv6(src=GUEST6, dst=PEER6) / IPv6ExtHdrDestOpt() / TCP(sport=9, dport=80, flags="S", options=options),
        IP(src=GUEST, dst=PEER) / TCP(sport=9, dport=80, flags="A", seq=5),
        IP(src=GUEST, dst=PEER) / TCP(sport=7, dport=80, flags="S", seq=1, options=options),
        IP(src=GUEST, dst="127.0.0.1") / TCP(sport=7, dport=80, flags="S"),
    ]


def piece(kind: int, start: int, rest: int, more: bool, content: bytes = b"") -> bytes:
    """kind: 1 IPv6, 4 and 8 which packet, 16 and 32 the protocol, 64 and 128 to whom; start in units of 8 bytes."""
    return struct.pack("<BBHHB", 2, kind | more << 1, start, rest, len(content)) + content


def piece_seeds() -> dict[str, list[bytes]]:
    """Packets in pieces that become whole, and such as do not."""
    udp, echo4, echo6 = struct.pack("!HHHH", 9, 80, 2000, 0), bytes([8, *bytes(7)]), bytes([128, *bytes(7)])
    syn, options = bytes(TCP(sport=9, dport=80, flags="S")), bytes([17, 0, 1, 4, 0, 0, 0, 0])
    whole: dict[str, list[bytes]] = {}
    for name, kind, head in (
        ("udp", 64, udp),
        ("udp6", 65, udp),
        ("echo", 16, echo4),
        ("echo6", 17, echo6),
        ("ping", 80, echo4),
        ("ping6", 81, echo6),
        ("syn", 96, syn + bytes(4)),
        ("options", 48 | 65, options + udp),
    ):
        units = (len(head) + 1000) // 8
        rest = 8 * units - len(head)
        whole[name] = [piece(kind, 0, rest, True, head), piece(kind, units, 1000, False)]
    first, last = whole["udp"]
    return {
        **whole,
        "last first": [last, first],
        "two": [piece(68, 0, 992, True, udp), first, piece(68, 125, 7, False), last],
        "overlap": [first, piece(64, 1, 8, True), last],
        "twice": [first, first, last],
        "no end": [first, bytes([5]), last],
        "largest": [piece(64, at, 1496, True, udp) for at in range(0, 8183, 187)] + [piece(64, 8184, 35, False)],
        "too large": [piece(64, 8189, 40, False), first],
        "tiny": [piece(96, 0, 0, True, syn[:16]), piece(96, 2, 4, False)],
        "many": [piece(64, 1 + at, 8, True) for at in range(0, 60, 2)],
    }


def frame_seeds() -> dict[str, bytes]:
    setups = {
        "plain": bytes([0b11011, 0b10011]),
        "offloads": bytes([0b11011, 0b11110011]),
        "pieces": bytes([19, 0b100]),
    }
    packets = [frame(packet) for packet in guest_frames()]
    accept, refuse, send, fin = (bytes([3, what, *rest]) for what, rest in ((0, ()), (1, ()), (2, (50, 0)), (3, ())))
    syn, timer = packets[10], bytes([5])
    several = frame(IP(src=GUEST, dst=PEER) / UDP(sport=7, dport=53) / Raw(bytes(300)), padding=200)
    joined, room = bytes([3, 7, 200, 2, 10]), bytes([6, 40])
    seeds = {f"{name} {at}": setup + one for name, setup in setups.items() for at, one in enumerate(packets)}
    for name, setup in setups.items():
        seeds[f"{name}, accepted"] = setup + syn + accept + send + fin + timer * 3
        seeds[f"{name}, refused"] = setup + syn + refuse + syn + timer
        seeds[f"{name}, all"] = setup + b"".join(packets)
        seeds[f"{name}, several datagrams in a frame, and as many back"] = setup + several + joined + room
        for kind, pieces in piece_seeds().items():
            seeds[f"{name}, {kind} in pieces"] = setup + b"".join(pieces)
    return seeds


# ---- fuzz_tcp.c ----


def tcp_step(kind: int, connection: int = 0, *rest: int) -> bytes:
    return bytes([kind | connection << 4, *rest])


def tcp_seeds() -> dict[str, bytes]:
    def opened(connection: int) -> bytes:
        syn = tcp_step(0, connection, 0b01010111, 255, 255)
        return syn + tcp_step(4, connection, 0) + tcp_step(1, connection, 0)

    ack, sends = tcp_step(1, 0, 0), tcp_step(1, 0, 17, 200, 1)
    peer_sends, peer_takes, peer_fin = (
        tcp_step(4, 0, what, *rest) for what, rest in ((2, (0, 2)), (3, (0, 2)), (4, ()))
    )
    ahead = tcp_step(1, 0, 19, 1 | 4 << 3, 100, 0)  # a segment behind a gap
    guest_fin, timer, lose = tcp_step(1, 0, 33, 2), tcp_step(6), bytes([64 | 7, 5])
    seeds = {}
    for name, setup in {
        "ipv4": bytes([0b111110, 0b111001]),
        "ipv6": bytes([0b111111, 0b111001]),
        "reread": bytes([0b110110, 0b001001]),
        "small": bytes([0b0111000, 0b000110]),
        "no room": bytes([0b1111110, 0b111001]),
    }.items():
        seeds[f"{name}, upload"] = setup + opened(0) + sends * 8 + peer_takes * 2 + guest_fin
        seeds[f"{name}, download"] = setup + opened(0) + peer_sends * 4 + ack * 4 + peer_fin + ack
        seeds[f"{name}, gap"] = setup + opened(0) + ahead * 2 + sends * 3
        seeds[f"{name}, lost"] = setup + opened(0) + lose + peer_sends * 4 + ack * 4 + timer * 3
        seeds[f"{name}, two"] = setup + opened(0) + opened(1) + sends * 2 + peer_sends + timer
    seeds["a window that OUT does not open"] = FOUND_OUT
    return seeds


# ---- what was found ----

# The kernel's send queue is more than two thirds full after a send that was not short, in the step that OUT woke: no
# EPOLL_CTL_MOD followed, the kernel did not learn that somebody waits, and OUT never came again.
FOUND_OUT = bytes.fromhex(
    "7e01259c0007b47a6c310436a801d68cf807c891919131044d00360445459100919100595959ca1294813531040036044529310000f0015b27e12e06a2e22e41a2e000000000000000000000000000000000000a270000077e116c31040034044545310000ff000000005214c5535314c5535114c553b2330000b13601000203000101000000000000fc731616000000000000160000000000"
)

SEEDS: dict[str, Callable[[], dict[str, bytes]]] = {"vring": vring_seeds, "frame": frame_seeds, "tcp": tcp_seeds}
