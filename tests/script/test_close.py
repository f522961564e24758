# SPDX-License-Identifier: Apache-2.0
"""How connections end: FIN in each direction by itself, RST in both, and segments of connections that are not there.
Adversary: a guest that guesses numbers, or speaks of connections that it never had."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conversation import Conversation
from fake_core import lib
from world import PEER, World

Talk = Callable[..., Conversation]


# ---- FIN ----


def test_the_guest_closes_first(conversation: Conversation) -> None:
    """Its FIN is a shutdown() at the host, acknowledged; the peer may still send, and closes when it likes."""
    conversation.opened()
    conversation("""
        +0 < P. 1:101(100) ack 1
        +0 > .  1:1(0) ack 101
        +0 < F. 101:101(0) ack 1
        +0 > .  1:1(0) ack 102
        +0 peer sees FIN
        +0 flow OPEN CLOSED
        +0 peer sends 3000
        +0 > data 1:3001 ack 102
        +0 < .  102:102(0) ack 3001
        +0 peer closes
        +0 > F. 3001:3001(0) ack 102
        +0 flow FIN_SENT CLOSED
        +0 < .  102:102(0) ack 3002
        +0 flow gone
        +0 closed done
    """)


def test_the_peer_closes_first(conversation: Conversation) -> None:
    """Its FIN goes to the guest behind its last byte; the guest may still send, and closes when it likes."""
    conversation.opened()
    conversation("""
        +0 peer sends 100   ...
        +0 peer closes
        +0 > P. 1:101(100) ack 1
        +0 > F. 101:101(0) ack 1
        +0 < .  1:1(0) ack 102
        +0 flow CLOSED OPEN
        +0 < P. 1:3001(3000) ack 102
        +0 > .  102:102(0) ack 3001
        +0 peer got 3000
        +0 < F. 3001:3001(0) ack 102
        +0 > .  102:102(0) ack 3002
        +0 peer sees FIN
        +0 flow gone
        +0 closed done
    """)


def test_both_close_at_once(conversation: Conversation) -> None:
    """The FINs cross: each is acknowledged, and the flow is done."""
    conversation.opened()
    conversation("""
        +0 peer closes
        +0 > F. 1:1(0) ack 1
        +0 < F. 1:1(0) ack 1
        +0 > .  2:2(0) ack 2
        +0 flow FIN_SENT CLOSED
        +0 < .  2:2(0) ack 2
        +0 flow gone
        +0 peer sees FIN
    """)


def test_data_and_fin_in_one_segment(conversation: Conversation) -> None:
    """The last bytes and the end, acknowledged together."""
    conversation.opened()
    conversation("""
        +0 < FP. 1:501(500) ack 1
        +0 > .   1:1(0) ack 502
        +0 peer got 500
        +0 peer sees FIN
    """)


def test_request_and_end_with_the_handshakes_ack(conversation: Conversation) -> None:
    """A client that sends and shuts down at once."""
    conversation("""
        +0 < S   0:0(0) <mss 1460>
        +0 peer accepts
        +0 > S.  0:0(0) ack 1
        +0 < FP. 1:501(500) ack 1
        +0 > .   1:1(0) ack 502
        +0 flow OPEN CLOSED
        +0 peer sends 100   ...
        +0 peer closes
        +0 > P.  1:101(100) ack 502
        +0 > F.  101:101(0) ack 502
        +0 < .   502:502(0) ack 102
        +0 flow gone
    """)


def test_a_fin_of_the_guest_that_comes_again_is_acknowledged_again(conversation: Conversation) -> None:
    """Our ACK was lost."""
    conversation.opened()
    conversation("""
        +0  < F. 1:1(0) ack 1
        +0  > .  1:1(0) ack 2
        +.2 < F. 1:1(0) ack 1
        +0  > .  1:1(0) ack 2
        +0  flow OPEN CLOSED
        +0  calls shutdown 1
    """)


def test_data_after_the_guests_fin_is_challenged(conversation: Conversation) -> None:
    """There is nothing behind an end; and the peer never sees it."""
    conversation.opened()
    conversation("""
        +0 < F. 1:1(0) ack 1
        +0 > .  1:1(0) ack 2
        +0 < P. 2:102(100) ack 1
        +0 > .  1:1(0) ack 2
        +0 peer got 0
    """)


def test_a_fin_behind_a_closed_window_comes_when_it_opens(conversation: Conversation) -> None:
    """Without room for a byte nobody looks whether there is one; but the window is asked, so that the FIN will come."""
    conversation.opened("mss 1000", window=1000)
    conversation("""
        +0  peer sends 999
        +0  > P. 1:1000(999) ack 1
        +0  < .  1:1(0) ack 1000 win 0
        +0  peer closes
        +0  woken 2 idle 0
        +.2 > .  999:999(0) ack 1
        +0  < .  1:1(0) ack 1000 win 1000
        +0  > F. 1000:1000(0) ack 1
        +0  < .  1:1(0) ack 1001 win 1000
        +0  flow CLOSED OPEN
        +9  > nothing
    """)


def test_a_connection_that_is_opened_and_closed_without_a_byte(conversation: Conversation) -> None:
    """As port scanners and health checks do."""
    conversation.opened()
    conversation("""
        +0 < F. 1:1(0) ack 1
        +0 > .  1:1(0) ack 2
        +0 peer closes
        +0 > F. 1:1(0) ack 2
        +0 < .  2:2(0) ack 2
        +0 flow gone
    """)


def test_the_same_ports_again_are_a_new_connection(conversation: Conversation) -> None:
    """A flow that is done is forgotten: its ports may be used at once, with a number that has moved on (RFC 6528)."""
    conversation.opened()
    conversation("""
        +0 < F. 1:1(0) ack 1
        +0 > .  1:1(0) ack 2
        +0 peer closes
        +0 > F. 1:1(0) ack 2
        +0 < .  2:2(0) ack 2
        +0 flow gone
        +1 > nothing
    """)
    first = conversation.our_isn
    conversation.guest_isn = 777_000
    conversation.our_isn = None
    conversation("""
        +0 < S  0:0(0) <mss 1460>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1
        +0 < .  1:1(0) ack 1
    """)
    assert first is not None and conversation.our_isn is not None
    assert (conversation.our_isn - first) % (1 << 32) == 250_000  # one each 4 microseconds


# ---- RST ----


def test_hup_alone_is_no_error(conversation: Conversation) -> None:
    """Both sides are shut, and the guest has not acknowledged our FIN yet: that is the ordinary end, not a reset."""
    conversation.opened()
    conversation("""
        +0  < F. 1:1(0) ack 1
        +0  > .  1:1(0) ack 2
        +0  peer closes
        +0  > F. 1:1(0) ack 2
        +.2 > F. 1:1(0) ack 2
        +0  < .  2:2(0) ack 2
        +0  closed done
    """)


def test_the_guests_reset_is_a_reset_to_the_peer(conversation: Conversation) -> None:
    """Not a FIN: the peer must know that the rest will not come."""
    conversation.opened()
    conversation("""
        +0 < P. 1:101(100) ack 1
        +0 > .  1:1(0) ack 101
        +0 < R. 101:101(0) ack 1
        +0 peer sees RST
        +0 flow gone
        +0 closed guest_reset
        +9 > nothing
    """)


def test_the_peers_reset_is_a_reset_to_the_guest(conversation: Conversation) -> None:
    """With the next number that the guest expects."""
    conversation.opened()
    conversation("""
        +0 peer sends 100
        +0 > P. 1:101(100) ack 1
        +0 < .  1:1(0) ack 101
        +0 peer resets
        +0 > R. 101:101(0) ack 1
        +0 flow gone
        +0 closed peer_reset
        +0 woken 2 idle 0
    """)


def test_what_came_before_the_peers_reset_still_comes(conversation: Conversation) -> None:
    """Data and RST arrive together: the guest gets the data first."""
    conversation.opened()
    conversation("""
        +0 peer sends 5000   ...
        +0 peer resets
        +0 > data 1:5001 ack 1
        +0 > R. 5001:5001(0) ack 1
        +0 flow gone
    """)


def test_a_reset_behind_the_peers_fin_reaches_the_guest(conversation: Conversation) -> None:
    """The peer has closed altogether, and what the guest sends meets nobody."""
    conversation.opened()
    conversation("""
        +0 peer closes
        +0 > F. 1:1(0) ack 1
        +0 < .  1:1(0) ack 2
        +0 < P. 1:101(100) ack 2
        +0 > .  2:2(0) ack 101
        +0 peer resets
        +0 > R. 2:2(0) ack 101
        +0 flow gone
    """)


def test_a_send_that_meets_a_reset_ends_the_flow(conversation: Conversation) -> None:
    """The guest writes to a connection that is gone."""
    conversation.opened()
    conversation("""
        +0 peer resets       ...
        +0 < P. 1:101(100) ack 1
        +0 > R. 1:1(0) ack 1
        +0 flow gone
        +0 closed peer_reset
    """)


def test_what_came_before_a_reset_still_comes_while_the_guest_is_sending(conversation: Conversation) -> None:
    """A server that refuses an upload: its answer, then RST, and the guest is still sending. The send meets the reset
    first, and takes the error with it; the answer reaches the guest all the same, and then the RST, not a FIN."""
    conversation.opened()
    conversation("""
        +0 peer sends 5000   ...
        +0 peer resets       ...
        +0 < P. 1:1001(1000) ack 1
        +0 > data 1:5001 ack 1
        +0 > R. 5001:5001(0) ack 1
        +0 flow gone
        +0 closed peer_reset
        +0 peer got 0
    """)


def test_a_stalled_flow_whose_send_meets_a_reset_delivers_what_it_has(conversation: Conversation) -> None:
    """The guest's window is closed, and it sends: what the peer sent waits for the window as before."""
    conversation.opened("mss 1000,sackOK", window=1000)
    conversation("""
        +0 peer sends 5000
        +0 > P. 1:1001(1000) ack 1
        +0 < .  1:1(0) ack 1001 win 0
        +0 < P. 1001:1501(500) ack 1001 win 0
        +0 > .  1001:1001(0) ack 1 <sack 1001:1501>
        +0 peer resets
        +0 < P. 1:1001(1000) ack 1001 win 0
        +0 > nothing
        +0 < P. 1501:2001(500) ack 1001 win 0
        +0 > .  1001:1001(0) ack 1 <>        # nothing is kept, and nothing more is acknowledged
        +0 < F. 2001:2001(0) ack 1001 win 0
        +0 > .  1001:1001(0) ack 1
        +0 flow OPEN OPEN
        +0 forget
        +0 < .  2002:2002(0) ack 1001 win 65535
        +0 > data 1001:5001 ack 1
        +0 > R. 5001:5001(0) ack 1
        +0 woken 0
        +0 calls sendmsg 0
        +0 flow gone
    """)


