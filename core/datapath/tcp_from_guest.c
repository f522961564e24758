/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_from_guest.c: what a segment from the guest, or an event of the socket, means for a flow (RFC 9293, 3.10.7.4).
 * Only facts are noted here; what follows from them is done once a batch, by tcp_settle().
 *
 * Adversary: the guest. Sequence and acknowledgement numbers are checked against what we sent and offered.
 */
#include <netinet/in.h>

#include "gateway.h"
#include "sys.h"
#include "tcp.h"

static void challenge(struct engine *engine, struct flow *flow)
{
    if (engine->now_ms - engine->challenge_ms >= 1000) {
        engine->challenge_ms = engine->now_ms;
        engine->challenges = TCP_CHALLENGES_PER_SECOND;
    }
    if (!engine->challenges)
        return;
    engine->challenges--;
    count(engine, C_tcp_challenge_acks);
    flow->tcp.ack_due = true;
}

/* RFC 5961, 3.2: only the exact number ends a connection, another one inside the window is asked about. */
static void take_reset(struct engine *engine, struct flow *flow, uint32_t seq)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->to_host == HALF_SYN || seq == tcp->rcv_nxt || seq == tcp->rcv_taken) {
        tcp_send_to_peer(engine, flow); /* what came just before it: the peer's kernel would keep that for its reader */
        if (!flow->done)
            tcp_reset_by_guest(engine, flow);
    } else if (seq_after(seq, tcp->rcv_nxt) && !seq_after(seq, tcp->rcv_edge)) {
        challenge(engine, flow);
    }
}

static void take_syn(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->to_host == HALF_SYN)
        return; /* repeated while connect() is under way */
    if (tcp->to_guest == HALF_SYN && segment->seq + 1 == tcp->rcv_nxt)
        tcp->syn_ack_due = true; /* ours was lost: the same again */
    else
        challenge(engine, flow);
}

static void take_acknowledged(struct engine *engine, struct flow *flow, uint32_t ack)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t acked = ack - tcp->snd_una;

    tcp->snd_una = ack;
    if (tcp->to_guest >= HALF_FIN_SENT && seq_after(ack, tcp->fin_seq)) {
        acked--; /* the FIN counts in the sequence space, but is no byte of the socket's */
        if (tcp->to_guest == HALF_FIN_SENT)
            tcp_move_to_guest(flow, HALF_CLOSED);
    }
    tcp->acked += acked;
    flow->active_ms = engine->now_ms;
    flow->bytes_to_guest += acked;
    tcp_recovery_acked(flow);
    tcp_timer_acked(engine, flow);
}

static void take_window(struct flow *flow, const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;

    /* RFC 9293, 3.10.7.4: only a segment that is not older than the last one that moved the window. */
    if (seq_before(segment->seq, tcp->snd_wl1) ||
        (segment->seq == tcp->snd_wl1 && seq_before(segment->ack, tcp->snd_wl2)))
        return;
    tcp->snd_window = (uint32_t)segment->window << tcp->guest_scale;
    if (tcp->snd_window > tcp->window_max)
        tcp->window_max = tcp->snd_window;
    /* What comes ahead of a gap is not later than what will fill it: that is sent again, and with a window of its own. */
    tcp->snd_wl1 = seq_after(segment->seq, tcp->rcv_nxt) ? tcp->rcv_nxt : segment->seq;
    tcp->snd_wl2 = segment->ack;
}

/* With SACK, an ACK that is no news tells of a loss only if it reports bytes behind the gap (RFC 6675, 2). One without is
 * the answer to a segment that came twice, and names that one at most (RFC 2883). */
static bool tells_of_gap(const struct tcp *tcp, const struct tcp_segment *segment)
{
    for (unsigned i = 0; i < segment->sack_count; i++)
        if (seq_after(segment->sack[i].end, segment->ack))
            return true;
    return !tcp->sack_allowed;
}

/* The ACK of our SYN. False: it is none. */
static bool take_handshake(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    if (segment->ack != flow->tcp.iss + 1) { /* of a connection that we do not know (RFC 9293, 3.10.7.4, fifth) */
        if (!tcp_send_control(engine, flow, segment->ack, TCP_RST))
            count(engine, C_tcp_resets_sent);
        return false;
    }
    flow->tcp.snd_una = segment->ack;
    tcp_move_to_guest(flow, HALF_OPEN);
    tcp_timer_acked(engine, flow);
    take_window(flow, segment);
    return true;
}

