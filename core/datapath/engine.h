/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.h: the worker's state, and what its parts say to each other. One thread; nothing here is global.
 */
#ifndef LOCKGATE_ENGINE_H
#define LOCKGATE_ENGINE_H

#include "counters.h"
#include "datapath.h"
#include "flow.h"
#include "fragments.h"
#include "gather.h"
#include "guest_table.h"
#include "link.h"
#include "listener.h"
#include "packet.h"
#include "timer.h"

enum engine_limits {
    EVENTS_PER_WAIT = 64,
    ENGINE_LISTENER_FIRST = 1 << 16, /* what epoll carries for the first listener; below it are the loop's own */
    ENGINE_WITHDRAWN = 8,            /* the last ones; connections from such an address do not live for long */
    BATCHES_PER_STEP = 8,            /* then the sockets have their turn */
    UNREACHABLE_SLOTS = 64,
    /* A guest sends datagrams one way, each with a kick: after so many steps in a row, with so little time from one datagram
     * to the next on average, it is to kick after so many. Linux' drivers for real cards put off their interrupts for as
     * long. Nobody waits for an answer to one: an answer ends it, and so does a pause. Nor after more bytes than these: a
     * socket of a Linux guest has 208 KiB for what is on its way, in which a datagram of 8000 bytes takes 17 000; a guest
     * whose socket is full cannot kick. And not where as much as this comes while we wake up: there they gather by
     * themselves, and what we would wait for keeps the guest from going on while we send (a sixth of the rate). */
    ONE_WAY_STEPS = 16,
    ONE_WAY_GAP_NS = 250000,
    ONE_WAY_PAUSE_NS = ONE_WAY_STEPS * ONE_WAY_GAP_NS,
    ONE_WAY_FRAMES = 16,
    ONE_WAY_BYTES = 64 << 10,
    ONE_WAY_WAKE_NS = 50000,
    ONE_WAY_WAKE_BYTES = 16 << 10,
    ICMP_PER_SECOND = 100, /* errors that we send to the guest (RFC 4443, 2.4 (f)) */
};

/* What a frame has for a flow's socket, until the end of its batch: a TCP segment's data, a datagram. */
struct batch_segment {
    const struct guest_frame *frame;
    uint32_t offset; /* of what is for the socket, from the start of the frame */
    uint32_t length;
    uint16_t datagram; /* payload of each of the several datagrams that it is, the last may be shorter; 0: it is one */
    uint16_t next;     /* of the same flow, index + 1; 0 the last */
};

/* Whom an unreachable peer's first SYN was answered by ICMP, so that the next gets a RST. */
struct unreachable_memory {
    uint64_t tag[UNREACHABLE_SLOTS]; /* hash of the flow's key; 0 free */
};

/* What a person may want to see; sent to control, rendered there. */
struct event_sink {
    void (*emit)(struct event_sink *sink, const struct lg_event *event);
    unsigned level; /* 0 none, 1 events, 2 and one for each frame that is dropped */
};

/* Steps in which the guest sent datagrams, and nothing was sent to it. */
struct one_way {
    unsigned steps;
    uint64_t last_ns;
    uint64_t datagrams, frames_to_guest;       /* the counters then */
    uint64_t late_ns, late_frames, late_bytes; /* of late: each step counts for a sixteenth less than the next */
};

