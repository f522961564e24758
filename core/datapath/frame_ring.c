/* SPDX-License-Identifier: Apache-2.0
 *
 * frame_ring.c: the ring of frame_ring.h. Adversary: nobody; what is in it is ours.
 */
#include "frame_ring.h"

#include <errno.h>
#include <string.h>

#include "pages.h"

int frame_ring_init(struct frame_ring *ring)
{
    *ring = (struct frame_ring){.bytes = pages_reserve(FRAME_RING_BYTES)};
    return ring->bytes ? 0 : -ENOMEM;
}

void frame_ring_clear(struct frame_ring *ring, size_t prefix)
{
    ring->start = ring->end = 0;
    ring->wrapped = false;
    ring->prefix = prefix;
    ring->reserved_first = ring->reserved_end = 0;
}

/* Where `bytes` fit behind the last reservation; false: nowhere for now. */
static bool find_room(const struct frame_ring *ring, size_t bytes, struct ring_reservation *ret_room)
{
    bool none = ring->reserved_first == ring->reserved_end;
    size_t tail = none ? ring->end : ring->reserved[ring->reserved_end - 1].end;
    bool wrapped = none ? ring->wrapped : ring->reserved[ring->reserved_end - 1].wrapped;

    if (!wrapped && bytes > FRAME_RING_BYTES - tail) {
        wrapped = true;
        tail = 0;
    }
    if (wrapped && (tail > ring->start || bytes > ring->start - tail))
        return false;
    *ret_room = (struct ring_reservation){.at = tail, .end = tail + bytes, .wrapped = wrapped};
    return true;
}

int frame_ring_reserve(struct frame_ring *ring, size_t header, size_t payload, struct payload_pieces *pieces,
                       struct guest_room *ret_room)
{
    size_t frame = header + payload < FRAME_BYTES_MIN ? FRAME_BYTES_MIN : header + payload;
    struct ring_reservation *reservation;

    if (ring->reserved_first == ring->reserved_end)
        ring->reserved_first = ring->reserved_end = 0;
    if (ring->reserved_end == FRAME_RING_RESERVED_MAX || (pieces && payload && pieces->count == LINK_PIECES))
        return -ENOBUFS;
    reservation = &ring->reserved[ring->reserved_end];
    if (!find_room(ring, ring->prefix + frame, reservation))
        return -EAGAIN;
    ring->reserved_end++;

    uint8_t *bytes = ring->bytes + reservation->at + ring->prefix;
    ret_room->header[0] = (struct iovec){bytes, header};
    ret_room->header_count = 1;
    ret_room->payload = payload;
    if (payload)
        pieces->iov[pieces->count++] = (struct iovec){bytes + header, payload};
    return 0;
}

void frame_ring_rollback(struct frame_ring *ring)
{
    ring->reserved_end = ring->reserved_first;
}

uint8_t *frame_ring_commit(struct frame_ring *ring, size_t *length)
{
    const struct ring_reservation *reservation = &ring->reserved[ring->reserved_first++];
    uint8_t *at = ring->bytes + reservation->at;

    if (reservation->wrapped && !ring->wrapped) {
        ring->wrapped = true;
        ring->wrap = ring->end;
    }
    if (*length < FRAME_BYTES_MIN) {
        memset(at + ring->prefix + *length, 0, FRAME_BYTES_MIN - *length);
        *length = FRAME_BYTES_MIN;
    }
    ring->end = reservation->at + ring->prefix + *length;
    if (ring->end < reservation->end)
        frame_ring_rollback(ring); /* the later ones do not follow upon this one any more */
    return at;
}

bool frame_ring_is_empty(const struct frame_ring *ring)
{
    return !ring->wrapped && ring->start == ring->end;
}

unsigned frame_ring_pieces(const struct frame_ring *ring, struct iovec ret_piece[2], size_t *ret_bytes)
{
    size_t first = (ring->wrapped ? ring->wrap : ring->end) - ring->start;

    ret_piece[0] = (struct iovec){ring->bytes + ring->start, first};
    ret_piece[1] = (struct iovec){ring->bytes, ring->end};
    *ret_bytes = first + (ring->wrapped ? ring->end : 0);
    return ring->wrapped ? 2 : 1;
}

void frame_ring_consume(struct frame_ring *ring, size_t bytes)
{
    size_t before_wrap = ring->wrap - ring->start;

    if (ring->wrapped && bytes >= before_wrap) {
        ring->wrapped = false;
        ring->start = bytes - before_wrap;
    } else {
        ring->start += bytes;
    }
    if (frame_ring_is_empty(ring))
        ring->start = ring->end = 0; /* as much room in one piece as there can be */
}