/* It was asked, and it lives: probes of its closed window may go on for ever, ever more seldom (RFC 9293, 3.8.6.1). */
static void note_life(const struct engine *engine, struct flow *flow, uint32_t window_before)
{
    struct tcp *tcp = &flow->tcp;

    if (!(tcp->retries || tcp->unanswered) || (tcp->snd_una != tcp->snd_nxt && window_before))
        return;
    tcp->unanswered = 0;
    if (tcp->snd_window)
        tcp->retries = 0;
    flow->active_ms = engine->now_ms;
}

/* False: the acknowledgement makes no sense, and the segment goes no further. */
static bool take_ack(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t window_before = tcp->snd_window;

    if (tcp->to_guest == HALF_SYN)
        return take_handshake(engine, flow, segment);
    if (seq_after(segment->ack, tcp->snd_nxt)) {
        challenge(engine, flow);
        return false;
    }
    if (seq_before(segment->ack, tcp->snd_una))
        return true; /* old news; the data beside it may still be new */
    take_window(flow, segment);
    note_life(engine, flow, window_before);
    if (segment->ack != tcp->snd_una)
        take_acknowledged(engine, flow, segment->ack);
    else if (!segment->payload_length && !(segment->flags & TCP_FIN) && tcp->snd_una != tcp->snd_nxt &&
             tcp->snd_window == window_before && tells_of_gap(tcp, segment))
        tcp_recovery_duplicate(engine, flow); /* RFC 5681, 2: no data, something outstanding, the same window */
    if (segment->sack_count && tcp->sack_allowed)
        tcp_recovery_sacked(engine, flow, segment);
    return true;
}

static void take_fin(struct engine *engine, struct flow *flow, uint32_t seq)
{
    struct tcp *tcp = &flow->tcp;

    if (seq_before(seq, tcp->rcv_nxt) || seq_after(seq, tcp->rcv_edge))
        return; /* not where the guest may be; if it is beyond what we offered, it will come again */
    if (tcp->fin_seen && tcp->guest_fin != seq)
        challenge(engine, flow); /* two ends: the first counts */
    else
        tcp->guest_fin = seq;
    tcp->fin_seen = true;
    tcp->ack_due = true;
}

static void take_data(struct engine *engine, struct flow *flow, const struct guest_frame *frame,
                      const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t seq = segment->seq, length = segment->payload_length;
    uint32_t edge = tcp->fin_seen ? tcp->guest_fin : tcp->rcv_edge;
    uint32_t known = seq_before(seq, tcp->rcv_taken) ? tcp->rcv_taken - seq : 0;

    if (tcp->to_host != HALF_OPEN) {
        challenge(engine, flow); /* after its FIN the guest has nothing more to say: a repetition */
        return;
    }
    if (segment->flags & TCP_FIN)
        take_fin(engine, flow, seq + length);
    if (known >= length) { /* half of the sequence space away also looks like this: no arithmetic beyond here wraps */
        engine->counters[C_tcp_duplicate] += !!length;
        tcp->ack_due |= !!length;
        return;
    }
    seq += known;
    length -= known;
    if (!seq_before(seq, edge) || length > edge - seq) {
        tcp->ack_due = true; /* more than we offered, or than the guest's own FIN left: not ours to take */
        length = seq_before(seq, edge) ? edge - seq : 0;
    }
    if (length)
        tcp_take_payload(engine, flow, frame, seq, segment->payload_offset + known, length);
}

/* A segment without data still has to lie in the window; one byte before it is a keep-alive or a window probe, and
 * wants an answer. */
static bool in_window(const struct tcp *tcp, uint32_t seq)
{
    return !seq_before(seq, tcp->rcv_nxt) && !seq_after(seq, tcp->rcv_edge);
}