struct engine {
    uint64_t now_ns, now_ms;
    int epoll_fd;
    struct link *link;
    bool several; /* guests are behind it, each with its own MAC address */
    struct guest_table guests;
    struct lg_net_view view;
    struct lg_neighbours neighbours;
    struct lg_seen seen;
    bool seen_changed;
    address withdrawn[ENGINE_WITHDRAWN]; /* from a guest: what still comes from there does not say where it is */
    unsigned withdrawn_next;
    uint64_t sought_ms; /* when the guest was asked for its MAC address; 0 never */
    uint64_t *counters;
    struct wheel wheel;
    uint64_t shared_ms; /* when timers that need not be exact will fire next: others that are due about then join in */
    struct flow_table flows;
    struct list ready;   /* flows that will be settled in this step or the next */
    struct list waiting; /* flows that wait for room on the link */
    struct list surplus; /* flows with bytes in their socket that the guest has acknowledged, enough to be dropped */
    struct list waiting_ports; /* of the host, for datagrams, which wait for the same */
    bool link_full;            /* reserve() said so, and the room event has not come */
    bool peek_off;             /* the kernel has SO_PEEK_OFF for TCP */
    bool paces;                /* see engine_options */
    bool memory_fault;         /* a system call met guest memory that is gone: this worker ends */
    struct siphash_key secret;
    struct unreachable_memory unreachable;
    struct listener_table listeners;
    struct hold_pool holds;
    struct fragments fragments;
    struct splice_pool splice;
    /* More sockets of this kind, of the guest's namespace: 0, and the pool will get them or hear of their refusal. */
    int (*ask_sockets)(struct engine *engine, enum splice_kind kind);
    uint32_t identification;     /* of the last packet that was cut for the guest */
    struct datagram_port *ports; /* of IPv4, then of IPv6 (datagram_port.c) */
    struct datagram_inbox inbox;
    struct datagram_arrivals arrivals;
    struct datagram_inbox relayed; /* empty between two steps: what is joined waits for nobody */
    bool no_ping_told;
    bool accept_owed; /* a peer found no descriptor, while there were so many sockets of flows; tried again then */
    uint32_t accept_sockets;
    uint64_t accept_ms;
    uint64_t full_told_ms;       /* when it was told that the table is full; 0 never */
    uint64_t unanswered_told_ms; /* and that a guest took no connection */
    uint32_t icmp_left;          /* errors of datagrams that may be told in the second that began at icmp_ms */
    uint64_t icmp_ms;
    bool reorder; /* keep segments that come ahead of a gap */
    uint32_t ack_delay_ms;
    uint32_t challenges; /* left for the second that began at challenge_ms */
    uint64_t challenge_ms;
    struct event_sink *events;
    void (*punt)(struct engine *engine, const struct guest_frame *frame);
    uint8_t *discard; /* TCP_REREAD_MAX bytes that nobody reads; only without SO_PEEK_OFF */

    struct one_way one_way;
    struct gather gather;
    uint64_t gather_ns; /* for which the worker is to sleep before the next step, see gather.h; 0: not at all */
    struct guest_frame frame[LINK_BATCH];
    struct batch_segment segment[LINK_BATCH];
    unsigned segment_count;
    struct payload_pieces pieces;
};

/* Everything but the link and the channels. Random bytes make the hash and the sequence numbers unforeseeable. */
struct engine_options {
    uint32_t flow_limit;
    bool peek_off;         /* the kernel has SO_PEEK_OFF for TCP */
    bool paces;            /* its default congestion control spaces out what is sent, and a socket may have another */
    bool reorder;          /* keep segments that come ahead of a gap; without, for comparison, they are dropped */
    uint32_t ack_delay_ms; /* how long the ACK of a small segment may wait for an answer to travel with */
};
int engine_init(struct engine *engine, uint64_t *counters, const struct engine_options *options,
                const uint8_t random[32]);
void engine_free(struct engine *engine); /* closes all flows */

/* Frames from the guest, up to a budget. True: there are more. */
bool engine_from_guest(struct engine *engine);

/* A flow's socket has something to say. */
void engine_socket_event(struct engine *engine, uint64_t handle, uint32_t events);

/* A port of the host that leads to the guest; the socket is ours then. 0 or a negative errno. */
void engine_listener_event(struct engine *engine, uint64_t data, uint32_t events);
int engine_listen(struct engine *engine, uint32_t slot, const struct listener *listener);
void engine_listen_close(struct engine *engine, uint32_t first, uint32_t count); /* slots */

/* The link has room again, or a guest behind it. */
void engine_link_room(struct engine *engine);

/* Flows that are ready, timers that are due; what was committed goes out. To be called once at the end of each step. */
void engine_settle(struct engine *engine);

/* When engine_settle() must be called again without any event: UINT64_MAX never; now or earlier: at once. */
uint64_t engine_next_ms(const struct engine *engine);

/* A complete frame to the guest. 0 or -EAGAIN (full), -EMSGSIZE (larger than its buffers), -ENOTCONN. */
int engine_send_frame(struct engine *engine, const uint8_t *frame, size_t length);

void engine_set_time(struct engine *engine, uint64_t now_ns);

static inline void count(struct engine *engine, enum counter counter)
{
    engine->counters[counter]++;
}

