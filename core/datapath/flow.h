/* SPDX-License-Identifier: Apache-2.0
 *
 * flow.h: the table of flows.
 *
 * A flow is found by its key (frames from the guest) or by its handle (events of its socket). A handle carries a
 * generation, so that an event which was under way when its flow ended finds nobody. Slots lie in one reserved range of
 * addresses that the kernel fills as flows come: 10 000 flows cost their own size, none cost nothing, and the path of a
 * frame allocates nothing.
 *
 * Adversary: the guest, which can open flows as fast as it likes, and peers, which choose ports. The hash is keyed.
 */
#ifndef LOCKGATE_FLOW_H
#define LOCKGATE_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "datagram_state.h"
#include "list.h"
#include "packet.h"
#include "siphash.h"
#include "splice_state.h"
#include "tcp_state.h"
#include "timer.h"

enum flow_limits {
    FLOWS_MAX = 65536,          /* more than one guest's ports towards one peer; the worker's descriptors end before */
    FLOW_IDLE_EVICT_MS = 60000, /* a flow without a byte for so long may go when the table is full ... */
    FLOW_SHORT_EVICT_MS = 5000, /* ... and a question by datagram, answered or not, after so long */
    FLOWS_FULL_TELL_MS = 60000, /* that it is full is told so often */
    FLOW_UNANSWERED_TELL_MS = 200, /* and so often at most that a guest did not take a connection */
};

/* What a flow's key has for its port. Of the last two, the guest is no machine behind a link but a namespace of this host,
 * and the addresses are those of the socket that was accepted (splice.h). */
enum flow_port {
    PORT_LINK = 0,
    PORT_INWARD = 254,  /* from the host's loopback to the namespace */
    PORT_OUTWARD = 255, /* from the namespace's loopback to the host */
};

/* Of a handle: the event is of the second socket of two. */
#define FLOW_FAR ((uint64_t)1 << 31)

/* One flow as the guest sees it. No padding, since it is hashed and compared as bytes. */
struct flow_key {
    address guest, remote;
    uint16_t guest_port, remote_port;
    uint8_t port; /* enum flow_port */
    uint8_t protocol;
    uint16_t zero;
};

_Static_assert(sizeof(struct flow_key) == 40, "the key has no padding");

struct flow {
    struct flow_key key;
    uint32_t index;      /* of the slot */
    uint32_t generation; /* counts the flows that this slot has held */
    int fd;              /* -1: closed already */
    bool done;           /* it has ended: its settling will free it */
    bool frozen;         /* TCP: it is being moved to another host, and nothing here touches it (tcp_migrate.c) */
    uint32_t interest;   /* what epoll was last told */
    struct node ready;   /* on the list of flows that will be settled */
    struct node waiting; /* on the link's list of flows that wait for room */
    struct node surplus; /* on the list of those whose acknowledged bytes are dropped, last of all in a step */
    struct node age;     /* on the list of all flows, the one that was idle longest first */
    struct timer timer;
    uint64_t active_ms; /* when a byte last moved */
    uint64_t probed_ms; /* when the guest was last asked whether it is there */
    uint64_t bytes_to_guest, bytes_from_guest;
    union { /* by the key's protocol and port */
        struct tcp tcp;
        struct datagram datagram; /* UDP, and echo requests */
        struct splice splice;     /* TCP, joined */
    };
};

struct flow_table {
    struct flow *slot;
    uint32_t *bucket; /* slot index + 1; open addressing, linear probing; 0 empty */
    uint32_t bucket_mask;
    uint32_t limit; /* of sockets, and so of flows */
    uint32_t sockets;
    uint32_t count;
    uint32_t used; /* slots that were ever used */
    uint32_t free; /* slot index + 1 of the free list's head; freed slots are used first, so that memory stays dense */
    struct list by_age;
    struct siphash_key key;
};

int flow_table_init(struct flow_table *table, uint32_t limit, struct siphash_key key); /* 0 or a negative errno */
void flow_table_free(struct flow_table *table);

struct flow *flow_find(struct flow_table *table, const struct flow_key *key);

/* A new flow, zeroed but for key, index, generation and fd -1; NULL: the table is full. The key must not be there yet. */
struct flow *flow_add(struct flow_table *table, const struct flow_key *key);
void flow_remove(struct flow_table *table, struct flow *flow);

/* What epoll carries: never 0 in its upper half, which tells it from the loop's own descriptors. */
static inline uint64_t flow_handle(const struct flow *flow)
{
    return (uint64_t)flow->generation << 32 | flow->index;
}

struct flow *flow_from_handle(struct flow_table *table, uint64_t handle); /* NULL: it is gone */

/* The flow at or after slot *cursor; moves *cursor behind it; NULL at the end. For snapshots, a page at a time. */
struct flow *flow_next(struct flow_table *table, uint32_t *cursor);

#endif
