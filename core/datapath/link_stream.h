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

#include "link_socket.h"

enum link_stream_limits {
    STREAM_FRAME_MIN = 14, /* a bare Ethernet header */
    STREAM_FRAME_MAX = 65535,
    STREAM_SKIP_MAX = 128 << 10,   /* with LG_STREAM_SKIP: whatever says that it is longer is no frame of anybody's */
    STREAM_IN_BYTES = 512 << 10,   /* at a time: more than a socket's queue holds as a rule, and within the cache */
    STREAM_QUEUE_BYTES = 16 << 20, /* of the socket itself, as far as net.core.wmem_max allows */
};

struct link_stream {
    struct link_socket socket; /* its error may be EPROTO as well: a length that no frame has */
    uint32_t length;           /* then that length */
    unsigned framing;          /* LG_STREAM_* */
    size_t length_bytes;       /* before each frame */

    /* from the guest: bytes in [in_start, in_end), the last frame perhaps in part */
    uint8_t *in;
    size_t in_start, in_end;
    struct iovec frame_iov[LINK_BATCH];
};

int link_stream_init(struct link_stream *stream, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                     uint64_t source); /* 0 or a negative errno */

/* As link_socket_attach(). `framing`: LG_STREAM_*. */
int link_stream_attach(struct link_stream *stream, int fd, unsigned framing);

#endif
