/* SPDX-License-Identifier: Apache-2.0
 *
 * listener.h: the host's ports that lead to the guest. The sockets were bound with the caller's rights and come through
 * control; here they are watched, and what connects becomes a flow.
 */
#ifndef LOCKGATE_LISTENER_H
#define LOCKGATE_LISTENER_H

#include <stdint.h>

#include "datapath.h"
#include "list.h"
#include "packet.h"

enum listener_limits {
    LISTENERS_MAX = LG_LISTEN_SLOTS, /* a table of addresses, whose pages the kernel fills as they are touched */
    ACCEPT_AGAIN_MS = 1000,          /* after there was no descriptor */
    ACCEPTS_PER_TURN = 256,          /* of one socket, whose backlog holds 4096: then others have their turn */
};

struct engine;

struct listener {
    int fd;
    uint8_t protocol;    /* IPPROTO_TCP or IPPROTO_UDP; 0: nothing is in this slot */
    uint16_t port;       /* of the guest; or of the host, if it leads there */
    uint16_t own_port;   /* of datagrams: that the socket is bound to */
    bool any4, any6;     /* of datagrams: of any address and interface, so that the guest's may leave by it */
    address target;      /* of the guest; unset: as it is seen */
    bool outward;        /* it is in the guest's namespace, and leads to a port of the host's */
    struct node waiting; /* for room on the link: nothing is heard of it until then */
};

struct listener_table {
    struct listener *listener;
    uint32_t used;   /* slots above have never had a socket */
    uint64_t source; /* what epoll carries for the first; the next has one more, and so on */
};

int listener_table_init(struct listener_table *table, uint64_t source); /* 0 or -ENOMEM */
void listener_table_free(struct listener_table *table);                 /* closes all */

/* Watches a socket from now on; it is the table's then. 0 or a negative errno. */
int listener_add(struct listener_table *table, int epoll_fd, uint32_t slot, const struct listener *listener);

/* Has epoll tell once more of whoever is still in the backlog of a TCP listener: to be called after a turn that has not
 * taken all, since their edge has been. */
void listener_look_again(const struct listener_table *table, int epoll_fd, const struct listener *listener);

void listener_close(struct listener_table *table, int epoll_fd, uint32_t slot); /* if there is one */

struct listener *listener_at(const struct listener_table *table, uint64_t slot); /* NULL: there is none */
uint32_t listener_slot(const struct listener_table *table, const struct listener *listener);

/* The listener that epoll spoke of; NULL: it is another's event. */
struct listener *listener_of(const struct listener_table *table, uint64_t data);

/* What a peer's connection, or its datagram, is to the guest. False: it cannot be shown the peer, or has no such
 * address. */
struct flow_key;
struct sockaddr_storage;
/* Another port by which the same peer may be shown: to the guest, several peers may have one address, and one peer that
 * comes by several ports of the host is always the same. So many are tried. */
enum {
    LISTENER_OTHER_PORTS = 64
};
void listener_other_port(struct flow_key *key);

bool listener_key(const struct engine *engine, const struct listener *listener, const struct sockaddr_storage *peer,
                  struct flow_key *ret_key);

#endif
