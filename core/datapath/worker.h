/* SPDX-License-Identifier: Apache-2.0
 *
 * worker.h: the worker process around the engine: its loop, and its channels to control and keeper.
 *
 * Adversary: what the guest sent has been parsed by the engine. Control is ours, but its process parses what the front
 * end sends: a command's length, counts and indexes are checked as if it were theirs.
 */
#ifndef LOCKGATE_WORKER_H
#define LOCKGATE_WORKER_H

#include "engine.h"
#include "link_dgram.h"
#include "link_stream.h"
#include "link_switch.h"
#include "link_tap.h"
#include "link_vhost.h"
#include "pcap_ring.h"

/* What epoll carries for the loop's own descriptors; flows have a generation in the upper half. */
enum loop_source {
    SOURCE_CMD = 1,
    SOURCE_UP,
    SOURCE_KEEPER,
    SOURCE_KICK_RECEIVEQ,
    SOURCE_KICK_TRANSMITQ,
    SOURCE_STREAM,
    SOURCE_TAP,
    SOURCE_DGRAM,
    SOURCE_AGENT,
    SOURCE_SWITCH_FIRST, /* of its ports, one after the other */
};

struct worker {
    struct engine engine;
    struct link_vhost vhost; /* engine.link is one of these */
    struct link_stream stream;
    struct link_tap tap;
    struct link_dgram dgram;
    struct link_switch bridge;
    struct pcap_ring pcap;
    struct event_sink sink;
    int cmd_fd, up_fd, keeper_fd;
    int agent_fd;          /* of the guest's namespace; -1: there is none */
    unsigned agent_asking; /* the enum splice_kind that it was asked for and has not answered; SPLICE_KINDS none */
    unsigned agent_wanted; /* bits of those that will be asked for next */
    bool guest_ready;      /* the link may have frames */
    bool link_ended; /* the stream's connection is over, or the tap device gone, and control has not heard of it */
    struct lg_link_end link_end;
    uint32_t link_end_port;
    bool up_blocked; /* control's queue is full: EPOLLOUT is asked for */
    bool end;
    unsigned faults_told; /* rings whose fault control has heard of */
    uint8_t up_buffer[LG_UP_BYTES_MAX];
};

/* up.c: the lossy channel. */
void up_punt(struct engine *engine, const struct guest_frame *frame);
void up_emit(struct event_sink *sink, const struct lg_event *event);
void up_send_owed(struct worker *worker); /* what must not be lost, until it fits */
void up_receive(struct worker *worker);   /* frames for the guest */

/* command.c: one command and its reply; false: control has gone. */
bool command_run(struct worker *worker);

/* agent_channel.c */
void agent_init(struct worker *worker);
int agent_attach(struct worker *worker, int fd); /* 0; or a negative errno: the descriptor stays the caller's */
void agent_receive(struct worker *worker);

/* worker.c */
void worker_ring_started(struct worker *worker, unsigned queue);
/* 0, or a negative errno: the descriptor stays the caller's. */
/* `port`: 0 the link itself, else that of the switch, counted from 1, which is the link from then on. `framing`: LG_STREAM_* */
int worker_attach_stream(struct worker *worker, uint32_t port, int fd, unsigned framing);
void worker_detach_links(struct worker *worker); /* all but vhost-user's, which has commands of its own */
int worker_attach_dgram(struct worker *worker, uint32_t port, int fd);
int worker_attach_tap(struct worker *worker, int fd, bool uso);

#endif
