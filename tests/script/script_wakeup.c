/* SPDX-License-Identifier: Apache-2.0
 *
 * script_wakeup.c: each event of a socket in the world of script.h, and whether it was worth its cost.
 */
#include <netinet/in.h>
#include <string.h>

#include "fake_kernel.h"
#include "script.h"
#include "script_parts.h"

enum {
    WAKEUPS_KEPT = 1 << 16,
};

/* What a wake-up has to change to be worth its cost. That the socket is now known to be readable, or is not watched any
 * more, does not count: nothing that anybody waits for follows from it. */
struct signature {
    uint32_t snd_una, snd_nxt, resend_at, rcv_nxt, rcv_edge;
    uint8_t to_guest, to_host, stall;
    bool there, peer_hup, urgent, send_blocked, done;
    uint64_t moved[2], held[2]; /* of two sockets joined; and of which they are */
    int fd[2], error[2];
    bool ended[2], shut[2];
};

static struct {
    unsigned count, step_first;
    struct script_wakeup wakeup[WAKEUPS_KEPT];
    uint64_t handle[EVENTS_PER_WAIT];
    struct signature before[EVENTS_PER_WAIT];
} told;

static const struct flow *flow_of(const struct engine *engine, uint64_t handle)
{
    return flow_from_handle((struct flow_table *)(uintptr_t)&engine->flows, handle & ~FLOW_FAR);
}

static bool is_joined(const struct flow *flow)
{
    return flow->key.protocol == IPPROTO_TCP && flow->key.port != PORT_LINK;
}

static void sign_tcp(const struct tcp *tcp, struct signature *s)
{
    s->snd_una = tcp->snd_una;
    s->snd_nxt = tcp->snd_nxt;
    s->resend_at = tcp->resend_at;
    s->rcv_nxt = tcp->rcv_nxt;
    s->rcv_edge = tcp->rcv_edge;
    s->to_guest = tcp->to_guest;
    s->to_host = tcp->to_host;
    s->stall = tcp->stall;
    s->peer_hup = tcp->peer_hup;
    s->urgent = tcp->urgent;
    s->send_blocked = tcp->send_blocked;
}

static void sign_joined(const struct flow *flow, struct signature *s)
{
    s->to_guest = flow->splice.state;
    s->moved[0] = flow->bytes_to_guest;
    s->moved[1] = flow->bytes_from_guest;
    for (unsigned i = 0; i < SPLICE_SIDES; i++) {
        const struct splice_side *side = &flow->splice.side[i];
        s->held[i] = side->held;
        s->fd[i] = side->fd;
        s->error[i] = side->error;
        s->ended[i] = side->ended;
        s->shut[i] = side->shut;
    }
}

static struct signature signature(const struct engine *engine, uint64_t handle)
{
    const struct flow *flow = flow_of(engine, handle);
    struct signature s;

    memset(&s, 0, sizeof(s)); /* it is compared as bytes */
    if (!flow)
        return s;
    s.there = true;
    s.done = flow->done;
    if (is_joined(flow))
        sign_joined(flow, &s);
    else
        sign_tcp(&flow->tcp, &s);
    return s;
}

void wakeups_forget(void)
{
    told.count = told.step_first = 0;
}

void wakeup_begins(const struct engine *engine, const struct epoll_event *event)
{
    const struct flow *flow = flow_of(engine, event->data.u64);
    bool joined = flow && is_joined(flow);
    int fd = joined ? flow->splice.side[event->data.u64 & FLOW_FAR ? SPLICE_FAR : SPLICE_NEAR].fd
             : flow ? flow->fd
                    : -1;

    if (told.count == WAKEUPS_KEPT)
        return;
    told.handle[told.count - told.step_first] = event->data.u64;
    told.before[told.count - told.step_first] = signature(engine, event->data.u64);
    told.wakeup[told.count++] = (struct script_wakeup){
        .time_ms = engine->now_ms,
        .fd = fd,
        .events = event->events,
        .stall = flow && !joined ? flow->tcp.stall : STALL_none,
        .stalls = engine->counters[C_stall_window] + engine->counters[C_stall_link],
        .changes = engine->counters[C_interest_changes],
        .shutdowns = fake_call_count(CALL_shutdown),
    };
}

void wakeups_end(const struct engine *engine)
{
    for (unsigned i = 0; told.step_first + i < told.count; i++) {
        struct signature after = signature(engine, told.handle[i]);
        told.wakeup[told.step_first + i].idle = !memcmp(&told.before[i], &after, sizeof(after));
    }
    told.step_first = told.count;
}

unsigned script_wakeups(void)
{
    return told.count;
}

const struct script_wakeup *script_wakeup(unsigned index)
{
    return index < told.count ? &told.wakeup[index] : NULL;
}
