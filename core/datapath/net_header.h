/* SPDX-License-Identifier: Apache-2.0
 *
 * net_header.h: the header of a frame with offloads, as virtqueues and tap devices have it (virtio 1.2, 5.1.6). Its fields
 * are little-endian on a virtqueue and the machine's own on a tap: the same on the machines that we run on.
 */
#ifndef LOCKGATE_NET_HEADER_H
#define LOCKGATE_NET_HEADER_H

#include <stdint.h>

#include "link.h"

struct net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_length;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers; /* not on a tap */
};

enum {
    NET_HEADER = sizeof(struct net_header), /* with VERSION_1 always 12 bytes, mergeable buffers or not */
    NET_HEADER_TAP = NET_HEADER - sizeof(uint16_t),
    NET_HEADER_NEEDS_CSUM = 1,
    NET_HEADER_GSO_ECN = 0x80, /* in gso_type */
};

static inline struct net_header net_header_of(const struct offload *offload)
{
    return (struct net_header){
        .flags = offload->needs_csum ? NET_HEADER_NEEDS_CSUM : 0,
        .gso_type = offload->gso_type,
        .header_length = offload->header_length,
        .gso_size = offload->gso_size,
        .csum_start = offload->csum_start,
        .csum_offset = offload->csum_offset,
    };
}

/* Payload of each of the several datagrams that a frame from the guest is; 0: it is no such frame. Nothing else of the
 * header is read: checksums of TCP payload end here, and the kernel makes segments of its own. */
static inline uint16_t net_header_datagram(const struct net_header *header)
{
    return (header->gso_type & ~NET_HEADER_GSO_ECN) == GSO_UDP_L4 ? header->gso_size : 0;
}

#endif
