/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_to_guest.c: payload from the peer's socket into the guest's buffers, without a copy of ours.
 *
 * The kernel keeps all bytes until the guest has acknowledged them: they are read with MSG_PEEK at an offset
 * (SO_PEEK_OFF), and dropped from the queue later. A retransmission is a peek at an earlier offset. Room for many frames
 * is reserved first, one recvmsg() fills their payload, then the headers are written before each.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "sys.h"
#include "tcp.h"

enum {
    ROOMS_MAX = 64,
    IP_PACKET_MAX = 65535,
    PREFIX = 1, /* iov[0] is kept for what is read again without SO_PEEK_OFF */
};

/* The kernel gives room to a reader that takes much at a time (tcp(7), tcp_moderate_rcvbuf); where the guest is the slow
 * one, peeks and late drops look to it like a reader that wants little, and the peer would wait for each drop. To ask for
 * SO_RCVLOWAT makes room, and unlike SO_RCVBUF leaves the kernel free to give more. Not at once: an idle guest could have
 * so much kept for each of its connections. Nor without SO_PEEK_OFF, where what is kept is read again and again. */
static void widen(struct flow *flow)
{
    static const int ahead = TCP_BULK_WINDOW, any = 1;

    flow->tcp.bulk = true;
    sys_setsockopt(flow->fd, SOL_SOCKET, SO_RCVLOWAT, &ahead, sizeof(ahead));
    sys_setsockopt(flow->fd, SOL_SOCKET, SO_RCVLOWAT, &any, sizeof(any));
}

/* The kernel answers the first segments after each pause at once, for the sake of a peer whose window grows; one that the
 * guest holds up has no use for that. It does harm where the peer is on this machine and spaces what it sends by what such
 * answers seem to tell of the line (BBR), which is then microseconds: each of its segments costs a timer that expires
 * within our discard. Told at leisure (RFC 9293, 3.8.6.3), they expire later, and elsewhere: sixteen downloads at 20 MB/s
 * take a fifth less of our time, and no more of the machine's. The kernel takes it back at the next sign of a loss
 * (tcp(7), TCP_QUICKACK), hence with each step. */
static void answer_at_leisure(const struct flow *flow)
{
    static const int quick = 0;

    sys_setsockopt(flow->fd, IPPROTO_TCP, TCP_QUICKACK, &quick, sizeof(quick));
}

bool tcp_held_up(const struct tcp *tcp)
{
    return tcp->bulk && tcp->stall == STALL_window;
}

void tcp_discard_acked(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (!tcp->bulk && engine->peek_off && flow->bytes_to_guest >= TCP_BULK_WINDOW)
        widen(flow);
    if (tcp_held_up(tcp))
        answer_at_leisure(flow);
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

/* Every read stops at an urgent mark, and without SO_PEEK_OFF every read begins before what is in flight: nothing behind
 * the mark is seen until all before it is acknowledged. A mark may also have come while PRI was masked. */
static bool mark_in_the_way(const struct engine *engine, const struct tcp *tcp)
{
    return !engine->peek_off && tcp->snd_nxt != tcp->snd_una && (tcp->urgent || (tcp->muted && tcp->peer_hup));
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
        return n == -EAGAIN && flow->tcp.ended_elsewhere ? 0 : n;
    if (!flow->tcp.peer_hup || mark_in_the_way(engine, &flow->tcp))
        return -EAGAIN;
    /* Nothing lies behind what is in flight, and the end was announced: it is here. */
    sys_getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return -error;
}

/* Reads at `seq` into engine->pieces. Bytes, 0 at the peer's FIN, or a negative errno. */
static ssize_t peek(struct engine *engine, struct flow *flow, uint32_t seq)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t offset = seq - tcp->snd_una + tcp->acked;
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
    return n == -EAGAIN && tcp->ended_elsewhere ? 0 : n;
}

static void commit_frames(struct engine *engine, struct flow *flow, const struct guest_room *room, uint32_t seq,
                          uint32_t bytes)
{
    struct iovec *payload = engine->pieces.iov + PREFIX;

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

static void account_sent(struct engine *engine, struct flow *flow, uint32_t seq, uint32_t bytes)
{
    struct tcp *tcp = &flow->tcp;

    tcp_timer_sent(engine, flow, seq, seq + bytes);
    if (seq_before(seq, tcp->snd_nxt)) {
        count(engine, C_tcp_retransmits);
        flow_emit(engine, flow, LG_EVENT_RETRANSMIT, 0, 0, bytes);
        return;
    }
    tcp->snd_nxt += bytes;
    engine->counters[C_tcp_bytes_to_guest] += bytes;
}

static void link_is_full(struct engine *engine, struct flow *flow)
{
    flow->tcp.stall = STALL_link;
    engine_wait_room(engine, flow);
}

/* The peer has said its last: our FIN takes the next sequence number, the same each time it is sent. False: the link is
 * full. */
static bool send_fin(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->to_guest == HALF_OPEN) {
        tcp_move_to_guest(flow, HALF_FIN_SENT);
        tcp->fin_seq = tcp->snd_nxt;
    }
    tcp->readable = false;
    if (tcp_send_control(engine, flow, tcp->fin_seq, TCP_FIN)) {
        link_is_full(engine, flow);
        return false;
    }
    tcp_timer_sent(engine, flow, tcp->fin_seq, tcp->fin_seq + 1);
    tcp->snd_nxt = tcp->fin_seq + 1;
    return true;
}

