/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_to_peer.c: payload from the guest into the peer's socket, straight out of the guest's memory.
 *
 * All segments of a flow in one batch become one sendmsg(). We acknowledge what the kernel took, always, and advertise
 * the room that it has left. A send that was cut short leaves its tail in a buffer of ours, not acknowledged, until the
 * kernel has room; the buffers are few and of one size, and a guest that keeps to its window hardly ever needs one.
 */
#include <errno.h>
#include <linux/sock_diag.h>
#include <string.h>
#include <sys/socket.h>

#include "sys.h"
#include "tcp.h"

/* ---- the batch ---- */

void tcp_batch_add(struct engine *engine, struct flow *flow, const struct guest_frame *frame, uint32_t offset,
                   uint32_t length)
{
    struct tcp *tcp = &flow->tcp;
    uint16_t place = (uint16_t)++engine->segment_count; /* index + 1; a frame adds one segment at most */

    engine->segment[place - 1] = (struct batch_segment){.frame = frame, .offset = offset, .length = length};
    if (tcp->batch_last)
        engine->segment[tcp->batch_last - 1].next = place;
    else
        tcp->batch_first = place;
    tcp->batch_last = place;
    tcp->rcv_taken += length;
}

/* Appends the payload of one segment to iov[]; returns how many pieces it has, or 0 when they do not fit. */
static unsigned segment_pieces(const struct batch_segment *segment, struct iovec *iov, unsigned max)
{
    const struct guest_frame *frame = segment->frame;
    size_t skip = segment->offset, length = segment->length;
    unsigned pieces = 0;

    for (unsigned i = 0; i < frame->iov_count && length; i++) {
        struct iovec piece = frame->iov[i];
        if (skip >= piece.iov_len) {
            skip -= piece.iov_len;
            continue;
        }
        piece.iov_base = (uint8_t *)piece.iov_base + skip;
        piece.iov_len -= skip;
        skip = 0;
        if (piece.iov_len > length)
            piece.iov_len = length;
        if (pieces == max)
            return 0;
        iov[pieces++] = piece;
        length -= piece.iov_len;
    }
    return pieces;
}

/* ---- the tail of a short send ---- */

static uint8_t *tail_take(struct tail_pool *pool)
{
    if (pool->used == UINT64_MAX)
        return NULL;
    unsigned index = (unsigned)__builtin_ctzll(~pool->used);
    pool->used |= UINT64_C(1) << index;
    return pool->memory + (size_t)index * TCP_TAIL_BYTES;
}

_Static_assert(TCP_TAILS == 64, "a bit of tail_pool.used for each");

void tcp_tail_free(struct engine *engine, struct flow *flow)
{
    if (!flow->tcp.tail)
        return;
    size_t index = (size_t)(flow->tcp.tail - engine->tails.memory) / TCP_TAIL_BYTES;
    engine->tails.used &= ~(UINT64_C(1) << index);
    flow->tcp.tail = NULL;
    flow->tcp.tail_length = 0;
}

/* Keeps what one more segment has beyond `skip`; false when the tail is full. */
static bool tail_keep(struct flow *flow, const struct batch_segment *segment, uint32_t skip)
{
    struct tcp *tcp = &flow->tcp;
    struct iovec iov[LINK_PIECES];
    struct batch_segment rest = {
        .frame = segment->frame, .offset = segment->offset + skip, .length = segment->length - skip};
    unsigned pieces = segment_pieces(&rest, iov, LINK_PIECES);

    for (unsigned i = 0; i < pieces; i++) {
        size_t room = TCP_TAIL_BYTES - tcp->tail_length;
        size_t part = iov[i].iov_len < room ? iov[i].iov_len : room;
        memcpy(tcp->tail + tcp->tail_length, iov[i].iov_base, part);
        tcp->tail_length += (uint32_t)part;
        if (part < iov[i].iov_len)
            return false;
    }
    return true;
}

/* What the kernel did not take: `first` and its successors, less `skip` bytes of the first. What finds no place here was
 * never acknowledged, so that the guest sends it again. */
static void keep_rest(struct engine *engine, struct flow *flow, uint16_t first, uint32_t skip)
{
    struct tcp *tcp = &flow->tcp;
    bool whole = true;

    if (!tcp->tail)
        tcp->tail = tail_take(&engine->tails);
    for (uint16_t place = first; place && whole; place = engine->segment[place - 1].next, skip = 0)
        whole = tcp->tail && tail_keep(flow, &engine->segment[place - 1], skip);
    tcp->rcv_taken = tcp->rcv_nxt + tcp->tail_length;
    if (whole)
        return;
    count(engine, C_tcp_tail_full);
    tcp->fin_received = false; /* a FIN behind it is not in sequence any more */
}

/* ---- the kernel's send queue ---- */

static bool queue_is_full(uint32_t queued, uint32_t limit)
{
    return queued + queued / 2 >= limit; /* the kernel's own rule for EPOLLOUT: a third must be free */
}

/* One call gives both the limit and what is queued, headers and all. */
void tcp_room_ask(struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t memory[SK_MEMINFO_VARS] = {0};
    socklen_t length = sizeof(memory);

    if (sys_getsockopt(flow->fd, SOL_SOCKET, SO_MEMINFO, memory, &length))
        return; /* the last answer stands */
    uint32_t limit = memory[SK_MEMINFO_SNDBUF], queued = memory[SK_MEMINFO_WMEM_QUEUED];
    uint32_t room = limit > queued ? limit - queued : 0;

    tcp->room = tcp->room_asked = room - room / 8; /* an eighth for the kernel's own headers of full pages */
    if (queue_is_full(queued, limit))
        tcp->send_blocked = true;
}

