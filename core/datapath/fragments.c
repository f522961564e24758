/* SPDX-License-Identifier: Apache-2.0
 *
 * fragments.c: the places of fragments.h. What is there of a packet is a bit for each unit of 8 bytes: no number or order
 * of pieces takes more room or time than another, and an overlap shows in the same look.
 */
#include "fragments.h"

#include <errno.h>
#include <string.h>

#include "pages.h"
#include "pieces.h"

_Static_assert(FRAGMENTED_MAX == 64, "a bit of fragments.used for each");
/* Each frame of a batch makes one packet whole at most, and those stay until its end. */
_Static_assert((int)FRAGMENTED_MAX >= (int)LINK_BATCH, "there is always a place that is free, or whose packet can go");

int fragments_init(struct fragments *fragments, uint64_t *counters)
{
    *fragments = (struct fragments){.counters = counters};
    list_init(&fragments->by_age);
    fragments->place = pages_reserve(FRAGMENTED_MAX * sizeof(struct fragmented));
    return fragments->place ? 0 : -ENOMEM;
}

void fragments_free(struct fragments *fragments)
{
    pages_free(fragments->place, FRAGMENTED_MAX * sizeof(struct fragmented));
    fragments->place = NULL;
}

/* ---- units ---- */

/* The bits of units `from` to `to` that lie in word `word`. */
static uint64_t bits_of(unsigned word, unsigned from, unsigned to)
{
    unsigned first = word * 64, end = first + 64;
    uint64_t above = from > first ? UINT64_MAX << (from - first) : UINT64_MAX;
    uint64_t below = to < end ? (UINT64_C(1) << (to - first)) - 1 : UINT64_MAX;

    return above & below;
}

static bool any(const uint64_t *map, unsigned from, unsigned to)
{
    for (unsigned word = from / 64; word * 64 < to; word++) {
        if (map[word] & bits_of(word, from, to))
            return true;
    }
    return false;
}

static void set(uint64_t *map, unsigned from, unsigned to)
{
    for (unsigned word = from / 64; word * 64 < to; word++)
        map[word] |= bits_of(word, from, to);
}

/* ---- places ---- */

static uint64_t bit_of(const struct fragments *fragments, const struct fragmented *packet)
{
    return UINT64_C(1) << (packet - fragments->place);
}

static struct fragmented *find(struct fragments *fragments, const struct packet *piece)
{
    for (uint64_t left = fragments->used & ~fragments->whole; left; left &= left - 1) {
        struct fragmented *packet = &fragments->place[__builtin_ctzll(left)];
        if (packet->identification == piece->fragment.identification &&
            packet->protocol == (piece->ipv6 ? 0 : piece->protocol) && address_equal(&packet->source, &piece->source) &&
            address_equal(&packet->destination, &piece->destination))
            return packet;
    }
    return NULL;
}

void fragments_drop(struct fragments *fragments, struct fragmented *packet)
{
    node_leave(&packet->age);
    fragments->used &= ~bit_of(fragments, packet);
}

static void evict(struct fragments *fragments, struct fragmented *packet)
{
    if (!packet->spoiled)
        fragments->counters[C_fragments_evicted]++;
    fragments_drop(fragments, packet);
}

static struct fragmented *oldest(struct fragments *fragments)
{
    return list_empty(&fragments->by_age) ? NULL : container_of(fragments->by_age.head.next, struct fragmented, age);
}

static void make_room(struct fragments *fragments, const address *source)
{
    struct fragmented *oldest_of_source = NULL;
    unsigned of_source = 0;

    for (struct node *node = fragments->by_age.head.next; node != &fragments->by_age.head; node = node->next) {
        struct fragmented *packet = container_of(node, struct fragmented, age);
        if (!address_equal(&packet->source, source))
            continue;
        if (!of_source++)
            oldest_of_source = packet;
    }
    if (of_source >= FRAGMENTED_PER_SOURCE)
        evict(fragments, oldest_of_source);
    else if (fragments->used == UINT64_MAX)
        evict(fragments, oldest(fragments));
}

static struct fragmented *begin(struct fragments *fragments, const struct packet *piece, uint64_t now_ms)
{
    make_room(fragments, &piece->source);
    unsigned index = (unsigned)__builtin_ctzll(~fragments->used); /* the lowest: few are ever touched */
    struct fragmented *packet = &fragments->place[index];

    memset(packet, 0, offsetof(struct fragmented, bytes));
    packet->source = piece->source;
    packet->destination = piece->destination;
    packet->identification = piece->fragment.identification;
    packet->protocol = piece->ipv6 ? 0 : piece->protocol;
    packet->since_ms = now_ms;
    fragments->used |= UINT64_C(1) << index;
    list_append(&fragments->by_age, &packet->age);
    return packet;
}

/* ---- pieces ---- */

