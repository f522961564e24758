/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_accept.c: what comes on sockets that are connected to nobody, so that each datagram says whose it is: to a port
 * of the host which leads to the guest, shared by many peers; and in answer to what the guest asked a group.
 *
 * Adversary: whoever reaches the port. Each new source costs a slot of the table, which has a limit, and no descriptor; an
 * answer costs neither, and does not lengthen the life of the question.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "host_address.h"
#include "sys.h"

struct arrival {
    struct sockaddr_storage peer;
    struct iovec iov;
    union {
        char bytes[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(struct in_pktinfo))];
        struct cmsghdr align;
    } control;
};

/* Where a datagram was sent to (ip(7), IP_PKTINFO; RFC 3542, 6.2). */
struct addressed {
    address to;         /* as in its header; unset: not told */
    address local;      /* the host's own address that answers come from; unset: the kernel's choice */
    uint32_t interface; /* of local, where that alone does not say */
};

static struct addressed where_to(const struct msghdr *msg)
{
    struct addressed at = {0};

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)msg, c)) {
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            at.to = address_from_ipv4((const uint8_t *)&info.ipi_addr);
            at.local = address_from_ipv4((const uint8_t *)&info.ipi_spec_dst); /* another, of a broadcast */
            at.interface = 0; /* IPv4 addresses are the host's, not an interface's */
            break;
        }
        if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            at.to = at.local = address_from((const uint8_t *)&info.ipi6_addr);
            at.interface = IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr) ? info.ipi6_ifindex : 0;
        }
    }
    if (address_is_multicast(&at.local)) /* nobody answers from a group's address */
        memset(&at.local, 0, sizeof(at.local));
    return at;
}

static struct flow *flow_of(struct engine *engine, const struct listener *listener, const struct msghdr *msg,
                            const struct addressed *at)
{
    const struct sockaddr_storage *addr = msg->msg_name;
    struct flow_key key;

    if (!(engine->view.flags & LG_VIEW_UDP) || msg->msg_namelen > sizeof(struct sockaddr_in6) ||
        !listener_key(engine, listener, addr, &key))
        return NULL;
    struct flow *flow = flow_find(&engine->flows, &key);
    if (flow)
        return flow->done ? NULL : flow;
    if (!(flow = flow_make(engine, &key)))
        return NULL;
    flow->active_ms = engine->now_ms;
    flow->datagram.peer.fd = listener->fd;
    flow->datagram.peer.slot = listener_slot(&engine->listeners, listener);
    flow->datagram.peer.addr_length = msg->msg_namelen;
    memcpy(&flow->datagram.peer.addr, addr, msg->msg_namelen);
    memcpy(flow->datagram.peer.local, at->local.byte, sizeof(flow->datagram.peer.local));
    flow->datagram.peer.interface = at->interface;
    count(engine, C_datagram_opened);
    flow_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);
    return flow;
}

static void take_datagram(struct engine *engine, const struct listener *listener, const struct msghdr *msg,
                          const uint8_t *bytes, uint32_t length)
{
    const struct addressed at = where_to(msg);
    struct flow *flow = flow_of(engine, listener, msg, &at);

    if (!flow) {
        count(engine, C_datagrams_turned_away);
        return;
    }
    struct flow_key shown = flow->key;
    /* What a group was asked, the guest may have to hear as such. */
    if (address_is_group(&at.to) && address_is_unset(&listener->target) &&
        address_is_ipv4(&at.to) == address_is_ipv4(&shown.guest))
        shown.guest = at.to;
    if (udp_to_guest(engine, &shown, bytes, length, &(struct cut){0}))
        count(engine, C_drop_no_room);
    count(engine, C_datagrams_to_guest);
    flow->bytes_to_guest += length;
    flow->datagram.stream |= flow->datagram.answered;
    flow->datagram.answered = true;
    flow->active_ms = engine->now_ms;
    flow_touch(engine, flow);
}

/* One recvmmsg(): how many came, or a negative errno. */
static int receive(struct engine *engine, int fd, struct arrival arrival[DATAGRAM_RECEIVE_MAX],
                   struct mmsghdr message[DATAGRAM_RECEIVE_MAX])
{
    for (unsigned i = 0; i < DATAGRAM_RECEIVE_MAX; i++) {
        struct arrival *at = &arrival[i];
        at->iov = (struct iovec){engine->arrivals + (size_t)i * DATAGRAM_RECEIVE_BYTES, DATAGRAM_RECEIVE_BYTES};
        message[i].msg_hdr = (struct msghdr){.msg_name = &at->peer,
                                             .msg_namelen = sizeof(at->peer),
                                             .msg_iov = &at->iov,
                                             .msg_iovlen = 1,
                                             .msg_control = at->control.bytes,
                                             .msg_controllen = sizeof(at->control.bytes)};
    }
    return sys_recvmmsg(fd, message, DATAGRAM_RECEIVE_MAX, MSG_DONTWAIT);
}

void datagram_accept(struct engine *engine, const struct listener *listener, uint32_t events)
{
    struct arrival arrival[DATAGRAM_RECEIVE_MAX];
    struct mmsghdr message[DATAGRAM_RECEIVE_MAX];

    if (events & EPOLLERR)
        datagram_take_listener_errors(engine, listener);
    int n = receive(engine, listener->fd, arrival, message); /* epoll says if there is more */
    for (int i = 0; i < n; i++)
        take_datagram(engine, listener, &message[i].msg_hdr, arrival[i].iov.iov_base, message[i].msg_len);
}

static void take_answer(struct engine *engine, const struct flow *flow, const struct msghdr *msg, const uint8_t *bytes,
                        uint32_t length)
{
    const struct addressed at = where_to(msg);
    const struct listener port = {.protocol = IPPROTO_UDP, .port = flow->key.guest_port, .target = flow->key.guest};
    struct flow_key shown;
    bool broadcast = !address_is_unset(&at.to) && !address_equal(&at.to, &at.local);

    if (broadcast || msg->msg_namelen > sizeof(struct sockaddr_in6) ||
        !listener_key(engine, &port, msg->msg_name, &shown)) {
        count(engine, C_datagrams_turned_away);
        return;
    }
    if (udp_to_guest(engine, &shown, bytes, length, &(struct cut){0}))
        count(engine, C_drop_no_room);
    count(engine, C_datagrams_to_guest);
}

void datagram_take_answers(struct engine *engine, struct flow *flow)
{
    struct arrival arrival[DATAGRAM_RECEIVE_MAX];
    struct mmsghdr message[DATAGRAM_RECEIVE_MAX];
    struct datagram *datagram = &flow->datagram;
    int n = receive(engine, flow->fd, arrival, message);

    for (int i = 0; i < n; i++) {
        take_answer(engine, flow, &message[i].msg_hdr, arrival[i].iov.iov_base, message[i].msg_len);
        flow->bytes_to_guest += message[i].msg_len;
    }
    datagram->errors |= n < 0 && n != -EAGAIN;
    datagram->readable = n == DATAGRAM_RECEIVE_MAX || (n < 0 && n != -EAGAIN && n != -EBADF);
    if (datagram->readable)
        flow_touch(engine, flow); /* others have their turn first */
}
