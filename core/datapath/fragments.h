/* SPDX-License-Identifier: Apache-2.0
 *
 * fragments.h: packets that the guest sends in pieces (RFC 791, 3.2; RFC 8200, 4.5), kept until they are whole.
 *
 * Adversary: the guest, which can begin packets and never end them, and send pieces that overlap, lie about the size, or
 * come again. So there are only so many places, each for the largest packet that there is; a packet whose pieces overlap is
 * given up with all that still comes of it (RFC 5722); one that does not become whole in time goes, and so does the oldest
 * where a new one needs its place. A packet that is given up is lost, as on any wire.
 */
#ifndef LOCKGATE_FRAGMENTS_H
#define LOCKGATE_FRAGMENTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "counters.h"
#include "link.h"
#include "list.h"
#include "packet.h"
#include "timer.h"

enum fragments_limits {
    /* A guest sends the pieces of a packet in a row, and of as many packets as it has processors at once. */
    FRAGMENTED_MAX = 64,        /* packets at a time: 4 MiB */
    FRAGMENTED_PER_SOURCE = 32, /* of one address, so that others find places, whatever it does */
    FRAGMENTED_BYTES = 65536,   /* of what IP carries */
    /* Linux' own (net.ipv4.ipfrag_time): what has not come over a wire without a length by then was lost. */
    FRAGMENTED_TIMEOUT_MS = 30000,
    FRAGMENT_UNIT = 8, /* all pieces but the last are a multiple of it long */
    FRAGMENT_WORDS = FRAGMENTED_BYTES / FRAGMENT_UNIT / 64,
};

/* One packet, of which some or all pieces are there. */
struct fragmented {
    address source, destination;
    uint32_t identification;
    uint8_t protocol;                /* of IPv6, where it is no part of what tells packets apart, 0 */
    bool begun;                      /* the first piece is there, and with it the head */
    bool spoiled;                    /* nothing of it is wanted any more */
    uint32_t bytes_here, end, total; /* the end of what lies furthest; 0: the last piece has not come */
    uint64_t since_ms;
    struct node age;
    struct packet first; /* what the head of the first piece says */
    struct guest_frame frame;
    struct iovec iov[2];
    uint64_t here[FRAGMENT_WORDS];   /* a bit for each unit */
    uint64_t starts[FRAGMENT_WORDS]; /* a bit where a piece begins: tells one that comes again from one that overlaps */
    uint8_t bytes[FRAGMENTED_BYTES];
};

struct fragments {
    struct fragmented *place; /* reserved, filled by the kernel as it is used */
    uint64_t used, whole;     /* a bit for each place */
    struct list by_age;       /* those that are not whole, the oldest first */
    struct timer timer;       /* armed by whoever has the wheel, while any are */
    uint64_t *counters;
};

int fragments_init(struct fragments *fragments, uint64_t *counters); /* 0 or -ENOMEM */
void fragments_free(struct fragments *fragments);

/* Takes a fragment, as packet_parse() has read it. The whole packet, as if it had come in one frame, if this was what it
 * lacked; it is valid until fragments_release(). NULL: not yet, or never. */
const struct guest_frame *fragments_take(struct fragments *fragments, const struct guest_frame *frame,
                                         const struct packet *packet, uint64_t now_ms);

/* Nobody uses the packets that have become whole any more. */
void fragments_release(struct fragments *fragments);

/* When fragments_late() must be asked again; UINT64_MAX: nothing is kept. */
uint64_t fragments_next_ms(const struct fragments *fragments);

/* A packet that has waited for too long, to be given to fragments_drop(); NULL: none. */
struct fragmented *fragments_late(struct fragments *fragments, uint64_t now_ms);
void fragments_drop(struct fragments *fragments, struct fragmented *packet);

#endif
