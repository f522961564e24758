/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_peer.c: the peers at the other end of the fake kernel's TCP. Names in brackets are Linux's own.
 *
 * Called by the tests. Adversary: nobody.
 */
#include <errno.h>
#include <string.h>

#include "fake_kernel.h"
#include "sys.h"

/* NULL when the core has closed its end: that peer's acts concern nobody any more. */
static struct fake_socket *peer_of(int fd)
{
    const struct fake_socket *socket = fake_socket_at(fd);

    return socket && !socket->closed ? fake_socket_of(fd, "peer") : NULL;
}

int fake_peer_accept(int fd)
{
    struct fake_socket *socket = peer_of(fd);

    if (!socket || socket->state != FAKE_CONNECTING)
        return -EINVAL;
    socket->state = FAKE_CONNECTED;
    fake_socket_wake(socket, 0);
    return 0;
}

int fake_listen(void)
{
    int fd = fake_socket_descriptor();

    if (fd >= 0)
        fake_socket_of(fd, "listen")->listening = true;
    return fd;
}

int fake_listen_at(const uint8_t address[16], uint16_t port)
{
    int fd = fake_listen();
    struct fake_socket *socket = fake_socket_of(fd, "listen");

    memcpy(socket->local, address, sizeof(socket->local));
    socket->own_port = port;
    return fd;
}

int fake_peer_connect(int listener, const uint8_t address[16], uint16_t port)
{
    struct fake_socket *listening = fake_socket_of(listener, "peer_connect");
    int fd = fake_socket_descriptor();

    if (!listening || fd < 0 || listening->backlog_count == sizeof(listening->backlog) / sizeof(listening->backlog[0]))
        return -ECONNREFUSED;
    struct fake_socket *socket = fake_socket_of(fd, "peer_connect");
    socket->family = AF_INET6;
    socket->state = FAKE_CONNECTED;
    socket->port = port;
    memcpy(socket->address, address, sizeof(socket->address));
    memcpy(socket->local, listening->local, sizeof(socket->local));
    socket->own_port = listening->own_port;
    memcpy(socket->congestion, listening->congestion, sizeof(socket->congestion));
    listening->backlog[listening->backlog_count++] = fd;
    fake_wake(listener, EPOLLIN);
    return fd;
}

static void end(struct fake_socket *socket, int error)
{
    socket->state = FAKE_CLOSED;
    socket->error = error;
    socket->read_shut = socket->write_shut = true;
    socket->drained = socket->sent; /* nobody will take it any more */
    fake_socket_wake(socket, 0);
    fake_socket_wake(socket, EPOLLERR);
}

int fake_peer_refuse(int fd, int error)
{
    struct fake_socket *socket = peer_of(fd);

    if (!socket || socket->state != FAKE_CONNECTING)
        return -EINVAL;
    end(socket, error);
    return 0;
}

int64_t fake_peer_send(int fd, uint64_t length)
{
    struct fake_socket *socket = peer_of(fd);

    if (!socket || socket->state != FAKE_CONNECTED || socket->read_shut)
        return -EPIPE;
    uint64_t room = socket->receive_limit - (socket->arrived - socket->taken);
    if (length > room)
        length = room;
    if (!length)
        return 0;
    socket->arrived += length;
    if (fake_socket_readable(socket))
        fake_socket_wake(socket, EPOLLIN | EPOLLPRI);
    return (int64_t)length;
}

int64_t fake_peer_send_urgent(int fd, uint64_t length)
{
    int64_t sent = fake_peer_send(fd, length);
    struct fake_socket *socket = peer_of(fd);

    if (sent > 0) {
        socket->has_urgent = true;
        socket->urgent = socket->arrived - 1;
        fake_socket_wake(socket, EPOLLIN | EPOLLPRI); /* [tcp_urg] */
    }
    return sent;
}

int fake_peer_fin(int fd)
{
    struct fake_socket *socket = peer_of(fd);

    if (!socket || socket->state != FAKE_CONNECTED || socket->read_shut)
        return -EPIPE;
    socket->fin_received = socket->read_shut = true;
    fake_socket_wake(socket, 0);
    return 0;
}

int fake_peer_reset(int fd)
{
    struct fake_socket *socket = peer_of(fd);

    if (!socket || socket->state != FAKE_CONNECTED)
        return -EPIPE;
    end(socket, socket->fin_received ? EPIPE : ECONNRESET); /* [tcp_reset] */
    return 0;
}

int64_t fake_peer_take(int fd, uint64_t length)
{
    struct fake_socket *socket = peer_of(fd);

    if (!socket || socket->state != FAKE_CONNECTED)
        return -EPIPE;
    uint64_t there = socket->sent - socket->drained;
    if (length > there)
        length = there;
    socket->drained += length;
    if (socket->no_space && fake_socket_writable(socket)) {
        socket->no_space = false;
        fake_socket_wake(socket, EPOLLOUT);
    }
    fake_socket_fin(socket);
    return (int64_t)length;
}

void fake_send_limit(int fd, uint32_t bytes)
{
    struct fake_socket *socket = peer_of(fd);

    if (socket)
        socket->send_limit = bytes;
}