/* A keep-alive (RFC 9293, 3.8.4) of the guest's is answered by us; that the peer lives, only its kernel can say. */
static void note_keepalive(struct flow *flow, const struct tcp_segment *segment)
{
    static const int one = 1;

    if (flow->tcp.keepalive || segment->seq + 1 != flow->tcp.rcv_nxt || segment->payload_length > 1)
        return;
    flow->tcp.keepalive = true;
    sys_setsockopt(flow->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
}

static void take_segment(struct engine *engine, struct flow *flow, const struct guest_frame *frame,
                         const struct tcp_segment *segment)
{
    if (flow->tcp.inbound && flow->tcp.to_host == HALF_SYN) {
        tcp_take_syn_ack(engine, flow, segment);
        return;
    }
    if (segment->flags & TCP_RST) {
        take_reset(engine, flow, segment->seq);
        return;
    }
    if (segment->flags & TCP_SYN) {
        take_syn(engine, flow, segment);
        return;
    }
    if (!(segment->flags & TCP_ACK) || flow->tcp.to_host == HALF_SYN)
        return;
    if (!take_ack(engine, flow, segment))
        return;
    note_keepalive(flow, segment);
    if (segment->payload_length || segment->flags & TCP_FIN)
        take_data(engine, flow, frame, segment);
    else if (!in_window(&flow->tcp, segment->seq))
        challenge(engine, flow);
}

struct flow_key tcp_key(const struct packet *packet, const struct tcp_segment *segment)
{
    return (struct flow_key){
        .guest = packet->source,
        .remote = packet->destination,
        .guest_port = segment->source_port,
        .remote_port = segment->destination_port,
        .protocol = IPPROTO_TCP,
    };
}

/* Not the start and the end at once. */
bool tcp_opens(const struct tcp_segment *segment)
{
    return (segment->flags & (TCP_SYN | TCP_FIN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

void tcp_from_guest(struct engine *engine, const struct guest_frame *frame, const struct packet *packet)
{
    struct tcp_segment segment;

    if (!tcp_segment_parse(frame, packet, &segment)) {
        count(engine, C_drop_tcp_header);
        return;
    }
    struct flow_key key = tcp_key(packet, &segment);
    struct flow *flow = flow_find(&engine->flows, &key);

    if (!flow) {
        if (!tcp_opens(&segment))
            tcp_send_reset_unknown(engine, packet, &segment);
        else if (gateway_serves(&engine->view, IPPROTO_TCP, &key.remote, key.remote_port))
            engine->punt(engine, frame);
        else
            tcp_open(engine, packet, &key, &segment);
        return;
    }
    if (flow->done || flow->frozen)
        return;
    take_segment(engine, flow, frame, &segment);
    flow_touch(engine, flow);
}

/* The end has come from the peer, and no read will find it any more: ask the socket what it was. */
static void take_error(struct engine *engine, struct flow *flow)
{
    int error = 0;
    socklen_t length = sizeof(error);

    sys_getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (!error)
        return;
    count(engine, C_tcp_resets_from_peer);
    tcp_abort(engine, flow, CLOSE_peer_reset, error);
}

static void note_arrival(struct tcp *tcp, uint32_t events)
{
    if (events & EPOLLPRI)
        tcp->urgent = true;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        tcp->peer_hup = true;
    if (events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        /* The one wasted wake-up of this stall; stall_interest() sees to it that none follows. Behind an end there is
         * nothing to mask: no data follows it, and EPOLL_CTL_MOD would only report the end again. */
        if ((tcp->stall == STALL_window || tcp->stall == STALL_link) && !tcp->peer_hup)
            tcp->muted = true;
        tcp->readable = true;
    }
}

void tcp_event(struct engine *engine, struct flow *flow, uint32_t events)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->to_host == HALF_SYN && !tcp->inbound) {
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        tcp_connected(engine, flow, events);
        if (flow->done)
            return;
    }
    note_arrival(tcp, events);
    if (events & EPOLLOUT && tcp->send_blocked) {
        tcp->send_blocked = false;
        tcp_room_ask(engine, flow);
        tcp->ack_due |= tcp_room_grown(engine, flow);
    }
    if (events & EPOLLERR && (tcp->to_guest >= HALF_FIN_SENT || tcp->to_host == HALF_SYN))
        take_error(engine, flow);
    tcp->woken = true;
    flow_touch(engine, flow);
}