def test_a_reset_inside_the_window_is_challenged(conversation: Conversation) -> None:
    """RFC 5961, 3.2: only the exact number counts; one that is near gets an ACK, one that is not gets nothing."""
    conversation.opened()
    conversation("""
        +0 < R 2:2(0)
        +0 > . 1:1(0) ack 1
        +0 < R 60000:60000(0)
        +0 > . 1:1(0) ack 1
        +0 < R 100000:100000(0)
        +0 > nothing
        +0 < R 0:0(0)
        +0 > nothing
        +0 flow OPEN OPEN
        +0 < R 1:1(0)
        +0 flow gone
    """)


def test_a_reset_behind_data_of_the_same_batch_is_exact(conversation: Conversation) -> None:
    """A guest that sends and aborts: the RST's number is behind the data that the kernel has not even taken yet. The
    peer gets them first, as on a wire: the answer of a server, say, that closes with a request half read."""
    conversation.opened()
    conversation("""
        +0 < P. 1:1001(1000) ack 1 ...
        +0 < R. 1001:1001(0) ack 1
        +0 flow gone
        +0 peer got 1000
        +0 peer sees RST
    """)


@pytest.mark.world(flow_limit=64)
def test_challenges_are_limited(conversation: Conversation) -> None:
    """RFC 5961, 7: a thousand a second for all flows together."""
    conversation.opened()
    world = conversation.world
    for _ in range(1500):
        conversation.world.send(conversation.ends.tcp_head(4, conversation.guest_isn + 5, 0, 0))
        world.settle()
    assert world.counter("tcp_challenge_acks") == 1000
    world.inbox.clear()
    conversation("""
        +1 < R 5:5(0)
        +0 > . 1:1(0) ack 1
    """)


