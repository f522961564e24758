/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_open.c: connections that the guest opens. The guest gets its SYN-ACK only when the peer has accepted, so that
 * "refused" and "unreachable" look to it as they would on a wire.
 *
 * Adversary: the guest, which may open as many as it likes: each costs a socket, and the table has a limit.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

#include "gateway.h"
#include "host_address.h"
#include "icmp.h"
#include "outbound.h"
#include "sys.h"
#include "tcp.h"

/* RFC 6528: a clock of 4 microseconds plus a keyed hash of the connection. */
static uint32_t initial_sequence(const struct engine *engine, const struct flow_key *key)
{
    return (uint32_t)(engine->now_ns / 4000) + (uint32_t)siphash(&engine->secret, key, sizeof(*key));
}

/* The options that a flow's socket needs from birth. SO_SNDBUF and SO_RCVBUF are left alone: setting either ends
 * the kernel's own tuning of it (tcp(7)). */
void tcp_socket_options(const struct engine *engine, int fd)
{
    static const int one = 1, zero = 0;

    sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* the guest's own Nagle has been at work */
    sys_setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one)); /* urgent bytes keep their place */
    if (engine->peek_off)
        sys_setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof(zero));
}

/* The guest's TTL and DSCP, where they are not what the socket has by itself. The two ECN bits belong to each of the two
 * connections for itself. */
static void carry_header_fields(int fd, const struct packet *packet)
{
    enum {
        HOPS_USUAL = 64,
        DSCP_MASK = 0xfc
    };
    int hops = packet->hops, traffic_class = packet->traffic_class & DSCP_MASK;

    if (hops && hops != HOPS_USUAL)
        sys_setsockopt(fd, packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IP, packet->ipv6 ? IPV6_UNICAST_HOPS : IP_TTL, &hops,
                       sizeof(hops));
    if (traffic_class)
        sys_setsockopt(fd, packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IP, packet->ipv6 ? IPV6_TCLASS : IP_TOS,
                       &traffic_class, sizeof(traffic_class));
}

void tcp_start(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    flow->active_ms = engine->now_ms;
    tcp->bulk_from = TCP_ACK_BULK_FROM;
    tcp->iss = tcp->snd_una = tcp->snd_nxt = tcp->resend_at = tcp->resend_end = tcp->recover =
        initial_sequence(engine, &flow->key);
    tcp->mss = TCP_MSS_ASSUMED;
    tcp->our_scale = TCP_SCALE;
    tcp->sack_allowed = engine->reorder;
    /* Not asked of the kernel yet: whatever it really is, this first window fits, or the hold takes the rest. */
    tcp->room = tcp->room_asked = UINT16_MAX;
    tcp->read_hint = TCP_READ_FIRST;
}

void tcp_take_offer(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;

    tcp->snd_window = segment->window; /* that of a SYN is not scaled (RFC 7323, 2.2) */
    tcp->snd_wl1 = segment->seq;
    tcp->snd_wl2 = segment->ack;
    tcp->mss = segment->mss ? segment->mss : TCP_MSS_ASSUMED;
    if (tcp->mss < TCP_MSS_MIN)
        tcp->mss = TCP_MSS_MIN;
    /* Nor more than a packet of this link holds (RFC 9293, 3.7.1), whatever MTU the guest believes in. */
    uint32_t most = engine->view.mtu + ETHERNET_HEADER - tcp_header_bytes(flow);
    if (tcp->mss > most)
        tcp->mss = (uint16_t)most;
    /* A receiver that keeps nothing has nothing to report, and a guest that expects reports would take it for idle. */
    tcp->sack_allowed = segment->sack_allowed && engine->reorder;
    tcp->our_scale = segment->has_scale ? TCP_SCALE : 0;
    tcp->guest_scale = segment->scale;
}

/* Unreachable: the first SYN gets an ICMP error, which the guest's connect() reports as such; the next one of the same
 * connection gets a RST, for a guest that did not listen. */
static void refuse(struct engine *engine, struct flow *flow, int error)
{
    bool unreachable = !(engine->view.flags & LG_VIEW_VIRTUAL) &&
                       (error == EHOSTUNREACH || error == ENETUNREACH || error == EHOSTDOWN || error == ENETDOWN ||
                        error == EACCES || error == EPERM);
    uint64_t tag = siphash(&engine->secret, &flow->key, sizeof(flow->key)) | 1;
    uint64_t *memory = &engine->unreachable.tag[tag / 2 % UNREACHABLE_SLOTS];

    count(engine, C_tcp_refused);
    flow_emit(engine, flow, LG_EVENT_FLOW_REFUSED, 0, error, 0);
    if (unreachable && *memory != tag && icmp_send_unreachable(engine, flow, error)) {
        *memory = tag;
        tcp_close(engine, flow, CLOSE_unreachable, error);
        return;
    }
    if (*memory == tag)
        *memory = 0;
    tcp_abort(engine, flow, unreachable ? CLOSE_unreachable : CLOSE_refused, error);
}

