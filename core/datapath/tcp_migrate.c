/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_migrate.c: connections that move to another host with their guest, or come from one.
 *
 * A flow that is to move is frozen: nothing here touches it, or its socket, until it is thawed or forgotten; control has
 * a copy of the socket meanwhile. What the guest sent and the kernel has not taken is let go: it was never acknowledged,
 * so that the guest sends it again to whoever goes on with the flow. The other way round nothing of ours is lost either:
 * bytes in flight to the guest are still in the socket's receive queue.
 *
 * Adversary: the state of an adopted flow comes from another machine, through control. What is wrong in it must harm
 * that connection alone.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "sys.h"
#include "tcp.h"

enum {
    SCALE_MAX = 14,          /* RFC 7323, 2.3 */
    IN_FLIGHT_MAX = 1 << 30, /* RFC 7323, 2.2: no window is larger, so that comparisons of numbers do not wrap */
};

static bool may_move(const struct flow *flow)
{
    const struct tcp *tcp = &flow->tcp;

    /* One that is not made yet is a state of the peer's kernel which a socket elsewhere cannot be put into. */
    return flow->key.protocol == IPPROTO_TCP && flow->key.port == PORT_LINK && !flow->done && !flow->frozen &&
           tcp->to_guest != HALF_SYN && tcp->to_host != HALF_SYN && !tcp->send_error;
}

static void describe(const struct flow *flow, struct lg_tcp_flow *state)
{
    const struct tcp *tcp = &flow->tcp;
    bool guest_ended = tcp->to_host == HALF_CLOSED, fin_in_flight = tcp->to_guest == HALF_FIN_SENT;

    *state = (struct lg_tcp_flow){
        .id = flow_handle(flow),
        .guest_port = flow->key.guest_port,
        .remote_port = flow->key.remote_port,
        .mss = tcp->mss,
        .guest_scale = tcp->guest_scale,
        .our_scale = tcp->our_scale,
        .inbound = tcp->inbound,
        .sack_allowed = tcp->sack_allowed,
        .snd_una = tcp->snd_una,
        .guest_ended = guest_ended,
        .peer_ended = tcp->to_guest == HALF_CLOSED ? 2 : fin_in_flight,
        .snd_nxt = fin_in_flight ? tcp->fin_seq : tcp->snd_nxt, /* it is sent again */
        .snd_window = tcp->snd_window,
        .rcv_nxt = tcp->rcv_nxt,
        .rcv_acked = tcp->rcv_acked,
        .rcv_edge = tcp->rcv_edge,
        .irs = tcp->rcv_nxt - (uint32_t)flow->bytes_from_guest - 1 - guest_ended,
    };
    memcpy(state->guest_addr, flow->key.guest.byte, sizeof(state->guest_addr));
    memcpy(state->remote_addr, flow->key.remote.byte, sizeof(state->remote_addr));
}

bool tcp_freeze(struct engine *engine, struct flow *flow, struct lg_tcp_flow *ret_state)
{
    struct tcp *tcp = &flow->tcp;

    if (!may_move(flow))
        return false;
    tcp_discard_acked(engine, flow); /* so that the first byte of the queue is the one at snd_una */
    if (flow->done)
        return false;
    sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_DEL, flow->fd, 0, 0);
    wheel_cancel(&engine->wheel, &flow->timer);
    node_leave(&flow->ready);
    node_leave(&flow->waiting);
    node_leave(&flow->surplus);
    node_leave(&flow->age); /* a full table evicts others */
    tcp_hold_release(engine, flow);
    tcp->rcv_taken = tcp->rcv_nxt;
    tcp->fin_seen = false;
    flow->frozen = true;
    count(engine, C_tcp_frozen);
    describe(flow, ret_state);
    return true;
}

/* From here on the loop has the flow, whatever became of its socket meanwhile. */
static void enter_loop(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    tcp_socket_options(engine, flow->fd);
    tcp->peek_offset = 0;
    tcp->readable = true;
    tcp->ack_due = true; /* it may have waited for long, and sends again what was let go of */
    tcp->muted = tcp->send_blocked = tcp->window_pending = false;
    tcp->stall = STALL_none;
    tcp->rtt_start_ns = tcp->rto_start_ms = tcp->ack_due_ms = 0;
    tcp->retries = tcp->unanswered = 0;
    flow->active_ms = engine->now_ms;
    tcp_room_ask(engine, flow);
    flow->interest = stall_interest(flow);
    int err = sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, flow->fd, flow->interest, flow_handle(flow));
    if (err)
        tcp_abort(engine, flow, CLOSE_no_descriptor, -err);
    flow_touch(engine, flow);
}

