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

#include "icmp.h"
#include "sys.h"
#include "tcp.h"

/* RFC 6528: a clock of 4 microseconds plus a keyed hash of the connection. */
static uint32_t initial_sequence(const struct engine *engine, const struct flow_key *key)
{
    return (uint32_t)(engine->now_ns / 4000) + (uint32_t)siphash(&engine->secret, key, sizeof(*key));
}

/* Where the guest's address leads on the host: the view's mapping, else the address itself. */
static address host_address(const struct lg_net_view *view, const address *remote)
{
    static const address loopback4 = {.byte = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}};
    static const address loopback6 = {.byte = {[15] = 1}};

    if (!memcmp(view->map_host4, remote->byte, sizeof(remote->byte)))
        return loopback4;
    if (!memcmp(view->map_host6, remote->byte, sizeof(remote->byte)) ||
        (view->flags & LG_VIEW_MAP_ROUTER && !memcmp(view->our_link_local, remote->byte, sizeof(remote->byte))))
        return loopback6;
    return *remote;
}

static socklen_t socket_address(const address *a, uint16_t port, uint32_t scope_id, struct sockaddr_storage *ret_addr)
{
    memset(ret_addr, 0, sizeof(*ret_addr));
    if (address_is_ipv4(a)) {
        struct sockaddr_in *in = (struct sockaddr_in *)ret_addr;
        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        memcpy(&in->sin_addr, a->byte + 12, sizeof(in->sin_addr));
        return sizeof(*in);
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret_addr;
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(port);
    memcpy(&in6->sin6_addr, a->byte, sizeof(in6->sin6_addr));
    if (address_is_link_local(a))
        in6->sin6_scope_id = scope_id;
    return sizeof(*in6);
}

/* Makes room in a full table: the flow that was idle longest goes, if that was long enough. */
static bool evict(struct engine *engine)
{
    struct node *node = engine->flows.by_age.head.next;

    if (node == &engine->flows.by_age.head)
        return false;
    struct flow *oldest = container_of(node, struct flow, age);
    if (engine->now_ms - oldest->active_ms < TCP_IDLE_EVICT_MS)
        return false;
    count(engine, C_tcp_evicted);
    tcp_abort(engine, oldest, CLOSE_evicted, 0);
    /* The RST waits for nobody here: whoever still has the other end learns it from the next segment. */
    oldest->tcp.reset_due = false;
    tcp_settle(engine, oldest);
    return true;
}

/* A socket with the options that a flow needs from birth. SO_SNDBUF and SO_RCVBUF are left alone: setting either ends
 * the kernel's own tuning of it (tcp(7)). */
static int flow_socket(const struct engine *engine, int family)
{
    static const int one = 1, zero = 0;
    int fd = sys_socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return fd;
    sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* the guest's own Nagle has been at work */
    sys_setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one)); /* urgent bytes keep their place */
    if (engine->peek_off)
        sys_setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof(zero));
    return fd;
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

static void flow_start(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;

    flow->active_ms = engine->now_ms;
    tcp->iss = tcp->snd_una = tcp->snd_nxt = tcp->resend_at = tcp->resend_end = tcp->recover =
        initial_sequence(engine, &flow->key);
    tcp->rcv_nxt = tcp->rcv_taken = tcp->rcv_acked = tcp->rcv_edge = segment->seq + 1;
    tcp->snd_window = segment->window;
    tcp->snd_wl1 = segment->seq;
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
    /* Not asked of the kernel yet: whatever it really is, this first window fits, or the hold takes the rest. */
    tcp->room = tcp->room_asked = UINT16_MAX;
    tcp->read_hint = TCP_READ_FIRST;
}

/* Unreachable: the first SYN gets an ICMP error, which the guest's connect() reports as such; the next one of the same
 * connection gets a RST, for a guest that did not listen. */
static void refuse(struct engine *engine, struct flow *flow, int error)
{
    bool unreachable = error == EHOSTUNREACH || error == ENETUNREACH || error == EHOSTDOWN || error == ENETDOWN ||
                       error == EACCES || error == EPERM;
    uint64_t tag = siphash(&engine->secret, &flow->key, sizeof(flow->key)) | 1;
    uint64_t *memory = &engine->unreachable.tag[tag / 2 % UNREACHABLE_SLOTS];

    count(engine, C_tcp_refused);
    tcp_emit(engine, flow, LG_EVENT_FLOW_REFUSED, 0, error, 0);
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

void tcp_open(struct engine *engine, const struct packet *packet, const struct flow_key *key,
              const struct tcp_segment *segment)
{
    struct sockaddr_storage addr;
    struct flow *flow;

    /* Data in a SYN is not taken: the guest repeats it, for there is nobody yet to give it to. */
    if (!may_open(engine, packet))
        return;
    flow = flow_add(&engine->flows, key);
    if (!flow && evict(engine))
        flow = flow_add(&engine->flows, key);
    if (!flow) {
        count(engine, C_tcp_flow_limit);
        tcp_emit_refused(engine, key, ENFILE);
        tcp_send_reset_unknown(engine, packet, segment);
        return;
    }
    engine->counters[C_flows] = engine->flows.count;
    flow_start(engine, flow, segment);
    count(engine, C_tcp_opened);
    tcp_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);

    address to = host_address(&engine->view, &key->remote);
    socklen_t length = socket_address(&to, key->remote_port, engine->view.scope_id, &addr);
    int fd = flow_socket(engine, addr.ss_family);
    if (fd < 0) {
        tcp_abort(engine, flow, CLOSE_no_descriptor, -fd);
        return;
    }
    flow->fd = fd;
    carry_header_fields(fd, packet);
    int err = sys_connect(fd, (const struct sockaddr *)&addr, length);
    if (err && err != -EINPROGRESS) {
        refuse(engine, flow, -err);
        return;
    }
    flow->interest = stall_interest(flow);
    err = sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, fd, flow->interest, flow_handle(flow));
    if (err)
        tcp_abort(engine, flow, CLOSE_no_descriptor, -err);
}

void tcp_connected(struct engine *engine, struct flow *flow)
{
    int error = 0;
    socklen_t length = sizeof(error);

    sys_getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        refuse(engine, flow, error);
        return;
    }
    tcp_move_to_host(flow, HALF_OPEN);
    flow->tcp.syn_ack_due = true;
    tcp_emit(engine, flow, LG_EVENT_FLOW_CONNECT, 0, 0, 0);
}
