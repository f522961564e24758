/* SPDX-License-Identifier: Apache-2.0
 *
 * ranges.h: a short sorted list of disjoint ranges of sequence numbers: what the guest has sent ahead of a gap, and what
 * it says (SACK, RFC 2018) to have received behind one. Pure state: no flow, no clock, no memory of its own.
 *
 * All numbers of one list lie within 2^31 of each other, so that they can be ordered (RFC 9293, 3.4).
 */
#ifndef LOCKGATE_RANGES_H
#define LOCKGATE_RANGES_H

#include <stdbool.h>
#include <stdint.h>

enum ranges_limits {
    /* A burst of losses makes a gap each. More than 16 at once are a link that is past saving by any list, and an
     * adversary gets nothing from making more: what finds no place is simply sent again. */
    RANGES_MAX = 16,
};

struct range {
    uint32_t start, end; /* start <= x < end */
};

struct ranges {
    unsigned count;
    struct range range[RANGES_MAX];
};

static inline bool seq_before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static inline bool seq_after(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) > 0;
}

/* Adds start <= x < end, joined with what it touches. False: it would be more than `most` ranges, and nothing was added. */
bool ranges_add(struct ranges *ranges, uint32_t start, uint32_t end, unsigned most);

/* Forgets all before seq. */
void ranges_drop_before(struct ranges *ranges, uint32_t seq);

/* The end of the range that holds seq; seq itself if none does. */
uint32_t ranges_end_of(const struct ranges *ranges, uint32_t seq);

/* The first gap at or behind `from` that a range ends. False: there is none. */
bool ranges_gap(const struct ranges *ranges, uint32_t from, struct range *ret_gap);

uint32_t ranges_bytes(const struct ranges *ranges);

#endif
