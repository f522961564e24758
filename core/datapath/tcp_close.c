/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_close.c: how the halves of a connection move on, and every way in which it ends.
 */
#include <assert.h>
#include <sys/socket.h>

#include "sys.h"
#include "tcp.h"

static const char *const half_names[] = {
#define HALF_NAME(name) #name,
    HALF_STATES(HALF_NAME)
#undef HALF_NAME
};

static const char *const close_names[] = {
#define CLOSE_NAME(name) #name,
    CLOSE_REASONS(CLOSE_NAME)
#undef CLOSE_NAME
};

static const char *const stall_names[] = {
#define STALL_NAME(name) #name,
    STALLS(STALL_NAME)
#undef STALL_NAME
};

#define NAME_OF(names, index) ((index) < sizeof(names) / sizeof((names)[0]) ? (names)[index] : NULL)

const char *lg_half_name(unsigned half)
{
    return NAME_OF(half_names, half);
}

const char *lg_close_name(unsigned reason)
{
    return NAME_OF(close_names, reason);
}

const char *lg_stall_name(unsigned stall)
{
    return NAME_OF(stall_names, stall);
}

/* Both halves go through the same states, each only one step at a time; an abort leaves them where they are. */
static void move(uint8_t *half, enum half_state state)
{
    assert(state == *half + 1u && "a half moves one state at a time");
    *half = (uint8_t)state;
}

void tcp_move_to_guest(struct flow *flow, enum half_state state)
{
    move(&flow->tcp.to_guest, state);
}

void tcp_move_to_host(struct flow *flow, enum half_state state)
{
    move(&flow->tcp.to_host, state);
}

void tcp_close(struct engine *engine, struct flow *flow, enum close_reason reason, int error)
{
    if (flow->done)
        return;
    flow->done = true;
    if (flow->fd >= 0)
        sys_close(flow->fd); /* also takes it out of epoll: nobody else holds this socket */
    flow->fd = -1;
    tcp_hold_release(engine, flow);
    wheel_cancel(&engine->wheel, &flow->timer);
    count(engine, C_tcp_closed);
    flow_emit(engine, flow, LG_EVENT_FLOW_CLOSE, reason, error, 0);
    flow_touch(engine, flow);
}

/* close() will then send RST instead of FIN (RFC 9293, 3.10.5, ABORT). */
static void close_hard(const struct flow *flow)
{
    static const struct linger hard = {.l_onoff = 1, .l_linger = 0};

    if (flow->fd >= 0)
        sys_setsockopt(flow->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
}

void tcp_abort(struct engine *engine, struct flow *flow, enum close_reason reason, int error)
{
    if (flow->done)
        return;
    flow->tcp.reset_due = !flow->tcp.inbound || flow->tcp.snd_nxt != flow->tcp.iss; /* else it has heard of nothing */
    close_hard(flow);
    tcp_close(engine, flow, reason, error);
}

void tcp_abandon(struct engine *engine, struct flow *flow)
{
    flow->tcp.reset_due = false; /* of one that has ended, but for its RST */
    close_hard(flow);
    tcp_close(engine, flow, CLOSE_evicted, 0);
}

void tcp_reset_by_guest(struct engine *engine, struct flow *flow)
{
    count(engine, C_tcp_resets_from_guest);
    close_hard(flow);
    tcp_close(engine, flow, CLOSE_guest_reset, 0);
}