/* How many bytes the guest's window allows at `seq`. */
static uint32_t window_at(const struct engine *engine, const struct tcp *tcp, uint32_t seq)
{
    uint32_t in_flight = seq - tcp->snd_una;
    uint32_t window = tcp->snd_window > in_flight ? tcp->snd_window - in_flight : 0;

    if (!engine->peek_off) {
        uint32_t room = TCP_REREAD_MAX > in_flight + tcp->acked ? TCP_REREAD_MAX - in_flight - tcp->acked : 0;
        window = window < room ? window : room;
    }
    return window;
}

/* Sender's silly window avoidance (RFC 9293, 3.8.6.2.1): a segment, or half of the most that the guest has ever offered,
 * where its segments are that large: at an MTU of 65520 its first window has no room for two. */
static uint32_t window_least(const struct tcp *tcp)
{
    return tcp->mss < tcp->window_max / 2 ? tcp->mss : tcp->window_max / 2;
}

/* After a window stall less than this is not used, for the sake of the guest's interrupts. A
 * receiver tells of at most half of its buffer at a time (3.8.6.2.2), so that it will tell of a quarter. One that has
 * shrunk its buffer meanwhile may not: then the timer lowers window_max. The last bytes of a stream, and its end behind
 * them, wait for nothing. */
static uint32_t window_step(const struct tcp *tcp)
{
    uint32_t step = tcp->window_max / 4 < TCP_WINDOW_STEP ? tcp->window_max / 4 : TCP_WINDOW_STEP;

    return step > window_least(tcp) && !tcp->peer_hup ? step : window_least(tcp);
}

/* How many new bytes may go now, `least` or more; 0 sets the stall. */
static uint32_t may_send(const struct engine *engine, struct flow *flow, uint32_t least)
{
    struct tcp *tcp = &flow->tcp;
    bool in_flight = tcp->snd_nxt != tcp->snd_una;
    uint32_t window = window_at(engine, tcp, tcp->snd_nxt);

    /* A crumb is used only when nothing else would make the guest open its window: what is in flight would. */
    if (window < least && (in_flight || least > window_least(tcp)))
        window = 0;
    if (!window) {
        tcp->stall = STALL_window;
        tcp->window_pending = !in_flight;
    }
    return window;
}

/* A read that found nothing: why? */
static void take_read_result(struct engine *engine, struct flow *flow, ssize_t result)
{
    struct tcp *tcp = &flow->tcp;

    if (result == -EAGAIN) {
        tcp->readable = mark_in_the_way(engine, tcp);
    } else if (!result && tcp->send_error) {
        tcp_abort(engine, flow, CLOSE_peer_reset, tcp->send_error);
    } else if (!result) {
        send_fin(engine, flow);
    } else if (result == -EFAULT) {
        engine->memory_fault = true;
    } else {
        count(engine, C_tcp_resets_from_peer);
        tcp_abort(engine, flow, CLOSE_peer_reset, (int)-result);
    }
}

/* One read of up to `wanted` bytes at `seq`, and its frames. How many bytes went; 0: nothing can, for now. */
static uint32_t send_burst(struct engine *engine, struct flow *flow, uint32_t seq, uint32_t wanted)
{
    struct guest_room room[ROOMS_MAX];
    uint32_t planned;
    ssize_t n;

    if (!reserve_frames(engine, flow, wanted, room, &planned)) {
        link_is_full(engine, flow);
        return 0;
    }
    n = peek(engine, flow, seq);
    if (n <= 0) {
        engine->link->operations->rollback(engine->link);
        take_read_result(engine, flow, n);
        return 0;
    }
    commit_frames(engine, flow, room, seq, (uint32_t)n);
    account_sent(engine, flow, seq, (uint32_t)n);
    if (seq + (uint32_t)n != flow->tcp.snd_nxt)
        return (uint32_t)n; /* a retransmission says nothing of what is new */

    struct tcp *tcp = &flow->tcp;
    if ((uint32_t)n == planned) {
        if (tcp->read_hint < TCP_BUDGET_BYTES)
            tcp->read_hint *= 2;
        return (uint32_t)n;
    }
    tcp->read_hint = (uint32_t)n > TCP_READ_FIRST ? (uint32_t)n : TCP_READ_FIRST;
    /* A short read is the end of what is there: what comes later is a new edge. But not at an urgent mark, where reads
     * stop early, and not once the end was announced: that edge has gone already. */
    if (!tcp->urgent && !tcp->peer_hup)
        tcp->readable = false;
    return (uint32_t)n;
}

