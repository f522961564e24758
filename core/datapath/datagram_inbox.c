/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_inbox.c: what one recvmmsg() brings, and what came with each message: of how many datagrams it was joined
 * (UDP_GRO, udp(7)), and on a socket that is connected to nobody whose it is and where it was sent to.
 *
 * Adversary: whoever sends to the socket. Nothing of a datagram's bytes is looked at here.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>

#include "datagram.h"
#include "sys.h"

union control {
    char
        bytes[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(struct in_pktinfo)) + CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

static uint16_t segment_of(const struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)msg, c)) {
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int size;
            memcpy(&size, CMSG_DATA(c), sizeof(size));
            return size > 0 && size <= UINT16_MAX ? (uint16_t)size : 0;
        }
    }
    return 0;
}

/* Where a datagram was sent to (ip(7), IP_PKTINFO; RFC 3542, 6.2). */
static void note_where(const struct msghdr *msg, struct datagram_sender *from)
{
    memset(&from->to, 0, sizeof(from->to));
    memset(&from->local, 0, sizeof(from->local));
    from->interface = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)msg, c)) {
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            from->to = address_from_ipv4((const uint8_t *)&info.ipi_addr);
            from->local = address_from_ipv4((const uint8_t *)&info.ipi_spec_dst); /* another, of a broadcast */
            from->interface = 0; /* IPv4 addresses are the host's, not an interface's */
            break;
        }
        if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            from->to = from->local = address_from((const uint8_t *)&info.ipi6_addr);
            from->interface = IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr) ? info.ipi6_ifindex : 0;
        }
    }
    if (address_is_multicast(&from->local)) /* nobody answers from a group's address */
        memset(&from->local, 0, sizeof(from->local));
}

int datagram_receive(struct datagram_inbox *inbox, int fd, struct datagram_sender *from)
{
    struct mmsghdr message[DATAGRAM_RECEIVE_MAX];
    struct iovec iov[DATAGRAM_RECEIVE_MAX];
    union control control[DATAGRAM_RECEIVE_MAX];

    for (unsigned i = 0; i < DATAGRAM_RECEIVE_MAX; i++) {
        iov[i] = (struct iovec){inbox_bytes(inbox, i), DATAGRAM_RECEIVE_BYTES};
        message[i].msg_hdr = (struct msghdr){.msg_name = from ? &from[i].address : NULL,
                                             .msg_namelen = from ? sizeof(from[i].address) : 0,
                                             .msg_iov = &iov[i],
                                             .msg_iovlen = 1,
                                             .msg_control = control[i].bytes,
                                             .msg_controllen = sizeof(control[i].bytes)};
    }
    int n = sys_recvmmsg(fd, message, DATAGRAM_RECEIVE_MAX, MSG_DONTWAIT);
    inbox->next = inbox->offset = 0;
    inbox->cut = (struct cut){0};
    inbox->count = n > 0 ? (unsigned)n : 0;
    for (unsigned i = 0; i < inbox->count; i++) {
        uint16_t segment = segment_of(&message[i].msg_hdr);
        inbox->length[i] = message[i].msg_len;
        inbox->each[i] = segment ? segment : message[i].msg_len;
        if (from) {
            from[i].length = message[i].msg_hdr.msg_namelen;
            note_where(&message[i].msg_hdr, &from[i]);
        }
    }
    return n;
}

int datagram_deliver(struct engine *engine, const struct flow_key *key, struct datagram_inbox *inbox,
                     uint32_t *ret_bytes)
{
    uint32_t each = inbox->each[inbox->next], part = inbox->length[inbox->next] - inbox->offset;
    int err = udp_to_guest(engine, key, inbox_bytes(inbox, inbox->next) + inbox->offset, &part, each, &inbox->cut);

    if (err == -EAGAIN || err == -ENOBUFS)
        return -EAGAIN;
    if (err)
        count(engine, C_drop_disconnected);
    engine->counters[C_datagrams_to_guest] += part ? (part + each - 1) / each : 1;
    *ret_bytes = part;
    inbox_advance(inbox, part);
    return 0;
}
