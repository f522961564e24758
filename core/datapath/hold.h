/* SPDX-License-Identifier: Apache-2.0
 *
 * hold.h: bytes from the guest that the peer's kernel has not taken yet, and that are not acknowledged: the rest of a
 * short send, and segments that came ahead of a lost one.
 *
 * Much comes ahead of a gap where nothing is lost: frames that reach a bridge network's tap device by two processors' queues
 * overtake each other by a mebibyte. What is dropped then looks like loss to the guest, which waits for its timer at last.
 *
 * Adversary: the guest, which can leave a gap in every flow it has. Holds are few, and few of them large; a flow that finds
 * none drops such segments, which the guest then sends again, as it would to any receiver without a queue.
 */
#ifndef LOCKGATE_HOLD_H
#define LOCKGATE_HOLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ranges.h"

enum hold_limits {
    HOLD_BYTES = 256 << 10, /* of sequence space behind what the kernel has; a power of two */
    HOLDS = 64,             /* 16 MiB in all */

    HOLD_BYTES_LARGE = 2 << 20, /* the same of one that has grown */
    HOLDS_LARGE = 8,            /* further 16 MiB, which the kernel may have back */
};

struct hold {
    struct ranges ranges;
    uint32_t recent; /* a sequence number in the range that grew last: SACK reports it first (RFC 2018, 4) */
    uint8_t *bytes;  /* the byte of sequence number s lies at s % room */
    uint32_t room;   /* HOLD_BYTES, or HOLD_BYTES_LARGE */
};

struct hold_pool {
    uint8_t *memory;           /* reserved, filled by the kernel as it is used: the holds', then the large ones' */
    uint64_t used, used_large; /* a bit for each */
    struct hold hold[HOLDS];
};

int hold_pool_init(struct hold_pool *pool); /* 0 or -ENOMEM */
void hold_pool_free(struct hold_pool *pool);

struct hold *hold_take(struct hold_pool *pool); /* NULL: all are in use */
void hold_give(struct hold_pool *pool, struct hold *hold);

/* Stores what of the bytes at `seq` fits behind `base`, the first number that the kernel lacks; the hold grows for it where
 * one may. False: not all did, or nothing, where there are too many gaps; but what lies at `base` always does. */
bool hold_put(struct hold_pool *pool, struct hold *hold, uint32_t base, uint32_t seq, const struct iovec *iov,
              unsigned count);

/* The bytes that are there from `seq` on, as one or two pieces; 0: there are none. */
unsigned hold_pieces(const struct hold *hold, uint32_t seq, struct iovec iov[2]);

#endif
