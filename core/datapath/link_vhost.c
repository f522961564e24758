/* SPDX-License-Identifier: Apache-2.0
 *
 * link_vhost.c: frames over virtqueues, without a copy of ours: the pieces that are lent are the guest's own memory.
 *
 * Adversary: the guest. What is in its memory may change while we look. Of a frame from it, the head is copied once and
 * only the copy is parsed; the payload is passed on without being looked at.
 */
#include "link_vhost.h"

#include <errno.h>
#include <stdalign.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "counters.h"
#include "link_frame.h"
#include "net_header.h"
#include "pieces.h"
#include "sys.h"

_Static_assert(sizeof(struct net_header) == 12, "the header has no padding");

static struct link_vhost *vhost_of(struct link *link)
{
    return (struct link_vhost *)link; /* the link is the first member */
}

/* A fault is told once: to the front end by the err eventfd, to people by a counter. The ring stays down. */
static void fault_report(struct link_vhost *vhost, unsigned queue)
{
    struct vring *ring = &vhost->ring[queue];

    if (ring->fault == VRING_FAULT_none || vhost->faults_reported >> queue & 1)
        return;
    vhost->faults_reported |= 1u << queue;
    vhost->counters[C_ring_faults]++;
    if (ring->err_fd >= 0)
        sys_eventfd_signal(ring->err_fd);
}

/* ---- from the guest ---- */

static uint16_t datagram_size(const struct iovec *iov, unsigned count)
{
    struct net_header header;

    pieces_read(iov, count, 0, &header, sizeof(header));
    return net_header_datagram(&header);
}

static bool frame_from_chain(struct link_vhost *vhost, struct guest_frame *frame, struct iovec *iov, unsigned count,
                             size_t bytes)
{
    if (bytes < NET_HEADER || bytes - NET_HEADER > FRAME_BYTES_MAX) {
        vhost->counters[bytes < NET_HEADER ? C_drop_short : C_drop_length]++;
        return false;
    }
    frame->datagram = link_vhost_feature(vhost, VIRTIO_NET_F_HOST_USO) ? datagram_size(iov, count) : 0;
    unsigned gone = pieces_skip(iov, count, NET_HEADER);
    frame->iov = iov + gone;
    frame->iov_count = count - gone;
    frame->length = (uint32_t)(bytes - NET_HEADER);
    frame->head_length = (uint16_t)pieces_read(frame->iov, frame->iov_count, 0, frame->head, FRAME_HEAD_MAX);
    link_frame_record(frame, vhost->counters, vhost->pcap);
    return true;
}

static unsigned vhost_from_guest(struct link *link, struct guest_frame *frames, bool *ret_more)
{
    struct link_vhost *vhost = vhost_of(link);
    struct vring *ring = &vhost->ring[TRANSMITQ];
    struct vring_pieces pieces = {.iov = vhost->batch_piece, .max = LINK_PIECES};
    unsigned count = 0;

    *ret_more = false;
    vhost->batch_count = 0;
    vhost->batch_bytes = 0;
    vhost->link.look_ms = UINT64_MAX;
    if (!vring_usable(ring))
        return 0;
    vring_spare_kick(ring);
    while (vhost->batch_count < LINK_BATCH) {
        unsigned first = pieces.count;
        size_t bytes = pieces.bytes;

        if (!vring_waiting(ring)) {
            *ret_more = ring->fault == VRING_FAULT_none && vring_ask_kick(ring);
            break;
        }
        if (vring_take(ring, &pieces, &vhost->batch_head[vhost->batch_count])) {
            *ret_more = ring->fault == VRING_FAULT_none; /* no room for its pieces: the next batch has it */
            break;
        }
        vhost->batch_count++;
        if (frame_from_chain(vhost, &frames[count], pieces.iov + first, pieces.count - first, pieces.bytes - bytes))
            count++;
    }
    if (vhost->batch_count == LINK_BATCH)
        *ret_more = true;
    vhost->batch_bytes = pieces.bytes;
    fault_report(vhost, TRANSMITQ);
    return count;
}

static void vhost_release(struct link *link)
{
    struct link_vhost *vhost = vhost_of(link);
    struct vring *ring = &vhost->ring[TRANSMITQ];

    for (unsigned i = 0; i < vhost->batch_count; i++)
        vring_finish(ring, vhost->batch_head[i], 0);
    vhost->batch_count = 0;
    vhost->uncalled_bytes += vhost->batch_bytes;
}

