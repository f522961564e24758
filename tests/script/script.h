/* SPDX-License-Identifier: Apache-2.0
 *
 * script.h: one engine between a fake kernel and a link of memory, as plain functions for Python.
 *
 * Called by world.py through cffi, which is given the lines between the cdef marks here and in fake_kernel.h. One world
 * at a time: the kernel is one, too. Adversary: nobody.
 *
 * Invariants: script_step() is the loop body of worker.c without its channels; nothing else runs the engine. After an
 * assertion or a sanitizer's report script_fault() says what it was, and the engine is not entered again.
 */
#ifndef SCRIPT_H
#define SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "datapath.h"

/* cdef: begin */

/* The world with its clock at start_ms. 0 or a negative errno. fake_kernel_reset() and fake_defaults() come before. */
int script_open(uint64_t start_ms, uint32_t flow_limit, bool peek_off, bool paces, bool reorder, uint32_t ack_delay_ms);
void script_close(void); /* closes all flows; the fake kernel can still be asked */
struct lg_net_view *script_view(void);
int script_neighbours(const struct lg_neighbours *table); /* as LG_CMD_NEIGHBOURS does */
const char *script_fault(void);                           /* empty: none */

/* ---- the loop ---- */

uint64_t script_now_ms(void);
uint64_t script_next_ms(void); /* when the engine wants to be called again; UINT64_MAX never */
void script_set_time(uint64_t ms);
void script_pass(uint64_t ns);         /* what is finer than a timer */
int script_step(void);                 /* 1: something was done, 0: nothing was to be done */
int script_settle(unsigned steps_max); /* until nothing is to be done. Steps, or -1: it never rests */

struct script_wakeup {
    uint64_t time_ms;
    int fd;
    uint32_t events;    /* EPOLL* */
    bool idle;          /* it moved no byte and changed no state */
    int stall;          /* enum stall of the flow before it; and of all flows, before it: */
    uint64_t stalls;    /* that have begun, of the window and the link */
    uint64_t changes;   /* EPOLL_CTL_MOD */
    uint64_t shutdowns; /* calls */
};
unsigned script_wakeups(void);
const struct script_wakeup *script_wakeup(unsigned index);

/* ---- the guest's side ---- */

struct script_link {
    size_t piece_bytes; /* in which the guest's frames lie */
    unsigned batch_max;
    size_t buffer_bytes; /* the guest's receive buffers */
    bool copies, merge, connected, csum, tso4, tso6, uso4, uso6;
};
void script_set_link(const struct script_link *settings);
void script_get_link(struct script_link *ret_settings);
unsigned script_room(void);          /* free buffers */
void script_set_room(unsigned room); /* silently */
void script_give_room(unsigned buffers);
int script_listen(uint32_t slot, int fd, uint8_t protocol, uint16_t port,
                  const uint8_t target[16]); /* a port that leads to the guest */
void script_listen_close(uint32_t first, uint32_t count);
void script_give_room_late(unsigned buffers); /* just after the engine has found the link full, and before it waits */
unsigned script_expected(void);               /* frames of the guest's: it is asked to tell of no less */
uint64_t script_gather_ns(void);              /* for which the loop was to sleep, since this was asked last */
void script_look(void);                       /* for them, by itself */
void script_attach(void);                     /* the guest's driver is there (again): the link's room event */

struct script_frame {
    const uint8_t *bytes; /* until the next frame is taken */
    size_t length;
    uint64_t time_ms;
    bool needs_csum;
    unsigned gso_type, gso_size, header_length, csum_start, csum_offset;
};

/* A frame from the guest: bytes, and behind them payload of a stream's pattern. */
void script_from_guest(const uint8_t *head, size_t head_length, uint32_t stream, uint64_t position, size_t payload);
void script_from_guest_several(const uint8_t *frame, size_t length, uint16_t datagram); /* a frame of GSO_UDP_L4 */
unsigned script_frames_waiting(void);
int script_to_guest(struct script_frame *ret_frame); /* 1, or 0: there is none */

/* ---- what became of it ---- */

struct script_flow {
    uint64_t id;
    int fd;
    uint8_t port, protocol; /* the port is 0 on a link, and only then of TCP there is what follows */
    int to_guest, to_host;  /* enum half_state */
    int stall;              /* enum stall */
    uint32_t interest;      /* EPOLL* */
    uint32_t iss, snd_una, snd_nxt, snd_window;
    uint32_t rcv_nxt, rcv_taken, rcv_edge;
    uint32_t held; /* bytes that the peer's kernel did not take, or that lie behind a gap */
    bool done, readable, muted;
    uint8_t guest_addr[16], remote_addr[16];
    uint16_t guest_port, remote_port;
};
bool script_flow(uint32_t *cursor, struct script_flow *ret_flow); /* the next of all; false: no more */

/* A guest that moves: its flows are frozen, and then go on, here or, with the same sockets, as those of a new worker. */
unsigned script_freeze(struct lg_tcp_flow *ret_states, unsigned max);
void script_thaw(void);
void script_forget(void);
int script_take(uint64_t id); /* the socket of a frozen flow, which is forgotten without it */
int script_adopt(const struct lg_tcp_flow *state, int fd);

/* ---- two sockets joined, and the namespace's agent: kinds are 0 TCP4, 1 TCP6, 2 UDP4, 3 UDP6 ---- */

int script_listen_outward(uint32_t slot, int fd, uint8_t protocol, uint16_t port); /* it leads to the host's port */
unsigned script_asked(unsigned kind); /* how often sockets were asked for since the last answer */
void script_agent_fails(int error);   /* to be asked, from now on, with a positive errno; 0: it can be */
int script_agent_gives(unsigned kind, unsigned count); /* the first of so many descriptors */
void script_agent_refuses(unsigned kind, int error);
unsigned script_pooled(unsigned kind); /* sockets that nobody has needed yet */

struct script_splice {
    int state;            /* enum splice_state */
    int fd[2];            /* near and far; -1 */
    uint32_t held[2];     /* what came from it, in a pipe */
    uint32_t interest[2]; /* EPOLL* */
    bool readable[2], muted[2];
    bool waits, done; /* for a socket or a pipe */
    uint8_t guest[16], remote[16];
    uint16_t guest_port, remote_port;
};
bool script_splice(uint32_t *cursor,
                   struct script_splice *ret_splice); /* the next of all that are joined; false: none */

uint64_t script_counter(unsigned counter);
unsigned script_events(void);
const struct lg_event *script_event(unsigned index);
unsigned script_punts(void);
size_t script_punted(uint8_t *bytes, size_t max); /* the start of the last; its whole length */

/* As LG_CMD_GATEWAY_SERVE and LG_CMD_GATEWAY_DIAL do. */
int script_gateway_serve(const uint8_t *head, uint32_t head_length, uint32_t length, int fd);
int script_gateway_dial(const uint8_t guest[16], uint16_t guest_port, uint16_t gateway_port, int fd);
bool script_memory_fault(void);
const struct lg_seen *script_seen(void);
void script_take_view(const struct lg_net_view *view);

/* What is still held, in words; empty: nothing, as it should be after the last flow. */
const char *script_left(void);

/* cdef: end */
#endif
