/* SPDX-License-Identifier: Apache-2.0
 *
 * splice_tcp.c: the life of a connection between the host's loopback and that of the guest's namespace: two sockets, each
 * half closed when the other says so, and both reset when one is.
 *
 * The host's kernel has accepted the near socket by itself. The far one is the guest's: a service that is not there costs
 * the peer a RST. One that listens in the other family only is found, since here no address of the peer's is shown: a
 * program that asks for "localhost" often tries ::1 first, and takes a connection that was accepted for the one.
 *
 * Adversary: whoever reaches a loopback port, on either side: each connection costs two sockets, and the table of flows
 * has a limit. And both ends' bytes, of which none is looked at.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

#include "host_address.h"
#include "outbound.h"
#include "splice.h"
#include "sys.h"

static const int one = 1;

static bool is_ipv6(const struct splice *splice)
{
    return !address_is_ipv4(&splice->target);
}

bool splice_takes(const struct engine *engine, const struct listener *listener, const struct sockaddr_storage *peer)
{
    address source = address_from_host((const struct sockaddr *)peer);

    if (!address_is_loopback(&source))
        return false;
    return listener->outward || (engine->view.flags & LG_VIEW_SPLICE && address_is_unset(&listener->target));
}

/* ---- the far socket ---- */

/* The guest's address in one family; unset: it has none. */
static address guest_address(const struct engine *engine, bool ipv6)
{
    return address_from(ipv6 ? engine->view.guest6 : engine->view.guest4);
}

bool splice_target(const struct engine *engine, const struct listener *listener, const address *local,
                   address *ret_address, bool *ret_other)
{
    bool ipv6 = !address_is_ipv4(local);

    *ret_other = false;
    *ret_address = *local;
    if (listener->outward || engine->view.flags & LG_VIEW_SPLICE_LOOPBACK)
        return true;
    *ret_address = guest_address(engine, ipv6);
    *ret_other = !address_is_unset(ret_address);
    if (!*ret_other)
        *ret_address = guest_address(engine, !ipv6);
    return !address_is_unset(ret_address);
}

/* From the peer's own loopback address, which the far end may look at; most have the kernel's choice anyway. */
static int bind_source(int fd, const address *source)
{
    static const uint8_t usual[4] = {127, 0, 0, 1};
    struct sockaddr_storage own;

    if (!address_is_ipv4(source) || !memcmp(source->byte + 12, usual, sizeof(usual)))
        return 0;
    sys_setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
    socklen_t length = address_to_host(source, 0, 0, &own);
    return sys_bind(fd, (const struct sockaddr *)&own, length);
}

/* Edges, and none of bytes that could not move on (design: "Readiness and stalls"). OUT only where something waits for it:
 * an event of which the other half is gone already when we look is told all the same if the rest of it is true. */
static uint32_t interest_of(const struct splice_side *side)
{
    uint32_t in = side->muted ? 0 : EPOLLIN | EPOLLPRI, out = side->writable ? 0 : EPOLLOUT;

    return in | out | EPOLLET;
}

static int watch(struct engine *engine, struct flow *flow, unsigned which)
{
    struct splice_side *side = &flow->splice.side[which];

    sys_setsockopt(side->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    sys_setsockopt(side->fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one)); /* urgent bytes are as others to us */
    side->interest = interest_of(side);
    return sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, side->fd, side->interest,
                         flow_handle(flow) | (which ? FLOW_FAR : 0));
}

static int connect_far(struct engine *engine, struct flow *flow, int fd)
{
    struct splice *splice = &flow->splice;
    struct splice_side *far = &splice->side[SPLICE_FAR];
    struct sockaddr_storage to;
    socklen_t length = address_to_host(&splice->target, splice->port, engine->view.scope_id, &to);
    int err = address_is_loopback(&splice->target) ? bind_source(fd, &flow->key.remote) : 0;

    far->fd = fd;
    splice->state = SPLICE_CONNECTING;
    if (engine->paces)
        outbound_unpace(fd);
    if (err)
        return err;
    err = sys_connect(fd, (const struct sockaddr *)&to, length);
    return err && err != -EINPROGRESS ? err : watch(engine, flow, SPLICE_FAR);
}

static void refuse(struct engine *engine, struct flow *flow, int error)
{
    count(engine, C_splice_refused);
    splice_abort(engine, flow, error == EMFILE || error == ENFILE ? CLOSE_no_descriptor : CLOSE_refused, error);
}

static void open_far(struct engine *engine, struct flow *flow);

/* What listens there may do so in the other family. */
static void try_other_family(struct engine *engine, struct flow *flow, int error)
{
    struct splice *splice = &flow->splice;
    struct splice_side *far = &splice->side[SPLICE_FAR];
    address other = guest_address(engine, !is_ipv6(splice));

    if (!splice->other || address_is_unset(&other)) {
        refuse(engine, flow, error);
        return;
    }
    sys_close(far->fd); /* also takes it out of epoll */
    *far = (struct splice_side){.fd = -1};
    splice->other = false;
    splice->target = other;
    open_far(engine, flow);
}