/* ---- to the guest ---- */

/* Takes chains until they hold `wanted` bytes, or until one has, where the guest does not merge buffers. */
static int chains_take(struct link_vhost *vhost, struct vhost_reservation *reservation, size_t wanted,
                       size_t *ret_bytes)
{
    struct vring *ring = &vhost->ring[RECEIVEQ];
    struct vring_pieces pieces = {
        .iov = vhost->piece, .guest_addr = vhost->piece_guest_addr, .count = vhost->piece_count, .max = LINK_PIECES};
    int err = 0;

    while (pieces.bytes < wanted) {
        size_t before = pieces.bytes;

        if (!vring_waiting(ring)) {
            err = -EAGAIN;
            break;
        }
        if (vhost->chain_count == VHOST_CHAINS_MAX ||
            vring_take(ring, &pieces, &vhost->chain_head[vhost->chain_count])) {
            err = -ENOBUFS;
            break;
        }
        vhost->chain_bytes[vhost->chain_count++] = (uint32_t)(pieces.bytes - before);
        if (!link_vhost_feature(vhost, VIRTIO_NET_F_MRG_RXBUF))
            break;
    }
    reservation->chain_count = vhost->chain_count - reservation->first_chain;
    reservation->piece_count = pieces.count - reservation->first_piece;
    vhost->piece_count = pieces.count;
    *ret_bytes = pieces.bytes;
    return ring->fault == VRING_FAULT_none ? err : -EAGAIN;
}

static void chains_untake(struct link_vhost *vhost, unsigned first_chain, unsigned first_piece)
{
    vring_untake(&vhost->ring[RECEIVEQ], vhost->chain_count - first_chain);
    vhost->chain_count = first_chain;
    vhost->piece_count = first_piece;
}

/* Splits the pieces of a reservation into the frame's headers and its payload. */
static bool pieces_split(const struct link_vhost *vhost, const struct vhost_reservation *reservation, size_t header,
                         size_t payload, struct payload_pieces *pieces, struct guest_room *room)
{
    size_t skip = NET_HEADER;

    room->header_count = 0;
    for (unsigned i = 0; i < reservation->piece_count && (header || payload); i++) {
        struct iovec piece = vhost->piece[reservation->first_piece + i];

        size_t skipped = skip < piece.iov_len ? skip : piece.iov_len;
        piece.iov_base = (uint8_t *)piece.iov_base + skipped;
        piece.iov_len -= skipped;
        skip -= skipped;
        if (header && piece.iov_len) {
            size_t part = header < piece.iov_len ? header : piece.iov_len;
            if (room->header_count == LINK_HEADER_PIECES)
                return false;
            room->header[room->header_count++] = (struct iovec){piece.iov_base, part};
            piece.iov_base = (uint8_t *)piece.iov_base + part;
            piece.iov_len -= part;
            header -= part;
        }
        if (payload && piece.iov_len) {
            size_t part = payload < piece.iov_len ? payload : piece.iov_len;
            if (pieces->count == LINK_PIECES)
                return false;
            pieces->iov[pieces->count++] = (struct iovec){piece.iov_base, part};
            payload -= part;
        }
    }
    return true;
}

