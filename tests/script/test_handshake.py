# SPDX-License-Identifier: Apache-2.0
"""How connections of the guest's begin, and how they are refused. Adversary: nobody."""

from __future__ import annotations

from conversation import Conversation


def test_syn_ack_waits_for_the_peer(conversation: Conversation) -> None:
    """The guest gets its SYN-ACK when the host's connect() has succeeded, and not before."""
    conversation("""
        +0    < S  0:0(0) win 64240 <mss 1460,wscale 7>
        +2.5  > nothing
        +0    flow SYN SYN
        +0    peer accepts
        +0    > S. 0:0(0) ack 1 win 65280 <mss ours,wscale 8>
        +0    flow SYN OPEN
        +0    < .  1:1(0) ack 1
        +0    flow OPEN OPEN
    """)
