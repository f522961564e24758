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
#include "outbound.h"
#include "splice.h"
#include "sys.h"
#include "tcp.h"

static void turn_away(struct engine *engine, int fd)
{
    static const struct linger hard = {.l_onoff = 1, .l_linger = 0};

    count(engine, C_tcp_turned_away);
    sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    sys_close(fd);
}

int tcp_open_inbound(struct engine *engine, const struct flow_key *wanted, int fd)
{
    struct flow_key key = *wanted;
    struct flow *flow;

    if (!(engine->view.flags & LG_VIEW_TCP))
        return -EPROTONOSUPPORT;
    for (unsigned tries = 0; flow_find(&engine->flows, &key); tries++) {
        if (tries == LISTENER_OTHER_PORTS)
            return -EADDRINUSE;
        listener_other_port(&key);
    }
    flow = flow_make(engine, &key);
    if (!flow)
        return -ENFILE;
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
        tcp_abort(engine, flow, CLOSE_no_descriptor, -err); /* which closes it */
    flow_touch(engine, flow);
    return 0;
}

static void take_connection(struct engine *engine, const struct listener *listener, int fd,
                            const struct sockaddr_storage *peer)
{
    struct flow_key key;
    const address from = address_from_host((const struct sockaddr *)peer);

    if (engine->paces && !outbound_stays_here(&engine->view, &from))
        outbound_repace(fd);
    if (splice_takes(engine, listener, peer))
        splice_accept(engine, listener, fd, peer);
    else if (listener->outward || !listener_key(engine, listener, peer, &key) || tcp_open_inbound(engine, &key, fd))
        turn_away(engine, fd);
}

/* None is left: the backlog keeps who is there for the next edge, or until a flow has given one back; and for a second at
 * most, since what was short, and whose it is, is not told. */
static void await_descriptor(struct engine *engine)
{
    count(engine, C_tcp_accept_failed);
    engine->accept_owed = true;
    engine->accept_sockets = engine->flows.sockets;
    engine->accept_ms = engine->now_ms + ACCEPT_AGAIN_MS;
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
                await_descriptor(engine);
            return;
        }
        take_connection(engine, listener, fd, &peer);
    }
    listener_look_again(&engine->listeners, engine->epoll_fd, listener);
}

void tcp_accept_again(struct engine *engine)
{
    bool given_back = engine->flows.sockets < engine->accept_sockets;

    if (!engine->accept_owed || !(given_back || engine->now_ms >= engine->accept_ms))
        return;
    engine->accept_owed = false;
    for (uint32_t slot = 0; slot < engine->listeners.used; slot++) {
        const struct listener *listener = listener_at(&engine->listeners, slot);
        if (listener && listener->protocol == IPPROTO_TCP)
            tcp_accept(engine, listener);
    }
}

void tcp_unanswered(struct engine *engine, const struct flow *flow)
{
    flow_emit_unanswered(engine, flow, neighbour_has_spoken(engine, &flow->key.guest) ? ETIMEDOUT : EHOSTUNREACH);
}

/* An answer to a SYN that is not ours: of a connection that the guest still has, or of the past. It hears that this is gone,
 * and is asked at once once more, which is what it waited for (RFC 9293, 3.10.7.3). Only once: one that always answers so
 * is to have no more of our time than one that is silent. */
static void disown(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    if (segment->flags & TCP_RST || tcp_send_control(engine, flow, segment->ack, TCP_RST))
        return;
    count(engine, C_tcp_resets_sent);
    flow->tcp.syn_ack_due |= !flow->tcp.disowned;
    flow->tcp.disowned = true;
}

/* The guest's answer to our SYN (RFC 9293, 3.10.7.3). */
void tcp_take_syn_ack(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;

    if (!(segment->flags & TCP_ACK))
        return; /* our SYN is repeated */
    if (segment->ack != tcp->iss + 1 || tcp->snd_nxt == tcp->iss) {
        disown(engine, flow, segment);
        return;
    }
    if (segment->flags & TCP_RST) {
        count(engine, C_tcp_refused);
        flow_emit_unanswered(engine, flow, ECONNREFUSED);
        tcp_reset_by_guest(engine, flow);
        return;
    }
    if (!(segment->flags & TCP_SYN)) { /* the same number by chance, as in a TIME-WAIT, which our SYN has just missed */
        disown(engine, flow, segment);
        return;
    }
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