def test_an_ack_of_what_was_never_sent_is_challenged(conversation: Conversation) -> None:
    """RFC 9293, 3.10.7.4, and its data goes no further."""
    conversation.opened()
    conversation("""
        +0 < P. 1:101(100) ack 5000
        +0 > .  1:1(0) ack 1
        +0 peer got 0
    """)


def test_an_old_ack_is_no_news(conversation: Conversation) -> None:
    """Its data is taken all the same."""
    conversation.opened()
    conversation("""
        +0 peer sends 1000
        +0 > P. 1:1001(1000) ack 1
        +0 < .  1:1(0) ack 1001
        +0 < P. 1:101(100) ack 501
        +0 > .  1001:1001(0) ack 101
        +0 kernel holds 0
    """)


@pytest.mark.parametrize("flags", ["", "P", "F", "U"])
def test_segments_without_ack_are_dropped(conversation: Conversation, flags: str) -> None:
    """RFC 9293, 3.10.7.4: once a connection is open every segment has ACK."""
    conversation.opened()
    head = conversation.ends.tcp_head(
        sum({"P": 8, "F": 1, "U": 32}[flag] for flag in flags), conversation.guest_isn + 1, 0, 100, payload=10
    )
    conversation.world.send(head, 2 * conversation.fd + 1, 0, 10)
    conversation.world.settle()
    conversation("+0 > nothing \n +0 peer got 0")