/* How much of what was lost goes again now: of a window that has no room for all of it only whole segments. A guest that has
 * shrunk its buffer drops the crumb behind them, and with it waits for the timer once more. */
static uint32_t resend_bytes(const struct tcp *tcp, const struct range *lost, uint32_t window)
{
    if (window >= lost->end - lost->start)
        return lost->end - lost->start;
    if (window > tcp->mss)
        return window - window % tcp->mss;
    return lost->start == tcp->snd_una || window >= window_least(tcp) ? window : 0;
}

/* What was lost goes first. False: it could not all go. */
static bool send_lost(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    struct range lost;

    while (tcp_recovery_next(flow, &lost)) {
        uint32_t sent, window = window_at(engine, tcp, lost.start);

        if (tcp->to_guest == HALF_FIN_SENT && lost.start == tcp->fin_seq) {
            if (!send_fin(engine, flow))
                return false;
            tcp->resend_at = lost.start + 1;
            continue;
        }
        if (tcp->to_guest == HALF_FIN_SENT && seq_after(lost.end, tcp->fin_seq))
            lost.end = tcp->fin_seq;
        if (!(window = resend_bytes(tcp, &lost, window))) {
            tcp->stall = STALL_window;
            return false;
        }
        if (!(sent = send_burst(engine, flow, lost.start, window)))
            return false;
        tcp->resend_at = lost.start + sent;
    }
    return true;
}

/* What one read asks for: as much as reads have found, in full frames, or at least whole segments, but for the end of what
 * is there. Of a long transfer a segment at least, and no crumb of the window behind whole ones: each would cost a frame,
 * and the guest an ACK. Not where the window is smaller than a segment: a guest with so small a buffer may have no memory
 * for one frame that fills it. */
static uint32_t burst_bytes(const struct tcp *tcp, uint32_t frame, uint32_t window, uint32_t left)
{
    bool whole = tcp->bulk && window >= tcp->mss;
    uint32_t hint = whole && tcp->read_hint < tcp->mss ? tcp->mss : tcp->read_hint;
    uint32_t bytes = hint < left ? hint : left;
    uint32_t unit = bytes < frame ? tcp->mss : frame;

    if (window < bytes) {
        bytes = window;
        unit = whole ? tcp->mss : bytes;
    }
    return bytes > unit ? bytes - bytes % unit : bytes;
}

static void send_new(struct engine *engine, struct flow *flow, uint32_t least)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t left = TCP_BUDGET_BYTES, frame = payload_max(engine, flow), window;

    while (tcp->to_guest == HALF_OPEN && !flow->done) {
        if (!tcp->readable) {
            tcp->stall = STALL_caught_up;
            return;
        }
        if (left < tcp->mss) { /* others have their turn first; what is left is no segment */
            flow_touch(engine, flow);
            return;
        }
        if (!(window = may_send(engine, flow, least)))
            return;
        least = window_least(tcp);
        uint32_t sent = send_burst(engine, flow, tcp->snd_nxt, burst_bytes(tcp, frame, window, left));
        if (!sent) {
            if (tcp->stall == STALL_none) /* still readable: a mark is in the way, until the guest's ACK */
                tcp->stall = tcp->readable ? STALL_window : STALL_caught_up;
            return;
        }
        left -= sent < left ? sent : left;
    }
}

void tcp_send_to_guest(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t least = tcp->stall == STALL_window ? window_step(tcp) : window_least(tcp);

    tcp->stall = STALL_none;
    tcp->window_pending = false;
    if (tcp->to_guest == HALF_SYN && tcp->readable)
        tcp->stall = STALL_window; /* before its ACK the guest has none, and further data must not wake us for it */
    if (tcp->to_guest == HALF_SYN || tcp->to_guest == HALF_CLOSED || !send_lost(engine, flow))
        return;
    if (tcp->to_guest == HALF_FIN_SENT && tcp->snd_nxt == tcp->fin_seq)
        send_fin(engine, flow);
    else
        send_new(engine, flow, least);
}
