/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_timer.c: the one timer of a flow. It runs while something of ours is not acknowledged (retransmission, RFC 6298),
 * while data waits for the guest's closed window (persist, RFC 9293, 3.8.6.1), and while an ACK of ours waits for an
 * answer to travel with (3.8.6.3). Which, and when, follows from the flow's state alone: tcp_timer_update() computes it.
 */
#include "sys.h"
#include "tcp.h"

static uint32_t rto_ms(const struct tcp *tcp)
{
    uint32_t rto = TCP_RTO_FIRST_MS;

    if (tcp->srtt_us) { /* RFC 6298, (2.3); the clock's granularity is far below the minimum */
        rto = (tcp->srtt_us + 4 * tcp->rttvar_us) / 1000;
        if (rto < TCP_RTO_MIN_MS)
            rto = TCP_RTO_MIN_MS;
    }
    for (unsigned i = 0; i < tcp->retries && rto < TCP_RTO_MAX_MS; i++)
        rto *= 2; /* (5.5) */
    return rto < TCP_RTO_MAX_MS ? rto : TCP_RTO_MAX_MS;
}

static void sample(struct tcp *tcp, uint64_t rtt_ns)
{
    uint32_t rtt_us = rtt_ns > UINT32_C(60000000) * 1000 ? 60000000 : (uint32_t)(rtt_ns / 1000) + 1;

    if (!tcp->srtt_us) { /* RFC 6298, (2.2) */
        tcp->srtt_us = rtt_us;
        tcp->rttvar_us = rtt_us / 2;
        return;
    }
    uint32_t error = tcp->srtt_us > rtt_us ? tcp->srtt_us - rtt_us : rtt_us - tcp->srtt_us;
    tcp->rttvar_us = tcp->rttvar_us - tcp->rttvar_us / 4 + error / 4; /* (2.3) */
    tcp->srtt_us = tcp->srtt_us - tcp->srtt_us / 8 + rtt_us / 8;
}

void tcp_timer_sent(struct engine *engine, struct flow *flow, uint32_t start, uint32_t end)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->snd_una == tcp->snd_nxt || !tcp->rto_start_ms)
        tcp->rto_start_ms = engine->now_ms; /* RFC 6298, (5.1) */
    if (seq_before(start, tcp->snd_nxt)) {
        tcp->rtt_start_ns = 0; /* Karn: an ACK could be for either transmission (RFC 6298, 3) */
    } else if (!tcp->rtt_start_ns) {
        tcp->rtt_start_ns = engine->now_ns;
        tcp->rtt_seq = end;
    }
}

void tcp_timer_acked(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->rtt_start_ns && !seq_before(tcp->snd_una, tcp->rtt_seq)) {
        sample(tcp, engine->now_ns - tcp->rtt_start_ns);
        tcp->rtt_start_ns = 0;
    }
    tcp->retries = tcp->unanswered = 0;
    tcp->rto_start_ms = engine->now_ms; /* RFC 6298, (5.3) */
}

static bool outstanding(const struct tcp *tcp)
{
    return tcp->snd_una != tcp->snd_nxt;
}

/* What the timer does when it fires: ask a guest that has closed its window, or send again. */
static bool is_probe(const struct tcp *tcp)
{
    return !outstanding(tcp) || !tcp->snd_window;
}

static bool is_near(uint64_t a, uint64_t b, uint64_t slack)
{
    return a <= b + slack && b <= a + slack;
}

/* A probe need not be on time, nor a segment that the guest has refused several times. Flows that stopped at about the
 * same time, because the guest has stopped reading or stopped altogether, have their turn together: one wake-up for all
 * of them, and one interrupt for the guest. */
static uint64_t shared_time(struct engine *engine, const struct flow *flow, uint64_t expires, uint64_t slack)
{
    if (timer_armed(&flow->timer) && is_near(flow->timer.expires_ms, expires, slack))
        return flow->timer.expires_ms;
    if (!is_near(engine->shared_ms, expires, slack))
        engine->shared_ms = expires;
    return engine->shared_ms;
}

/* Nothing is under way, but for the question after a long silence. The timer may stand where an earlier silence would
 * have ended: moving it each time that a byte moves would cost more than one look in two hours. */
static uint64_t idle_time(const struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    tcp->rto_start_ms = 0;
    if (tcp->to_host == HALF_SYN) /* connect() has its own end */
        return UINT64_MAX;
    if (tcp->unanswered)
        return flow->probed_ms + TCP_KEEPALIVE_INTERVAL_MS;
    if (timer_armed(&flow->timer) && flow->timer.expires_ms > engine->now_ms + TCP_RTO_MAX_MS)
        return flow->timer.expires_ms;
    return flow->active_ms + TCP_KEEPALIVE_MS;
}

