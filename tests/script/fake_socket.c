/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_socket.c: the TCP of the fake kernel; the peers at its other end are in fake_peer.c. Names in brackets are Linux's own.
 *
 * Which wake-up carries which mask decides what an edge-triggered watch sees:
 *   a segment with data    IN|PRI    [sock_def_readable]
 *   connect() has ended, FIN, RST, our own shutdown(), the ACK of our FIN    none: a change of state [sock_def_wakeup]
 *   RST                    ERR beside that [sk_error_report]
 *   room in the queue      OUT, if a send came short before [sk_stream_write_space]
 *
 * Called by the core through sys.h, and by the tests. Adversary: nobody.
 * Invariants: taken <= arrived, drained <= sent; what the core sends is compared with the pattern of the socket's stream.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "fake_kernel.h"
#include "sys.h"

/* Of the core's, by recvmsg(). */
static struct {
    uint32_t stream;
    uint64_t position, length;
} last_read;

static struct {
    uint32_t send_limit, receive_limit, send_overhead;
    int peek_off;
    uint8_t broadcast[16], prohibited[16]; /* all zeros: none */
} defaults;

void fake_defaults(uint32_t send_limit, uint32_t receive_limit, uint32_t send_overhead, int peek_off)
{
    defaults.send_limit = send_limit;
    defaults.receive_limit = receive_limit;
    defaults.send_overhead = send_overhead;
    defaults.peek_off = peek_off;
    memset(defaults.broadcast, 0, sizeof(defaults.broadcast));
    memset(defaults.prohibited, 0, sizeof(defaults.prohibited));
}

bool fake_has_peek_off(void)
{
    return defaults.peek_off;
}

void fake_socket_init(struct fake_socket *socket, int fd)
{
    *socket = (struct fake_socket){
        .stream_in = 2u * (unsigned)fd,
        .stream_out = 2u * (unsigned)fd + 1,
        .peek_offset = -1,
        .quick_ack = true,
        .all_groups = true,
        .receive_limit = defaults.receive_limit,
        .low_water_limit = 3 << 20,
        .send_limit = defaults.send_limit,
    };
}

/* ---- what is there ---- */

/* The memory of the send queue [sk_wmem_queued]: the bytes and what the kernel needs to keep them. */
static uint64_t queue_memory(const struct fake_socket *socket, uint64_t bytes)
{
    (void)socket;
    return bytes + bytes * defaults.send_overhead / 100;
}

static uint64_t queued(const struct fake_socket *socket)
{
    return queue_memory(socket, socket->sent - socket->drained);
}

uint64_t fake_socket_room(const struct fake_socket *socket)
{
    uint64_t used = queued(socket);

    return used >= socket->send_limit ? 0 : (socket->send_limit - used) * 100 / (100 + defaults.send_overhead);
}

/* [sk_stream_is_writeable]: what is free is half of what is used, a third of the whole. */
bool fake_socket_writable(const struct fake_socket *socket)
{
    uint64_t used = queued(socket);

    return used <= socket->send_limit && socket->send_limit - used >= used / 2;
}

/* [tcp_epollin_ready] */
bool fake_socket_readable(const struct fake_socket *socket)
{
    uint64_t there = socket->arrived - socket->taken;

    return there && there >= socket->low_water;
}

/* [tcp_poll] */
uint32_t fake_socket_poll(struct fake_socket *socket)
{
    uint32_t mask = socket->error ? EPOLLERR : 0;

    if (socket->datagrams)
        return fake_datagram_poll(socket);
    if (socket->listening)
        return socket->backlog_count ? EPOLLIN : 0;
    if (socket->state == FAKE_CONNECTING)
        return mask;
    if ((socket->read_shut && socket->write_shut) || socket->state != FAKE_CONNECTED)
        mask |= EPOLLHUP;
    if (socket->read_shut)
        mask |= EPOLLIN | EPOLLRDHUP;
    if (fake_socket_readable(socket))
        mask |= EPOLLIN;
    if (socket->has_urgent)
        mask |= EPOLLPRI;
    if (socket->write_shut || fake_socket_writable(socket))
        mask |= EPOLLOUT;
    else
        socket->no_space = true;
    return mask;
}

/* The kernel knows a socket by its first descriptor, which its streams are numbered by. */
static int descriptor(const struct fake_socket *socket)
{
    return (int)(socket->stream_in / 2);
}

