# SPDX-License-Identifier: Apache-2.0
"""The reply of /stats: the worker's counters under the names that gvproxy's network stack has for the same things.

Called by api.py. Pure. Adversary: a worker that a guest has broken, which can write any numbers.
Invariants: sent and received are as the gateway sees it, so that what is sent goes to the guest; a name that stands
here counts what it says. Of what that stack counts and ours does not there is no name; all that ours counts stands
below "Counters", by its own names (core/datapath/counters.h).
"""

from __future__ import annotations

from collections.abc import Mapping

# By the path of names in the reply: the counters that are added up there.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "ARP.OutgoingRepliesSent": ("arp_replies",),
    "BytesReceived": ("bytes_from_guest",),
    "BytesSent": ("bytes_to_guest",),
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.NeighborAdvert": ("ns_replies",),
    "IP.MalformedFragmentsReceived": ("drop_fragment",),
    "IP.MalformedPacketsReceived": ("drop_ip_header",),
    "NICs.Rx.Bytes": ("bytes_from_guest",),
    "NICs.Rx.Packets": ("frames_from_guest",),
    "NICs.Tx.Bytes": ("bytes_to_guest",),
    "NICs.Tx.Packets": ("frames_to_guest",),
    "TCP.ActiveConnectionOpenings": ("tcp_accepted",),  # the stack connects to the guest
    "TCP.FailedConnectionAttempts": ("tcp_refused",),
    "TCP.FastRetransmit": ("tcp_fast_retransmits",),
    "TCP.InvalidSegmentsReceived": ("drop_tcp_header",),
    "TCP.PassiveConnectionOpenings": ("tcp_opened",),  # the guest connects through it
    "TCP.ResetsReceived": ("tcp_resets_from_guest",),
    "TCP.ResetsSent": ("tcp_resets_sent",),
    "TCP.Retransmits": ("tcp_retransmits",),
    "TCP.Timeouts": ("tcp_timeouts",),
    "UDP.MalformedPacketsReceived": ("drop_udp_header",),
    "UDP.PacketSendErrors": ("datagrams_turned_away",),
    "UDP.PacketsReceived": ("datagrams_from_guest",),
    "UDP.PacketsSent": ("datagrams_to_guest",),
}
_DROPPED = "drop_"

Tree = dict[str, "Tree | int"]


def reply(counters: Mapping[str, int]) -> Tree:
    """Sorted, as all maps are there."""
    found: Tree = {"IGMP": {}, "Counters": dict(sorted(counters.items()))}
    found["DroppedPackets"] = sum(count for name, count in counters.items() if name.startswith(_DROPPED))
    for path, names in _NAMES.items():
        *parents, last = path.split(".")
        branch = found
        for name in parents:
            child = branch.setdefault(name, {})
            assert isinstance(child, dict), "a name is either of a number or of more names"
            branch = child
        branch[last] = sum(counters.get(name, 0) for name in names)
    return dict(sorted(found.items()))