/* What holds for every piece by itself; one that is wrong is as good as lost. */
static bool is_sound(const struct guest_frame *frame, const struct packet *piece)
{
    uint32_t header = piece->ipv6 ? 0 : piece->l4_offset - ETHERNET_HEADER,
             end = piece->fragment.offset + piece->l4_length;

    return piece->l4_length && !(piece->fragment.more && piece->l4_length % FRAGMENT_UNIT) &&
           header + end <= IP_PAYLOAD_MAX && (piece->fragment.offset || packet_fragment_has_headers(frame, piece));
}

/* Whether its end agrees with what the other pieces say of the packet's. */
static bool ends_right(const struct fragmented *packet, const struct packet *piece, uint32_t end)
{
    if (packet->total)
        return piece->fragment.more ? end <= packet->total : end == packet->total;
    return piece->fragment.more || end >= packet->end;
}

/* Of the same first and last byte as one that is there: pieces that are there do not overlap. */
static bool is_duplicate(const struct fragmented *packet, unsigned from, unsigned to)
{
    bool ends_here =
        to * FRAGMENT_UNIT >= packet->end || !any(packet->here, to, to + 1) || any(packet->starts, to, to + 1);

    return any(packet->starts, from, from + 1) && any(packet->here, to - 1, to) && !any(packet->starts, from + 1, to) &&
           ends_here;
}

/* Puts a piece in its place. False: it is not wanted. */
static bool put(struct fragmented *packet, const struct guest_frame *frame, const struct packet *piece)
{
    uint32_t start = piece->fragment.offset, end = start + piece->l4_length;
    unsigned from = start / FRAGMENT_UNIT, to = (end + FRAGMENT_UNIT - 1) / FRAGMENT_UNIT;

    if (packet->spoiled)
        return false;
    if (!ends_right(packet, piece, end)) {
        packet->spoiled = true;
        return false;
    }
    if (any(packet->here, from, to)) {
        packet->spoiled = !is_duplicate(packet, from, to);
        return false;
    }
    set(packet->here, from, to);
    set(packet->starts, from, from + 1);
    pieces_read(frame->iov, frame->iov_count, piece->l4_offset, packet->bytes + start, piece->l4_length);
    packet->bytes_here += piece->l4_length;
    if (end > packet->end)
        packet->end = end;
    if (!piece->fragment.more)
        packet->total = end;
    if (!start) {
        packet->begun = true;
        packet->first = *piece;
        memcpy(packet->frame.head, frame->head, frame->head_length);
        packet->frame.head_length = frame->head_length;
    }
    return true;
}

/* The frame of all pieces, with the head of the first. NULL: it is longer than it can be. */
static const struct guest_frame *join(struct fragmented *packet)
{
    struct guest_frame *frame = &packet->frame;
    unsigned header = packet_write_whole(frame->head, &packet->first, packet->total);

    if (!header)
        return NULL;
    frame->length = header + packet->total;
    frame->head_length = frame->length < FRAME_HEAD_MAX ? (uint16_t)frame->length : FRAME_HEAD_MAX;
    memcpy(frame->head + header, packet->bytes, frame->head_length - header);
    packet->iov[0] = (struct iovec){frame->head, header};
    packet->iov[1] = (struct iovec){packet->bytes, packet->total};
    frame->iov = packet->iov;
    frame->iov_count = 2;
    frame->datagram = 0;
    return frame;
}

const struct guest_frame *fragments_take(struct fragments *fragments, const struct guest_frame *frame,
                                         const struct packet *piece, uint64_t now_ms)
{
    struct fragmented *packet = NULL;

    if (is_sound(frame, piece)) {
        packet = find(fragments, piece);
        if (!packet)
            packet = begin(fragments, piece, now_ms);
    }
    if (!packet || !put(packet, frame, piece)) {
        fragments->counters[C_drop_fragment]++;
        return NULL;
    }
    if (packet->bytes_here != packet->total)
        return NULL;
    const struct guest_frame *whole = join(packet);
    if (!whole) {
        fragments->counters[C_drop_fragment]++;
        fragments_drop(fragments, packet);
        return NULL;
    }
    fragments->counters[C_fragments_joined]++;
    node_leave(&packet->age);
    fragments->whole |= bit_of(fragments, packet);
    return whole;
}

void fragments_release(struct fragments *fragments)
{
    fragments->used &= ~fragments->whole;
    fragments->whole = 0;
}

/* ---- time ---- */

uint64_t fragments_next_ms(const struct fragments *fragments)
{
    if (list_empty(&fragments->by_age))
        return UINT64_MAX;
    return container_of(fragments->by_age.head.next, struct fragmented, age)->since_ms + FRAGMENTED_TIMEOUT_MS;
}

struct fragmented *fragments_late(struct fragments *fragments, uint64_t now_ms)
{
    return fragments_next_ms(fragments) <= now_ms ? oldest(fragments) : NULL;
}
