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
#include "link_stream.h"
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
    SOURCE_AGENT,
};

struct worker {
    struct engine engine;
    struct link_vhost vhost; /* engine.link is one of these */
    struct link_stream stream;
    struct link_tap tap;
    struct pcap_ring pcap;
    struct event_sink sink;
    int cmd_fd, up_fd, keeper_fd;
    int agent_fd;          /* of the guest's namespace; -1: there is none */
    unsigned agent_asking; /* the enum splice_kind that it was asked for and has not answered; SPLICE_KINDS none */
    unsigned agent_wanted; /* bits of those that will be asked for next */
    bool guest_ready;      /* the link may have frames */
    bool link_ended; /* the stream's connection is over, or the tap device gone, and control has not heard of it */
    struct lg_link_end link_end;
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
int worker_attach_stream(struct worker *worker, int fd);
int worker_attach_tap(struct worker *worker, int fd, bool uso);

#endif
