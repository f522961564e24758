/* SPDX-License-Identifier: Apache-2.0
 *
 * link_vhost.h: the link of a VM over two virtqueues in shared memory (virtio 1.2, 5.1).
 */
#ifndef LOCKGATE_LINK_VHOST_H
#define LOCKGATE_LINK_VHOST_H

#include "link.h"
#include "memory.h"
#include "pcap_ring.h"
#include "vring.h"

enum vhost_queue {
    RECEIVEQ = 0,  /* the guest's receive queue: to the guest */
    TRANSMITQ = 1, /* from the guest */
    VHOST_QUEUES = 2,
};

enum virtio_net_feature { /* bit numbers, virtio 1.2, 5.1.3 and 6 */
    VIRTIO_NET_F_GUEST_CSUM = 1,
    VIRTIO_NET_F_GUEST_TSO4 = 7,
    VIRTIO_NET_F_GUEST_TSO6 = 8,
    VIRTIO_NET_F_MRG_RXBUF = 15,
    VHOST_F_LOG_ALL = 26,
    VIRTIO_RING_F_INDIRECT_DESC = 28,
    VIRTIO_RING_F_EVENT_IDX = 29,
    VIRTIO_NET_F_GUEST_USO4 = 54, /* virtio 1.3, 5.1.3 */
    VIRTIO_NET_F_GUEST_USO6 = 55,
    VIRTIO_NET_F_HOST_USO = 56,
};

enum link_vhost_limits {
    VHOST_RESERVED_MAX = 64, /* frames reserved at once */
    VHOST_CHAINS_MAX = 1024, /* chains under them: one for each piece at least */

    /* An interrupt costs a guest as much as a few frames, and few guests wait for that of a buffer which they gave away:
     * they look at the transmitq when they use it next, or when they look at the receiveq. So it waits for a moment. */
    VHOST_CALL_DELAY_MS = 2,     /* for a guest that waits all the same: its send buffers are full, or it shuts down */
    VHOST_CALL_BYTES_MAX = 4096, /* of frames whose buffers nobody waits for: the least that Linux allows a socket */
    VHOST_ANSWERS_MS = 5,        /* for so long a guest's answers gather, one kick and one wake-up for all of them */
    VHOST_EXPECTED_MS = 1,       /* the same of frames that it sends one by one, and wants no answer to */
    VHOST_CALL_QUIET_MS = 50     /* after so long without a frame, the next interrupt is one in many milliseconds: not
                                    worth the wake-up of ours that sending it later would take */
};

struct vhost_reservation {
    unsigned first_chain; /* in chain_head[] */
    unsigned chain_count;
    unsigned first_piece; /* in piece[] */
    unsigned piece_count;
};

struct link_vhost {
    struct link link;
    struct guest_memory memory;
    struct dirty_log log;
    struct vring ring[VHOST_QUEUES];
    uint64_t features;
    uint64_t *counters;
    struct pcap_ring *pcap;
    int epoll_fd;             /* where the kicks are watched, edge-triggered: nobody has to read the eventfds */
    uint64_t kick_source;     /* what epoll carries for the receiveq's kick; one more for the transmitq's */
    unsigned faults_reported; /* a bit for each ring whose fault was counted and signalled */

    /* from the guest: the batch that is out */
    struct iovec batch_piece[LINK_PIECES];
    uint16_t batch_head[LINK_BATCH];
    unsigned batch_count;
    size_t batch_bytes;
    size_t uncalled_bytes; /* of the frames for whose buffers the guest was not called yet */
    uint64_t heard_ms;     /* when it last got a buffer of the transmitq back */

    /* to the guest: a queue of reservations, oldest first */
    struct vhost_reservation reserved[VHOST_RESERVED_MAX];
    unsigned reserved_first, reserved_end;
    uint16_t chain_head[VHOST_CHAINS_MAX];
    uint32_t chain_bytes[VHOST_CHAINS_MAX];
    unsigned chain_count;
    struct iovec piece[LINK_PIECES];
    uint64_t piece_guest_addr[LINK_PIECES];
    unsigned piece_count;
};

static inline bool link_vhost_feature(const struct link_vhost *vhost, unsigned bit)
{
    return vhost->features >> bit & 1;
}

extern const struct link_operations link_vhost_operations; /* link_vhost.c */

void link_vhost_init(struct link_vhost *vhost, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                     uint64_t kick_source);

/* All of these are barriers: no frame of the link is out when they run, and none will see the old state after. */
void link_vhost_features(struct link_vhost *vhost, uint64_t features);
/* On failure all three descriptors stay the caller's. */
int link_vhost_start(struct link_vhost *vhost, const struct lg_cmd_vring *setup, int kick_fd, int call_fd, int err_fd);
int link_vhost_stop(struct link_vhost *vhost, unsigned queue, uint16_t *ret_next_avail);
int link_vhost_memory_remove(struct link_vhost *vhost, const struct lg_mem_region *at);
void link_vhost_reset(struct link_vhost *vhost);
void link_vhost_log(struct link_vhost *vhost, uint8_t *table, size_t size, int event_fd); /* NULL: off */

#endif
