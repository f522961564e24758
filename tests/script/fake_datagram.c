/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_datagram.c: UDP and ping sockets of the fake kernel: a queue of what came from the peer, a list of what the core
 * sent, and the error queue of ip(7).
 *
 * A datagram that arrives wakes IN, an error ERR. An error is met once by the next call on the socket [sk_err], and stays
 * in the error queue until it is read from there.
 *
 * Called by the core through sys.h, and by the tests. Adversary: nobody. Invariants: what was sent is kept as it went over
 * the wire, that is, after UDP_SEGMENT has been carried out.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <time.h> /* errqueue.h needs it */

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>

#include "fake_kernel.h"
#include "host_address.h"
#include "list.h"
#include "sys.h"

/* On a socket that is connected to nobody. */
struct path {
    uint8_t address[16]; /* of the peer */
    uint8_t to[16];      /* as in the header */
    uint8_t local[16];   /* the host's own */
    uint16_t port;       /* of the peer; 0: the socket is connected */
};

struct packet_kept {
    struct node node;
    uint32_t length;
    uint16_t segment;
    struct fake_path_error error;
    struct path path;
    uint8_t bytes[];
};

struct fake_datagrams {
    struct list queue, errors, out;
};

static struct packet_kept *keep(struct list *list, const void *bytes, size_t length)
{
    struct packet_kept *packet = calloc(1, sizeof(*packet) + length);

    memcpy(packet->bytes, bytes, length);
    packet->length = (uint32_t)length;
    list_append(list, &packet->node);
    return packet;
}

static struct packet_kept *first(const struct list *list)
{
    struct node *node = list->head.next;

    return node == &list->head ? NULL : container_of(node, struct packet_kept, node);
}

static void list_free(struct list *list)
{
    struct node *node;

    while ((node = list_pop(list)))
        free(container_of(node, struct packet_kept, node));
}

struct fake_datagrams *fake_datagrams_make(void)
{
    struct fake_datagrams *datagrams = calloc(1, sizeof(*datagrams));

    list_init(&datagrams->queue);
    list_init(&datagrams->errors);
    list_init(&datagrams->out);
    return datagrams;
}

void fake_datagrams_free(struct fake_datagrams *datagrams)
{
    if (!datagrams)
        return;
    list_free(&datagrams->queue);
    list_free(&datagrams->errors);
    list_free(&datagrams->out);
    free(datagrams);
}

uint32_t fake_datagram_poll(const struct fake_socket *socket)
{
    return EPOLLOUT | (first(&socket->datagrams->queue) ? EPOLLIN : 0) |
           (socket->error || first(&socket->datagrams->errors) ? (uint32_t)EPOLLERR : 0);
}

/* ---- the core's calls ---- */

/* [ipv6_rcv_saddr_equal] No socket has an address of its own. */
static bool families_meet(const struct fake_socket *a, const struct fake_socket *b)
{
    return a->family == b->family || (!a->ipv6_only && !b->ipv6_only);
}

/* [udp_lib_lport_inuse; of echo requests, ping_get_port] */
static bool port_taken(const struct fake_socket *socket, uint16_t port)
{
    for (int fd = FAKE_DESCRIPTOR_FIRST; fd <= fake_last_socket(); fd++) {
        const struct fake_socket *other = fake_socket_at(fd);
        if (other && other != socket && !other->closed && other->datagrams && other->protocol == socket->protocol &&
            families_meet(other, socket) && other->own_port == port && !(other->reuse_address && socket->reuse_address))
            return true;
    }
    return false;
}

int sys_getsockname(int fd, struct sockaddr *addr, socklen_t *length)
{
    int err = fake_called(CALL_getsockname);
    const struct fake_socket *socket = fake_socket_of(fd, "getsockname");

    if (err || !socket)
        return err ? err : -EBADF;
    fake_socket_shown(socket->local, socket->own_port, socket->family, addr, length);
    return 0;
}

int sys_getpeername(int fd, struct sockaddr *addr, socklen_t *length)
{
    int err = fake_called(CALL_getpeername);
    const struct fake_socket *socket = fake_socket_of(fd, "getpeername");

    if (err || !socket)
        return err ? err : -EBADF;
    if (socket->state != FAKE_CONNECTED)
        return -ENOTCONN;
    fake_socket_shown(socket->address, socket->port, socket->family, addr, length);
    return 0;
}

