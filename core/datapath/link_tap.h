/* SPDX-License-Identifier: Apache-2.0
 *
 * link_tap.h: the link of a network namespace: a tap device with IFF_VNET_HDR, whose other end is the namespace's kernel.
 *
 * A frame is one read() or one write(), with its offloads in front: up to 64 KiB of a TCP stream each, whatever the MTU.
 * The device always takes a frame: it is delivered inside the write(), so that there is no room to wait for.
 *
 * Adversary: the namespace, which may take the device down, rename or delete it at any moment, and say whatever it likes
 * in its frames. Their lengths are the kernel's; of the header in front only the bounds of datagrams are used.
 */
#ifndef LOCKGATE_LINK_TAP_H
#define LOCKGATE_LINK_TAP_H

#include "frame_batch.h"
#include "link.h"
#include "pcap_ring.h"

enum link_tap_limits {
    TAP_ROOM = 65600, /* for one frame with its header, in whole cache lines */
    TAP_IN_BYTES =
        2 << 20, /* of a batch: of several streams, each has more than a frame in it, and one send and one ACK */
};

struct link_tap {
    struct link link;
    uint64_t *counters;
    struct pcap_ring *pcap;
    int epoll_fd;
    uint64_t source; /* what epoll carries for the device */
    int fd;          /* -1: there is none */
    bool unread;     /* an edge told of frames that no read has come to the bottom of */
    bool ended;      /* the device has gone: to be told and detached */
    int error;       /* then why */

    uint8_t *in;
    struct iovec frame_iov[LINK_BATCH];

    struct frame_batch out; /* each frame behind room for its header */
};

int link_tap_init(struct link_tap *tap, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                  uint64_t source); /* 0 or a negative errno */

/* A device that has its offloads set already; uso: it takes and gives several datagrams in one frame. 0; -EBUSY while there
 * is one, or another negative errno: the descriptor stays the caller's. */
int link_tap_attach(struct link_tap *tap, int fd, bool uso);
void link_tap_detach(struct link_tap *tap); /* closes it, if there is one */

void link_tap_event(struct link_tap *tap); /* of its descriptor */

#endif