static uint64_t resend_time(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (!tcp->rto_start_ms)
        tcp->rto_start_ms = engine->now_ms;
    uint64_t expires = tcp->rto_start_ms + rto_ms(tcp);
    if (is_probe(tcp) || tcp->retries > TCP_EXACT_RETRIES)
        expires = shared_time(engine, flow, expires, rto_ms(tcp) / 2);
    return expires;
}

/* The guest has to answer a SYN of ours, be it sent or waiting for the link. */
static bool is_dialled(const struct tcp *tcp)
{
    return tcp->to_guest == HALF_SYN && (tcp->inbound || tcp->to_host != HALF_SYN);
}

static uint64_t dial_ends_ms(const struct engine *engine, const struct flow *flow)
{
    return flow->active_ms + (engine->view.flags & LG_VIEW_VIRTUAL ? TCP_DIAL_VIRTUAL_MS : TCP_DIAL_MS);
}

void tcp_timer_update(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    bool under_way = outstanding(tcp) || tcp->window_pending;
    uint64_t expires = under_way ? resend_time(engine, flow) : idle_time(engine, flow);

    if (tcp->ack_due_ms && tcp->ack_due_ms < expires)
        expires = tcp->ack_due_ms;
    if (is_dialled(tcp) && dial_ends_ms(engine, flow) < expires)
        expires = dial_ends_ms(engine, flow);
    if (expires == UINT64_MAX)
        wheel_cancel(&engine->wheel, &flow->timer);
    else if (!timer_armed(&flow->timer) || flow->timer.expires_ms != expires)
        wheel_arm(&engine->wheel, &flow->timer, expires);
}

static void idle_fired(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (engine->now_ms - flow->active_ms >= TCP_KEEPALIVE_MS) {
        if (tcp->unanswered == TCP_KEEPALIVE_PROBES) {
            tcp_abort(engine, flow, CLOSE_timed_out, 0);
            return;
        }
        tcp->unanswered++;
        tcp->probe_due = true;
        flow->probed_ms = engine->now_ms;
    }
    flow_touch(engine, flow);
}

/* No answer: the ACK goes by itself, as will those to come. Where the link is full it goes with the room event, and not
 * with this timer, which has others to tell of. */
static void ack_waited(struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;
    bool bulk = flow->bytes_from_guest >= tcp->bulk_from;

    tcp->slow_answers = tcp->ack_due = true;
    tcp->ack_due_ms = 0;
    if (!bulk || tcp->bulk_slow)
        tcp->bulk_from = flow->bytes_from_guest + TCP_ACK_BULK_AGAIN;
    tcp->bulk_slow = bulk && !tcp->bulk_slow;
}

void tcp_timer_fired(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (is_dialled(tcp) && engine->now_ms >= dial_ends_ms(engine, flow)) {
        if (tcp->inbound)
            tcp_unanswered(engine, flow);
        tcp_abort(engine, flow, CLOSE_timed_out, 0);
        return;
    }
    if (tcp->ack_due_ms && engine->now_ms >= tcp->ack_due_ms) {
        ack_waited(flow);
        flow_touch(engine, flow);
        return;
    }
    if (!outstanding(tcp) && !tcp->window_pending) {
        idle_fired(engine, flow);
        return;
    }
    if (!outstanding(tcp) &&
        tcp->snd_window) { /* its window is all that it will offer: the override timer of 3.8.6.2.1 */
        tcp->window_max = tcp->snd_window;
        flow_touch(engine, flow);
        return;
    }
    count(engine, C_tcp_timeouts);
    if (tcp->unanswered == TCP_RETRIES_MAX) {
        tcp_abort(engine, flow, CLOSE_timed_out, 0);
        return;
    }
    tcp->unanswered++;
    if (tcp->retries < TCP_RETRIES_MAX) /* by then the interval has long been at its cap */
        tcp->retries++;
    tcp->rto_start_ms = engine->now_ms;
    /* RFC 6298, (5.4): the earliest that is not acknowledged goes again, and what follows after it. A guest that has
     * closed its window is only asked: it has nowhere to put them. */
    if (tcp->to_guest == HALF_SYN)
        tcp->syn_ack_due = true;
    else if (is_probe(tcp))
        tcp->probe_due = true;
    else
        tcp_recovery_timed_out(flow);
    flow_touch(engine, flow);
}