int sys_bind(int fd, const struct sockaddr *addr, socklen_t length)
{
    int err = fake_called(CALL_bind);
    struct fake_socket *socket = fake_socket_of(fd, "bind");

    if (err || !socket)
        return err ? err : -EBADF;
    if (length < sizeof(struct sockaddr_in))
        return -EINVAL;
    /* sin_port and sin6_port lie at the same place. */
    uint16_t port = ntohs(((const struct sockaddr_in *)(const void *)addr)->sin_port);
    if (socket->datagrams && port && port_taken(socket, port))
        return -EADDRINUSE;
    address local = address_from_host(addr);
    memcpy(socket->local, local.byte, sizeof(socket->local));
    socket->own_port = port;
    socket->bound_shared = socket->reuse_address;
    return 0;
}

static int take_error(struct fake_socket *socket)
{
    int error = socket->error;

    socket->error = 0;
    return -error;
}

static bool is_ipv4(const uint8_t address[16])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    return !memcmp(address, mapped, sizeof(mapped));
}

/* Appends a control message, if there is room for it. */
static void add_control(struct msghdr *msg, size_t *used, int level, int type, const void *value, size_t length)
{
    struct cmsghdr *c = (struct cmsghdr *)(void *)((char *)msg->msg_control + *used);

    if (*used + CMSG_SPACE(length) > msg->msg_controllen)
        return;
    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(length);
    memcpy(CMSG_DATA(c), value, length);
    *used += CMSG_SPACE(length);
}

/* On a socket of both families an IPv4 datagram has both messages: IPv6's knows no more than its header. */
static void tell_where(const struct fake_socket *socket, struct msghdr *msg, const struct packet_kept *packet,
                       size_t *used)
{
    struct in6_pktinfo info6 = {.ipi6_ifindex = 1};
    struct in_pktinfo info4 = {.ipi_ifindex = 1};

    memcpy(&info6.ipi6_addr, packet->path.to, sizeof(info6.ipi6_addr));
    memcpy(&info4.ipi_addr, packet->path.to + 12, sizeof(info4.ipi_addr));
    memcpy(&info4.ipi_spec_dst, packet->path.local + 12, sizeof(info4.ipi_spec_dst));
    if (socket->packet_info4 && is_ipv4(packet->path.to))
        add_control(msg, used, IPPROTO_IP, IP_PKTINFO, &info4, sizeof(info4));
    if (socket->packet_info6)
        add_control(msg, used, IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof(info6));
}

static void tell_peer(const struct fake_socket *socket, struct msghdr *msg, const struct packet_kept *packet)
{
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(packet->path.port)};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(packet->path.port)};
    bool ipv4 = socket->family == AF_INET;

    memcpy(&in6.sin6_addr, packet->path.address, sizeof(in6.sin6_addr));
    memcpy(&in.sin_addr, packet->path.address + 12, sizeof(in.sin_addr));
    if (!msg->msg_name)
        return;
    memcpy(msg->msg_name, ipv4 ? (const void *)&in : (const void *)&in6, ipv4 ? sizeof(in) : sizeof(in6));
    msg->msg_namelen = ipv4 ? sizeof(in) : sizeof(in6);
}

static ssize_t read_datagram(struct fake_socket *socket, struct msghdr *msg)
{
    struct packet_kept *packet = first(&socket->datagrams->queue);
    size_t done = 0;

    if (socket->error)
        return take_error(socket);
    if (!packet)
        return -EAGAIN;
    for (size_t i = 0; i < msg->msg_iovlen && done < packet->length; i++) {
        size_t left = packet->length - done, part = msg->msg_iov[i].iov_len < left ? msg->msg_iov[i].iov_len : left;
        memcpy(msg->msg_iov[i].iov_base, packet->bytes + done, part);
        done += part;
    }
    msg->msg_flags = done < packet->length ? MSG_TRUNC : 0;
    size_t used = 0;
    int size = packet->segment;
    if (packet->path.port) {
        tell_peer(socket, msg, packet);
        tell_where(socket, msg, packet, &used);
    }
    if (size)
        add_control(msg, &used, IPPROTO_UDP, UDP_GRO, &size, sizeof(size));
    msg->msg_controllen = used;
    node_leave(&packet->node);
    free(packet);
    return (ssize_t)done;
}

