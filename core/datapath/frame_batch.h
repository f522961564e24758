/* SPDX-License-Identifier: Apache-2.0
 *
 * frame_batch.h: frames for the guest between reserve() and commit() of a link that keeps none: one behind the other in a
 * buffer, each behind the bytes that its link puts before it. Once all are committed or given back, it begins anew.
 */
#ifndef LOCKGATE_FRAME_BATCH_H
#define LOCKGATE_FRAME_BATCH_H

#include <errno.h>

#include "link.h"
#include "pages.h"

enum frame_batch_limits {
    FRAME_BATCH_BYTES = 2 << 20, /* reserved at once: what one turn of a flow commits (TCP_BUDGET_BYTES) */
    FRAME_BATCH_MAX = 64,        /* frames */
};

struct frame_batch {
    uint8_t *bytes;
    size_t used;
    uint8_t *reserved[FRAME_BATCH_MAX]; /* where each begins, with its prefix; oldest first */
    unsigned reserved_first, reserved_end;
};

/* 0 or -ENOMEM; costs nothing until it is used. */
static inline int frame_batch_init(struct frame_batch *batch)
{
    *batch = (struct frame_batch){.bytes = pages_reserve(FRAME_BATCH_BYTES)};
    return batch->bytes ? 0 : -ENOMEM;
}

/* Gives back all reservations. */
static inline void frame_batch_rollback(struct frame_batch *batch)
{
    batch->reserved_end = batch->reserved_first;
}

/* As link_operations.reserve. */
static inline int frame_batch_reserve(struct frame_batch *batch, size_t prefix, size_t header, size_t payload,
                                      struct payload_pieces *pieces, struct guest_room *ret_room)
{
    size_t bytes = prefix + header + payload;

    if (batch->reserved_first == batch->reserved_end)
        batch->reserved_first = batch->reserved_end = batch->used = 0;
    if (batch->reserved_end == FRAME_BATCH_MAX || bytes > FRAME_BATCH_BYTES - batch->used ||
        (pieces && payload && pieces->count == LINK_PIECES))
        return -ENOBUFS;

    uint8_t *at = batch->bytes + batch->used;
    batch->reserved[batch->reserved_end++] = at;
    batch->used += bytes;
    ret_room->header[0] = (struct iovec){at + prefix, header};
    ret_room->header_count = 1;
    ret_room->payload = payload;
    if (payload)
        pieces->iov[pieces->count++] = (struct iovec){at + prefix + header, payload};
    return 0;
}

/* Takes the oldest reservation. Returns where its prefix goes. */
static inline uint8_t *frame_batch_commit(struct frame_batch *batch)
{
    return batch->reserved[batch->reserved_first++];
}

#endif
