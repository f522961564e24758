/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_flow.c: the life of a flow of datagrams. Its socket is bound to the guest's own port where the host allows that
 * and connected to the peer, so that the kernel sorts out whose an answer is, and reports errors of the path. One towards
 * a group, a multicast or broadcast address, is connected to nobody.
 *
 * Adversary: the guest, which may open as many as it likes: each costs a socket, and the table has a limit. And whoever
 * sends to the port between bind() and connect(): what came before the connection is thrown away.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>

#include "datagram.h"
#include "host_address.h"
#include "outbound.h"
#include "sys.h"

static const int one = 1, zero = 0;

/* ---- the socket ---- */

static bool is_ping(const struct flow_key *key)
{
    return key->protocol != IPPROTO_UDP;
}

static void set_hops(struct flow *flow, bool ipv6, uint8_t hops)
{
    int value = hops;

    if (!hops || flow->datagram.hops == hops || flow->fd < 0) /* a socket that others share has its own */
        return;
    flow->datagram.hops = hops;
    sys_setsockopt(flow->fd, ipv6 ? IPPROTO_IPV6 : IPPROTO_IP, ipv6 ? IPV6_UNICAST_HOPS : IP_TTL, &value,
                   sizeof(value));
    if (address_is_multicast(&flow->key.remote))
        sys_setsockopt(flow->fd, ipv6 ? IPPROTO_IPV6 : IPPROTO_IP, ipv6 ? IPV6_MULTICAST_HOPS : IP_MULTICAST_TTL,
                       &value, sizeof(value));
}

/* Only what is sent to this host itself: neither our own datagrams, which come back to whoever has their port, nor those
 * that other programs of the host have joined a group for. */
static void set_group_options(int fd, bool ipv6)
{
    sys_setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &one, sizeof(one));
    if (ipv6) {
        sys_setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_ALL, &zero, sizeof(zero));
    } else {
        sys_setsockopt(fd, IPPROTO_IP, IP_MULTICAST_ALL, &zero, sizeof(zero));
        sys_setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one)); /* tells a broadcast from what is for us */
    }
}

static void set_options(const struct engine *engine, const struct flow *flow, bool ipv6)
{
    static const int queue = DATAGRAM_QUEUE_BYTES;
    int fd = flow->fd, level = ipv6 ? IPPROTO_IPV6 : IPPROTO_IP;

    sys_setsockopt(fd, level, ipv6 ? IPV6_RECVERR : IP_RECVERR, &one, sizeof(one));
    sys_setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &queue, sizeof(queue));
    if (engine->view.flags & LG_VIEW_FREEBIND)
        sys_setsockopt(fd, level, ipv6 ? IPV6_FREEBIND : IP_FREEBIND, &one, sizeof(one));
    if (is_ping(&flow->key)) {
        /* Of two with one identifier, one would get the replies to both. */
        sys_setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &zero, sizeof(zero));
        return;
    }
    if (ipv6) /* the same port of IPv4 is another's */
        sys_setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    if (flow->datagram.group) {
        set_group_options(fd, ipv6);
        return;
    }
    sys_setsockopt(fd, IPPROTO_UDP, UDP_GRO, &one, sizeof(one));
}

