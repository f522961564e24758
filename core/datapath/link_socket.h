/* SPDX-License-Identifier: Apache-2.0
 *
 * link_socket.h: what the links over a socket have in common. Frames for the guest wait in a ring until the socket takes
 * them; the edges of epoll say that there is something to read, room to send, or an end. How a frame lies on the socket is
 * for each of these links to say: it reads by itself, writes its prefix at commit(), and sends at flush().
 */
#ifndef LOCKGATE_LINK_SOCKET_H
#define LOCKGATE_LINK_SOCKET_H

#include "counters.h"
#include "frame_ring.h"
#include "link.h"
#include "pcap_ring.h"

struct link_socket {
    struct link link;
    uint64_t *counters;
    struct pcap_ring *pcap;
    int epoll_fd;
    uint64_t source;   /* what epoll carries for the socket */
    int fd;            /* -1: nobody is connected */
    uint32_t interest; /* what epoll was last told */
    bool blocked;      /* the socket takes no more: nothing is sent until EPOLLOUT */
    bool unread;       /* an edge told of bytes, or of the end, that no read has come to the bottom of */
    bool hung_up;      /* the end was announced: its edge has gone, and a read must find it */
    bool ended;        /* the connection is over: to be told and detached */
    int error;         /* then why: 0 the end, or an errno */

    struct frame_ring out; /* to the guest */
};

static inline struct link_socket *link_socket_of(struct link *link)
{
    return (struct link_socket *)link; /* the link is the first member */
}

int link_socket_init(struct link_socket *socket, const struct link_operations *operations, uint64_t *counters,
                     struct pcap_ring *pcap, int epoll_fd, uint64_t source); /* 0 or a negative errno */

/* A new connection, in a state of its own: nothing of one before it is left. `prefix`: bytes that its link puts before each
 * frame. 0; -EBUSY while there is one, or another negative errno: the descriptor stays the caller's. */
int link_socket_attach(struct link_socket *socket, int fd, size_t prefix);
void link_socket_detach(struct link_socket *socket); /* closes it, if there is one */

void link_socket_event(struct link_socket *socket, uint32_t events); /* of its socket */
void link_socket_end(struct link_socket *socket, int error);         /* the first reason counts */

/* These of link_operations are the same for all. */
void link_socket_release(struct link *link);
int link_socket_reserve(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                        struct guest_room *ret_room);
void link_socket_rollback(struct link *link);
bool link_socket_wait_room(struct link *link);

/* For commit(): returns where the prefix goes, and *ret_bytes that follow it. */
static inline uint8_t *link_socket_commit(struct link_socket *socket, size_t length, uint32_t *ret_bytes)
{
    size_t padded = length;
    uint8_t *at = frame_ring_commit(&socket->out, &padded);

    socket->counters[C_frames_to_guest]++;
    socket->counters[C_bytes_to_guest] += length;
    if (socket->pcap->on) {
        struct iovec iov = {at + socket->out.prefix, length};
        pcap_ring_put(socket->pcap, &iov, 1, (uint32_t)length, true);
    }
    *ret_bytes = (uint32_t)padded;
    return at;
}

/* For flush(), which is between two batches, so that no reservation is out: whether something is to be sent now... */
static inline bool link_socket_sends(const struct link_socket *socket)
{
    return socket->fd >= 0 && !socket->blocked && !socket->ended && !frame_ring_is_empty(&socket->out);
}

/* ... and once nothing more is. */
void link_socket_flushed(struct link_socket *socket);

#endif