void splice_socket_ready(struct engine *engine, struct flow *flow, int fd)
{
    int err;

    if (fd < 0)
        refuse(engine, flow, -fd);
    else if ((err = connect_far(engine, flow, fd)))
        try_other_family(engine, flow, -err);
}

static void open_far(struct engine *engine, struct flow *flow)
{
    bool ipv6 = is_ipv6(&flow->splice);
    int fd;

    flow->splice.state = SPLICE_WAITING;
    if (flow->key.port == PORT_OUTWARD) {
        fd = sys_socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    } else {
        enum splice_kind kind = splice_kind_of(ipv6, IPPROTO_TCP);
        fd = splice_socket_take(engine, kind);
        if (fd == -EAGAIN) {
            splice_socket_await(engine, kind, flow);
            return;
        }
    }
    splice_socket_ready(engine, flow, fd);
}

static int take_error(int fd)
{
    int error = 0;
    socklen_t length = sizeof(error);

    sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

static void end_connect(struct engine *engine, struct flow *flow)
{
    int error = take_error(flow->splice.side[SPLICE_FAR].fd);
    bool was_there = error == ECONNRESET || error == EPIPE; /* accepted, and reset since: what it said can be read */

    if (error && !was_there) {
        try_other_family(engine, flow, error);
        return;
    }
    flow->splice.side[SPLICE_FAR].error = error;
    flow->splice.state = SPLICE_JOINED;
    flow_emit(engine, flow, LG_EVENT_FLOW_CONNECT, 0, 0, 0);
    error = -watch(engine, flow, SPLICE_NEAR); /* not before: nobody had any use for what came */
    if (error)
        splice_abort(engine, flow, CLOSE_no_descriptor, error);
    else
        flow->splice.side[SPLICE_NEAR].readable = true;
}

/* ---- its life ---- */

static void turn_away(struct engine *engine, int fd)
{
    static const struct linger hard = {.l_onoff = 1, .l_linger = 0};

    count(engine, C_tcp_turned_away);
    sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    sys_close(fd);
}

/* The connection as the host knows it, by which no other has the same key. */
static int key_of(const struct listener *listener, int fd, const struct sockaddr_storage *peer,
                  struct flow_key *ret_key)
{
    struct sockaddr_storage local;
    socklen_t length = sizeof(local);
    int err = sys_getsockname(fd, (struct sockaddr *)&local, &length);

    *ret_key = (struct flow_key){.guest = address_from_host((const struct sockaddr *)&local),
                                 .remote = address_from_host((const struct sockaddr *)peer),
                                 .guest_port = port_from_host((const struct sockaddr *)&local),
                                 .remote_port = port_from_host((const struct sockaddr *)peer),
                                 .port = listener->outward ? PORT_OUTWARD : PORT_INWARD,
                                 .protocol = IPPROTO_TCP};
    return err;
}

void splice_accept(struct engine *engine, const struct listener *listener, int fd, const struct sockaddr_storage *peer)
{
    struct flow_key key;
    struct splice splice = {
        .side = {{.fd = fd, .writable = true}, {.fd = -1}},
        .port = listener->port,
    };
    struct flow *flow = NULL;

    if (engine->view.flags & LG_VIEW_TCP && !key_of(listener, fd, peer, &key) &&
        splice_target(engine, listener, &key.guest, &splice.target, &splice.other) && !flow_find(&engine->flows, &key))
        flow = flow_make(engine, &key);
    if (!flow) {
        turn_away(engine, fd);
        return;
    }
    flow->splice = splice;
    flow->active_ms = engine->now_ms;
    count(engine, C_splice_opened);
    flow_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);
    open_far(engine, flow);
}

void splice_close(struct engine *engine, struct flow *flow, enum close_reason reason, int error)
{
    if (flow->done)
        return;
    flow->done = true;
    node_leave(&flow->waiting);
    wheel_cancel(&engine->wheel, &flow->timer);
    for (unsigned i = 0; i < SPLICE_SIDES; i++) {
        struct splice_side *side = &flow->splice.side[i];
        if (side->held) {
            splice_pipe_discard(engine, &side->pipe);
            side->held = 0;
        }
        if (side->fd >= 0)
            sys_close(side->fd); /* also takes it out of epoll: nobody else holds this socket */
        side->fd = -1;
    }
    count(engine, C_splice_closed);
    flow_emit(engine, flow, LG_EVENT_FLOW_CLOSE, reason, error, 0);
    flow_touch(engine, flow);
}

