/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_settle.c: everything that a flow owes after a batch, in one order, and what must wake it next. The stall, the
 * epoll interest and the timer are computed here from the flow's state, and nowhere else.
 */
#include <sys/socket.h>

#include "sys.h"
#include "tcp.h"

/* Some facts about epoll, tcp(7) and edges, which tests/ holds to the real kernel:
 *  - Level-triggered IN fires for ever when all is peeked already; so does RDHUP after a FIN, HUP once both sides are
 *    shut even with an empty mask, and ERR|HUP after a RST. Hence ET, always.
 *  - Under IN|ET each segment that arrives wakes once, read or not. A flow that may not move masks IN at the first such
 *    wake-up, and not before: most stalls end before one comes, and then cost no EPOLL_CTL_MOD at all.
 *  - EPOLL_CTL_MOD back to IN|ET reports what is there already: one wake-up that finds nothing new. So the flow reads
 *    first and then unmasks.
 *  - Data never wakes RDHUP|ET. */
uint32_t stall_interest(const struct flow *flow)
{
    const struct tcp *tcp = &flow->tcp;
    uint32_t interest = EPOLLET | EPOLLRDHUP;

    if (tcp->to_host == HALF_SYN && !tcp->inbound)
        return interest | EPOLLIN | EPOLLPRI | EPOLLOUT;
    if (!tcp->muted)
        interest |= EPOLLIN | EPOLLPRI;
    if (tcp->send_blocked && tcp->to_host == HALF_OPEN) /* behind our own FIN the kernel reports OUT for ever */
        interest |= EPOLLOUT;
    return interest;
}

/* Of a connection that the guest opened, its SYN-ACK; of one that a peer opened, the SYN itself. */
static void send_syn(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (!tcp->syn_ack_due)
        return; /* it is out */
    /* A guest takes no SYN that was sent to all, or to whom it was before; but the next one. */
    neighbour_seek(engine, &flow->key.guest, tcp->retries);
    if (tcp_send_control(engine, flow, tcp->iss, TCP_SYN)) {
        engine_wait_room(engine, flow);
        return;
    }
    tcp->syn_ack_due = false;
    tcp_timer_sent(engine, flow, tcp->iss, tcp->iss + 1);
    tcp->snd_nxt = tcp->iss + 1;
}

/* The guest's FIN, once all before it is with the kernel. */
static void shut_to_host(struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (!tcp->fin_seen || tcp->rcv_nxt != tcp->guest_fin || tcp->to_host != HALF_OPEN)
        return;
    tcp_move_to_host(flow, HALF_FIN_SENT);
    sys_shutdown(flow->fd, SHUT_WR);
    tcp_move_to_host(flow, HALF_CLOSED);
    tcp->rcv_nxt++;
    tcp->rcv_taken++;
    if (seq_before(tcp->rcv_edge, tcp->rcv_nxt))
        tcp->rcv_edge = tcp->rcv_nxt;
    tcp->ack_due = true;
}

static void send_owed(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    /* A probe is a segment just before the window: the guest must answer it with its ACK and window. */
    if (tcp->probe_due && !tcp_send_control(engine, flow, tcp->snd_una - 1, 0)) {
        tcp->probe_due = false;
        engine->link->answers++;
        count(engine, C_tcp_window_probes);
    }
    while (tcp->ack_due) {
        if (tcp_send_control(engine, flow, tcp->snd_nxt, 0)) {
            engine_wait_room(engine, flow);
            return;
        }
        if (tcp->gap_acks) {
            tcp->gap_acks--;
            tcp->ack_due = true;
        }
    }
}

/* Each time that bytes leave its queue, the kernel tells the peer of the room: steps spare the peer's machine, or the other
 * half of this one, most of those ACKs. */
static uint32_t discard_step(const struct tcp *tcp)
{
    return tcp_held_up(tcp) ? TCP_DISCARD_STEP_HELD : TCP_DISCARD_STEP;
}

static void progress(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->to_host == HALF_SYN) {
        if (tcp->inbound)
            send_syn(engine, flow);
        return;
    }
    tcp_send_to_peer(engine, flow);
    if (flow->done)
        return;
    shut_to_host(flow);
    if (!engine->peek_off)
        tcp_discard_acked(engine, flow);
    else if (tcp->acked >= discard_step(tcp))
        flow_drop_later(engine, flow);
    if (flow->done)
        return;
    if (tcp->to_guest == HALF_SYN)
        send_syn(engine, flow);
    tcp_send_to_guest(engine, flow);
    /* A peer that might wait for room waits for nothing: once all that it has sent is read, the rest is dropped too, and
     * after its FIN: close() resets what still has bytes. */
    if (!flow->done && (!tcp->readable || tcp->to_guest != HALF_OPEN))
        tcp_discard_acked(engine, flow);
    if (flow->done)
        return;
    send_owed(engine, flow);
    if (tcp->to_guest == HALF_CLOSED && tcp->to_host == HALF_CLOSED && !tcp->ack_due)
        tcp_close(engine, flow, CLOSE_done, 0);
}

static void finish(struct engine *engine, struct flow *flow)
{
    if (flow->tcp.reset_due) {
        if (tcp_send_control(engine, flow, flow->tcp.snd_nxt, TCP_RST)) {
            engine_wait_room(engine, flow);
            flow_expendable(engine, flow);
            return;
        }
        count(engine, C_tcp_resets_sent);
    }
    flow_remove(&engine->flows, flow);
    engine->counters[C_flows] = engine->flows.count;
}

static void note_stall(struct engine *engine, const struct flow *flow, uint8_t before)
{
    uint8_t now = flow->tcp.stall;

    if (now == before)
        return;
    if (before == STALL_window || before == STALL_link)
        flow_emit(engine, flow, LG_EVENT_FLOW_RESUME, before, 0, 0);
    if (now != STALL_window && now != STALL_link)
        return;
    count(engine, now == STALL_window ? C_stall_window : C_stall_link);
    flow_emit(engine, flow, LG_EVENT_FLOW_STALL, now, 0, 0);
}

static void apply_interest(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->stall != STALL_window && tcp->stall != STALL_link && !tcp->peer_hup)
        tcp->muted = false;
    uint32_t interest = stall_interest(flow);
    if (interest == flow->interest)
        return;
    flow->interest = interest;
    count(engine, C_interest_changes);
    sys_epoll_ctl(engine->epoll_fd, EPOLL_CTL_MOD, flow->fd, interest, flow_handle(flow));
}

/* A socket's event of which nothing came: no byte moved, no window, no half. The design allows one for each stall. */
static void note_idle(struct engine *engine, struct flow *flow, const struct tcp *before)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->woken && !flow->done && tcp->snd_nxt == before->snd_nxt && tcp->rcv_nxt == before->rcv_nxt &&
        tcp->rcv_edge == before->rcv_edge && tcp->to_guest == before->to_guest && tcp->to_host == before->to_host)
        count(engine, C_wakeups_idle);
    tcp->woken = false;
}

void tcp_settle(struct engine *engine, struct flow *flow)
{
    const struct tcp before = flow->tcp;

    if (!flow->done)
        progress(engine, flow);
    note_idle(engine, flow, &before);
    if (flow->done) {
        finish(engine, flow);
        return;
    }
    note_stall(engine, flow, before.stall);
    apply_interest(engine, flow);
    tcp_timer_update(engine, flow);
    flow_aged(engine, flow);
}
