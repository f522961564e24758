/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram.h: flows without a connection, one file a concern, and what they say to each other.
 *
 *   udp.c             a UDP datagram of the guest's, and one for it
 *   ping.c            an echo request of the guest's, and its reply
 *   datagram_flow.c   the life of such a flow: its socket, its timeout, its settling
 *   datagram_port.c   the port of the host that a flow goes out from
 *   datagram_inbox.c  what one recvmmsg() brings
 *   datagram_accept.c what comes on a socket that is connected to nobody: to a port of the host that leads to the guest,
 *                     or in answer to what the guest asked a group
 *   datagram_send.c   all datagrams of a flow in one batch, in as few system calls as there can be
 *   datagram_error.c  the socket's error queue, told to the guest as ICMP
 *
 * As with TCP, a frame only leaves its facts with its flow, and datagram_settle() does the rest once a batch; nothing else
 * may free a flow.
 */
#ifndef LOCKGATE_DATAGRAM_H
#define LOCKGATE_DATAGRAM_H

#include "engine.h"

/* udp.c, ping.c */
void udp_from_guest(struct engine *engine, const struct guest_frame *frame, const struct packet *packet);

/* To a server of DHCP: its source is none that the guest will have, only one to ask under (RFC 2131, 4.1, says 0.0.0.0;
 * muvm's guest takes one of its own for as long). */
bool udp_asks_for_address(const struct guest_frame *frame, const struct packet *packet);
void ping_from_guest(struct engine *engine, const struct guest_frame *frame, const struct packet *packet);
/* What the peer sent to the guest, of this flow or shown as of another: datagrams of `each` bytes, of which the last may be
 * shorter. Of *length bytes as many as one frame takes, at least a datagram, and *length is then theirs. 0 or -EAGAIN: the
 * link is full; anything else is lost, and counted. `cut` is of the first, and of no further use once it is sent. */
int udp_to_guest(struct engine *engine, const struct flow_key *key, const uint8_t *payload, uint32_t *length,
                 uint32_t each, struct cut *cut);
void ping_to_guest(struct engine *engine, struct flow *flow, uint8_t *message, uint32_t length);

/* datagram_flow.c */
/* The flow of this key, made if there is none yet. NULL: it cannot be, and the guest has been told what there is to. */
struct flow *datagram_flow(struct engine *engine, const struct flow_key *key, const struct packet *packet);
/* What of the frame goes into the socket, at the end of this batch. */
void datagram_take(struct engine *engine, struct flow *flow, const struct guest_frame *frame, uint32_t offset,
                   uint32_t length);
void datagram_event(struct flow *flow, uint32_t events);
void datagram_timer_fired(struct engine *engine, struct flow *flow);
void datagram_settle(struct engine *engine, struct flow *flow);
/* The last of any settling: a flow that is done goes, another's time is watched. */
void datagram_rest(struct engine *engine, struct flow *flow);
/* What a socket that has just been connected had heard before: anybody's datagrams, since bind(). */
void datagram_throw_away(int fd);
void datagram_close(struct engine *engine, struct flow *flow, enum close_reason reason, int error);

/* datagram_port.c */
void datagram_port_led_to(struct engine *engine, const struct listener *listener); /* by this from now on */
/* A flow that could not have the guest's port, because what leads to that has it, gives up its socket and leaves by that
 * one: the peer then knows the guest by one port, whoever speaks first. False: there is none, or not to this peer. */
bool datagram_leave_by_way_in(struct engine *engine, struct flow *flow);
int datagram_ports_init(struct engine *engine); /* 0 or -ENOMEM */
void datagram_ports_free(struct engine *engine);
/* The socket of a flow to this address gets the guest's own port, or identifier. Ports below 1024 are not for an
 * unprivileged worker, and others may be taken: the kernel then chooses one, which only programs that insist on their port
 * will mind. */
int datagram_bind(struct engine *engine, struct flow *flow, const struct sockaddr_storage *to);
void datagram_close_socket(struct engine *engine, struct flow *flow); /* if it has one */

/* datagram_inbox.c */
/* One recvmmsg() into an inbox, which is empty; the senders' addresses and where they sent it, if `from` is not NULL. How
 * many messages came, or a negative errno. */
int datagram_receive(struct datagram_inbox *inbox, int fd, struct datagram_sender *from);
/* As many of the datagrams at the head of the inbox as one frame takes, to the guest as those of `key`. 0, and how many
 * bytes; -EAGAIN: the link is full. */
int datagram_deliver(struct engine *engine, const struct flow_key *key, struct datagram_inbox *inbox,
                     uint32_t *ret_bytes);

/* datagram_accept.c */
/* The flow of this peer of a port of the host; NULL, and in *key by which a new one may be shown: what it was, unless
 * another has it. One that was shown by another key stays there when its own is free again. NULL and a protocol of 0: all
 * keys are others'. */
struct flow *datagram_of_peer(struct engine *engine, const struct listener *listener,
                              const struct sockaddr_storage *from, struct flow_key *key);
/* Answers of this flow leave by the port, and from the address, that this sender asked. */
void datagram_note_peer(const struct engine *engine, struct flow *flow, const struct listener *listener,
                        const struct datagram_sender *from);
void datagram_accept(struct engine *engine, struct listener *listener, uint32_t events);
/* The link has room again: what waits is delivered, and as far as all of it is, the ports that wait are heard again. */
void datagram_accept_room(struct engine *engine);
/* The port in this slot is closed. */
void datagram_accept_close(struct engine *engine, uint32_t slot);
void datagram_take_answers(struct engine *engine, struct flow *flow);

/* datagram_send.c */
void datagram_send_batch(struct engine *engine, struct flow *flow);
/* So many messages at the head of an inbox, out of this socket: the flow's own, which is connected, or that of the port,
 * to the peer. How many bytes were in them. */
uint64_t datagram_relay(struct engine *engine, struct flow *flow, int fd, struct datagram_inbox *inbox,
                        unsigned messages);

/* datagram_error.c */
void datagram_take_errors(struct engine *engine, struct flow *flow);
void datagram_take_listener_errors(struct engine *engine, const struct listener *listener);
/* Tells the guest that a datagram of this flow could not be sent at all. */
void datagram_tell_unreachable(struct engine *engine, const struct flow *flow, int error);

#endif
