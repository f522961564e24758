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

int hold_pool_init(struct hold_pool *pool)
{
    void *memory = mmap(NULL, (size_t)HOLDS * HOLD_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return -ENOMEM;
    pool->memory = memory;
    pool->used = 0;
    return 0;
}

void hold_pool_free(struct hold_pool *pool)
{
    if (pool->memory)
        munmap(pool->memory, (size_t)HOLDS * HOLD_BYTES);
    pool->memory = NULL;
}

struct hold *hold_take(struct hold_pool *pool)
{
    if (pool->used == UINT64_MAX)
        return NULL;
    unsigned index = (unsigned)__builtin_ctzll(~pool->used);
    struct hold *hold = &pool->hold[index];

    pool->used |= UINT64_C(1) << index; /* the lowest that is free: few are ever touched */
    *hold = (struct hold){.bytes = pool->memory + (size_t)index * HOLD_BYTES};
    return hold;
}

void hold_give(struct hold_pool *pool, struct hold *hold)
{
    pool->used &= ~(UINT64_C(1) << (hold - pool->hold));
}

static void store(struct hold *hold, uint32_t seq, const uint8_t *bytes, size_t length)
{
    size_t at = seq % HOLD_BYTES;
    size_t first = HOLD_BYTES - at < length ? HOLD_BYTES - at : length;

    memcpy(hold->bytes + at, bytes, first);
    memcpy(hold->bytes, bytes + first, length - first);
}

bool hold_put(struct hold *hold, uint32_t base, uint32_t seq, const struct iovec *iov, unsigned count)
{
    uint32_t start = seq, room = base + HOLD_BYTES - seq;
    bool all = true;

    if (seq_after(seq, base + HOLD_BYTES))
        return false;
    for (unsigned i = 0; i < count && all; i++) {
        size_t part = iov[i].iov_len;
        if (part > room) {
            part = room;
            all = false;
        }
        store(hold, seq, iov[i].iov_base, part);
        seq += (uint32_t)part;
        room -= (uint32_t)part;
    }
    if (seq == start)
        return all;
    if (!ranges_add(&hold->ranges, start, seq))
        return false;
    hold->recent = start;
    return all;
}

unsigned hold_pieces(const struct hold *hold, uint32_t seq, struct iovec iov[2])
{
    size_t length = ranges_end_of(&hold->ranges, seq) - seq;
    size_t at = seq % HOLD_BYTES;
    size_t first = HOLD_BYTES - at < length ? HOLD_BYTES - at : length;

    if (!length)
        return 0;
    iov[0] = (struct iovec){hold->bytes + at, first};
    iov[1] = (struct iovec){hold->bytes, length - first};
    return first < length ? 2 : 1;
}
