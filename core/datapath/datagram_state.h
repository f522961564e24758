/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_state.h: what is remembered of one flow of datagrams, UDP or echo requests, and every limit with its reason.
 *
 * A flow is one connected socket of the host. Nothing is kept of a datagram that a queue had no room for, as on any
 * network; but none is taken from the kernel's queue before there is room for it on the link.
 */
#ifndef LOCKGATE_DATAGRAM_STATE_H
#define LOCKGATE_DATAGRAM_STATE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "cut.h"
#include "packet.h"

enum datagram_limits {
    /* How long a flow lives without a datagram: Linux' own figures for tracked connections, which programs count on
     * (nf_conntrack_udp_timeout and _stream); RFC 4787, REQ-5, wants two minutes for what is used both ways. */
    DATAGRAM_TIMEOUT_MS = 30000,
    DATAGRAM_STREAM_TIMEOUT_MS = 120000,
    PING_TIMEOUT_MS = 60000,

    DATAGRAM_PAYLOAD_MAX = 65507, /* in an IPv4 packet; of IPv6's 65527 nobody makes use */

    /* In one sendmmsg(), as many as a batch has frames; in one of its messages, what UDP_SEGMENT takes on every kernel. */
    DATAGRAM_SEND_MAX = 64, /* no less than DATAGRAM_RECEIVE_MAX */
    DATAGRAM_SEGMENTS_MAX = 64,
    /* In one frame of the guest's: Linux' own limit for a message of its programs' (UDP_MAX_SEGMENTS since 6.9), beyond
     * which a frame of datagrams of one byte would only keep us busy. */
    DATAGRAM_IN_FRAME_MAX = 128,

    /* In one recvmmsg(). Each has room for the largest that UDP_GRO makes; pages are only touched where bytes come. */
    DATAGRAM_RECEIVE_MAX = 32,
    DATAGRAM_RECEIVE_BYTES = 65536,
    DATAGRAM_RECEIVES_PER_TURN = 4, /* then other flows have theirs */

    DATAGRAM_QUEUE_BYTES = 4 << 20, /* of the socket, as far as net.core.rmem_max allows: there is no tuning to end */

    DATAGRAM_ERRORS_PER_TURN = 8, /* taken from a socket's error queue */
    DATAGRAM_QUOTED_MAX = 548, /* of the packet in an ICMP error, with its headers: RFC 1812, 4.3.2.3, less our own */
};

/* Whom a flow sends to whose socket is connected to nobody. Of a flow that a peer began, at a port of the host that leads
 * to the guest, the socket is that port's, and all that the guest answers goes through it, from the address that was asked.
 * Of one to a group, a multicast or broadcast address, it is the flow's own. */
struct datagram_peer {
    int fd;                   /* of the listener, or the flow's */
    uint32_t slot;            /* of the listener */
    struct sockaddr_in6 addr; /* sockaddr_in where the socket has only IPv4 */
    socklen_t addr_length;    /* 0: the flow's socket is connected */
    uint8_t local[16];        /* IPv4 mapped; unset: the kernel's choice */
    uint32_t interface;       /* of local, where that alone does not say */
};

struct datagram {
    struct datagram_peer peer;
    uint16_t batch_first, batch_last; /* datagrams of this batch, index + 1; 0 none */
    uint8_t hops;                     /* TTL or hop limit that the socket sends with */
    bool readable : 1;                /* an edge told of datagrams that have not been read up to EAGAIN */
    bool errors : 1;                  /* the error queue has something */
    bool inbound : 1;                 /* the peer began it */
    bool answered : 1;                /* the other of the two has sent something */
    bool stream : 1;                  /* and more than a question and its answer went: it lives longer */
    bool no_segments : 1;             /* UDP_SEGMENT was refused on its path */
    bool group : 1;                   /* whoever hears the guest there may answer */
    bool keeps_port : 1;              /* its socket has the guest's own port */
    bool woken : 1;
};

/* A port by its number, for each family: whose flows have it on the host, all of one address of the guest's; and which
 * port of the host leads to it. */
struct datagram_port {
    address guest;
    uint32_t flows;
    uint32_t way_in; /* a slot of the listeners, + 1, that led there once; 0 none */
};

/* Datagrams that were taken from a socket's queue for the guest. While the link is full the rest waits here, and with it
 * whatever else is in any such socket's queue. */
struct datagram_inbox {
    uint8_t *bytes;  /* DATAGRAM_RECEIVE_MAX buffers of DATAGRAM_RECEIVE_BYTES */
    uint64_t handle; /* of the flow that they belong to */
    unsigned next, count;
    uint32_t offset; /* of buffer `next`: datagrams before it are out */
    struct cut cut;  /* of the datagram there, if it goes in pieces */
    uint32_t length[DATAGRAM_RECEIVE_MAX];
    uint32_t each[DATAGRAM_RECEIVE_MAX]; /* payload of each datagram in that buffer, the last of which may be shorter */
};

/* Of a datagram on a socket that is connected to nobody. */
struct datagram_sender {
    struct sockaddr_storage address;
    socklen_t length;
    struct address to;    /* as in its header; unset: not told */
    struct address local; /* the host's own address that answers come from; unset: the kernel's choice */
    uint32_t interface;   /* of local, where that alone does not say */
};

/* The same of such a socket: a port of the host that leads to the guest, or the guest's own towards a group. */
struct datagram_arrivals {
    struct datagram_inbox inbox;
    struct datagram_sender from[DATAGRAM_RECEIVE_MAX];
    uint32_t slot; /* of the port, while what it brought waits for room */
};

static inline uint8_t *inbox_bytes(const struct datagram_inbox *inbox, unsigned buffer)
{
    return inbox->bytes + (size_t)buffer * DATAGRAM_RECEIVE_BYTES;
}

/* So many bytes of the buffer `next` are out, or are given up. */
static inline void inbox_advance(struct datagram_inbox *inbox, uint32_t bytes)
{
    inbox->cut = (struct cut){0};
    inbox->offset += bytes;
    if (inbox->offset < inbox->length[inbox->next])
        return;
    inbox->offset = 0;
    if (++inbox->next == inbox->count)
        inbox->count = 0;
}

#endif