static bool may_open(struct engine *engine, const struct packet *packet)
{
    if (!(engine->view.flags & LG_VIEW_TCP)) {
        count(engine, C_drop_protocol);
        return false;
    }
    const address *source = &packet->source, *destination = &packet->destination;
    if (address_is_loopback(source) || address_is_multicast(source) || address_is_unset(source) ||
        address_is_loopback(destination) || address_is_multicast(destination) || address_is_unset(destination) ||
        (address_is_ipv4(destination) && !destination->byte[12])) {
        count(engine, C_drop_address);
        return false;
    }
    return true;
}

/* What the guest asks for, without a socket yet. NULL: the table is full. */
static struct flow *begin(struct engine *engine, const struct flow_key *key, const struct tcp_segment *segment)
{
    struct flow *flow = flow_make(engine, key);

    if (!flow)
        return NULL;
    tcp_start(engine, flow);
    tcp_take_offer(engine, flow, segment);
    flow->tcp.rcv_nxt = flow->tcp.rcv_taken = flow->tcp.rcv_acked = flow->tcp.rcv_edge = segment->seq + 1;
    count(engine, C_tcp_opened);
    flow_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);
    return flow;
}

/* Until the socket says that it is connected. */
static void await_peer(struct engine *engine, struct flow *flow)
{
    flow->interest = stall_interest(flow);
    int err = sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, flow->fd, flow->interest, flow_handle(flow));
    if (err)
        tcp_abort(engine, flow, CLOSE_no_descriptor, -err);
}

void tcp_open(struct engine *engine, const struct packet *packet, const struct flow_key *key,
              const struct tcp_segment *segment)
{
    struct sockaddr_storage addr;

    /* Data in a SYN is not taken: the guest repeats it, for there is nobody yet to give it to. */
    if (!may_open(engine, packet))
        return;
    if (gateway_forbids(&engine->view, &key->remote, key->remote_port)) {
        count(engine, C_drop_address);
        tcp_send_reset_unknown(engine, packet, segment);
        return;
    }
    struct flow *flow = begin(engine, key, segment);
    if (!flow) {
        flow_emit_refused(engine, key, ENFILE);
        tcp_send_reset_unknown(engine, packet, segment);
        return;
    }
    socklen_t length = host_address(&engine->view, &key->remote, key->remote_port, &addr);
    int fd = sys_socket(addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        tcp_abort(engine, flow, CLOSE_no_descriptor, -fd);
        return;
    }
    flow->fd = fd;
    tcp_socket_options(engine, fd);
    carry_header_fields(fd, packet);
    const address to = address_from_host((const struct sockaddr *)&addr);
    if (engine->paces && outbound_stays_here(&engine->view, &to))
        outbound_unpace(fd);
    int err = outbound_bind(&engine->view, fd, &addr, 0);
    if (!err)
        err = sys_connect(fd, (const struct sockaddr *)&addr, length);
    if (err && err != -EINPROGRESS)
        refuse(engine, flow, -err);
    else
        await_peer(engine, flow);
}

int tcp_open_served(struct engine *engine, const struct packet *packet, const struct tcp_segment *segment, int fd)
{
    const struct flow_key key = tcp_key(packet, segment);

    if (!may_open(engine, packet))
        return -EINVAL;
    if (flow_find(&engine->flows, &key)) /* of a SYN that was repeated meanwhile */
        return -EEXIST;
    struct flow *flow = begin(engine, &key, segment);
    if (!flow)
        return -ENFILE;
    flow->fd = fd;
    tcp_socket_options(engine, fd);
    await_peer(engine, flow);
    return 0;
}

void tcp_connected(struct engine *engine, struct flow *flow, uint32_t events)
{
    int error = 0;
    socklen_t length = sizeof(error);

    if (events & (EPOLLERR | EPOLLHUP)) /* what connect(2) has come to otherwise needs no question */
        sys_getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        refuse(engine, flow, error);
        return;
    }
    tcp_move_to_host(flow, HALF_OPEN);
    flow->tcp.syn_ack_due = true;
    flow->active_ms = engine->now_ms;
    flow_emit(engine, flow, LG_EVENT_FLOW_CONNECT, 0, 0, 0);
}
