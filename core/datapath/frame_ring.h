/* SPDX-License-Identifier: Apache-2.0
 *
 * frame_ring.h: frames for the guest between reserve() and the socket of a link without shared memory: a ring in which no
 * frame is cut in two, each behind the bytes that its link puts before it.
 */
#ifndef LOCKGATE_FRAME_RING_H
#define LOCKGATE_FRAME_RING_H

#include "link.h"

enum frame_ring_limits {
    /* What one turn of a flow commits (TCP_BUDGET_BYTES), and as much again behind a remainder that the socket did not
     * take. */
    FRAME_RING_BYTES = 2 << 20,
    FRAME_RING_RESERVED_MAX = 64, /* frames reserved at once */
};

struct ring_reservation {
    size_t at, end;
    bool wrapped; /* it lies before what was committed, at the ring's start */
};

/* Committed bytes lie in [start, end), or once wrapped in [start, wrap) and then [0, end). */
struct frame_ring {
    uint8_t *bytes;
    size_t start, end, wrap;
    bool wrapped;
    size_t prefix;                                             /* bytes before each frame */
    struct ring_reservation reserved[FRAME_RING_RESERVED_MAX]; /* oldest first */
    unsigned reserved_first, reserved_end;
};

int frame_ring_init(struct frame_ring *ring);                  /* 0 or -ENOMEM; costs nothing until it is used */
void frame_ring_clear(struct frame_ring *ring, size_t prefix); /* for a new connection */

/* As link_operations.reserve. */
int frame_ring_reserve(struct frame_ring *ring, size_t header, size_t payload, struct payload_pieces *pieces,
                       struct guest_room *ret_room);
void frame_ring_rollback(struct frame_ring *ring);

/* Commits the oldest reservation, padded to FRAME_BYTES_MIN, which changes *length. Returns where its prefix goes. */
uint8_t *frame_ring_commit(struct frame_ring *ring, size_t *length);

bool frame_ring_is_empty(const struct frame_ring *ring);

/* All that is committed, in order: one piece or two. How many, and how many bytes. */
unsigned frame_ring_pieces(const struct frame_ring *ring, struct iovec ret_piece[2], size_t *ret_bytes);

/* So much of it is gone. Only between two batches: no reservation is out. */
void frame_ring_consume(struct frame_ring *ring, size_t bytes);

#endif