static int vhost_reserve(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                         struct guest_room *ret_room)
{
    struct link_vhost *vhost = vhost_of(link);
    size_t frame = header + payload < FRAME_BYTES_MIN ? FRAME_BYTES_MIN : header + payload;
    size_t bytes;
    unsigned payload_count = pieces ? pieces->count : 0;
    int err;

    if (!vring_usable(&vhost->ring[RECEIVEQ]))
        return -ENOTCONN;
    if (vhost->reserved_first == vhost->reserved_end) {
        vhost->reserved_first = vhost->reserved_end = 0;
        vhost->chain_count = vhost->piece_count = 0;
    }
    if (vhost->reserved_end == VHOST_RESERVED_MAX)
        return -ENOBUFS;

    struct vhost_reservation *reservation = &vhost->reserved[vhost->reserved_end];
    *reservation = (struct vhost_reservation){.first_chain = vhost->chain_count, .first_piece = vhost->piece_count};
    err = chains_take(vhost, reservation, NET_HEADER + frame, &bytes);
    fault_report(vhost, RECEIVEQ); /* also when what came before the fault suffices: nobody looks at this ring again */
    if (bytes < NET_HEADER + (header + !!payload < FRAME_BYTES_MIN ? FRAME_BYTES_MIN : header + !!payload)) {
        chains_untake(vhost, reservation->first_chain, reservation->first_piece);
        if (!err) /* one buffer that does not hold even this: no later one need be larger, but the guest chose it */
            vhost->counters[C_drop_length]++;
        return err == -ENOBUFS && vhost->reserved_end ? -ENOBUFS : -EAGAIN;
    }
    if (payload > bytes - NET_HEADER - header)
        payload = bytes - NET_HEADER - header;
    ret_room->payload = payload;
    if (!pieces_split(vhost, reservation, header, payload, pieces, ret_room)) {
        if (pieces)
            pieces->count = payload_count;
        chains_untake(vhost, reservation->first_chain, reservation->first_piece);
        return vhost->reserved_end ? -ENOBUFS : -EAGAIN;
    }
    vhost->reserved_end++;
    return 0;
}

static void vhost_rollback(struct link *link)
{
    struct link_vhost *vhost = vhost_of(link);

    if (vhost->reserved_first == vhost->reserved_end)
        return;
    const struct vhost_reservation *oldest = &vhost->reserved[vhost->reserved_first];
    chains_untake(vhost, oldest->first_chain, oldest->first_piece);
    vhost->reserved_end = vhost->reserved_first;
}

static void pieces_log(struct link_vhost *vhost, const struct vhost_reservation *reservation, size_t written)
{
    for (unsigned i = reservation->first_piece; written; i++) {
        size_t part = vhost->piece[i].iov_len < written ? vhost->piece[i].iov_len : written;
        dirty_log_mark(&vhost->log, vhost->piece_guest_addr[i], part);
        written -= part;
    }
}

static void pcap_committed(struct link_vhost *vhost, const struct vhost_reservation *reservation, size_t length)
{
    struct iovec iov[LINK_PIECES];

    memcpy(iov, &vhost->piece[reservation->first_piece], reservation->piece_count * sizeof(iov[0]));
    unsigned gone = pieces_skip(iov, reservation->piece_count, NET_HEADER);
    pcap_ring_put(vhost->pcap, iov + gone, reservation->piece_count - gone, (uint32_t)length, true);
}

static void vhost_commit(struct link *link, size_t length, const struct offload *offload)
{
    static const uint8_t zeros[FRAME_BYTES_MIN];
    struct link_vhost *vhost = vhost_of(link);
    const struct vhost_reservation *reservation = &vhost->reserved[vhost->reserved_first++];
    const struct iovec *piece = &vhost->piece[reservation->first_piece];
    struct net_header header = net_header_of(offload);

    if (vhost->pcap->on)
        pcap_committed(vhost, reservation, length);
    vhost->counters[C_frames_to_guest]++;
    vhost->counters[C_bytes_to_guest] += length;
    if (length < FRAME_BYTES_MIN) {
        pieces_write(piece, NET_HEADER + length, zeros, FRAME_BYTES_MIN - length);
        length = FRAME_BYTES_MIN;
    }

    size_t left = NET_HEADER + length;
    unsigned end = reservation->first_chain + reservation->chain_count;
    for (unsigned i = reservation->first_chain; i < end && left; i++) {
        uint32_t part = vhost->chain_bytes[i] < left ? vhost->chain_bytes[i] : (uint32_t)left;
        vring_finish(&vhost->ring[RECEIVEQ], vhost->chain_head[i], part);
        left -= part;
        header.num_buffers++;
    }
    pieces_write(piece, 0, &header, sizeof(header));
    if (vhost->log.table && link_vhost_feature(vhost, VHOST_F_LOG_ALL))
        pieces_log(vhost, reservation, NET_HEADER + length);

    unsigned used = reservation->first_chain + header.num_buffers;
    if (used < end) {
        chains_untake(vhost, used, vhost->piece_count);
        vhost->reserved_end = vhost->reserved_first;
    }
}

