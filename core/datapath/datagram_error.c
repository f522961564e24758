/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_error.c: what the host hears of a datagram's fate (ip(7), IP_RECVERR) is told to the guest as the ICMP error
 * that it would have got itself: of the same type and code, from whoever sent it, with the guest's own header in it.
 *
 * Adversary: anybody on the path, who may send errors as fast as he likes: so many are read in one turn, and no more are
 * told in a second than RFC 4443, 2.4 (f), suggests.
 */

#include <time.h> /* errqueue.h needs it */

#include <linux/errqueue.h>

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "host_address.h"
#include "icmp.h"
#include "sys.h"

struct path_error {
    struct sock_extended_err error;
    address offender; /* unset: the host itself, or nobody knows */
    uint8_t payload[DATAGRAM_QUOTED_MAX];
    uint32_t length;
    struct sockaddr_storage peer; /* whom the datagram was sent to */
};

/* One error off the queue; false: there is none. */
static bool read_error(int fd, struct path_error *ret_error)
{
    union {
        char bytes[512];
        struct cmsghdr align;
    } control;
    struct iovec iov = {ret_error->payload, sizeof(ret_error->payload)};
    struct msghdr msg = {.msg_name = &ret_error->peer,
                         .msg_namelen = sizeof(ret_error->peer),
                         .msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof(control.bytes)};
    ssize_t n = sys_recvmsg(fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT);

    if (n < 0)
        return false;
    memset(&ret_error->error, 0, sizeof(ret_error->error));
    memset(&ret_error->offender, 0, sizeof(ret_error->offender));
    ret_error->length = (uint32_t)n;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (!(c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) &&
            !(c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR))
            continue;
        memcpy(&ret_error->error, CMSG_DATA(c), sizeof(ret_error->error));
        const struct sockaddr *offender = SO_EE_OFFENDER((struct sock_extended_err *)(void *)CMSG_DATA(c));
        if (c->cmsg_len >= CMSG_LEN(sizeof(struct sock_extended_err) + sizeof(struct sockaddr_in)))
            ret_error->offender = address_from_host(offender);
    }
    return true;
}

/* Type, code and the second word of the message; false: nothing that the guest could make use of. */
static bool translate(const struct sock_extended_err *error, bool ipv4, struct icmp_error *ret_icmp)
{
    bool same_family = error->ee_origin == (ipv4 ? SO_EE_ORIGIN_ICMP : SO_EE_ORIGIN_ICMP6);

    *ret_icmp = (struct icmp_error){.type = error->ee_type, .code = error->ee_code};
    if (error->ee_errno == EMSGSIZE && (same_family || error->ee_origin == SO_EE_ORIGIN_LOCAL)) {
        /* RFC 1191, 4: the MTU is the lower half; RFC 4443, 3.2: all of the word. */
        ret_icmp->type = ipv4 ? ICMPV4_UNREACHABLE : ICMPV6_TOO_BIG;
        ret_icmp->code = ipv4 ? ICMPV4_FRAGMENTATION_NEEDED : 0;
        ret_icmp->word = ipv4 && error->ee_info > UINT16_MAX ? UINT16_MAX : error->ee_info;
        return true;
    }
    return same_family;
}

/* Who the guest is told it was: an address that means something to it. */
static address seen_offender(const struct engine *engine, const struct flow *flow, const address *offender)
{
    bool ipv4 = address_is_ipv4(&flow->key.remote);

    if (address_is_loopback(offender)) /* the guest knows it by another name */
        return flow->key.remote;
    /* What the host found out by itself comes from its own address, which the guest has too: a kernel drops what comes
     * from itself. */
    bool own = address_equal(offender, &flow->key.guest) || address_is(engine->view.guest4, offender) ||
               address_is(engine->view.guest6, offender);
    if (own || address_is_unset(offender) || address_is_ipv4(offender) != ipv4)
        return address_from(ipv4 ? engine->view.gateway4 : engine->view.our_link_local);
    return *offender;
}

static void tell(struct engine *engine, const struct flow *flow, const struct path_error *error)
{
    struct icmp_error icmp;

    if (!translate(&error->error, address_is_ipv4(&flow->key.remote), &icmp))
        return;
    address source = seen_offender(engine, flow, &error->offender);
    if (icmp_send_error(engine, flow, &source, &icmp, error->payload, error->length))
        count(engine, C_datagram_errors);
}

void datagram_take_listener_errors(struct engine *engine, const struct listener *listener)
{
    struct path_error error;
    struct flow_key key;

    for (unsigned i = 0; i < DATAGRAM_ERRORS_PER_TURN && read_error(listener->fd, &error); i++) {
        if (!listener_key(engine, listener, &error.peer, &key))
            continue;
        const struct flow *flow = datagram_of_peer(engine, listener, &error.peer, &key);
        if (flow && !flow->done)
            tell(engine, flow, &error);
    }
}

void datagram_take_errors(struct engine *engine, struct flow *flow)
{
    struct path_error error;

    flow->datagram.errors = false;
    if (flow->fd < 0)
        return; /* its port's socket is looked after by itself */
    for (unsigned i = 0; read_error(flow->fd, &error); i++) {
        if (i == DATAGRAM_ERRORS_PER_TURN) {
            flow->datagram.errors = true;
            flow_touch(engine, flow);
            return;
        }
        tell(engine, flow, &error);
    }
}

void datagram_tell_unreachable(struct engine *engine, const struct flow *flow, int error)
{
    bool ipv4 = address_is_ipv4(&flow->key.remote);
    struct icmp_error icmp = icmp_unreachable(ipv4, error);
    static const address none;
    address source = seen_offender(engine, flow, &none);

    if (!address_is_unset(&source) && icmp_send_error(engine, flow, &source, &icmp, NULL, 0))
        count(engine, C_datagram_errors);
}