void datagram_throw_away(int fd)
{
    uint8_t byte;
    struct iovec iov = {&byte, sizeof(byte)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    while (sys_recvmsg(fd, &msg, MSG_DONTWAIT) >= 0)
        ;
}

/* Finds out on the way whether the address is one for many, of which some only the host knows. */
static int connect_socket(struct engine *engine, struct flow *flow)
{
    struct sockaddr_storage to;
    socklen_t length = host_address(&engine->view, &flow->key.remote, flow->key.remote_port, &to);
    int err = datagram_bind(engine, flow, &to);

    if (err)
        return err;
    err = sys_connect(flow->fd, (const struct sockaddr *)&to, length);
    if (err == -EACCES && !is_ping(&flow->key)) { /* the broadcast address of some network of the host's? */
        sys_setsockopt(flow->fd, SOL_SOCKET, SO_BROADCAST, &one, sizeof(one));
        err = sys_connect(flow->fd, (const struct sockaddr *)&to, length);
        flow->datagram.group = !err;
    }
    if (err == -EINVAL) /* bound to an address that the host has not, with LG_VIEW_FREEBIND, and no route allows that */
        return -ENETUNREACH;
    flow->datagram.group |= !err && !is_ping(&flow->key) && address_is_multicast(&flow->key.remote);
    return err;
}

static void tell_no_ping(struct engine *engine, const struct flow_key *key, int error)
{
    struct lg_event event = {.kind = LG_EVENT_NO_PING, .error = error, .protocol = key->protocol};

    if (engine->no_ping_told || (error != EACCES && error != EPERM))
        return;
    engine->no_ping_told = true;
    engine->events->emit(engine->events, &event); /* at any level: without it, pings just fail */
}

static int make_socket(struct engine *engine, struct flow *flow, bool ipv6)
{
    const struct flow_key *key = &flow->key;
    int protocol = is_ping(key) ? key->protocol : 0;
    int fd = sys_socket(ipv6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);

    if (fd < 0) {
        if (is_ping(key))
            tell_no_ping(engine, key, -fd);
        return fd;
    }
    flow->fd = fd;
    set_options(engine, flow, ipv6);
    return 0;
}

/* There is a way to the group. In place of the connected socket comes one that is connected to nobody (and never was: to be
 * disconnected leaves traces), for each that hears it answers from an address of its own. Nobody else
 * could have its port until then, so that a guest cannot take what comes to another program's; from then on, the guest's
 * other flows may share it. */
static int open_to_group(struct engine *engine, struct flow *flow, bool ipv6)
{
    struct datagram_peer *peer = &flow->datagram.peer;
    struct sockaddr_storage to;
    socklen_t length = host_address(&engine->view, &flow->key.remote, flow->key.remote_port, &to);
    int err;

    datagram_close_socket(engine, flow);
    if ((err = make_socket(engine, flow, ipv6)) || (err = datagram_bind(engine, flow, &to)))
        return err;
    peer->fd = flow->fd;
    peer->addr_length = length;
    memcpy(&peer->addr, &to, length);
    return 0;
}

static int open_socket(struct engine *engine, struct flow *flow, const struct packet *packet)
{
    int err = make_socket(engine, flow, packet->ipv6);

    if (!err)
        err = connect_socket(engine, flow);
    if (!err && flow->datagram.group)
        err = open_to_group(engine, flow, packet->ipv6);
    if (err)
        return err;
    if (!is_ping(&flow->key) && flow->key.guest_port && !flow->datagram.keeps_port) {
        if (!flow->datagram.group && datagram_leave_by_way_in(engine, flow))
            return 0;
        count(engine, C_udp_port_taken);
    }
    datagram_throw_away(flow->fd);
    set_hops(flow, packet->ipv6, packet->hops);
    flow->interest = EPOLLIN | EPOLLET; /* ERR comes in any case */
    return sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, flow->fd, flow->interest, flow_handle(flow));
}

/* ---- its life ---- */

struct flow *datagram_flow(struct engine *engine, const struct flow_key *key, const struct packet *packet)
{
    struct flow *flow = flow_find(&engine->flows, key);

    if (flow) {
        if (!flow->done)
            set_hops(flow, packet->ipv6, packet->hops);
        return flow->done ? NULL : flow;
    }
    if (!(flow = flow_make(engine, key)))
        return NULL;
    flow->active_ms = engine->now_ms;
    count(engine, C_datagram_opened);
    flow_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);
    int err = open_socket(engine, flow, packet);
    if (!err)
        return flow;
    count(engine, C_datagram_refused);
    if (err == -ENETUNREACH || err == -EHOSTUNREACH || err == -EACCES || err == -EPERM)
        datagram_tell_unreachable(engine, flow, -err);
    datagram_close(engine, flow, CLOSE_unreachable, -err);
    return NULL;
}

void datagram_close(struct engine *engine, struct flow *flow, enum close_reason reason, int error)
{
    if (flow->done)
        return;
    flow->done = true;
    datagram_close_socket(engine, flow);
    if (engine->inbox.handle == flow_handle(flow))
        engine->inbox.count = 0;
    wheel_cancel(&engine->wheel, &flow->timer);
    count(engine, C_datagram_closed);
    flow_emit(engine, flow, LG_EVENT_FLOW_CLOSE, reason, error, 0);
    flow_touch(engine, flow);
}

static uint64_t timeout_ms(const struct flow *flow)
{
    if (is_ping(&flow->key))
        return PING_TIMEOUT_MS;
    return flow->datagram.stream ? DATAGRAM_STREAM_TIMEOUT_MS : DATAGRAM_TIMEOUT_MS;
}

/* The timer stands where an earlier silence would have ended: moving it with each datagram would cost more than one look
 * in half a minute. */
