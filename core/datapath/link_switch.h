/* SPDX-License-Identifier: Apache-2.0
 *
 * link_switch.h: the link of several guests on one virtual network: a port for each, and a table of who is behind which.
 *
 * To the engine it is one link like any other. What guests say to each other goes from port to port; what is for the
 * gateway, or for everybody, comes up as well. A network of one guest does without: its link is the engine's own, and no
 * frame is copied once more.
 */
#ifndef LOCKGATE_LINK_SWITCH_H
#define LOCKGATE_LINK_SWITCH_H

#include "datapath.h"
#include "frame_batch.h"
#include "link_dgram.h"
#include "link_stream.h"

enum link_switch_limits {
    SWITCH_PORTS = LG_SWITCH_PORTS,
    SWITCH_PORT_ENTRIES = 32, /* MAC addresses: a guest may have bridges behind it */
    SWITCH_ENTRIES = SWITCH_PORTS * SWITCH_PORT_ENTRIES,
    SWITCH_FRAME_MAX = 65535, /* what every port can say the length of; frames of some may be longer */
};

struct switch_port {
    struct link *link; /* one of these; NULL: nobody is here */
    struct link_stream stream;
    struct link_dgram dgram;
    bool made;        /* the two have their buffers */
    unsigned entries; /* of the table, that are of this one */
};

struct switch_entry {
    uint8_t mac[6];
    uint8_t port;
    bool told; /* control knows of it */
};

struct link_switch {
    struct link link;
    uint64_t *counters;
    struct pcap_ring *pcap;
    int epoll_fd;
    uint64_t source; /* what epoll carries for the first port; the next has one more, and so on */
    const uint8_t *our_mac;

    struct switch_port *port; /* SWITCH_PORTS of them */
    unsigned turn;            /* whose frames are taken next */
    struct link *lender;      /* whose frames are out */

    struct switch_entry entry[SWITCH_ENTRIES]; /* the first `entries`, in the order in which they came */
    unsigned entries;
    unsigned untold; /* of them */

    struct frame_batch out;
};

int link_switch_init(struct link_switch *bridge, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                     uint64_t source, const uint8_t *our_mac); /* 0 or a negative errno */

/* A socket becomes a port. 0, or a negative errno: the descriptor stays the caller's. `framing`: LG_STREAM_*, of streams. */
int link_switch_attach_stream(struct link_switch *bridge, unsigned port, int fd, unsigned framing);
int link_switch_attach_dgram(struct link_switch *bridge, unsigned port, int fd);
void link_switch_detach(struct link_switch *bridge, unsigned port); /* whoever was behind it is forgotten */

void link_switch_event(struct link_switch *bridge, unsigned port, uint32_t events);

/* An entry that control does not know of yet; NULL: there is none. Whoever tells of it sets `told` and counts. */
struct switch_entry *link_switch_untold(struct link_switch *bridge);

/* A port whose connection is over, and how; false: there is none. It is to be detached. */
bool link_switch_ended(const struct link_switch *bridge, unsigned *ret_port, struct lg_link_end *ret_end);

#endif
