/* SPDX-License-Identifier: Apache-2.0
 *
 * splice.h: the short way between the host's loopback and that of the guest's namespace: two sockets joined, no frame in
 * between. A connection or datagram that comes to a forwarded port from a loopback address has an address that means
 * nothing to the guest anyway, and both kernels are one.
 *
 *   splice_tcp.c   the life of such a connection: the second socket, halves, resets
 *   splice_move.c  bytes from one socket to the other, by splice(2)
 *   splice_stream.c  those of a stream, in large pieces
 *   splice_udp.c   datagrams, in batches
 *   splice_pool.c  sockets made in the guest's namespace, and pipes
 *   agent_channel.c  the channel by which those sockets are asked for
 *
 * Flows of this kind lie in the flow table like others, under the addresses of the socket that was accepted.
 */
#ifndef LOCKGATE_SPLICE_H
#define LOCKGATE_SPLICE_H

#include "engine.h"

/* Whether what comes from this peer takes the short way. Outward, nothing takes another: false is to be refused then. */
bool splice_takes(const struct engine *engine, const struct listener *listener, const struct sockaddr_storage *peer);

/* splice_tcp.c: of what splice_takes() took; the socket is ours. */
void splice_accept(struct engine *engine, const struct listener *listener, int fd, const struct sockaddr_storage *peer);
void splice_event(struct engine *engine, struct flow *flow, unsigned which, uint32_t events);
void splice_settle(struct engine *engine, struct flow *flow);
void splice_close(struct engine *engine, struct flow *flow, enum close_reason reason, int error);
void splice_abort(struct engine *engine, struct flow *flow, enum close_reason reason, int error); /* RST to both */
/* A socket for a connection that waits for one; or an errno, negative: none will come. */
void splice_socket_ready(struct engine *engine, struct flow *flow, int fd);

void splice_describe(const struct flow *flow, struct lg_flow_info *info);
/* Where what came to `local` goes, by the listener: to *ret_address; false: the guest has no such address. *ret_other: that
 * of the guest in the other family may be tried as well. */
bool splice_target(const struct engine *engine, const struct listener *listener, const address *local,
                   address *ret_address, bool *ret_other);

/* splice_udp.c */
/* What is at the head of the arrivals, of a peer that splice_takes(). False: it waits for a socket, and so do the ports. */
bool splice_udp_arrived(struct engine *engine, const struct listener *listener);
void splice_udp_settle(struct engine *engine, struct flow *flow);

/* splice_move.c */
/* What one side has for the other, up to a turn's budget; true: something moved. A flow that has more is touched. */
bool splice_move(struct engine *engine, struct flow *flow, unsigned from);

/* splice_stream.c */
/* After bytes of this side's have moved to the other. */
void splice_stream_moved(struct engine *engine, struct splice_side *side, uint64_t bytes);
void splice_stream_timer(struct engine *engine, struct flow *flow); /* as it has to stand, last of all in a step */
void splice_stream_fired(struct engine *engine, struct flow *flow);

/* splice_pool.c */
void splice_pool_init(struct splice_pool *pool);
void splice_pool_free(struct splice_pool *pool);
enum splice_kind splice_kind_of(bool ipv6, uint8_t protocol);
/* A socket of the guest's namespace; -EAGAIN: one was asked for, and splice_sockets_given() will tell; -ENOTCONN and
 * others: there is none to be had. */
int splice_socket_take(struct engine *engine, enum splice_kind kind);
void splice_socket_await(struct engine *engine, enum splice_kind kind, struct flow *flow); /* after -EAGAIN */
/* The answer to what was asked. The descriptors are the pool's; 0, or why there are none (or fewer). */
void splice_sockets_given(struct engine *engine, const int *fd, const enum splice_kind *kind, unsigned count);
void splice_sockets_refused(struct engine *engine, enum splice_kind kind, int error);

/* An empty pipe, kept or made; false: there is none. To be given back empty, or to be discarded with what is in it. */
bool splice_pipe_take(struct splice_pool *pool, struct splice_pipe *ret_pipe);
void splice_pipe_give(struct engine *engine, const struct splice_pipe *pipe);
void splice_pipe_discard(struct engine *engine, const struct splice_pipe *pipe);
/* One is free, or may be made: whoever has waited longest is settled, and uses it or offers it to the next. */
void splice_pipe_offer(struct engine *engine);

#endif
