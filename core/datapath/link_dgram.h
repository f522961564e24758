/* SPDX-License-Identifier: Apache-2.0
 *
 * link_dgram.h: the link of a VM over a socket that keeps messages apart, one frame each: SOCK_DGRAM (vfkit, krunkit,
 * libkrun) or SOCK_SEQPACKET (bess). Connected by whoever attaches it; a greeting has been taken from it.
 *
 * No offload metadata crosses it: to the guest each frame is whole, within the MTU, with all its checksums. From the guest
 * it may be of 64 KiB, with its checksums unfinished (libkrun cuts off the header that says so).
 */
#ifndef LOCKGATE_LINK_DGRAM_H
#define LOCKGATE_LINK_DGRAM_H

#include <sys/socket.h>

#include "link_socket.h"

enum link_dgram_limits {
    DGRAM_ROOM = 65600, /* of a frame: FRAME_BYTES_MAX, to a whole cache line, and one more to see longer ones */
    DGRAM_IN_BYTES = LINK_BATCH * DGRAM_ROOM,
    DGRAM_SEND_QUEUE = 1 << 20, /* of the socket, as gvproxy has them and as far as the kernel allows */
    DGRAM_RECEIVE_QUEUE = 4 << 20,
};

struct link_dgram {
    struct link_socket socket; /* each frame for the guest behind its length as a uint32_t */
    bool packets;              /* SOCK_SEQPACKET: it has an end, which reads as an empty message */

    uint8_t *in;
    struct iovec frame_iov[LINK_BATCH];
    struct mmsghdr message[LINK_BATCH];
};

int link_dgram_init(struct link_dgram *dgram, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                    uint64_t source); /* 0 or a negative errno */

/* 0; -EBUSY while there is one, or another negative errno: the descriptor stays the caller's. */
int link_dgram_attach(struct link_dgram *dgram, int fd);

#endif