static ssize_t read_error(struct fake_socket *socket, struct msghdr *msg)
{
    struct packet_kept *packet = first(&socket->datagrams->errors);
    bool ipv4 = socket->family == AF_INET;
    struct {
        struct sock_extended_err error;
        union {
            struct sockaddr_in in;
            struct sockaddr_in6 in6;
        } offender;
    } told = {0};

    if (!packet)
        return -EAGAIN;
    told.error.ee_errno = (uint32_t)packet->error.error;
    told.error.ee_origin = packet->error.origin;
    told.error.ee_type = packet->error.type;
    told.error.ee_code = packet->error.code;
    told.error.ee_info = packet->error.info;
    told.offender.in.sin_family = ipv4 ? AF_INET : AF_INET6;
    if (ipv4)
        memcpy(&told.offender.in.sin_addr, packet->error.offender + 12, 4);
    else
        memcpy(&told.offender.in6.sin6_addr, packet->error.offender, 16);
    struct cmsghdr *c = CMSG_FIRSTHDR(msg);
    size_t length = sizeof(told.error) + (ipv4 ? sizeof(told.offender.in) : sizeof(told.offender.in6));
    c->cmsg_level = ipv4 ? IPPROTO_IP : IPPROTO_IPV6;
    c->cmsg_type = ipv4 ? IP_RECVERR : IPV6_RECVERR;
    c->cmsg_len = CMSG_LEN(length);
    memcpy(CMSG_DATA(c), &told, length);
    msg->msg_controllen = c->cmsg_len;
    size_t part = packet->length < msg->msg_iov[0].iov_len ? packet->length : msg->msg_iov[0].iov_len;
    memcpy(msg->msg_iov[0].iov_base, packet->bytes, part);
    node_leave(&packet->node);
    free(packet);
    packet = first(&socket->datagrams->errors);
    socket->error = packet ? packet->error.error : 0; /* [sock_dequeue_err_skb] */
    return (ssize_t)part;
}

ssize_t fake_datagram_recvmsg(struct fake_socket *socket, struct msghdr *msg, int flags)
{
    return flags & MSG_ERRQUEUE ? read_error(socket, msg) : read_datagram(socket, msg);
}

int sys_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    int err = fake_called(CALL_recvmmsg);
    struct fake_socket *socket = fake_socket_of(fd, "recvmmsg");
    unsigned n = 0;

    if (err || !socket)
        return err ? err : -EBADF;
    if (flags != MSG_DONTWAIT)
        fake_violate("recvmmsg(): flags %#x are not modelled", (unsigned)flags);
    for (; n < count; n++) {
        ssize_t length = read_datagram(socket, &messages[n].msg_hdr);
        if (length < 0)
            return n ? (int)n : (int)length;
        messages[n].msg_len = (unsigned)length;
    }
    return (int)n;
}

static uint16_t segment_asked(const struct msghdr *msg)
{
    uint16_t size = 0;

    for (const struct cmsghdr *c = CMSG_FIRSTHDR(msg); c;
         c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)msg, (struct cmsghdr *)(uintptr_t)c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_SEGMENT)
            memcpy(&size, CMSG_DATA(c), sizeof(size));
    return size;
}

/* Where to, and from where, as the message says. */
static void note_path(const struct msghdr *msg, struct packet_kept *packet)
{
    const struct sockaddr_in6 *to = msg->msg_name;
    const struct sockaddr_in *to4 = msg->msg_name;

    if (!to)
        return;
    if (to->sin6_family == AF_INET) {
        memset(packet->path.address + 10, 0xff, 2);
        memcpy(packet->path.address + 12, &to4->sin_addr, 4);
    } else {
        memcpy(packet->path.address, &to->sin6_addr, sizeof(packet->path.address));
    }
    packet->path.port = ntohs(to4->sin_port); /* sin6_port lies at the same place */
    for (const struct cmsghdr *c = CMSG_FIRSTHDR(msg); c;
         c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)msg, (struct cmsghdr *)(uintptr_t)c))
        if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO)
            memcpy(packet->path.local, CMSG_DATA(c), sizeof(packet->path.local)); /* the address comes first */
}

static int send_one(struct fake_socket *socket, const struct msghdr *msg)
{
    uint8_t bytes[1 << 16];
    size_t length = 0;
    uint16_t segment = segment_asked(msg);

    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        if (length + msg->msg_iov[i].iov_len > sizeof(bytes))
            return -EMSGSIZE;
        memcpy(bytes + length, msg->msg_iov[i].iov_base, msg->msg_iov[i].iov_len);
        length += msg->msg_iov[i].iov_len;
    }
    if (length > (socket->protocol ? 65515u : 65507u)) /* what fits behind an IPv4 header, and UDP's */
        return -EMSGSIZE;
    if (socket->error)
        return take_error(socket);
    if (!msg->msg_name && socket->state != FAKE_CONNECTED)
        return -EDESTADDRREQ;
    if (segment && socket->no_segments)
        return -EINVAL;
    if (segment && length > 64u * segment)
        return -EINVAL;
    size_t at = 0;
    do {
        size_t part = segment && length - at > segment ? segment : length - at;
        note_path(msg, keep(&socket->datagrams->out, bytes + at, part));
        socket->out_count++;
        at += part;
    } while (at < length);
    return (int)length;
}

