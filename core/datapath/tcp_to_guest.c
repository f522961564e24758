/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_to_guest.c: payload from the peer's socket into the guest's buffers, without a copy of ours.
 *
 * The kernel keeps all bytes until the guest has acknowledged them: they are read with MSG_PEEK at an offset
 * (SO_PEEK_OFF), and dropped from the queue later. A retransmission is a peek at an earlier offset. Room for many frames
 * is reserved first, one recvmsg() fills their payload, then the headers are written before each.
 */
#include <errno.h>
#include <sys/socket.h>

#include "sys.h"
#include "tcp.h"

enum {
    ROOMS_MAX = 64,
    READ_HINT_FIRST = 16384,
    IP_PACKET_MAX = 65535,
    PREFIX = 1, /* iov[0] is kept for what is read again without SO_PEEK_OFF */
};

void tcp_discard_acked(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    while (tcp->acked) {
        ssize_t n = sys_discard(flow->fd, tcp->acked);
        if (n <= 0) {
            /* The bytes were there: a queue that has lost them belongs to a connection that was reset. */
            count(engine, C_tcp_resets_from_peer);
            tcp_abort(engine, flow, CLOSE_peer_reset, n < 0 ? (int)-n : ECONNRESET);
            return;
        }
        tcp->acked -= (uint32_t)n;
        /* The kernel moves the peek offset back by what a plain read takes (socket(7), SO_PEEK_OFF). */
        tcp->peek_offset = tcp->peek_offset > (uint32_t)n ? tcp->peek_offset - (uint32_t)n : 0;
    }
}

/* The largest payload of one frame: whole segments up to the largest IP packet where the guest takes super-segments. */
static uint32_t payload_max(const struct engine *engine, const struct flow *flow)
{
    bool ipv4 = address_is_ipv4(&flow->key.remote);
    uint32_t mss = flow->tcp.mss;
    uint32_t whole = IP_PACKET_MAX - TCP_HEADER - (ipv4 ? IPV4_HEADER : IPV6_HEADER);

    if (ipv4 ? engine->link->tso4 : engine->link->tso6)
        return whole < mss ? whole : whole - whole % mss;
    uint32_t mtu_payload = engine->view.mtu - TCP_HEADER - (ipv4 ? IPV4_HEADER : IPV6_HEADER);
    return mss < mtu_payload ? mss : mtu_payload;
}

/* Reserves frames for up to `wanted` bytes. Returns how many, and *ret_bytes of payload in all; 0: the link is full. */
static unsigned reserve_frames(struct engine *engine, const struct flow *flow, uint32_t wanted, struct guest_room *room,
                               uint32_t *ret_bytes)
{
    const struct link_operations *link = engine->link->operations;
    uint32_t max = payload_max(engine, flow);
    unsigned frames = 0;

    *ret_bytes = 0;
    engine->pieces.count = PREFIX;
    while (frames < ROOMS_MAX && *ret_bytes < wanted) {
        uint32_t left = wanted - *ret_bytes;
        uint32_t payload = left < max ? left : max;

        if (link->reserve(engine->link, tcp_header_bytes(flow), payload, &engine->pieces, &room[frames]))
            break;
        *ret_bytes += (uint32_t)room[frames].payload;
        if (room[frames++].payload < payload)
            break;
    }
    return frames;
}

/* Without SO_PEEK_OFF: what is in flight is read again, into a buffer that nobody looks at. */
static ssize_t peek_again(struct engine *engine, struct flow *flow, uint32_t offset)
{
    struct msghdr msg = {.msg_iov = engine->pieces.iov, .msg_iovlen = engine->pieces.count};
    ssize_t n;
    int error = 0;
    socklen_t length = sizeof(error);

    engine->pieces.iov[0] = (struct iovec){engine->discard, offset};
    n = sys_recvmsg(flow->fd, &msg, MSG_PEEK | MSG_DONTWAIT);
    if (n > (ssize_t)offset)
        return n - offset;
    if (n < 0 || (!n && !offset))
        return n;
    if (!flow->tcp.peer_hup)
        return -EAGAIN;
    /* Nothing lies behind what is in flight, and the end was announced: it is here. */
    sys_getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return -error;
}