void tcp_thaw(struct engine *engine, struct flow *flow)
{
    flow->frozen = false;
    list_append(&engine->flows.by_age, &flow->age);
    enter_loop(engine, flow);
}

void tcp_forget(struct engine *engine, struct flow *flow)
{
    flow->frozen = false;
    tcp_close(engine, flow, CLOSE_moved, 0);
}

/* ---- what comes from another host ---- */

static bool is_guests(const address *a)
{
    return !address_is_unset(a) && !address_is_multicast(a) && !address_is_loopback(a);
}

static bool makes_sense(const struct lg_tcp_flow *state, const struct flow_key *key)
{
    return is_guests(&key->guest) && is_guests(&key->remote) &&
           address_is_ipv4(&key->guest) == address_is_ipv4(&key->remote) && state->guest_scale <= SCALE_MAX &&
           state->our_scale <= SCALE_MAX && state->mss >= TCP_MSS_MIN && state->guest_ended <= 1 &&
           state->peer_ended <= 2 &&
           (state->peer_ended != 2 || (state->snd_nxt == state->snd_una && !state->guest_ended)) &&
           state->snd_nxt - state->snd_una <= IN_FLIGHT_MAX && state->snd_window <= IN_FLIGHT_MAX &&
           state->rcv_nxt - state->rcv_acked <= IN_FLIGHT_MAX &&
           state->rcv_edge - state->rcv_nxt <= (uint32_t)UINT16_MAX << state->our_scale;
}

/* The kernel's socket here has not heard the peer's FIN; but we know where it was. */
static void take_ends(struct flow *flow, const struct lg_tcp_flow *state)
{
    struct tcp *tcp = &flow->tcp;

    tcp->ended_elsewhere = tcp->peer_hup = state->peer_ended;
    if (state->peer_ended == 2) {
        tcp->fin_seq = tcp->snd_una - 1;
        tcp_move_to_guest(flow, HALF_FIN_SENT);
        tcp_move_to_guest(flow, HALF_CLOSED);
    }
    if (state->guest_ended) {
        tcp_move_to_host(flow, HALF_FIN_SENT);
        tcp_move_to_host(flow, HALF_CLOSED);
    }
}

static void take_state(const struct engine *engine, struct flow *flow, const struct lg_tcp_flow *state)
{
    struct tcp *tcp = &flow->tcp;
    uint32_t most = engine->view.mtu + ETHERNET_HEADER - tcp_header_bytes(flow);

    tcp->inbound = state->inbound;
    tcp->mss = state->mss < most ? state->mss : (uint16_t)most;
    tcp->guest_scale = state->guest_scale;
    tcp->our_scale = state->our_scale;
    tcp->sack_allowed = state->sack_allowed && engine->reorder;
    tcp->iss = state->snd_una - 1;
    tcp->snd_una = tcp->resend_at = tcp->resend_end = state->snd_una;
    tcp->snd_nxt = tcp->recover = state->snd_nxt;
    tcp->snd_window = tcp->window_max = state->snd_window;
    /* Older than any segment that the guest may still have under way, and not newer than the next (RFC 9293, 3.10.7.4). */
    tcp->snd_wl1 = state->rcv_nxt - IN_FLIGHT_MAX;
    tcp->snd_wl2 = state->snd_una;
    tcp->rcv_nxt = tcp->rcv_taken = state->rcv_nxt;
    tcp->rcv_acked = state->rcv_acked;
    tcp->rcv_edge = state->rcv_edge;
    tcp->rcv_window_max = UINT32_MAX; /* nobody says */
    /* Modulo 2^32, which is what irs is told from again. */
    flow->bytes_from_guest = state->rcv_nxt - state->irs - 1 - state->guest_ended;
    tcp_move_to_guest(flow, HALF_OPEN);
    tcp_move_to_host(flow, HALF_OPEN);
    take_ends(flow, state);
}

int tcp_adopt(struct engine *engine, const struct lg_tcp_flow *state, int fd)
{
    struct flow_key key = {
        .guest = address_from(state->guest_addr),
        .remote = address_from(state->remote_addr),
        .guest_port = state->guest_port,
        .remote_port = state->remote_port,
        .protocol = IPPROTO_TCP,
    };

    if (!makes_sense(state, &key))
        return -EINVAL;
    if (!(engine->view.flags & LG_VIEW_TCP))
        return -EPERM;
    if (flow_find(&engine->flows, &key))
        return -EEXIST;
    struct flow *flow = flow_make(engine, &key);
    if (!flow)
        return -ENFILE;
    flow->fd = fd;
    tcp_start(engine, flow);
    take_state(engine, flow, state);
    count(engine, C_tcp_adopted);
    flow_emit(engine, flow, LG_EVENT_FLOW_CONNECT, 0, 0, 0);
    enter_loop(engine, flow);
    return 0;
}
