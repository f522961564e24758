/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp.h: the TCP engine's parts, one file a concern, and what they say to each other.
 *
 *   tcp_open.c        the guest's SYN, connect(), refusals
 *   tcp_accept.c      a peer's connection, our SYN, the guest's answer
 *   tcp_from_guest.c  a segment of a known flow: what it means
 *   tcp_to_peer.c     payload from the guest into the socket; the window that the guest may use
 *   tcp_to_guest.c    payload from the socket into the guest's buffers
 *   tcp_recovery.c    what the guest did not get, and when it goes again
 *   tcp_segment.c     writing segments
 *   tcp_timer.c       retransmission and persist timers (RFC 6298; RFC 9293, 3.8.6.1)
 *   tcp_close.c       the halves' transitions, resets, the end
 *   tcp_migrate.c     connections that move to another host with their guest, or come from one
 *   tcp_settle.c      after a batch: everything that a flow owes, in order; its stall, interest and timer
 *
 * A flow that was touched is put on the engine's ready list by flow_touch(); tcp_settle() does the rest. Nothing but
 * tcp_settle() may free a flow, so that no part ever holds one that has gone.
 */
#ifndef LOCKGATE_TCP_H
#define LOCKGATE_TCP_H

#include "engine.h"

/* A frame whose protocol is TCP. */
void tcp_from_guest(struct engine *engine, const struct guest_frame *frame, const struct packet *packet);

struct flow_key tcp_key(const struct packet *packet, const struct tcp_segment *segment);
bool tcp_opens(const struct tcp_segment *segment); /* it is a SYN, and no more */

/* tcp_open.c */
void tcp_open(struct engine *engine, const struct packet *packet, const struct flow_key *key,
              const struct tcp_segment *segment);
/* The same to a socket that is connected already. 0, or a negative errno: the socket stays the caller's. */
int tcp_open_served(struct engine *engine, const struct packet *packet, const struct tcp_segment *segment, int fd);
void tcp_connected(struct engine *engine, struct flow *flow,
                   uint32_t events); /* connect() has ended, one way or the other */

void tcp_start(struct engine *engine, struct flow *flow); /* a new flow: what does not depend on the guest */
void tcp_take_offer(struct engine *engine, struct flow *flow,
                    const struct tcp_segment *segment); /* its SYN's options */
void tcp_socket_options(const struct engine *engine, int fd);

/* tcp_accept.c */
void tcp_accept(struct engine *engine, const struct listener *listener);
/* After a step: those for whom there was no descriptor, if there may be one by now. */
void tcp_accept_again(struct engine *engine);
/* The guest is asked for a connection to whoever is behind a connected socket. 0, or a negative errno: the socket stays
 * the caller's. */
int tcp_open_inbound(struct engine *engine, const struct flow_key *key, int fd);
void tcp_unanswered(struct engine *engine, const struct flow *flow); /* tells why its peer will meet a reset */
void tcp_take_syn_ack(struct engine *engine, struct flow *flow, const struct tcp_segment *segment);

/* tcp_from_guest.c */
void tcp_event(struct engine *engine, struct flow *flow, uint32_t events);

/* tcp_to_peer.c */
void tcp_take_payload(struct engine *engine, struct flow *flow, const struct guest_frame *frame, uint32_t seq,
                      uint32_t offset, uint32_t length);         /* not before rcv_taken, and inside the window */
void tcp_send_to_peer(struct engine *engine, struct flow *flow); /* what this batch or the hold has in sequence */
void tcp_hold_release(struct engine *engine, struct flow *flow);
uint16_t tcp_advertise(struct flow *flow); /* the header's window field; moves rcv_edge */
/* Enough more than advertised to be worth a segment of its own. */
bool tcp_room_grown(const struct engine *engine, const struct flow *flow);
void tcp_room_ask(const struct engine *engine, struct flow *flow);

/* tcp_to_guest.c */
bool tcp_held_up(const struct tcp *tcp); /* a long transfer, by a guest that reads more slowly than the peer sends */
void tcp_discard_acked(struct engine *engine, struct flow *flow);
void tcp_send_to_guest(struct engine *engine, struct flow *flow); /* what was lost, then what is new */

/* tcp_recovery.c */
void tcp_recovery_sacked(struct engine *engine, struct flow *flow, const struct tcp_segment *segment);
void tcp_recovery_duplicate(struct engine *engine, struct flow *flow); /* one more duplicate ACK */
void tcp_recovery_acked(struct flow *flow);                            /* snd_una has moved */
void tcp_recovery_timed_out(struct flow *flow);
bool tcp_recovery_next(struct flow *flow, struct range *ret_range); /* what to send again; false: nothing */

/* tcp_segment.c */
/* A segment without payload. 0 or -EAGAIN, -ENOTCONN. */
int tcp_send_control(struct engine *engine, struct flow *flow, uint32_t seq, uint8_t flags);
/* Writes the headers of a segment whose payload lies in the room already, and commits the frame. */
void tcp_commit_data(struct engine *engine, struct flow *flow, const struct guest_room *room,
                     const struct iovec *payload, uint32_t payload_length, uint32_t seq, uint8_t flags);
/* The answer to a segment that belongs to no flow (RFC 9293, 3.10.7.1). */
void tcp_send_reset_unknown(struct engine *engine, const struct packet *packet, const struct tcp_segment *segment);
unsigned tcp_header_bytes(const struct flow *flow); /* Ethernet, IP and TCP, without options */

/* tcp_timer.c: named for what happened; only this file knows which timers that sets. */
void tcp_timer_sent(struct engine *engine, struct flow *flow, uint32_t start, uint32_t end); /* it wants an ACK */
void tcp_timer_acked(struct engine *engine, struct flow *flow);                              /* snd_una has moved */
void tcp_timer_update(struct engine *engine, struct flow *flow); /* arms or cancels by what the flow's state says */
void tcp_timer_fired(struct engine *engine, struct flow *flow);

/* tcp_close.c */
void tcp_move_to_guest(struct flow *flow, enum half_state state);
void tcp_move_to_host(struct flow *flow, enum half_state state);
void tcp_abort(struct engine *engine, struct flow *flow, enum close_reason reason, int error); /* RST to the guest */
void tcp_reset_by_guest(struct engine *engine, struct flow *flow);                             /* RST to the peer */
void tcp_abandon(struct engine *engine, struct flow *flow); /* to make room: RST to the peer, nothing to the guest */
void tcp_close(struct engine *engine, struct flow *flow, enum close_reason reason, int error);

/* tcp_migrate.c */
bool tcp_freeze(struct engine *engine, struct flow *flow, struct lg_tcp_flow *ret_state); /* false: it cannot move */
void tcp_thaw(struct engine *engine, struct flow *flow);
void tcp_forget(struct engine *engine, struct flow *flow);
/* 0, or a negative errno: the socket stays the caller's. */
int tcp_adopt(struct engine *engine, const struct lg_tcp_flow *state, int fd);

/* tcp_settle.c */
void tcp_settle(struct engine *engine, struct flow *flow);
uint32_t stall_interest(const struct flow *flow);

#endif