static void call(struct link_vhost *vhost, unsigned queue)
{
    vhost->counters[C_calls]++;
    vring_call(&vhost->ring[queue]);
}

/* True: the guest has something new to look at. */
static bool flush_receiveq(struct link_vhost *vhost)
{
    struct vring *ring = &vhost->ring[RECEIVEQ];

    if (!ring->desc || !vring_publish(ring))
        return false;
    if (vring_wants_call(ring))
        call(vhost, RECEIVEQ);
    else
        vring_called(ring);
    return true;
}

/* Whether the guest's interrupt for the buffers that it has back may wait: it looks anyway, or they are small change.
 * Never while a good part of its ring could hang on it; a frame takes up to 18 descriptors where they are not indirect. */
static bool call_may_wait(const struct link_vhost *vhost, bool guest_looks)
{
    const struct vring *ring = &vhost->ring[TRANSMITQ];
    unsigned most = ring->indirect ? ring->size / 2 : ring->size / 64;

    return vring_uncalled(ring) < most && (guest_looks || vhost->uncalled_bytes <= VHOST_CALL_BYTES_MAX);
}

static void flush_transmitq(struct link_vhost *vhost, bool guest_looks, uint64_t now_ms)
{
    struct vring *ring = &vhost->ring[TRANSMITQ];
    bool news = ring->desc && vring_publish(ring);
    bool lonely = news && now_ms - vhost->heard_ms > VHOST_CALL_QUIET_MS;

    if (news)
        vhost->heard_ms = now_ms;
    if (ring->desc && vring_wants_call(ring)) { /* most guests no longer do when the time has come */
        if (!lonely && now_ms < vhost->link.flush_ms && (!news || call_may_wait(vhost, guest_looks))) {
            if (vhost->link.flush_ms == UINT64_MAX)
                vhost->link.flush_ms = now_ms + VHOST_CALL_DELAY_MS;
            return;
        }
        call(vhost, TRANSMITQ);
    }
    if (ring->desc)
        vring_called(ring);
    vhost->uncalled_bytes = 0;
    vhost->link.flush_ms = UINT64_MAX;
}

/* Sixteen probes of sixteen windows bring sixteen answers, tens of microseconds apart: a kick each, if nobody asks the
 * guest for one kick once all are there. The same of a stream of datagrams, where the kick is a good part of what each
 * costs the guest, and the wake-up most of what it costs us. Should it have less to say, we look after a while. */
static void ask_late_kick(struct link_vhost *vhost, uint64_t now_ms)
{
    struct vring *ring = &vhost->ring[TRANSMITQ];
    struct link *link = &vhost->link;
    unsigned chains = link->answers > 1 ? link->answers : link->expected;
    uint64_t look_ms = now_ms + (link->answers > 1 ? VHOST_ANSWERS_MS : VHOST_EXPECTED_MS);

    if (chains && vring_usable(ring) && vring_ask_kick_after(ring, chains) && look_ms < link->look_ms)
        link->look_ms = look_ms; /* what was put off before is not put off again */
    link->answers = 0;
}

static void vhost_flush(struct link *link, uint64_t now_ms)
{
    struct link_vhost *vhost = vhost_of(link);

    ask_late_kick(vhost, now_ms); /* before the guest sees the questions */
    bool guest_looks = flush_receiveq(vhost);

    flush_transmitq(vhost, guest_looks, now_ms);
    if (vhost->log.dirtied) {
        vhost->log.dirtied = false;
        if (vhost->log.event_fd >= 0)
            sys_eventfd_signal(vhost->log.event_fd);
    }
    pcap_ring_flush(vhost->pcap);
}

static bool vhost_wait_room(struct link *link)
{
    struct link_vhost *vhost = vhost_of(link);
    struct vring *ring = &vhost->ring[RECEIVEQ];

    if (!vring_usable(ring))
        return true; /* the room event is then the ring's start */
    bool more = vring_ask_kick(ring);
    fault_report(vhost, RECEIVEQ);
    return !more;
}

const struct link_operations link_vhost_operations = {
    .from_guest = vhost_from_guest,
    .release = vhost_release,
    .reserve = vhost_reserve,
    .commit = vhost_commit,
    .rollback = vhost_rollback,
    .flush = vhost_flush,
    .wait_room = vhost_wait_room,
};
