/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_to_peer.c: payload from the guest into the peer's socket, straight out of the guest's memory.
 *
 * All segments of a flow in one batch become one sendmsg(). We acknowledge what the kernel took, always, and advertise
 * the room that it has left, or a little more to a guest of large frames that could not use less. What the kernel did not
 * take, and what came ahead of a gap, is kept in a hold, not acknowledged.
 */
#include <errno.h>
#include <linux/sock_diag.h>
#include <string.h>
#include <sys/socket.h>

#include "pieces.h"
#include "sys.h"
#include "tcp.h"

/* ---- what came ---- */

void tcp_hold_release(struct engine *engine, struct flow *flow)
{
    if (flow->tcp.hold)
        hold_give(&engine->holds, flow->tcp.hold);
    flow->tcp.hold = NULL;
}

/* Copies a segment into the flow's hold; what finds no place was never acknowledged, and comes again. */
static void hold_segment(struct engine *engine, struct flow *flow, const struct guest_frame *frame, uint32_t seq,
                         uint32_t offset, uint32_t length)
{
    struct tcp *tcp = &flow->tcp;
    struct iovec iov[LINK_PIECES];
    unsigned pieces = pieces_slice(frame->iov, frame->iov_count, offset, length, iov, LINK_PIECES);

    if (!tcp->hold)
        tcp->hold = hold_take(&engine->holds);
    if (!tcp->hold || !hold_put(&engine->holds, tcp->hold, tcp->rcv_nxt, seq, iov, pieces))
        count(engine, C_tcp_hold_full);
}

void tcp_take_payload(struct engine *engine, struct flow *flow, const struct guest_frame *frame, uint32_t seq,
                      uint32_t offset, uint32_t length)
{
    struct tcp *tcp = &flow->tcp;
    bool gap = seq != tcp->rcv_taken;

    if (gap) {
        count(engine, C_tcp_out_of_order);
        /* RFC 5681, 4.2: at once, for each. With SACK one says as much as many. */
        if (tcp->ack_due && !tcp->sack_allowed && tcp->gap_acks < TCP_DUPLICATE_ACKS - 1)
            tcp->gap_acks++;
        tcp->ack_due = true;
        if (!engine->reorder)
            return;
    } else if (!tcp->hold) {
        batch_append(engine, &tcp->batch_first, &tcp->batch_last, frame, offset, length, 0);
        tcp->rcv_taken += length;
        return;
    }
    hold_segment(engine, flow, frame, seq, offset, length);
    if (tcp->hold)
        tcp->rcv_taken = ranges_end_of(&tcp->hold->ranges, tcp->rcv_taken);
}

/* ---- the kernel's send queue ---- */

static bool queue_is_full(uint32_t queued, uint32_t limit)
{
    return queued + queued / 2 > limit; /* exactly the kernel's rule for EPOLLOUT: where it differs no edge comes */
}

/* The guest may wait until its window has room for its largest segment, or half of the most that it was ever offered
 * (RFC 9293, 3.8.6.2.1), and where frames are large that may be more than is left: then for a fifth of a second at least. */
static uint32_t useful_window(const struct engine *engine, const struct tcp *tcp)
{
    uint32_t half = tcp->rcv_window_max / 2, unit = 1u << tcp->our_scale;

    return ((half < engine->view.mtu ? half : engine->view.mtu) + unit - 1) / unit * unit;
}

/* One call gives both the limit and what is queued, headers and all. */
void tcp_room_ask(const struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t memory[SK_MEMINFO_VARS] = {0};
    socklen_t length = sizeof(memory);

    if (sys_getsockopt(flow->fd, SOL_SOCKET, SO_MEMINFO, memory, &length))
        return; /* the last answer stands */
    uint32_t limit = memory[SK_MEMINFO_SNDBUF], queued = memory[SK_MEMINFO_WMEM_QUEUED];
    uint32_t room = limit > queued ? limit - queued : 0;

    tcp->room = tcp->room_asked = room - room / 8; /* an eighth for the kernel's own headers of full pages */
    if (!queue_is_full(queued, limit)) {
        /* No edge would tell that there is more. What the kernel does not take of that much after all, the hold does. */
        if (tcp->room < useful_window(engine, tcp))
            tcp->room = tcp->room_asked = useful_window(engine, tcp);
        return;
    }
    tcp->send_blocked = true;
    /* No send came short, so that the kernel does not know yet that somebody waits for room (SOCK_NOSPACE). Its poll
     * notes that, too, and EPOLL_CTL_MOD asks it: so there must be one, also when OUT is in the interest already. */
    flow->interest &= ~(uint32_t)EPOLLOUT;
}

