/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_accept.c: what comes on sockets that are connected to nobody, so that each datagram says whose it is: to a port
 * of the host which leads to the guest, shared by many peers; and in answer to what the guest asked a group.
 *
 * While the link is full a port is not watched, and what comes stays in its queue, where there is more room than in any
 * ring; what was read already waits in the arrivals.
 *
 * Adversary: whoever reaches the port. Each new source costs a slot of the table, which has a limit, and no descriptor; an
 * answer costs neither, and does not lengthen the life of the question.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "host_address.h"
#include "splice.h"
#include "sys.h"

void datagram_note_peer(const struct engine *engine, struct flow *flow, const struct listener *listener,
                        const struct datagram_sender *from)
{
    struct datagram_peer *peer = &flow->datagram.peer;

    peer->fd = listener->fd;
    peer->slot = listener_slot(&engine->listeners, listener);
    peer->addr_length = from->length;
    memcpy(&peer->addr, &from->address, from->length);
    memcpy(peer->local, from->local.byte, sizeof(peer->local));
    peer->interface = from->interface;
}

static bool is_same(const struct sockaddr *a, const struct sockaddr *b)
{
    const address at = address_from_host(a), other = address_from_host(b);

    return address_equal(&at, &other) && port_from_host(a) == port_from_host(b);
}

/* Two peers that are shown by one address have two ports, and so has one that comes by two ports of ours: each answer has
 * to leave by the port that was asked. What the guest itself began is of whoever it leads to. */
static bool is_anothers(const struct engine *engine, const struct flow *flow, const struct listener *listener,
                        const struct sockaddr_storage *from)
{
    const struct datagram_peer *peer = &flow->datagram.peer;
    struct sockaddr_storage to;

    if (flow->datagram.group)
        return false;
    if (flow->fd < 0)
        return peer->slot != listener_slot(&engine->listeners, listener) ||
               !is_same((const struct sockaddr *)&peer->addr, (const struct sockaddr *)from);
    host_address(&engine->view, &flow->key.remote, flow->key.remote_port, &to);
    return !is_same((const struct sockaddr *)&to, (const struct sockaddr *)from);
}

struct flow *datagram_of_peer(struct engine *engine, const struct listener *listener,
                              const struct sockaddr_storage *from, struct flow_key *key)
{
    enum {
        NEAR = 8 /* of a new peer so many keys are looked at, and of others' all */
    };
    struct flow_key next = *key;
    bool chosen = false;

    key->protocol = 0;
    for (unsigned tries = 0; tries < (chosen ? NEAR : LISTENER_OTHER_PORTS); tries++, listener_other_port(&next)) {
        struct flow *flow = flow_find(&engine->flows, &next);

        if (flow && (flow->done || !is_anothers(engine, flow, listener, from)))
            return flow;
        if (!flow && !chosen) {
            *key = next;
            chosen = true;
        }
    }
    return NULL;
}

static struct flow *flow_of(struct engine *engine, const struct listener *listener, const struct datagram_sender *from)
{
    struct flow_key key;

    if (!(engine->view.flags & LG_VIEW_UDP) || from->length > sizeof(struct sockaddr_in6) ||
        !listener_key(engine, listener, &from->address, &key))
        return NULL;
    struct flow *flow = datagram_of_peer(engine, listener, &from->address, &key);
    if (flow && flow->fd < 0 && !flow->done) /* it may have asked another of our addresses before */
        datagram_note_peer(engine, flow, listener, from);
    if (flow)
        return flow->done ? NULL : flow;
    if (!key.protocol || !(flow = flow_make(engine, &key)))
        return NULL;
    flow->active_ms = engine->now_ms;
    flow->datagram.inbound = true;
    datagram_note_peer(engine, flow, listener, from);
    count(engine, C_datagram_opened);
    flow_emit(engine, flow, LG_EVENT_FLOW_OPEN, 0, 0, 0);
    return flow;
}

/* Nobody gets what is left of the message at the head of the inbox. */
static void turn_away(struct engine *engine, struct datagram_inbox *inbox)
{
    uint32_t each = inbox->each[inbox->next], left = inbox->length[inbox->next] - inbox->offset;

    engine->counters[C_datagrams_turned_away] += left ? (left + each - 1) / each : 1;
    inbox_advance(inbox, left);
}