void datagram_timer_fired(struct engine *engine, struct flow *flow)
{
    if (engine->now_ms - flow->active_ms >= timeout_ms(flow))
        datagram_close(engine, flow, CLOSE_idle, 0);
    else
        flow_touch(engine, flow);
}

void datagram_event(struct flow *flow, uint32_t events)
{
    struct datagram *datagram = &flow->datagram;

    if (events & EPOLLIN)
        datagram->readable = true;
    if (events & EPOLLERR)
        datagram->errors = true;
    datagram->woken = true;
}

void datagram_take(struct engine *engine, struct flow *flow, const struct guest_frame *frame, uint32_t offset,
                   uint32_t length)
{
    struct datagram *datagram = &flow->datagram;

    uint16_t each = frame->datagram < length ? frame->datagram : 0;

    batch_append(engine, &datagram->batch_first, &datagram->batch_last, frame, offset, length, each);
    datagram->stream |= datagram->answered;
    datagram->answered |= datagram->inbound;
    flow_touch(engine, flow);
}

/* ---- to the guest ---- */

/* Into the inbox, which is empty. False: nothing came. */
static bool receive(struct engine *engine, struct flow *flow)
{
    int n = datagram_receive(&engine->inbox, flow->fd, NULL);

    if (n < DATAGRAM_RECEIVE_MAX)
        flow->datagram.readable = false; /* what comes now is a new edge */
    if (n < 0 && n != -EAGAIN) {         /* an error of the path, which the error queue explains */
        flow->datagram.errors = true;
        flow->datagram.readable = n != -EBADF && n != -ENOTCONN;
        return false;
    }
    if (n <= 0)
        return false;
    engine->inbox.handle = flow_handle(flow);
    flow->datagram.stream |= n > 1 || flow->datagram.answered;
    flow->datagram.answered = true;
    flow->active_ms = engine->now_ms;
    return true;
}

/* What the inbox has, as far as the link takes it. False: the link is full. */
static bool empty_inbox(struct engine *engine, struct flow *flow)
{
    struct datagram_inbox *inbox = &engine->inbox;

    while (inbox->count) {
        uint32_t bytes = inbox->length[inbox->next];

        if (is_ping(&flow->key)) {
            ping_to_guest(engine, flow, inbox_bytes(inbox, inbox->next), bytes);
            count(engine, C_datagrams_to_guest);
            inbox_advance(inbox, bytes);
        } else if (datagram_deliver(engine, &flow->key, inbox, &bytes)) {
            return false;
        }
        flow->bytes_to_guest += bytes;
    }
    return true;
}

static void receive_all(struct engine *engine, struct flow *flow)
{
    struct datagram_inbox *inbox = &engine->inbox;

    if (flow->datagram.group) {
        datagram_take_answers(engine, flow);
        return;
    }
    if (inbox->count && inbox->handle != flow_handle(flow)) { /* another's wait for room, and so does this */
        engine_wait_room(engine, flow);
        return;
    }
    for (unsigned turn = 0; turn < DATAGRAM_RECEIVES_PER_TURN; turn++) {
        if (!empty_inbox(engine, flow)) {
            engine_wait_room(engine, flow);
            return;
        }
        if (!flow->datagram.readable || !receive(engine, flow))
            return;
    }
    if (!empty_inbox(engine, flow))
        engine_wait_room(engine, flow);
    else if (flow->datagram.readable)
        flow_touch(engine, flow); /* others have their turn first */
}

void datagram_rest(struct engine *engine, struct flow *flow)
{
    bool woken = flow->datagram.woken;

    flow->datagram.woken = false;
    if (flow->done) {
        flow_remove(&engine->flows, flow);
        engine->counters[C_flows] = engine->flows.count;
        return;
    }
    if (flow->datagram.errors)
        flow_touch(engine, flow); /* a read met one */
    if (woken && flow->active_ms != engine->now_ms)
        count(engine, C_wakeups_idle);
    if (!timer_armed(&flow->timer))
        wheel_arm(&engine->wheel, &flow->timer, flow->active_ms + timeout_ms(flow));
    flow_aged(engine, flow);
}

void datagram_settle(struct engine *engine, struct flow *flow)
{
    struct datagram *datagram = &flow->datagram;

    if (!flow->done)
        datagram_send_batch(engine, flow);
    if (!flow->done && datagram->errors)
        datagram_take_errors(engine, flow);
    if (!flow->done && (datagram->readable || (engine->inbox.count && engine->inbox.handle == flow_handle(flow))))
        receive_all(engine, flow);
    datagram_rest(engine, flow);
}
