/* SPDX-License-Identifier: Apache-2.0
 *
 * splice_udp.c: datagrams between the host's loopback and that of the guest's namespace. Each peer has a socket on the other
 * side, bound to the peer's own port where that is free and connected to where its datagrams go, so that answers find
 * their way back: through the socket that was asked, from the address that was asked.
 *
 * What one recvmmsg() brings of one peer goes out in one sendmmsg(); datagrams that the kernel has joined stay so. Nothing
 * waits: what the other side's queue does not take is lost, as between any two programs on one host.
 *
 * Adversary: whoever reaches a loopback port, on either side: each source costs a socket and a slot of the table for half a
 * minute, and the table has a limit.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>

#include "datagram.h"
#include "host_address.h"
#include "splice.h"
#include "sys.h"

static const int one = 1, queue = DATAGRAM_QUEUE_BYTES;

static const struct datagram_sender *sender_at(const struct engine *engine)
{
    return &engine->arrivals.from[engine->arrivals.inbox.next];
}

static struct flow_key key_of(const struct listener *listener, const struct datagram_sender *from)
{
    return (struct flow_key){.guest = from->local,
                             .remote = address_from_host((const struct sockaddr *)&from->address),
                             .guest_port = listener->own_port,
                             .remote_port = ntohs(((const struct sockaddr_in *)(const void *)&from->address)->sin_port),
                             .port = listener->outward ? PORT_OUTWARD : PORT_INWARD,
                             .protocol = IPPROTO_UDP};
}

/* ---- the far socket ---- */

/* From the peer's port; its address too, where that is one on the other side as well. */
static void keep_source(struct engine *engine, int fd, const struct flow_key *key, const address *target)
{
    static const address any6, any4 = {.byte = {[10] = 0xff, [11] = 0xff}};
    const address *any = address_is_ipv4(target) ? &any4 : &any6;
    const address *source =
        address_is_loopback(target) && address_is_ipv4(target) == address_is_ipv4(&key->remote) ? &key->remote : any;
    struct sockaddr_storage own;
    socklen_t length = address_to_host(source, key->remote_port, 0, &own);

    if (!sys_bind(fd, (const struct sockaddr *)&own, length))
        return;
    count(engine, C_udp_port_taken);
    length = address_to_host(source, 0, 0, &own);
    if (source != any)
        sys_bind(fd, (const struct sockaddr *)&own, length);
}

static int connect_far(struct engine *engine, int fd, const struct flow_key *key, const address *target, uint16_t port)
{
    struct sockaddr_storage to;
    socklen_t length = address_to_host(target, port, engine->view.scope_id, &to);

    sys_setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &queue, sizeof(queue));
    sys_setsockopt(fd, IPPROTO_UDP, UDP_GRO, &one, sizeof(one));
    keep_source(engine, fd, key, target);
    int err = sys_connect(fd, (const struct sockaddr *)&to, length);
    datagram_throw_away(fd);
    return err;
}

/* A socket on the side where `target` is, or a negative errno; -EAGAIN: it will come. */
static int far_socket(struct engine *engine, const struct listener *listener, const address *target)
{
    bool ipv6 = !address_is_ipv4(target);

    if (listener->outward)
        return sys_socket(ipv6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return splice_socket_take(engine, splice_kind_of(ipv6, IPPROTO_UDP));
}

/* A new flow with this socket, which is closed if there can be none. */
static struct flow *make_flow(struct engine *engine, const struct listener *listener, const struct flow_key *key,
                              int fd, const address *target)
{
    struct flow *flow = flow_make(engine, key);

    if (!flow) {
        sys_close(fd);
        return NULL;
    }
    flow->fd = fd;
    flow->active_ms = engine->now_ms;
    datagram_note_peer(engine, flow, listener, sender_at(engine));
    count(engine, C_splice_opened);
    flow_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);
    int err = connect_far(engine, fd, key, target, listener->port);
    flow->interest = EPOLLIN | EPOLLET;
    if (!err)
        err = sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, fd, flow->interest, flow_handle(flow));
    if (!err)
        return flow;
    count(engine, C_splice_refused);
    datagram_close(engine, flow, CLOSE_unreachable, -err);
    return NULL;
}