/* What one frame takes of the message at the head of the arrivals; false: the link is full, or a socket must come first. */
static bool take_arrival(struct engine *engine, const struct listener *listener)
{
    struct datagram_inbox *inbox = &engine->arrivals.inbox;
    const struct datagram_sender *from = &engine->arrivals.from[inbox->next];

    if (splice_takes(engine, listener, &from->address))
        return splice_udp_arrived(engine, listener);
    struct flow *flow = listener->outward ? NULL : flow_of(engine, listener, from);
    uint32_t bytes;

    if (!flow) {
        turn_away(engine, inbox);
        return true;
    }
    struct flow_key shown = flow->key;
    /* What a group was asked, the guest may have to hear as such. */
    if (address_is_group(&from->to) && address_is_unset(&listener->target) &&
        address_is_ipv4(&from->to) == address_is_ipv4(&shown.guest))
        shown.guest = from->to;
    flow_touch(engine, flow);
    neighbour_seek(engine, &flow->key.guest, false);
    if (datagram_deliver(engine, &shown, inbox, &bytes)) {
        engine_full(engine);
        return false;
    }
    flow->bytes_to_guest += bytes;
    flow->datagram.stream |= flow->datagram.answered;
    flow->datagram.answered |= !flow->datagram.inbound;
    flow->active_ms = engine->now_ms;
    return true;
}

/* Until the room event, or until there are sockets. */
static void wait_room(struct engine *engine, struct listener *listener)
{
    if (node_listed(&listener->waiting))
        return;
    list_append(&engine->waiting_ports, &listener->waiting);
    sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_MOD, listener->fd, 0,
                  engine->listeners.source + listener_slot(&engine->listeners, listener));
}

/* False: the port waits. */
static bool empty_arrivals(struct engine *engine, struct listener *listener)
{
    while (engine->arrivals.inbox.count) {
        if (!take_arrival(engine, listener)) {
            wait_room(engine, listener);
            return false;
        }
    }
    return true;
}

void datagram_accept(struct engine *engine, struct listener *listener, uint32_t events)
{
    struct datagram_arrivals *arrivals = &engine->arrivals;

    if (events & EPOLLERR)
        datagram_take_listener_errors(engine, listener);
    if (arrivals->inbox.count) { /* another's wait for room, and so does this */
        wait_room(engine, listener);
        return;
    }
    arrivals->slot = listener_slot(&engine->listeners, listener);
    datagram_receive(&arrivals->inbox, listener->fd, arrivals->from); /* epoll says if there is more */
    empty_arrivals(engine, listener);
}

void datagram_accept_room(struct engine *engine)
{
    struct node *node;

    if (engine->arrivals.inbox.count && !empty_arrivals(engine, listener_at(&engine->listeners, engine->arrivals.slot)))
        return;
    while ((node = list_pop(&engine->waiting_ports))) {
        const struct listener *listener = container_of(node, struct listener, waiting);
        sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_MOD, listener->fd, EPOLLIN,
                      engine->listeners.source + listener_slot(&engine->listeners, listener));
    }
}

void datagram_accept_close(struct engine *engine, uint32_t slot)
{
    struct datagram_inbox *inbox = &engine->arrivals.inbox;

    while (inbox->count && engine->arrivals.slot == slot)
        turn_away(engine, inbox);
}

/* What one frame takes of the answers; what finds no room is lost, as the question might have been. */
static void take_answer(struct engine *engine, struct flow *flow)
{
    struct datagram_inbox *inbox = &engine->arrivals.inbox;
    const struct datagram_sender *from = &engine->arrivals.from[inbox->next];
    const struct listener port = {.protocol = IPPROTO_UDP, .port = flow->key.guest_port, .target = flow->key.guest};
    struct flow_key shown;
    uint32_t bytes;
    bool broadcast = !address_is_unset(&from->to) && !address_equal(&from->to, &from->local);

    if (broadcast || from->length > sizeof(struct sockaddr_in6) ||
        !listener_key(engine, &port, &from->address, &shown)) {
        turn_away(engine, inbox);
    } else if (datagram_deliver(engine, &shown, inbox, &bytes)) {
        count(engine, C_drop_no_room);
        inbox_advance(inbox, inbox->length[inbox->next] - inbox->offset);
    } else {
        flow->bytes_to_guest += bytes;
    }
}

void datagram_take_answers(struct engine *engine, struct flow *flow)
{
    struct datagram_arrivals *arrivals = &engine->arrivals;
    struct datagram *datagram = &flow->datagram;

    if (arrivals->inbox.count) { /* a port's wait for room */
        engine_wait_room(engine, flow);
        return;
    }
    int n = datagram_receive(&arrivals->inbox, flow->fd, arrivals->from);

    while (arrivals->inbox.count)
        take_answer(engine, flow);
    datagram->errors |= n < 0 && n != -EAGAIN;
    datagram->readable = n == DATAGRAM_RECEIVE_MAX || (n < 0 && n != -EAGAIN && n != -EBADF);
    if (datagram->readable)
        flow_touch(engine, flow); /* others have their turn first */
}
