/* SPDX-License-Identifier: Apache-2.0
 *
 * hold.c: the buffers of hold.h. Each is a ring indexed by sequence number, so that a gap needs no bookkeeping but its
 * ranges, and moving on costs nothing.
 */
#include "hold.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

_Static_assert(HOLDS == 64, "a bit of hold_pool.used for each");
_Static_assert(HOLDS_LARGE < 64, "a bit of hold_pool.used_large for each");

enum {
    LARGE_FROM = HOLDS * HOLD_BYTES,
    POOL_BYTES = LARGE_FROM + HOLDS_LARGE * HOLD_BYTES_LARGE,
};

int hold_pool_init(struct hold_pool *pool)
{
    void *memory = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return -ENOMEM;
    pool->memory = memory;
    pool->used = pool->used_large = 0;
    return 0;
}

void hold_pool_free(struct hold_pool *pool)
{
    if (pool->memory)
        munmap(pool->memory, POOL_BYTES);
    pool->memory = NULL;
}

/* The lowest that is free: few are ever touched. */
static bool take_bit(uint64_t *used, unsigned of, unsigned *ret_index)
{
    if (~*used == 0)
        return false;
    *ret_index = (unsigned)__builtin_ctzll(~*used);
    if (*ret_index >= of)
        return false;
    *used |= UINT64_C(1) << *ret_index;
    return true;
}

struct hold *hold_take(struct hold_pool *pool)
{
    unsigned index;

    if (!take_bit(&pool->used, HOLDS, &index))
        return NULL;
    pool->hold[index] = (struct hold){.bytes = pool->memory + (size_t)index * HOLD_BYTES, .room = HOLD_BYTES};
    return &pool->hold[index];
}

void hold_give(struct hold_pool *pool, struct hold *hold)
{
    pool->used &= ~(UINT64_C(1) << (hold - pool->hold));
    if (hold->room == HOLD_BYTES)
        return;
    pool->used_large &= ~(UINT64_C(1) << ((size_t)(hold->bytes - pool->memory - LARGE_FROM) / HOLD_BYTES_LARGE));
    madvise(hold->bytes, HOLD_BYTES_LARGE, MADV_FREE); /* only where memory is short: the next gap may come at once */
}

/* Where the byte of a sequence number lies, and how many of `length` lie there in one piece. */
static uint8_t *place_of(const struct hold *hold, uint32_t seq, size_t length, size_t *ret_first)
{
    size_t at = seq % hold->room;

    *ret_first = hold->room - at < length ? hold->room - at : length;
    return hold->bytes + at;
}

static void store(struct hold *hold, uint32_t seq, const uint8_t *bytes, size_t length)
{
    size_t first;
    uint8_t *place = place_of(hold, seq, length, &first);

    memcpy(place, bytes, first);
    memcpy(hold->bytes, bytes + first, length - first);
}

static void grow(struct hold_pool *pool, struct hold *hold)
{
    const struct hold before = *hold;
    unsigned index;

    if (!take_bit(&pool->used_large, HOLDS_LARGE, &index))
        return;
    hold->bytes = pool->memory + LARGE_FROM + (size_t)index * HOLD_BYTES_LARGE;
    hold->room = HOLD_BYTES_LARGE;
    for (unsigned i = 0; i < before.ranges.count; i++) {
        const struct range *range = &before.ranges.range[i];
        size_t length = range->end - range->start, first;
        const uint8_t *place = place_of(&before, range->start, length, &first);

        store(hold, range->start, place, first);
        store(hold, range->start + (uint32_t)first, before.bytes, length - first);
    }
}

bool hold_put(struct hold_pool *pool, struct hold *hold, uint32_t base, uint32_t seq, const struct iovec *iov,
              unsigned count)
{
    uint32_t start = seq, length = 0;

    for (unsigned i = 0; i < count; i++)
        length += (uint32_t)iov[i].iov_len;
    if (seq_after(seq + length, base + hold->room) && hold->room == HOLD_BYTES)
        grow(pool, hold);
    if (seq_after(seq, base + hold->room))
        return false;

    uint32_t room = base + hold->room - seq, left = length < room ? length : room;
    bool all = left == length;
    for (unsigned i = 0; left; i++) {
        uint32_t part = iov[i].iov_len < left ? (uint32_t)iov[i].iov_len : left;
        store(hold, seq, iov[i].iov_base, part);
        seq += part;
        left -= part;
    }
    if (seq == start)
        return all;
    /* One range is kept for what comes next: had all been taken by what came ahead, nothing could end the gap before. */
    if (!ranges_add(&hold->ranges, start, seq, start == base ? RANGES_MAX : RANGES_MAX - 1))
        return false;
    hold->recent = start;
    return all;
}

unsigned hold_pieces(const struct hold *hold, uint32_t seq, struct iovec iov[2])
{
    size_t length = ranges_end_of(&hold->ranges, seq) - seq, first;
    uint8_t *place = place_of(hold, seq, length, &first);

    if (!length)
        return 0;
    iov[0] = (struct iovec){place, first};
    iov[1] = (struct iovec){hold->bytes, length - first};
    return first < length ? 2 : 1;
}