# ---- segments of nobody ----


def test_segments_of_unknown_connections_are_reset(conversation: Conversation) -> None:
    """RFC 9293, 3.10.7.1: with the number that the segment acknowledges, or acknowledging the segment."""
    conversation.our_isn = 0
    conversation("""
        +0 < .   5:5(0) ack 700
        +0 > R   700:700(0)
        +0 < P.  5:105(100) ack 700
        +0 > R   700:700(0)
        +0 < F.  5:5(0) ack 700
        +0 > R   700:700(0)
        +0 < S.  5:5(0) ack 700
        +0 > R   700:700(0)
        +0 < F   5:5(0)
        +0 > R.  0:0(0) ack 6
        +0 < P   5:105(100)
        +0 > R.  0:0(0) ack 105
        +0 < FP  5:105(100)
        +0 > R.  0:0(0) ack 106
    """)
    assert lib.fake_last_socket() == -1


@pytest.mark.parametrize("flags", ["R", "R."])
def test_a_reset_of_nobodys_is_not_answered(conversation: Conversation, flags: str) -> None:
    """Two ends that reset each other would never stop."""
    conversation(f"""
        +0 < {flags} 5:5(0) ack 700
        +0 > nothing
    """)


@pytest.mark.parametrize("flags", ["SR", "SR.", "SFR"])
def test_contradictory_flags_open_nothing(conversation: Conversation, flags: str) -> None:
    """SYN with RST is no request for a connection."""
    conversation(f"""
        +0 < {flags} 0:0(0) ack 0
        +0 > nothing
        +0 flow gone
    """)
    assert lib.fake_last_socket() == -1


def test_a_syn_with_fin_is_a_syn(conversation: Conversation) -> None:
    """What RFC 9293 says of it, or a RST: in any case one flow, and its end."""
    conversation("+0 < SF 0:0(0) <mss 1460>")
    assert len(conversation.world.flows()) <= 1
    conversation.world.inbox.clear()


def test_an_unknown_segment_on_a_full_link_is_counted(conversation: Conversation) -> None:
    """The guest will ask again."""
    conversation("""
        +0 link full
        +0 < . 5:5(0) ack 700
        +0 > nothing
    """)
    assert conversation.world.counter("drop_no_room") == 1


def test_groups_are_never_answered(talk: Talk, world: World, family: int) -> None:
    """RFC 1122, 4.2.3.10: a segment to a multicast or broadcast address is not for TCP, and gets no RST."""
    import segments

    group = segments.address("224.0.0.251" if family == 4 else "ff02::fb")
    talk(remote=group)("""
        +0 < . 5:5(0) ack 700
        +0 > nothing
    """)


# ---- the end of all ----


@pytest.mark.parametrize("state", ["connecting", "syn_ack", "open", "data", "held", "fin", "reset_waits"])
def test_the_workers_end_closes_every_flow(talk: Talk, world: World, state: str) -> None:
    """engine_free() leaves no socket open, whatever the flow was at; a reset that waits for room included."""
    conversation = talk()
    conversation("+0 < S 0:0(0) <mss 1000,sackOK>")
    if state != "connecting":
        conversation("""
            +0 peer accepts
            +0 > S. 0:0(0) ack 1
        """)
    if state not in ("connecting", "syn_ack"):
        conversation("+0 < . 1:1(0) ack 1")
    conversation(
        {
            "data": "+0 peer sends 1000 \n +0 > P. 1:1001(1000) ack 1",
            "held": "+0 < P. 2001:3001(1000) ack 1 \n +0 > . 1:1(0) ack 1",
            "fin": "+0 < F. 1:1(0) ack 1 \n +0 > . 1:1(0) ack 2",
            "reset_waits": "+0 link full \n +0 peer resets",
        }.get(state, "")
    )
    lib.script_close()
    assert lib.fake_sockets_open() == 0
    world.closed = True


def test_flows_are_told_apart_by_all_they_have(talk: Talk, world: World, family: int) -> None:
    """Port of the guest, port and address of the peer: each makes another connection, with data of its own."""
    import segments

    other = segments.address("198.51.100.8" if family == 4 else "2001:db8:1::8")
    flows = [
        talk(guest_port=5000, remote_port=80),
        talk(guest_port=5001, remote_port=80),
        talk(guest_port=5000, remote_port=81),
        talk(guest_port=5000, remote_port=80, remote=other),
    ]
    for flow in flows:
        flow.opened()
    assert len(world.flows()) == 4 and PEER[family] != other
    for flow in flows:
        flow("""
            +0 peer sends 100
            +0 > P. 1:101(100) ack 1
            +0 < P. 1:201(200) ack 101
            +0 > .  101:101(0) ack 201
            +0 peer got 200
        """)