/* The flow of what is at the head of the arrivals; NULL: there is none, and *ret_wait, it will have to wait for a socket. */
static struct flow *flow_of(struct engine *engine, const struct listener *listener, bool *ret_wait)
{
    const struct datagram_sender *from = sender_at(engine);
    struct flow_key key = key_of(listener, from);
    address target;
    bool other;

    *ret_wait = false;
    if (!(engine->view.flags & LG_VIEW_UDP) || from->length > sizeof(struct sockaddr_in6))
        return NULL;
    struct flow *flow = flow_find(&engine->flows, &key);
    if (flow)
        return flow->done ? NULL : flow;
    if (!splice_target(engine, listener, &from->local, &target, &other))
        return NULL;
    int fd = far_socket(engine, listener, &target);
    *ret_wait = fd == -EAGAIN;
    return fd < 0 ? NULL : make_flow(engine, listener, &key, fd, &target);
}

/* ---- datagrams ---- */

/* How many messages at the head of the arrivals are of one peer. */
static unsigned run_of_one(const struct engine *engine)
{
    const struct datagram_inbox *inbox = &engine->arrivals.inbox;
    const struct datagram_sender *first = sender_at(engine);
    unsigned run = 1;

    while (inbox->next + run < inbox->count) {
        const struct datagram_sender *other = &engine->arrivals.from[inbox->next + run];
        if (other->length != first->length || memcmp(&other->address, &first->address, first->length) ||
            !address_equal(&other->local, &first->local))
            break;
        run++;
    }
    return run;
}

bool splice_udp_arrived(struct engine *engine, const struct listener *listener)
{
    struct datagram_inbox *inbox = &engine->arrivals.inbox;
    bool wait;
    struct flow *flow = flow_of(engine, listener, &wait);
    unsigned run = run_of_one(engine);

    if (wait)
        return false;
    if (!flow) {
        engine->counters[C_datagrams_turned_away] += run;
        for (; run; run--)
            inbox_advance(inbox, inbox->length[inbox->next]);
        return true;
    }
    uint64_t bytes = datagram_relay(engine, flow, flow->fd, inbox, run);
    *(listener->outward ? &flow->bytes_from_guest : &flow->bytes_to_guest) += bytes;
    engine->counters[listener->outward ? C_splice_bytes_from_guest : C_splice_bytes_to_guest] += bytes;
    flow->datagram.stream |= flow->datagram.answered;
    flow_touch(engine, flow);
    return true;
}

/* Answers, back to whoever asked. */
static void take_answers(struct engine *engine, struct flow *flow)
{
    struct datagram_inbox *inbox = &engine->relayed;
    bool outward = flow->key.port == PORT_OUTWARD;

    for (unsigned turn = 0; turn < DATAGRAM_RECEIVES_PER_TURN; turn++) {
        int n = datagram_receive(inbox, flow->fd, NULL);

        if (n < DATAGRAM_RECEIVE_MAX)
            flow->datagram.readable =
                n < 0 && n != -EAGAIN && n != -EBADF; /* an error of the past: what of the rest? */
        if (n <= 0)
            break;
        flow->datagram.answered = true;
        uint64_t bytes = datagram_relay(engine, flow, flow->datagram.peer.fd, inbox, (unsigned)n);
        *(outward ? &flow->bytes_to_guest : &flow->bytes_from_guest) += bytes;
        engine->counters[outward ? C_splice_bytes_to_guest : C_splice_bytes_from_guest] += bytes;
        if (!flow->datagram.readable)
            break;
    }
    if (flow->datagram.readable)
        flow_touch(engine, flow); /* others have their turn first */
}

void splice_udp_settle(struct engine *engine, struct flow *flow)
{
    if (!flow->done && flow->datagram.readable)
        take_answers(engine, flow);
    flow->datagram.errors = false; /* of a service that is not there: there is nobody to tell */
    datagram_rest(engine, flow);
}