void fake_socket_wake(const struct fake_socket *socket, uint32_t mask)
{
    fake_wake(descriptor(socket), mask);
}

/* Our FIN is acknowledged at once when all before it is. */
void fake_socket_fin(struct fake_socket *socket)
{
    if (!socket->write_shut || socket->fin_acked || socket->drained < socket->sent || socket->state != FAKE_CONNECTED)
        return;
    socket->fin_acked = true;
    fake_socket_wake(socket, 0);
}

/* ---- the core's calls ---- */

int fake_socket_made(int family, bool datagram)
{
    int fd = fake_socket_descriptor();

    if (fd < 0)
        return fd;
    struct fake_socket *socket = fake_socket_of(fd, "socket");
    socket->family = family;
    socket->datagrams = datagram ? fake_datagrams_make() : NULL;
    return fd;
}

int sys_socket(int family, int type, int protocol)
{
    int err = fake_called(CALL_socket);
    int fd;

    if (err)
        return err;
    bool datagram = type == (SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (!datagram && (type != (SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC) || protocol))
        fake_violate("socket(): type %#x, protocol %d", (unsigned)type, protocol);
    fd = fake_socket_made(family, datagram);
    if (fd < 0)
        return fd;
    struct fake_socket *socket = fake_socket_of(fd, "socket");
    socket->protocol = protocol;
    socket->reuse_address = protocol != 0; /* [INET_PROTOSW_REUSE] of ping sockets */
    return fd;
}

void fake_broadcast_address(const uint8_t address[16])
{
    memcpy(defaults.broadcast, address, sizeof(defaults.broadcast));
}

void fake_prohibited_address(const uint8_t address[16])
{
    memcpy(defaults.prohibited, address, sizeof(defaults.prohibited));
}

/* The errno of the two is the same. */
static bool is_refused(const struct fake_socket *socket)
{
    static const uint8_t limited[16] = {[10] = 0xff, [11] = 0xff, [12] = 0xff, [13] = 0xff, [14] = 0xff, [15] = 0xff};
    const uint8_t *to = socket->address;
    bool broadcast = !memcmp(to, limited, sizeof(limited)) || !memcmp(to, defaults.broadcast, sizeof(limited));

    return (broadcast && !socket->broadcast) || !memcmp(to, defaults.prohibited, sizeof(limited));
}

int sys_connect(int fd, const struct sockaddr *addr, socklen_t length)
{
    int err = fake_called(CALL_connect);
    struct fake_socket *socket = fake_socket_of(fd, "connect");

    if (!socket)
        return -EBADF;
    if (addr->sa_family == AF_INET && length >= sizeof(struct sockaddr_in)) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)addr;
        memset(socket->address + 10, 0xff, 2);
        memcpy(socket->address + 12, &in->sin_addr, 4);
        socket->port = ntohs(in->sin_port);
    } else if (addr->sa_family == AF_INET6 && length >= sizeof(struct sockaddr_in6)) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)addr;
        memcpy(socket->address, &in6->sin6_addr, 16);
        socket->port = ntohs(in6->sin6_port);
        socket->scope_id = in6->sin6_scope_id;
    } else {
        return -EINVAL;
    }
    if (err)
        return err;
    if (is_refused(socket))
        return -EACCES;
    socket->state = socket->datagrams ? FAKE_CONNECTED : FAKE_CONNECTING;
    return socket->datagrams ? 0 : -EINPROGRESS;
}

/* An address as a socket of that family tells it. */
void fake_socket_shown(const uint8_t address[16], uint16_t port, int family, struct sockaddr *addr, socklen_t *length)
{
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t there = family == AF_INET ? sizeof(in) : sizeof(in6);

    memcpy(&in6.sin6_addr, address, sizeof(in6.sin6_addr));
    memcpy(&in.sin_addr, address + 12, sizeof(in.sin_addr));
    memcpy(addr, family == AF_INET ? (const void *)&in : (const void *)&in6, *length < there ? *length : there);
    *length = there;
}

int sys_accept(int fd, struct sockaddr *addr, socklen_t *length)
{
    int err = fake_called(CALL_accept);
    struct fake_socket *listener = fake_socket_of(fd, "accept");

    if (err || !listener)
        return err ? err : -EBADF;
    if (!listener->backlog_count)
        return -EAGAIN;
    int accepted = listener->backlog[0];
    memmove(listener->backlog, listener->backlog + 1, --listener->backlog_count * sizeof(listener->backlog[0]));
    const struct fake_socket *socket = fake_socket_of(accepted, "accept");
    fake_socket_shown(socket->address, socket->port, AF_INET6, addr, length);
    return accepted;
}