/* The link is full: there will be a room event. */
static inline void engine_full(struct engine *engine)
{
    if (!engine->link_full)
        count(engine, C_link_full);
    engine->link_full = true;
}

/* A frame of this flow found the link full: it waits for the room event. */
static inline void engine_wait_room(struct engine *engine, struct flow *flow)
{
    engine_full(engine);
    list_append(&engine->waiting, &flow->waiting);
}

/* The flow will be settled in this step. */
static inline void flow_touch(struct engine *engine, struct flow *flow)
{
    list_append(&engine->ready, &flow->ready);
}

/* Of what the guest has acknowledged so much lies in the flow's socket that it leaves it at the end of this step. */
static inline void flow_drop_later(struct engine *engine, struct flow *flow)
{
    list_append(&engine->surplus, &flow->surplus);
}

/* Adds to the batch of one flow, whose first and last are places in engine->segment: index + 1, 0 none. */
static inline void batch_append(struct engine *engine, uint16_t *first, uint16_t *last, const struct guest_frame *frame,
                                uint32_t offset, uint32_t length, uint16_t datagram)
{
    uint16_t place = (uint16_t)++engine->segment_count; /* a frame adds one segment at most */

    engine->segment[place - 1] =
        (struct batch_segment){.frame = frame, .offset = offset, .length = length, .datagram = datagram};
    if (*last)
        engine->segment[*last - 1].next = place;
    else
        *first = place;
    *last = place;
}

static inline bool engine_shows_events(const struct engine *engine)
{
    return __builtin_expect(engine->events->level != 0, 0);
}

/* ---- between the parts ---- */

/* flow_protocol.c: what is done with a flow of any protocol. */
void flow_settle(struct engine *engine, struct flow *flow);
void flow_event(struct engine *engine, struct flow *flow, bool far, uint32_t events);
void flow_timer_fired(struct engine *engine, struct flow *flow);
void flow_close(struct engine *engine, struct flow *flow, enum close_reason reason);
/* A new flow, in the place of one that was idle long enough if need be; NULL: the table is full, which is counted. */
struct flow *flow_make(struct engine *engine, const struct flow_key *key);
void flow_aged(struct engine *engine, struct flow *flow); /* a byte of it may have moved */
void flow_expendable(struct engine *engine,
                     struct flow *flow); /* it has ended, and goes first of all in a full table */
void flow_emit_refused(struct engine *engine, const struct flow_key *key, int error); /* no flow could be made */
void flow_emit(struct engine *engine, const struct flow *flow, uint32_t kind, uint32_t reason, int error,
               uint64_t value);
/* A guest of a virtual network did not take this connection of its peer's. */
void flow_emit_unanswered(struct engine *engine, const struct flow *flow, int error);

/* neighbour.c: ARP, NS and echo to the gateway, answered from the view. True: the frame was for it. */
void neighbour_arp(struct engine *engine, const struct guest_frame *frame);
void neighbour_icmpv6(struct engine *engine, const struct guest_frame *frame, const struct packet *packet);
void neighbour_icmpv4(struct engine *engine, const struct guest_frame *frame, const struct packet *packet);

/* Whether it is known where this guest is, or the only one. */
bool neighbour_has_spoken(const struct engine *engine, const address *guest);
/* Asks the guest for its MAC address, by one of its own addresses, at most once a second; of one that has spoken already
 * only again, because it does not answer. */
void neighbour_seek(struct engine *engine, const address *guest, bool again);

/* Who has which MAC address from now on; 0, or -EINVAL for a table that could not be searched or has no such addresses. */
int neighbour_replace(struct engine *engine, const struct lg_neighbours *table);
/* The MAC address that frames from this address come from, as the guest sees it. */
const uint8_t *neighbour_mac(const struct engine *engine, const address *of);

/* The guest asks whether anybody has this address, which it is about to take: a guest that only ever answers says nothing
 * else of it. What it sends from counts more. */
void engine_see_tentative(struct engine *engine, const address *target);

/* What holds from now on. A guest that has its addresses by us (LG_VIEW_PLACED) is where it is led to, unless it has
 * shown another address, and no more at the one that was taken from it. */
void engine_take_view(struct engine *engine, const struct lg_net_view *view);

/* The addresses of a packet from `source`, which the guest knows the peer by, to `destination`. */
void engine_path(const struct engine *engine, const address *source, const address *destination,
                 struct packet_path *ret_path);

#endif