bool tcp_room_grown(const struct flow *flow)
{
    const struct tcp *tcp = &flow->tcp;
    uint32_t edge = tcp->rcv_nxt + tcp->room;

    /* RFC 9293, 3.8.6.2.2: not for crumbs. Two of the guest's largest frames, or all there is when that is less. */
    return seq_after(edge, tcp->rcv_edge) && (edge - tcp->rcv_edge >= 2 * UINT16_MAX || tcp->rcv_edge == tcp->rcv_nxt);
}

uint16_t tcp_advertise(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t room = tcp->tail ? 0 : tcp->room;
    uint32_t max = (uint32_t)UINT16_MAX << tcp->our_scale;
    uint32_t window = tcp->rcv_edge - tcp->rcv_nxt; /* what was offered stays offered (RFC 9293, 3.8.6) */

    (void)engine;
    room -= room % (1u << tcp->our_scale);
    if (room > window)
        window = room;
    if (window > max)
        window = max;
    if (seq_after(tcp->rcv_nxt + window, tcp->rcv_edge))
        tcp->rcv_edge = tcp->rcv_nxt + window;
    return (uint16_t)(window >> tcp->our_scale);
}

static void account_sent(struct engine *engine, struct flow *flow, uint32_t sent)
{
    struct tcp *tcp = &flow->tcp;

    tcp->rcv_nxt += sent;
    tcp->room -= sent < tcp->room ? sent : tcp->room;
    flow->bytes_from_guest += sent;
    if (sent)
        flow->active_ms = engine->now_ms;
    engine->counters[C_tcp_bytes_from_guest] += sent;
    tcp->ack_due = true;
    /* Peers only take from the queue, so that the last answer less what we put in since is never too much: ask again
     * only when half of it is used. */
    if (tcp->room < tcp->room_asked / 2)
        tcp_room_ask(flow);
}

/* sendmsg() with its two harmless failures made one: 0 bytes. */
static ssize_t send_pieces(struct engine *engine, struct flow *flow, struct iovec *iov, unsigned pieces)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = pieces};
    ssize_t sent = sys_sendmsg(flow->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent >= 0 || sent == -EAGAIN || sent == -ENOBUFS || sent == -ENOMEM)
        return sent > 0 ? sent : 0;
    engine->memory_fault |= sent == -EFAULT;
    count(engine, C_tcp_resets_from_peer);
    tcp_abort(engine, flow, CLOSE_peer_reset, (int)-sent);
    return sent;
}

static void send_blocked(struct engine *engine, struct flow *flow)
{
    count(engine, C_tcp_short_sends);
    flow->tcp.send_blocked = true;
    flow->tcp.room = 0;
    flow->tcp.ack_due = true;
}

/* True: nothing of an earlier short send is left. */
static bool send_tail(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    struct iovec iov = {.iov_base = tcp->tail, .iov_len = tcp->tail_length};
    ssize_t sent;

    if (!tcp->tail_length)
        return true;
    if (tcp->send_blocked || (sent = send_pieces(engine, flow, &iov, 1)) < 0)
        return false;
    tcp->tail_length -= (uint32_t)sent;
    memmove(tcp->tail, tcp->tail + sent, tcp->tail_length);
    if (tcp->tail_length) {
        account_sent(engine, flow, (uint32_t)sent);
        send_blocked(engine, flow);
        return false;
    }
    tcp_tail_free(engine, flow);
    account_sent(engine, flow, (uint32_t)sent);
    return true;
}

/* As many whole segments as one call takes, from `first` on. Returns the next segment; *ret_bytes of those gathered. */
static uint16_t gather(struct engine *engine, uint16_t first, struct iovec *iov, unsigned *ret_pieces,
                       uint32_t *ret_bytes)
{
    uint16_t place = first;

    *ret_pieces = 0;
    *ret_bytes = 0;
    while (place) {
        const struct batch_segment *segment = &engine->segment[place - 1];
        unsigned pieces = segment_pieces(segment, iov + *ret_pieces, LINK_PIECES - *ret_pieces);
        if (!pieces)
            break;
        *ret_pieces += pieces;
        *ret_bytes += segment->length;
        place = segment->next;
    }
    return place;
}

void tcp_send_to_peer(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    struct iovec iov[LINK_PIECES];
    uint16_t first = tcp->batch_first;
    bool clear = send_tail(engine, flow);

    tcp->batch_first = tcp->batch_last = 0;
    if (tcp->done)
        return;
    while (first && clear) {
        unsigned pieces;
        uint32_t bytes;
        uint16_t next = gather(engine, first, iov, &pieces, &bytes);
        ssize_t sent = send_pieces(engine, flow, iov, pieces);

        if (sent < 0)
            return;
        account_sent(engine, flow, (uint32_t)sent);
        if ((uint32_t)sent == bytes) {
            first = next;
            continue;
        }
        uint32_t skip = (uint32_t)sent;
        for (; skip >= engine->segment[first - 1].length; first = engine->segment[first - 1].next)
            skip -= engine->segment[first - 1].length;
        send_blocked(engine, flow);
        keep_rest(engine, flow, first, skip);
        return;
    }
    if (first) {
        tcp->ack_due = true;
        keep_rest(engine, flow, first, 0);
    }
}