static int meminfo(const struct fake_socket *socket, uint32_t *value, socklen_t *length)
{
    uint32_t memory[SK_MEMINFO_VARS] = {
        [SK_MEMINFO_SNDBUF] = socket->send_limit,
        [SK_MEMINFO_WMEM_QUEUED] = (uint32_t)queued(socket),
        [SK_MEMINFO_RCVBUF] = socket->receive_limit,
        [SK_MEMINFO_RMEM_ALLOC] = (uint32_t)(socket->arrived - socket->taken),
    };

    if (*length > sizeof(memory))
        *length = sizeof(memory);
    memcpy(value, memory, *length);
    return 0;
}

/* Those of one number. False: not modelled. */
static bool get_number(struct fake_socket *socket, int level, int name, int *value)
{
    if (level == SOL_SOCKET && name == SO_ERROR) {
        *value = socket->error;
        socket->error = 0;
    } else if (level == SOL_SOCKET && name == SO_RCVLOWAT) {
        *value = socket->low_water ? (int)socket->low_water : 1;
    } else if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY) {
        *value = socket->ipv6_only;
    } else {
        return false;
    }
    return true;
}

/* False: not modelled. */
static bool get_option(struct fake_socket *socket, int level, int name, void *value, socklen_t *length)
{
    if (*length == sizeof(int) && get_number(socket, level, name, value))
        return true;
    if (level == IPPROTO_TCP && name == TCP_CONGESTION && *length >= sizeof(FAKE_CONGESTION)) {
        strncpy(value, *socket->congestion ? socket->congestion : FAKE_CONGESTION, *length);
        return true;
    }
    if (level == SOL_SOCKET && name == SO_BINDTODEVICE) { /* to none */
        *length = 0;
        return true;
    }
    return false;
}

int sys_getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    int err = fake_called(CALL_getsockopt);
    struct fake_socket *socket = fake_socket_of(fd, "getsockopt");

    if (err || !socket)
        return err ? err : -EBADF;
    if (level == SOL_SOCKET && name == SO_MEMINFO)
        return meminfo(socket, value, length);
    if (get_option(socket, level, name, value, length))
        return 0;
    fake_violate("getsockopt(): level %d, option %d is not modelled", level, name);
    return -ENOPROTOOPT;
}

/* The answer when no byte is there [the end of tcp_recvmsg_locked's loop]: a FIN hides an error that came after it. */
ssize_t fake_socket_nothing(struct fake_socket *socket)
{
    int error = socket->error;

    if (socket->fin_received)
        return 0;
    socket->error = 0;
    if (error)
        return -error;
    if (socket->read_shut)
        return 0;
    return socket->state == FAKE_IDLE || socket->state == FAKE_CLOSED ? -ENOTCONN : -EAGAIN;
}

/* How many bytes one read finds at `start`: it stops before the urgent byte, and starts again there. */
static uint64_t readable(const struct fake_socket *socket, uint64_t start)
{
    if (start >= socket->arrived)
        return 0;
    if (socket->has_urgent && start < socket->urgent)
        return socket->urgent - start;
    return socket->arrived - start;
}

/* A read that takes: the peek offset moves back, and urgent data that was passed is urgent no more. */
void fake_socket_take(struct fake_socket *socket, uint64_t length)
{
    socket->taken += length;
    if (socket->peek_offset >= 0)
        socket->peek_offset = socket->peek_offset > (int64_t)length ? socket->peek_offset - (int64_t)length : 0;
    if (socket->taken > socket->urgent)
        socket->has_urgent = false;
}

ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags)
{
    int err = fake_called(CALL_recvmsg);
    struct fake_socket *socket = fake_socket_of(fd, "recvmsg");
    uint64_t done = 0;

    if (err || !socket)
        return err ? err : -EBADF;
    if (socket->datagrams)
        return fake_datagram_recvmsg(socket, msg, flags);
    if (flags & ~(MSG_PEEK | MSG_DONTWAIT))
        fake_violate("recvmsg(): flags %#x are not modelled", (unsigned)flags);
    if (msg->msg_iovlen > UIO_MAXIOV)
        return -EMSGSIZE;
    bool at_offset = flags & MSG_PEEK && socket->peek_offset >= 0;
    uint64_t start = socket->taken + (at_offset ? (uint64_t)socket->peek_offset : 0);
    uint64_t there = readable(socket, start);

    if (!there)
        return fake_socket_nothing(socket);
    for (size_t i = 0; i < msg->msg_iovlen && done < there; i++) {
        size_t part = msg->msg_iov[i].iov_len < there - done ? msg->msg_iov[i].iov_len : (size_t)(there - done);
        fake_pattern_fill(socket->stream_in, start + done, msg->msg_iov[i].iov_base, part);
        done += part;
    }
    if (at_offset) {
        socket->peek_offset += (int64_t)done;
    } else if (!(flags & MSG_PEEK)) {
        last_read.stream = socket->stream_in;
        last_read.position = start;
        last_read.length = done;
        fake_socket_take(socket, done);
    }
    return (ssize_t)done;
}

