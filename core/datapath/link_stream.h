/* SPDX-License-Identifier: Apache-2.0
 *
 * link_stream.h: the link of a VM over a stream socket, each frame behind its length, which does not count itself: 32 bits
 * in network order (QEMU's -netdev stream and socket, libkrun's unixstream), or 16, the lower byte first (vpnkit,
 * gvforwarder).
 *
 * No offload metadata crosses it: to the guest each frame is whole, within the MTU, with all its checksums. From the guest
 * a frame may be larger, and its checksums unfinished; both are the engine's everyday life.
 */
#ifndef LOCKGATE_LINK_STREAM_H
#define LOCKGATE_LINK_STREAM_H

#include "frame_ring.h"
#include "link.h"
#include "pcap_ring.h"

enum link_stream_limits {
    STREAM_FRAME_MIN = 14, /* a bare Ethernet header */
    STREAM_FRAME_MAX = 65535,
    STREAM_IN_BYTES = 512 << 10,   /* at a time: more than a socket's queue holds as a rule, and within the cache */
    STREAM_QUEUE_BYTES = 16 << 20, /* of the socket itself, as far as net.core.wmem_max allows */
};

struct link_stream {
    struct link link;
    uint64_t *counters;
    struct pcap_ring *pcap;
    int epoll_fd;
    uint64_t source;     /* what epoll carries for the socket */
    int fd;              /* -1: nobody is connected */
    unsigned framing;    /* LG_STREAM_* */
    size_t length_bytes; /* before each frame */
    uint32_t interest;   /* what epoll was last told */
    bool blocked;        /* the socket's queue is full: nothing is sent until EPOLLOUT */
    bool unread;         /* an edge told of bytes, or of the end, that no read has come to the bottom of */
    bool hung_up;        /* the end was announced: its edge has gone, and a read must find it */
    bool ended;          /* the connection is over: to be told and detached */
    int error;           /* then why: 0 the end of the stream, EPROTO a length that no frame has, or an errno */
    uint32_t length;     /* with EPROTO: that length */

    /* from the guest: bytes in [in_start, in_end), the last frame perhaps in part */
    uint8_t *in;
    size_t in_start, in_end;
    struct iovec frame_iov[LINK_BATCH];

    struct frame_ring out; /* to the guest */
};

int link_stream_init(struct link_stream *stream, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                     uint64_t source); /* 0 or a negative errno */

/* A new connection, in a state of its own: nothing of one before it is left. 0; -EBUSY while there is one, or another
 * negative errno: the descriptor stays the caller's. `framing`: LG_STREAM_*. */
int link_stream_attach(struct link_stream *stream, int fd, unsigned framing);
void link_stream_detach(struct link_stream *stream); /* closes it, if there is one */

void link_stream_event(struct link_stream *stream, uint32_t events); /* of its socket */

#endif
