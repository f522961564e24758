/* SPDX-License-Identifier: Apache-2.0
 *
 * cut.h: packets to the guest that are larger than the frames which it takes, sent in pieces.
 *
 * Most guests take any frame, whatever their MTU: their receive buffers merge, or are large. An Ethernet card that a
 * monitor emulates drops what is longer than its MTU allows, and of a stream we do not know what is behind it.
 */
#ifndef LOCKGATE_CUT_H
#define LOCKGATE_CUT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct engine;
struct packet_path;

/* How far a packet has got: all zeros when it begins. It is kept while the link is full. */
struct cut {
    uint32_t done; /* bytes of what IP carries */
    uint32_t identification;
};

/* Whether so many bytes are more than an IP packet of the guest's MTU can carry. */
bool cut_exceeds_mtu(const struct engine *engine, const struct packet_path *path, uint32_t l4_length);

/* The same, of a guest that may not take them in one frame. */
bool cut_needed(const struct engine *engine, const struct packet_path *path, uint32_t l4_length);

/* Sends what IP carries, in pieces. 0; -EAGAIN: the link is full, to be called again; another error: it has no use. */
int cut_send(struct engine *engine, const struct packet_path *path, uint8_t protocol, uint8_t hops,
             const struct iovec *l4, unsigned count, uint32_t l4_length, struct cut *cut);

#endif