void splice_abort(struct engine *engine, struct flow *flow, enum close_reason reason, int error)
{
    static const struct linger hard = {.l_onoff = 1, .l_linger = 0};

    for (unsigned i = 0; !flow->done && i < SPLICE_SIDES; i++) {
        if (flow->splice.side[i].fd >= 0)
            sys_setsockopt(flow->splice.side[i].fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    }
    splice_close(engine, flow, reason, error);
}

/* Bytes from this side cannot move on: the other side does not take them, or never will, or there is no pipe. */
static bool is_stuck(const struct flow *flow, unsigned which)
{
    return flow->splice.side[which].held || flow->splice.side[!which].error || node_listed(&flow->waiting);
}

void splice_event(struct engine *engine, struct flow *flow, unsigned which, uint32_t events)
{
    struct splice_side *side = &flow->splice.side[which];

    if (events & (EPOLLIN | EPOLLPRI | EPOLLERR | EPOLLHUP)) {
        side->readable = true;
        side->muted = is_stuck(flow, which);
    }
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        side->writable = true;
    if (events & EPOLLPRI)
        side->urgent = true;
    /* Behind a FIN a reset is only the end to whoever reads. What a connect() has met is end_connect()'s. */
    if (events & EPOLLERR && flow->splice.state == SPLICE_JOINED && !side->error)
        side->error = take_error(side->fd);
    flow->splice.woken = true;
    flow_touch(engine, flow);
}

/* It was reset, and of what it had said before nothing is left, or nobody who would hear it. */
static bool is_over(const struct splice_side *in, const struct splice_side *out)
{
    return in->error && (out->error || (!in->held && (in->ended || !in->readable)));
}

/* What has come to an end on one side, passed on to the other behind the last byte. */
static bool pass_end(struct engine *engine, struct flow *flow, unsigned from)
{
    struct splice_side *in = &flow->splice.side[from], *out = &flow->splice.side[!from];

    if (flow->done)
        return false;
    if (is_over(in, out)) {
        splice_abort(engine, flow, CLOSE_peer_reset, in->error);
        return true;
    }
    if (in->held || !in->ended || out->shut)
        return false;
    out->shut = true;
    sys_shutdown(out->fd, SHUT_WR);
    return true;
}

static void apply_interest(struct engine *engine, struct flow *flow, unsigned which)
{
    struct splice_side *side = &flow->splice.side[which];

    if (!is_stuck(flow, which))
        side->muted = false;
    uint32_t interest = interest_of(side);
    if (side->fd < 0 || !side->interest || interest == side->interest)
        return;
    side->interest = interest;
    count(engine, C_interest_changes);
    sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_MOD, side->fd, interest, flow_handle(flow) | (which ? FLOW_FAR : 0));
}

void splice_describe(const struct flow *flow, struct lg_flow_info *info)
{
    const struct splice *splice = &flow->splice;
    unsigned guest = flow->key.port == PORT_INWARD ? SPLICE_FAR : SPLICE_NEAR;

    if (splice->state != SPLICE_JOINED)
        return;
    info->to_guest = splice->side[guest].shut ? HALF_CLOSED : HALF_OPEN;
    info->to_host = splice->side[!guest].shut ? HALF_CLOSED : HALF_OPEN;
    info->in_flight = splice->side[!guest].held;
    info->stall = info->in_flight ? STALL_window : STALL_caught_up;
}

static bool progress(struct engine *engine, struct flow *flow)
{
    struct splice *splice = &flow->splice;
    const struct splice_side *far = &splice->side[SPLICE_FAR];
    bool moved = splice->state == SPLICE_CONNECTING && far->writable;

    if (moved)
        end_connect(engine, flow);
    if (flow->done || splice->state != SPLICE_JOINED)
        return moved;
    for (unsigned from = 0; from < SPLICE_SIDES && !flow->done; from++) {
        moved |= splice_move(engine, flow, from);
        moved |= pass_end(engine, flow, from);
    }
    if (splice->side[SPLICE_NEAR].shut && splice->side[SPLICE_FAR].shut)
        splice_close(engine, flow, CLOSE_done, 0);
    return moved;
}

void splice_settle(struct engine *engine, struct flow *flow)
{
    bool woken = flow->splice.woken;

    flow->splice.woken = false;
    if (!flow->done && !progress(engine, flow) && woken)
        count(engine, C_wakeups_idle);
    if (flow->splice.offered) { /* it has found no use for a pipe any more */
        flow->splice.offered = false;
        splice_pipe_offer(engine);
    }
    if (flow->done) {
        flow_remove(&engine->flows, flow);
        engine->counters[C_flows] = engine->flows.count;
        return;
    }
    for (unsigned side = 0; side < SPLICE_SIDES; side++)
        apply_interest(engine, flow, side);
    splice_stream_timer(engine, flow);
    flow_aged(engine, flow);
}
