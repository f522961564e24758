/* SPDX-License-Identifier: Apache-2.0
 *
 * flow_protocol.c: what is done with any flow, and by whom: the one place that tells the protocols apart.
 */
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "host_address.h"
#include "splice.h"
#include "sys.h"
#include "tcp.h"

static bool is_tcp(const struct flow *flow)
{
    return flow->key.protocol == IPPROTO_TCP;
}

static bool is_joined(const struct flow *flow)
{
    return flow->key.port != PORT_LINK;
}

void flow_settle(struct engine *engine, struct flow *flow)
{
    if (is_joined(flow))
        (is_tcp(flow) ? splice_settle : splice_udp_settle)(engine, flow);
    else
        (is_tcp(flow) ? tcp_settle : datagram_settle)(engine, flow);
}

void flow_event(struct engine *engine, struct flow *flow, bool far, uint32_t events)
{
    if (flow->done || flow->frozen)
        return;
    if (!is_tcp(flow)) {
        datagram_event(flow, events);
        flow_touch(engine, flow);
    } else if (is_joined(flow)) {
        splice_event(engine, flow, far ? SPLICE_FAR : SPLICE_NEAR, events);
    } else {
        tcp_event(engine, flow, events);
    }
}

void flow_timer_fired(struct engine *engine, struct flow *flow)
{
    if (!is_tcp(flow))
        datagram_timer_fired(engine, flow);
    else if (is_joined(flow))
        splice_stream_fired(engine, flow);
    else
        tcp_timer_fired(engine, flow);
}

void flow_close(struct engine *engine, struct flow *flow, enum close_reason reason)
{
    if (!is_tcp(flow))
        datagram_close(engine, flow, reason, 0);
    else if (is_joined(flow))
        splice_close(engine, flow, reason, 0);
    else
        tcp_close(engine, flow, reason, 0);
}

static uint64_t evict_after_ms(const struct flow *flow)
{
    return is_tcp(flow) || flow->datagram.stream ? FLOW_IDLE_EVICT_MS : FLOW_SHORT_EVICT_MS;
}

/* Makes room in a full table: one that has ended goes, or the flow that was idle longest, if that was long enough. */
static bool evict(struct engine *engine)
{
    struct node *node = engine->flows.by_age.head.next;

    if (node == &engine->flows.by_age.head)
        return false;
    struct flow *oldest = container_of(node, struct flow, age);
    if (!oldest->done && engine->now_ms - oldest->active_ms < evict_after_ms(oldest))
        return false;
    count(engine, C_flows_evicted);
    /* A RST to the guest would have to wait for room: whoever still has the other end learns it from the next segment. */
    if (!is_tcp(oldest))
        datagram_close(engine, oldest, CLOSE_evicted, 0);
    else if (is_joined(oldest))
        splice_abort(engine, oldest, CLOSE_evicted, 0);
    else
        tcp_abandon(engine, oldest);
    flow_settle(engine, oldest);
    return true;
}

/* At any level of events: to a person it looks as if the network had gone. */
static void tell_full(struct engine *engine)
{
    struct lg_event event = {.kind = LG_EVENT_FLOWS_FULL, .value = engine->flows.count};

    count(engine, C_flows_refused);
    if (engine->full_told_ms && engine->now_ms - engine->full_told_ms < FLOWS_FULL_TELL_MS)
        return;
    engine->full_told_ms = engine->now_ms;
    engine->events->emit(engine->events, &event);
}

struct flow *flow_make(struct engine *engine, const struct flow_key *key)
{
    struct flow *flow = flow_add(&engine->flows, key);

    while (!flow && evict(engine)) /* a joined connection may need the room of two */
        flow = flow_add(&engine->flows, key);
    if (flow)
        engine->counters[C_flows] = engine->flows.count;
    else
        tell_full(engine);
    return flow;
}

void flow_aged(struct engine *engine, struct flow *flow)
{
    if (flow->active_ms != engine->now_ms)
        return;
    node_leave(&flow->age);
    list_append(&engine->flows.by_age, &flow->age);
}

void flow_expendable(struct engine *engine, struct flow *flow)
{
    node_leave(&flow->age);
    list_prepend(&engine->flows.by_age, &flow->age);
}

/* ---- what a person may want to see ---- */

static struct lg_event event_of(const struct flow_key *key, uint32_t kind, int error)
{
    struct lg_event event = {.kind = kind,
                             .error = error,
                             .protocol = key->protocol,
                             .guest_port = key->guest_port,
                             .remote_port = key->remote_port};

    memcpy(event.guest_addr, key->guest.byte, sizeof(event.guest_addr));
    memcpy(event.remote_addr, key->remote.byte, sizeof(event.remote_addr));
    return event;
}

void flow_emit(struct engine *engine, const struct flow *flow, uint32_t kind, uint32_t reason, int error,
               uint64_t value)
{
    if (!engine_shows_events(engine))
        return;
    struct lg_event event = event_of(&flow->key, kind, error);
    event.reason = reason;
    event.flow = flow_handle(flow);
    event.value = value;
    event.bytes_to_guest = flow->bytes_to_guest;
    event.bytes_from_guest = flow->bytes_from_guest;
    engine->events->emit(engine->events, &event);
}

/* At any level of events: nothing else says why the peer met a reset. */
void flow_emit_unanswered(struct engine *engine, const struct flow *flow, int error)
{
    struct lg_event event = event_of(&flow->key, LG_EVENT_FLOW_UNANSWERED, error);
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);

    if (!(engine->view.flags & LG_VIEW_VIRTUAL) ||
        (engine->unanswered_told_ms && engine->now_ms - engine->unanswered_told_ms < FLOW_UNANSWERED_TELL_MS))
        return;
    engine->unanswered_told_ms = engine->now_ms;
    event.flow = flow_handle(flow);
    /* By its own address: the guest would have seen the gateway's. */
    if (!sys_getpeername(flow->fd, (struct sockaddr *)&peer, &length)) {
        const address from = address_from_host((const struct sockaddr *)&peer);
        memcpy(event.remote_addr, from.byte, sizeof(event.remote_addr));
        event.remote_port = port_from_host((const struct sockaddr *)&peer);
    }
    engine->events->emit(engine->events, &event);
}

void flow_emit_refused(struct engine *engine, const struct flow_key *key, int error)
{
    if (!engine_shows_events(engine))
        return;
    struct lg_event event = event_of(key, LG_EVENT_FLOW_REFUSED, error);
    engine->events->emit(engine->events, &event);
}
