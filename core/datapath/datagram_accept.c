/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_accept.c: datagrams that come to a port of the host which leads to the guest. Many peers share that port's
 * socket, so that each of its datagrams says whose it is.
 *
 * Adversary: whoever reaches the port. Each new source costs a slot of the table, which has a limit, and no descriptor.
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

/* The address of ours that the datagram was sent to (ip(7), IP_PKTINFO; RFC 3542, 6.2). */
static void note_local(const struct msghdr *msg, struct datagram_peer *peer)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)msg, c)) {
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            address local = address_from_ipv4((const uint8_t *)&info.ipi_addr);
            memcpy(peer->local, local.byte, sizeof(peer->local));
            peer->interface = 0; /* IPv4 addresses are the host's, not an interface's */
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            memcpy(peer->local, &info.ipi6_addr, sizeof(peer->local));
            peer->interface = IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr) ? info.ipi6_ifindex : 0;
        }
    }
    address local = address_from(peer->local);
    if (address_is_multicast(&local)) /* nobody answers from a group's address */
        memset(peer->local, 0, sizeof(peer->local));
}

static struct flow *flow_of(struct engine *engine, const struct listener *listener, const struct msghdr *msg)
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
    note_local(msg, &flow->datagram.peer);
    count(engine, C_datagram_opened);
    flow_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);
    return flow;
}

static void take_datagram(struct engine *engine, const struct listener *listener, const struct msghdr *msg,
                          const uint8_t *bytes, uint32_t length)
{
    struct flow *flow = flow_of(engine, listener, msg);

    if (!flow) {
        count(engine, C_datagrams_turned_away);
        return;
    }
    if (udp_to_guest(engine, flow, bytes, length))
        count(engine, C_drop_no_room);
    count(engine, C_datagrams_to_guest);
    flow->bytes_to_guest += length;
    flow->datagram.stream |= flow->datagram.answered;
    flow->datagram.answered = true;
    flow->active_ms = engine->now_ms;
    flow_touch(engine, flow);
}

void datagram_accept(struct engine *engine, const struct listener *listener, uint32_t events)
{
    struct arrival arrival[DATAGRAM_RECEIVE_MAX];
    struct mmsghdr message[DATAGRAM_RECEIVE_MAX];

    if (events & EPOLLERR)
        datagram_take_listener_errors(engine, listener);
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
    int n = sys_recvmmsg(listener->fd, message, DATAGRAM_RECEIVE_MAX, MSG_DONTWAIT); /* epoll says if there is more */
    for (int i = 0; i < n; i++)
        take_datagram(engine, listener, &message[i].msg_hdr, arrival[i].iov.iov_base, message[i].msg_len);
}
