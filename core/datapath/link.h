/* SPDX-License-Identifier: Apache-2.0
 *
 * link.h: how frames travel to and from the guest. One interface for all links; they are told apart only where they are
 * attached.
 *
 * From the guest: from_guest() lends a batch of frames, all of which stay valid until release(). To the guest:
 * reserve() lends room for one frame at a time, first in, first out; commit() sends the oldest reservation, rollback()
 * gives back all that were not committed. A commit that leaves buffers of its reservation untouched gives back the later
 * reservations, too: only the last frame of a read is shorter than planned. "Full" is a state, not a loss: the caller waits for the link's room event.
 */
#ifndef LOCKGATE_LINK_H
#define LOCKGATE_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum link_limits {
    FRAME_HEAD_MAX = 160, /* Ethernet, the longest IPv4 and TCP headers (14 + 60 + 60), and IPv6 with some extensions */
    FRAME_BYTES_MAX = 65550, /* Ethernet header, IPv6 header and the largest payload that its length field can say */
    FRAME_BYTES_MIN = 60,    /* IEEE 802.3, without the check sequence */
    LINK_BATCH = 64,    /* frames at a time: enough to make one sendmsg() of a window, small enough for the cache */
    LINK_PIECES = 1024, /* UIO_MAXIOV: what one sendmsg() takes */
    LINK_HEADER_PIECES = 4,
};

enum gso_type { /* virtio 1.2, 5.1.6, without the ECN bit */
    GSO_NONE = 0,
    GSO_TCPV4 = 1,
    GSO_TCPV6 = 4,
    GSO_UDP_L4 = 5, /* virtio 1.3, 5.1.6: several datagrams of one size, the last may be shorter */
};

struct offload {
    bool needs_csum; /* the check field holds the pseudo-header's sum, the rest from csum_start is still to be added */
    uint8_t gso_type;
    uint16_t header_length; /* of all headers, when gso_type is set */
    uint16_t gso_size;      /* payload of each segment */
    uint16_t csum_start;    /* from the start of the frame */
    uint16_t csum_offset;   /* of the check field, from csum_start */
};

/* A frame from the guest. The head is a copy, taken once: what is checked there cannot change any more. */
struct guest_frame {
    uint8_t head[FRAME_HEAD_MAX];
    uint16_t head_length; /* bytes of it that are valid: all of a short frame */
    uint32_t length;      /* of the whole frame */
    uint16_t datagram;    /* payload of each of the several datagrams that it is (GSO_UDP_L4); 0: it is no such frame */
    const struct iovec *iov;
    unsigned iov_count;
};

/* Room for one frame to the guest. */
struct guest_room {
    struct iovec header[LINK_HEADER_PIECES]; /* exactly the header bytes that were asked for */
    unsigned header_count;
    size_t payload; /* bytes of room behind them: what was asked for, or less */
};

struct payload_pieces {
    struct iovec iov[LINK_PIECES];
    unsigned count;
};

struct link;

struct link_operations {
    /* Up to LINK_BATCH frames. *ret_more: there may be more, call again after release(). */
    unsigned (*from_guest)(struct link *link, struct guest_frame *frames, bool *ret_more);
    void (*release)(struct link *link);

    /* Room for a frame of header bytes and up to payload bytes, whose pieces are appended to *pieces.
     * 0; -EAGAIN: full; -ENOBUFS: *pieces is; -ENOTCONN: nobody is there. */
    int (*reserve)(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                   struct guest_room *ret_room);
    void (*commit)(struct link *link, size_t length, const struct offload *offload);
    void (*rollback)(struct link *link);

    /* Once a batch: what was committed becomes visible, and the guest is told if it wants to be, now or at flush_ms. */
    void (*flush)(struct link *link, uint64_t now_ms);

    /* After reserve() said full: asks for the room event. False: there is room already, try again. */
    bool (*wait_room)(struct link *link);
};

struct link {
    const struct link_operations *operations;
    uint64_t flush_ms; /* when flush() must be called again without any event; UINT64_MAX never */
    uint64_t look_ms;  /* when from_guest() must be: the guest was asked not to say that it has something before */
    unsigned
        answers; /* of the frames committed since the last flush(), those that the guest answers one by one, at once */
    unsigned expected; /* frames of the guest's that are on their way, and that nobody waits for */
    bool copies;       /* the guest has the memory of its frames back before we look at them, as a tap device's has */
    bool large;        /* the guest takes frames beyond its MTU */
    bool csum;         /* the guest takes partial checksums (GUEST_CSUM) */
    bool tso4;         /* and TCP super-segments (GUEST_TSO4) */
    bool tso6;
    bool uso4; /* and several datagrams in one frame (GUEST_USO4) */
    bool uso6;
};

#endif
