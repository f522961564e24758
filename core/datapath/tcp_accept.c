/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_accept.c: connections that peers open to the guest. The host's kernel has accepted by itself; the guest is asked
 * then, and a guest that refuses, or never answers, costs the peer a RST.
 *
 * Adversary: whoever reaches a port of the host, as often as it likes: each connection costs a socket and a slot of the
 * table, which has a limit; and the guest, whose SYN-ACK is believed only for the SYN that it answers.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

#include "host_address.h"
#include "listener.h"
#include "sys.h"
#include "tcp.h"

static address from_view(const uint8_t *bytes)
{
    address a;
    memcpy(a.byte, bytes, sizeof(a.byte));
    return a;
}

static bool is_same(const uint8_t *known, const address *a)
{
    return !memcmp(known, a->byte, sizeof(a->byte));
}

/* The host's loopback address itself, which the guest knows by another name. */
static bool is_host(const address *a)
{
    static const uint8_t loopback4[4] = {127, 0, 0, 1};

    return address_is_loopback(a) && (!address_is_ipv4(a) || !memcmp(a->byte + 12, loopback4, sizeof(loopback4)));
}

static bool is_guests(const struct engine *engine, const address *a)
{
    const struct lg_net_view *view = &engine->view;
    const struct lg_seen *seen = &engine->seen;

    return is_same(view->guest4, a) || is_same(view->guest6, a) || is_same(seen->addr4, a) || is_same(seen->addr6, a) ||
           is_same(seen->link_local, a);
}

/* Whom the guest sees: the peer itself, but for addresses that would mean the guest to the guest, or nobody. */
static address shown_source(const struct engine *engine, const address *peer)
{
    const struct lg_net_view *view = &engine->view;
    bool ipv4 = address_is_ipv4(peer);

    if (is_host(peer)) {
        address mapped = from_view(ipv4 ? view->map_host4 : view->map_host6);
        if (!address_is_unset(&mapped))
            return mapped;
    }
    if (address_is_loopback(peer) || address_is_unset(peer) || (ipv4 && !peer->byte[12]) || is_guests(engine, peer))
        return from_view(ipv4 ? view->gateway4 : view->our_link_local);
    return *peer;
}

/* The guest's address of the family and scope that `source` has; unset: it has none. */
static address guest_address(const struct engine *engine, const address *source)
{
    const struct lg_net_view *view = &engine->view;
    const struct lg_seen *seen = &engine->seen;
    const uint8_t *seen_there = address_is_ipv4(source)         ? seen->addr4
                                : address_is_link_local(source) ? seen->link_local
                                                                : seen->addr6;
    address guest = from_view(seen_there);

    if (address_is_unset(&guest))
        guest = from_view(address_is_ipv4(source) ? view->guest4 : view->guest6);
    return guest;
}

/* False: the peer cannot be shown to the guest, or the guest has no such address. */
static bool make_key(const struct engine *engine, const struct listener *listener, const struct sockaddr_storage *peer,
                     struct flow_key *ret_key)
{
    address source = address_from_host((const struct sockaddr *)peer);

    source = shown_source(engine, &source);
    /* sin_port and sin6_port lie at the same place. */
    uint16_t port = ntohs(((const struct sockaddr_in *)(const void *)peer)->sin_port);
    address guest = address_is_unset(&listener->target) ? guest_address(engine, &source) : listener->target;

    *ret_key = (struct flow_key){.guest = guest,
                                 .remote = source,
                                 .guest_port = listener->port,
                                 .remote_port = port,
                                 .protocol = IPPROTO_TCP};
    return !address_is_unset(&source) && !address_is_unset(&guest) && address_is_ipv4(&source) == address_is_ipv4(&guest);
}

static void turn_away(struct engine *engine, int fd)
{
    static const struct linger hard = {.l_onoff = 1, .l_linger = 0};

    count(engine, C_tcp_turned_away);
    sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    sys_close(fd);
}

static void take_connection(struct engine *engine, const struct listener *listener, int fd,
                            const struct sockaddr_storage *peer)
{
    struct flow_key key;
    struct flow *flow = NULL;

    if (engine->view.flags & LG_VIEW_TCP && make_key(engine, listener, peer, &key) && !flow_find(&engine->flows, &key))
        flow = flow_make(engine, &key);
    if (!flow) {
        turn_away(engine, fd);
        return;
    }
    flow->fd = fd;
    flow->tcp.inbound = true;
    count(engine, C_tcp_accepted);
    tcp_start(engine, flow);
    tcp_socket_options(engine, fd);
    flow->tcp.syn_ack_due = true;
    flow_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);
    flow->interest = stall_interest(flow);
    int err = sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, fd, flow->interest, flow_handle(flow));
    if (err)
        tcp_abort(engine, flow, CLOSE_no_descriptor, -err);
    flow_touch(engine, flow);
}

void tcp_accept(struct engine *engine, const struct listener *listener)
{
    for (unsigned i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct sockaddr_storage peer;
        socklen_t length = sizeof(peer);
        int fd = sys_accept(listener->fd, (struct sockaddr *)&peer, &length);

        if (fd == -ECONNABORTED || fd == -EINTR)
            continue;
        if (fd < 0) {
            if (fd != -EAGAIN)
                count(engine, C_tcp_accept_failed); /* no descriptor is left: the backlog keeps them for the next edge */
            return;
        }
        take_connection(engine, listener, fd, &peer);
    }
}

/* The guest's answer to our SYN (RFC 9293, 3.10.7.3). */
void tcp_take_syn_ack(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;
    bool answers = segment->flags & TCP_ACK && segment->ack == tcp->iss + 1 && tcp->snd_nxt != tcp->iss;

    if (!answers)
        return; /* of another connection, or of the past: our SYN is repeated */
    if (segment->flags & TCP_RST) {
        count(engine, C_tcp_refused);
        tcp_reset_by_guest(engine, flow);
        return;
    }
    if (!(segment->flags & TCP_SYN))
        return;
    uint32_t offered = tcp->rcv_edge - tcp->rcv_nxt;
    tcp->rcv_nxt = tcp->rcv_taken = tcp->rcv_acked = segment->seq + 1;
    tcp->rcv_edge = tcp->rcv_nxt + (offered < UINT16_MAX ? offered : UINT16_MAX);
    tcp->snd_una = segment->ack;
    tcp_take_offer(engine, flow, segment);
    tcp_move_to_host(flow, HALF_OPEN);
    tcp_move_to_guest(flow, HALF_OPEN);
    tcp_timer_acked(engine, flow);
    tcp->ack_due = true;
    tcp->readable = true; /* what the peer sent meanwhile had its edge */
    flow->active_ms = engine->now_ms;
    flow_emit(engine, flow, LG_EVENT_FLOW_CONNECT, 0, 0, 0);
}