ssize_t sys_discard(int fd, size_t length)
{
    int err = fake_called(CALL_discard);
    struct fake_socket *socket = fake_socket_of(fd, "discard");

    if (err || !socket)
        return err ? err : -EBADF;
    uint64_t there = readable(socket, socket->taken);
    if (!there)
        return fake_socket_nothing(socket);
    if (there > length)
        there = length;
    fake_socket_take(socket, there);
    return (ssize_t)there;
}

void fake_last_read(uint32_t *ret_stream, uint64_t *ret_position, uint64_t *ret_length)
{
    *ret_stream = last_read.stream;
    *ret_position = last_read.position;
    *ret_length = last_read.length;
}

static void compare(const struct fake_socket *socket, const struct iovec *iov, uint64_t position, size_t length)
{
    size_t match = fake_pattern_match(socket->stream_out, position, iov->iov_base, length);

    if (match < length)
        fake_violate("sendmsg() on descriptor %d: byte %llu of the stream is not the guest's", descriptor(socket),
                     (unsigned long long)(position + match));
}

int fake_socket_send_error(struct fake_socket *socket)
{
    int error = socket->error ? socket->error : EPIPE;

    if (!socket->error && !socket->write_shut && socket->state == FAKE_CONNECTED)
        return 0;
    socket->error = 0; /* whoever meets the error first takes it with him [sk_stream_error] */
    return -error;
}

ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    int err = fake_called(CALL_sendmsg);
    struct fake_socket *socket = fake_socket_of(fd, "sendmsg");
    uint64_t done = 0;

    if (err || !socket)
        return err ? err : -EBADF;
    if (flags != (MSG_DONTWAIT | MSG_NOSIGNAL))
        fake_violate("sendmsg(): flags %#x are not modelled", (unsigned)flags);
    if (msg->msg_iovlen > UIO_MAXIOV)
        return -EMSGSIZE;
    if ((err = fake_socket_send_error(socket)))
        return err;
    uint64_t room = fake_socket_room(socket);
    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        size_t part = msg->msg_iov[i].iov_len < room - done ? msg->msg_iov[i].iov_len : (size_t)(room - done);
        compare(socket, &msg->msg_iov[i], socket->sent + done, part);
        done += part;
        if (part < msg->msg_iov[i].iov_len) {
            socket->no_space = true;
            break;
        }
    }
    socket->sent += done;
    return done || !socket->no_space ? (ssize_t)done : -EAGAIN;
}

int sys_shutdown(int fd, int how)
{
    int err = fake_called(CALL_shutdown);
    struct fake_socket *socket = fake_socket_of(fd, "shutdown");

    if (err || !socket)
        return err ? err : -EBADF;
    if (socket->state != FAKE_CONNECTED)
        return -ENOTCONN;
    if (how != SHUT_WR)
        fake_violate("shutdown(): %d is not modelled", how);
    socket->write_shut = true;
    fake_socket_wake(socket, 0);
    fake_socket_fin(socket);
    return 0;
}

void fake_socket_closed(struct fake_socket *socket)
{
    socket->closed = true;
    socket->aborted = socket->state == FAKE_CONNECTED && (socket->linger_hard || socket->arrived > socket->taken);
}

/* ---- for the facts ---- */

int64_t fake_recv(int fd, void *bytes, size_t length, int flags)
{
    struct iovec iov = {bytes, length};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    return sys_recvmsg(fd, &msg, flags);
}

int64_t fake_send(int fd, const void *bytes, size_t length)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, length};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    return sys_sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}
