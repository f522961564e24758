/* SPDX-License-Identifier: Apache-2.0
 *
 * ranges.c: the list of ranges.h. It is short: all walks are linear, and hardly ever longer than two or three.
 */
#include "ranges.h"

#include <string.h>

bool ranges_add(struct ranges *ranges, uint32_t start, uint32_t end, unsigned most)
{
    struct range *range = ranges->range;
    unsigned first = 0, last;

    while (first < ranges->count && seq_before(range[first].end, start))
        first++;
    for (last = first; last < ranges->count && !seq_after(range[last].start, end); last++) {
        /* it touches this one: they become one */
        if (seq_before(range[last].start, start))
            start = range[last].start;
        if (seq_after(range[last].end, end))
            end = range[last].end;
    }
    if (first == last) {
        if (ranges->count >= most)
            return false;
        memmove(&range[first + 1], &range[first], (ranges->count - first) * sizeof(*range));
        ranges->count++;
    } else {
        memmove(&range[first + 1], &range[last], (ranges->count - last) * sizeof(*range));
        ranges->count -= last - first - 1;
    }
    range[first] = (struct range){start, end};
    return true;
}

void ranges_drop_before(struct ranges *ranges, uint32_t seq)
{
    unsigned gone = 0;

    while (gone < ranges->count && !seq_after(ranges->range[gone].end, seq))
        gone++;
    ranges->count -= gone;
    memmove(ranges->range, ranges->range + gone, ranges->count * sizeof(*ranges->range));
    if (ranges->count && seq_before(ranges->range[0].start, seq))
        ranges->range[0].start = seq;
}

uint32_t ranges_end_of(const struct ranges *ranges, uint32_t seq)
{
    for (unsigned i = 0; i < ranges->count; i++) {
        if (!seq_after(ranges->range[i].start, seq) && seq_after(ranges->range[i].end, seq))
            return ranges->range[i].end;
    }
    return seq;
}

bool ranges_gap(const struct ranges *ranges, uint32_t from, struct range *ret_gap)
{
    from = ranges_end_of(ranges, from);
    for (unsigned i = 0; i < ranges->count; i++) {
        if (seq_after(ranges->range[i].start, from)) {
            *ret_gap = (struct range){from, ranges->range[i].start};
            return true;
        }
    }
    return false;
}

uint32_t ranges_bytes(const struct ranges *ranges)
{
    uint32_t bytes = 0;

    for (unsigned i = 0; i < ranges->count; i++)
        bytes += ranges->range[i].end - ranges->range[i].start;
    return bytes;
}
