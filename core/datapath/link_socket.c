/* SPDX-License-Identifier: Apache-2.0
 *
 * link_socket.c: the socket of link_socket.h. Adversary: the other end, which may never read. What could not be sent waits
 * for EPOLLOUT with all that is behind it, and nobody else waits for it.
 */
#include "link_socket.h"

#include <errno.h>

#include "sys.h"

/* OUT only while it is waited for: each time that the other end reads, a unix socket reports it again. */
static uint32_t interest_of(const struct link_socket *socket)
{
    return EPOLLIN | EPOLLRDHUP | EPOLLET | (socket->blocked ? (uint32_t)EPOLLOUT : 0);
}

int link_socket_init(struct link_socket *socket, const struct link_operations *operations, uint64_t *counters,
                     struct pcap_ring *pcap, int epoll_fd, uint64_t source)
{
    *socket = (struct link_socket){
        .link = {.operations = operations, .flush_ms = UINT64_MAX, .look_ms = UINT64_MAX},
        .counters = counters,
        .pcap = pcap,
        .epoll_fd = epoll_fd,
        .source = source,
        .fd = -1,
    };
    return frame_ring_init(&socket->out);
}

int link_socket_attach(struct link_socket *socket, int fd, size_t prefix)
{
    if (socket->fd >= 0)
        return -EBUSY;
    socket->blocked = socket->hung_up = socket->ended = false;
    socket->interest = interest_of(socket);
    int err = sys_epoll_ctl(socket->epoll_fd, EPOLL_CTL_ADD, fd, socket->interest, socket->source);
    if (err)
        return err;
    socket->fd = fd;
    socket->unread = true;
    frame_ring_clear(&socket->out, prefix);
    return 0;
}

void link_socket_detach(struct link_socket *socket)
{
    if (socket->fd < 0)
        return;
    /* Others may hold the same socket: closing ours alone would leave it in epoll (epoll(7), questions 1 and 6). */
    sys_epoll_ctl(socket->epoll_fd, EPOLL_CTL_DEL, socket->fd, 0, 0);
    sys_close(socket->fd);
    socket->fd = -1;
    socket->ended = socket->blocked = false;
}

void link_socket_event(struct link_socket *socket, uint32_t events)
{
    if (events & ~(uint32_t)EPOLLOUT)
        socket->unread = true;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        socket->hung_up = true;
    if (!(events & EPOLLOUT) || socket->fd < 0)
        return;
    socket->blocked = false;
    socket->link.operations->flush(&socket->link, 0);
}

void link_socket_end(struct link_socket *socket, int error)
{
    if (socket->ended)
        return;
    socket->ended = true;
    socket->unread = false;
    socket->error = error;
}

void link_socket_release(struct link *link)
{
    (void)link; /* the bytes are ours, and were taken with the frame */
}

int link_socket_reserve(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                        struct guest_room *ret_room)
{
    struct link_socket *socket = link_socket_of(link);

    if (socket->fd < 0 || socket->ended)
        return -ENOTCONN;
    return frame_ring_reserve(&socket->out, header, payload, pieces, ret_room);
}

void link_socket_rollback(struct link *link)
{
    frame_ring_rollback(&link_socket_of(link)->out);
}

bool link_socket_wait_room(struct link *link)
{
    const struct link_socket *socket = link_socket_of(link);

    link->operations->flush(link, 0);
    return socket->blocked || socket->fd < 0 || socket->ended; /* else all is sent: there is room already */
}

void link_socket_flushed(struct link_socket *socket)
{
    uint32_t interest = interest_of(socket);

    if (socket->fd >= 0 && interest != socket->interest) {
        socket->interest = interest;
        sys_epoll_ctl(socket->epoll_fd, EPOLL_CTL_MOD, socket->fd, interest, socket->source);
    }
    pcap_ring_flush(socket->pcap);
}