bool tcp_room_grown(const struct engine *engine, const struct flow *flow)
{
    const struct tcp *tcp = &flow->tcp;
    uint32_t edge = tcp->rcv_nxt + tcp->room;

    /* RFC 9293, 3.8.6.2.2: not for crumbs. Two of the guest's largest frames, or all there is when that is less. */
    return seq_after(edge, tcp->rcv_edge) && (edge - tcp->rcv_edge >= 2 * UINT16_MAX || tcp->rcv_edge == tcp->rcv_nxt ||
                                              tcp->rcv_edge - tcp->rcv_nxt < useful_window(engine, tcp));
}

/* Bytes in sequence that the kernel would not take: until it does, no more are welcome. */
static bool holds_in_sequence(const struct tcp *tcp)
{
    return tcp->hold && ranges_end_of(&tcp->hold->ranges, tcp->rcv_nxt) != tcp->rcv_nxt;
}

uint16_t tcp_advertise(struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t room = holds_in_sequence(tcp) ? 0 : tcp->room;
    uint32_t max = (uint32_t)UINT16_MAX << tcp->our_scale;
    uint32_t window = tcp->rcv_edge - tcp->rcv_nxt; /* what was offered stays offered (RFC 9293, 3.8.6) */

    room -= room % (1u << tcp->our_scale);
    if (room > window)
        window = room;
    if (window > max)
        window = max;
    if (seq_after(tcp->rcv_nxt + window, tcp->rcv_edge))
        tcp->rcv_edge = tcp->rcv_nxt + window;
    if (window > tcp->rcv_window_max)
        tcp->rcv_window_max = window;
    return (uint16_t)(window >> tcp->our_scale);
}

/* How many bytes of a long transfer's are acknowledged at once: a quarter of the window, if that is less. */
static uint32_t bulk_step(const struct tcp *tcp)
{
    uint32_t quarter = tcp->rcv_window_max / 4, most = tcp->bulk_slow ? TCP_ACK_BULK_SLOW : TCP_ACK_BULK;

    return quarter < most ? quarter : most;
}

/* RFC 9293, 3.8.6.3; RFC 5681, 4.2: the ACK of a full segment goes at once, that of a small one may wait for the answer. */
static void owe_ack(const struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t unacked = tcp->rcv_nxt - tcp->rcv_acked;
    bool bulk = flow->bytes_from_guest >= tcp->bulk_from;

    tcp->asked_ms = (uint32_t)engine->now_ms;
    if (!engine->ack_delay_ms || (bulk ? unacked >= bulk_step(tcp) : tcp->slow_answers || unacked >= tcp->mss))
        tcp->ack_due = true;
    else if (!tcp->ack_due_ms)
        tcp->ack_due_ms = engine->now_ms + engine->ack_delay_ms;
}

static void account_sent(struct engine *engine, struct flow *flow, uint32_t sent)
{
    struct tcp *tcp = &flow->tcp;

    tcp->rcv_nxt += sent;
    tcp->room -= sent < tcp->room ? sent : tcp->room;
    flow->bytes_from_guest += sent;
    engine->counters[C_tcp_bytes_from_guest] += sent;
    flow->active_ms = engine->now_ms;
    owe_ack(engine, flow);
    /* Peers only take from the queue, so that the last answer less what we put in since is never too much: ask again
     * only when half of it is used, or what is left may be too little for the guest to use. */
    if (tcp->room < tcp->room_asked / 2 || tcp->room < useful_window(engine, tcp))
        tcp_room_ask(engine, flow);
}

/* The peer has gone, and the guest is still sending. What came from the peer before that is in the receive queue: it
 * goes to the guest first, and the RST behind it. The send has taken the socket's error with it, so that the read which
 * finds the end cannot tell it from a FIN: hence send_error. */
static void send_failed(struct engine *engine, struct flow *flow, int error)
{
    struct tcp *tcp = &flow->tcp;

    engine->memory_fault |= error == EFAULT;
    count(engine, C_tcp_resets_from_peer);
    if (error == EFAULT || tcp->to_guest != HALF_OPEN) {
        tcp_abort(engine, flow, CLOSE_peer_reset, error);
        return;
    }
    tcp->send_error = (uint8_t)error;
    tcp->send_blocked = false;
    tcp->peer_hup = tcp->readable = true;
}