/* Reads at snd_nxt into engine->pieces. Bytes, 0 at the peer's FIN, or a negative errno. */
static ssize_t peek(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t offset = tcp->snd_nxt - tcp->snd_una + tcp->acked;
    struct msghdr msg = {.msg_iov = engine->pieces.iov + PREFIX, .msg_iovlen = engine->pieces.count - PREFIX};
    ssize_t n;

    if (!engine->peek_off)
        return peek_again(engine, flow, offset);
    if (tcp->peek_offset != offset) {
        int value = (int)offset;
        sys_setsockopt(flow->fd, SOL_SOCKET, SO_PEEK_OFF, &value, sizeof(value));
        tcp->peek_offset = offset;
    }
    n = sys_recvmsg(flow->fd, &msg, MSG_PEEK | MSG_DONTWAIT);
    if (n > 0)
        tcp->peek_offset += (uint32_t)n;
    return n;
}

static void commit_frames(struct engine *engine, struct flow *flow, const struct guest_room *room, uint32_t bytes)
{
    struct tcp *tcp = &flow->tcp;
    struct iovec *payload = engine->pieces.iov + PREFIX;
    uint32_t seq = tcp->snd_nxt;

    for (; bytes; room++) {
        uint32_t length = bytes < room->payload ? bytes : (uint32_t)room->payload;

        bytes -= length;
        tcp_commit_data(engine, flow, room, payload, length, seq, bytes ? 0 : TCP_PSH);
        seq += length;
        for (size_t left = room->payload; left; payload++)
            left -= payload->iov_len; /* the pieces of one frame end with it */
    }
    engine->link->operations->rollback(engine->link);
}

static void account_sent(struct engine *engine, struct flow *flow, uint32_t bytes)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t end = tcp->snd_nxt + bytes;
    uint32_t again = seq_before(tcp->snd_nxt, tcp->snd_max) ? tcp->snd_max - tcp->snd_nxt : 0;

    if (again) {
        count(engine, C_tcp_retransmits);
        tcp_emit(engine, flow, LG_EVENT_RETRANSMIT, 0, 0, bytes < again ? bytes : again);
    }
    tcp_timer_sent(engine, flow, end);
    tcp->snd_nxt = end;
    if (seq_after(end, tcp->snd_max)) {
        engine->counters[C_tcp_bytes_to_guest] += end - tcp->snd_max;
        tcp->snd_max = end;
    }
}

static void link_is_full(struct engine *engine, struct flow *flow)
{
    flow->tcp.stall = STALL_link;
    engine->link_full = true;
    list_append(&engine->waiting, &flow->waiting);
}

/* The peer has said its last: our FIN takes the next sequence number, the same each time it is sent. */
static void send_fin(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->to_guest == HALF_OPEN) {
        tcp_move_to_guest(flow, HALF_FIN_SENT);
        tcp->fin_seq = tcp->snd_nxt;
    }
    tcp->readable = false;
    if (tcp_send_control(engine, flow, tcp->fin_seq, TCP_FIN)) {
        link_is_full(engine, flow);
        return;
    }
    tcp_timer_sent(engine, flow, tcp->fin_seq + 1);
    tcp->snd_nxt = tcp->fin_seq + 1;
    if (seq_after(tcp->snd_nxt, tcp->snd_max))
        tcp->snd_max = tcp->snd_nxt;
}

/* How many bytes may go now; 0 sets the stall. */
static uint32_t may_send(const struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t in_flight = tcp->snd_nxt - tcp->snd_una;
    uint32_t window = tcp->snd_window > in_flight ? tcp->snd_window - in_flight : 0;

    if (!engine->peek_off) {
        uint32_t room = TCP_REREAD_MAX > in_flight + tcp->acked ? TCP_REREAD_MAX - in_flight - tcp->acked : 0;
        window = window < room ? window : room;
    }
    /* Sender's silly window avoidance (RFC 9293, 3.8.6.2.1): a crumb of window is used only when nothing else would
     * make the guest open it. */
    if (window < tcp->mss && in_flight && window < tcp->snd_window)
        window = 0;
    if (!window) {
        tcp->stall = STALL_window;
        tcp->window_pending = !in_flight;
    }
    return window;
}