int sys_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    int err = fake_called(CALL_sendmmsg);
    struct fake_socket *socket = fake_socket_of(fd, "sendmmsg");
    unsigned n = 0;

    if (err || !socket)
        return err ? err : -EBADF;
    if (flags != (MSG_DONTWAIT | MSG_NOSIGNAL))
        fake_violate("sendmmsg(): flags %#x are not modelled", (unsigned)flags);
    for (; n < count; n++) {
        int length = send_one(socket, &messages[n].msg_hdr);
        if (length < 0)
            return n ? (int)n : length;
        messages[n].msg_len = (unsigned)length;
    }
    return (int)n;
}

/* ---- what the peer does ---- */

static void arrive(struct fake_socket *socket, const uint8_t *bytes, uint32_t length, uint16_t segment,
                   const struct path *path)
{
    uint32_t part = segment && !socket->receive_segments ? segment : length, at = 0;

    do {
        uint32_t left = length - at;
        struct packet_kept *packet = keep(&socket->datagrams->queue, bytes + at, left < part ? left : part);
        packet->segment = part == length ? segment : 0;
        packet->path = *path;
        at += packet->length;
    } while (at < length);
}

int fake_datagram_arrive(int fd, const void *bytes, uint32_t length, uint16_t segment)
{
    struct fake_socket *socket = fake_socket_of(fd, "arrive");

    if (!socket)
        return -EBADF;
    arrive(socket, bytes, length, segment, &(struct path){0});
    fake_wake(fd, EPOLLIN);
    return 0;
}

int fake_datagram_error(int fd, const struct fake_path_error *error, const void *bytes, uint32_t length)
{
    struct fake_socket *socket = fake_socket_of(fd, "error");

    if (!socket)
        return -EBADF;
    if (socket->receive_errors) /* else [__udp4_lib_err] leaves but the number, which the next call meets */
        keep(&socket->datagrams->errors, bytes, length)->error = *error;
    socket->error = error->error;
    fake_wake(fd, EPOLLERR);
    return 0;
}

int fake_datagram_arrive_from(int fd, const uint8_t address[16], uint16_t port, const uint8_t to[16],
                              const uint8_t local[16], const void *bytes, uint32_t length, uint16_t segment)
{
    struct fake_socket *socket = fake_socket_of(fd, "arrive");

    if (!socket)
        return -EBADF;
    bool of_peer = !memcmp(socket->address, address, sizeof(socket->address)) && socket->port == port;
    if (socket->state == FAKE_CONNECTED && !of_peer)
        return 0; /* [udp4_lib_lookup2]: not for this socket */
    struct path path = {.port = port};
    memcpy(path.address, address, sizeof(path.address));
    memcpy(path.to, to, sizeof(path.to));
    memcpy(path.local, local, sizeof(path.local));
    arrive(socket, bytes, length, segment, &path);
    fake_wake(fd, EPOLLIN);
    return 0;
}

static struct {
    uint8_t to[16], from[16];
    uint16_t port;
} last_sent;

const uint8_t *fake_datagram_sent_to(void)
{
    return last_sent.to;
}

uint16_t fake_datagram_sent_port(void)
{
    return last_sent.port;
}

const uint8_t *fake_datagram_sent_from(void)
{
    return last_sent.from;
}

int64_t fake_datagram_sent(int fd, void *bytes, uint32_t max)
{
    const struct fake_socket *socket = fake_socket_at(fd);
    struct packet_kept *packet = socket && socket->datagrams ? first(&socket->datagrams->out) : NULL;

    if (!packet)
        return -EAGAIN;
    uint32_t length = packet->length;
    memcpy(bytes, packet->bytes, length < max ? length : max);
    memcpy(last_sent.to, packet->path.address, sizeof(last_sent.to));
    memcpy(last_sent.from, packet->path.local, sizeof(last_sent.from));
    last_sent.port = packet->path.port;
    node_leave(&packet->node);
    free(packet);
    return length;
}

void fake_datagram_no_segments(int fd)
{
    struct fake_socket *socket = fake_socket_of(fd, "no_segments");

    if (socket)
        socket->no_segments = true;
}