/* sendmsg(), whose harmless failures are 0 bytes. What is short of `bytes` blocks the flow until the kernel has room.
 * Negative: this direction has ended. */
static ssize_t send_pieces(struct engine *engine, struct flow *flow, struct iovec *iov, unsigned pieces, size_t bytes)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = pieces};
    ssize_t sent = sys_sendmsg(flow->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent == -EAGAIN || sent == -ENOBUFS || sent == -ENOMEM)
        sent = 0;
    if (sent < 0) {
        send_failed(engine, flow, (int)-sent);
        return sent;
    }
    if (sent)
        account_sent(engine, flow, (uint32_t)sent);
    if ((size_t)sent < bytes) {
        count(engine, C_tcp_short_sends);
        flow->tcp.send_blocked = true;
        flow->tcp.room = 0;
        flow->tcp.ack_due = true;
    }
    return sent;
}

/* ---- what goes ---- */

/* As many whole segments as one call takes, from `first` on. Returns the next segment; *ret_bytes of those gathered. */
static uint16_t gather(const struct engine *engine, uint16_t first, struct iovec *iov, unsigned *ret_pieces,
                       size_t *ret_bytes)
{
    uint16_t place = first;

    *ret_pieces = 0;
    *ret_bytes = 0;
    while (place) {
        const struct batch_segment *segment = &engine->segment[place - 1];
        unsigned pieces = pieces_slice(segment->frame->iov, segment->frame->iov_count, segment->offset, segment->length,
                                       iov + *ret_pieces, LINK_PIECES - *ret_pieces);
        if (!pieces)
            break;
        *ret_pieces += pieces;
        *ret_bytes += segment->length;
        place = segment->next;
    }
    return place;
}

/* What the kernel did not take of the batch: `first` and its successors, less `skip` bytes of the first. */
static void hold_rest(struct engine *engine, struct flow *flow, uint16_t first, uint32_t skip)
{
    uint32_t seq = flow->tcp.rcv_nxt;

    for (uint16_t place = first; place; place = engine->segment[place - 1].next, skip = 0) {
        const struct batch_segment *segment = &engine->segment[place - 1];
        hold_segment(engine, flow, segment->frame, seq, segment->offset + skip, segment->length - skip);
        seq += segment->length - skip;
    }
}

static void send_batch(struct engine *engine, struct flow *flow)
{
    struct iovec iov[LINK_PIECES];
    uint16_t first = flow->tcp.batch_first;

    flow->tcp.batch_first = flow->tcp.batch_last = 0;
    while (first) {
        unsigned pieces;
        size_t bytes;
        uint16_t next = gather(engine, first, iov, &pieces, &bytes);
        ssize_t sent = pieces ? send_pieces(engine, flow, iov, pieces, bytes) : -EINVAL;

        if (sent < 0)
            return;
        if ((size_t)sent < bytes) {
            uint32_t skip = (uint32_t)sent;
            for (; skip >= engine->segment[first - 1].length; first = engine->segment[first - 1].next)
                skip -= engine->segment[first - 1].length;
            hold_rest(engine, flow, first, skip);
            return;
        }
        first = next;
    }
}

static void send_held(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    struct iovec iov[2];
    unsigned pieces;

    ranges_drop_before(&tcp->hold->ranges, tcp->rcv_nxt);
    while (!tcp->send_blocked && (pieces = hold_pieces(tcp->hold, tcp->rcv_nxt, iov))) {
        if (send_pieces(engine, flow, iov, pieces, iov[0].iov_len + (pieces > 1 ? iov[1].iov_len : 0)) < 0)
            return;
        ranges_drop_before(&tcp->hold->ranges, tcp->rcv_nxt);
    }
    if (!tcp->hold->ranges.count)
        tcp_hold_release(engine, flow);
}

void tcp_send_to_peer(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (!tcp->send_error)
        send_batch(engine, flow);
    if (!flow->done && tcp->hold && !tcp->send_error)
        send_held(engine, flow);
    if (tcp->send_error) { /* nobody is there for what the guest still sends: it is not acknowledged */
        tcp->batch_first = tcp->batch_last = 0;
        tcp_hold_release(engine, flow);
    }
    if (!flow->done)
        tcp->rcv_taken = tcp->hold ? ranges_end_of(&tcp->hold->ranges, tcp->rcv_nxt) : tcp->rcv_nxt;
}