/* One read. True: go on. */
static bool send_burst(struct engine *engine, struct flow *flow, uint32_t wanted)
{
    struct tcp *tcp = &flow->tcp;
    struct guest_room room[ROOMS_MAX];
    uint32_t planned;
    unsigned frames;
    ssize_t n;

    if (!tcp->read_hint)
        tcp->read_hint = READ_HINT_FIRST;
    if (tcp->to_guest == HALF_FIN_SENT && tcp->fin_seq - tcp->snd_nxt < wanted)
        wanted = tcp->fin_seq - tcp->snd_nxt;
    frames = reserve_frames(engine, flow, wanted < tcp->read_hint ? wanted : tcp->read_hint, room, &planned);
    if (!frames) {
        link_is_full(engine, flow);
        return false;
    }
    n = peek(engine, flow);
    if (n <= 0) {
        engine->link->operations->rollback(engine->link);
        if (n == -EAGAIN) {
            tcp->readable = false;
        } else if (!n) {
            send_fin(engine, flow);
        } else if (n == -EFAULT) {
            engine->memory_fault = true;
        } else {
            count(engine, C_tcp_resets_from_peer);
            tcp_abort(engine, flow, CLOSE_peer_reset, (int)-n);
        }
        return false;
    }
    commit_frames(engine, flow, room, (uint32_t)n);
    account_sent(engine, flow, (uint32_t)n);
    if ((uint32_t)n == planned) {
        if (tcp->read_hint < TCP_BUDGET_BYTES)
            tcp->read_hint *= 2;
        return true;
    }
    tcp->read_hint = (uint32_t)n > READ_HINT_FIRST ? (uint32_t)n : READ_HINT_FIRST;
    /* A short read is the end of what is there: what comes later is a new edge. But not at an urgent mark, where reads
     * stop early, and not once the end was announced: that edge has gone already. */
    if (!tcp->urgent && !tcp->peer_hup)
        tcp->readable = false;
    return tcp->readable;
}

void tcp_resend_first(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t next = tcp->snd_nxt;

    if (!tcp->resend_due || tcp->snd_una == tcp->snd_max)
        return;
    tcp_timer_rewound(flow);
    tcp->snd_nxt = tcp->snd_una;
    if (tcp->to_guest == HALF_FIN_SENT && tcp->snd_una == tcp->fin_seq)
        send_fin(engine, flow);
    else
        send_burst(engine, flow, tcp->mss);
    tcp->resend_due = tcp->snd_nxt == tcp->snd_una; /* the link was full: once more when it is not */
    if (seq_before(tcp->snd_nxt, next))
        tcp->snd_nxt = next;
}

void tcp_send_to_guest(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t left = TCP_BUDGET_BYTES;

    tcp->stall = STALL_none;
    tcp->window_pending = false;
    while (!tcp->done && tcp->to_guest != HALF_SYN && tcp->to_guest != HALF_CLOSED) {
        uint32_t window, before = tcp->snd_nxt;

        if (tcp->to_guest == HALF_FIN_SENT && tcp->snd_nxt == tcp->fin_seq) {
            send_fin(engine, flow);
            return;
        }
        if (tcp->to_guest == HALF_FIN_SENT && seq_after(tcp->snd_nxt, tcp->fin_seq))
            return;
        /* What was sent once is in the kernel's queue, whether or not an edge tells of more. */
        if (!tcp->readable && !seq_before(tcp->snd_nxt, tcp->snd_max)) {
            tcp->stall = STALL_caught_up;
            return;
        }
        if (!left) { /* others have their turn first */
            tcp_touch(engine, flow);
            return;
        }
        if (!(window = may_send(engine, flow)))
            return;
        if (!send_burst(engine, flow, window < left ? window : left) && tcp->stall != STALL_none)
            return;
        uint32_t sent = tcp->snd_nxt - before;
        left -= sent < left ? sent : left;
        if (!sent && tcp->to_guest == HALF_OPEN && !tcp->done) { /* EAGAIN */
            tcp->stall = STALL_caught_up;
            return;
        }
    }
}
