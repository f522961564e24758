/* SPDX-License-Identifier: Apache-2.0
 *
 * link_memory.h: a link (link.h) whose other end is the test: frames from the guest are queued by it, frames to the
 * guest are collected for it, and room is what it gave.
 *
 * Called by the engine through link_operations, and by script.c. Adversary: nobody; but an engine that breaks the rules
 * of link.h (a commit without a reservation, a frame that is never flushed) has done wrong, which `violation` says.
 *
 * Invariants: what is lent lies in memory of its own, of exactly the size that was said, and is freed when link.h says
 * that it is given back: a sanitizer sees every byte beyond, and every use after.
 */
#ifndef LINK_MEMORY_H
#define LINK_MEMORY_H

#include "link.h"
#include "list.h"

enum {
    MEMORY_RESERVED_MAX = 64,
};

struct memory_frame {
    struct node node;
    uint8_t *bytes;
    size_t length;
    uint16_t datagram; /* of the guest's: the payload of each of several; 0: none such */
    struct offload offload;
    uint64_t time_ms; /* when it was committed */
};

struct memory_reservation {
    uint8_t **buffer;
    unsigned buffers;
};

struct link_memory {
    struct link link;
    const uint64_t *now_ms;
    uint64_t *counters;    /* the engine's */
    const char *violation; /* NULL: none */

    /* from the guest */
    struct list queued; /* frames that the guest has sent */
    struct list lent;   /* the batch that is out */
    size_t piece_bytes; /* the guest's frames lie in pieces of this size */
    unsigned batch_max;
    struct iovec piece[LINK_PIECES];
    unsigned kick_after; /* frames: what the guest was asked for since from_guest(); 0: to tell of each */

    /* to the guest */
    bool connected;
    bool merge; /* several buffers make one frame */
    size_t buffer_bytes;
    unsigned buffers; /* that the guest has given, and that are free */
    unsigned given;   /* ever; tells whether more came since somebody looked */
    unsigned given_seen;
    bool room_event; /* more came, and the engine wanted to know */
    bool room_asked;
    unsigned late; /* buffers that come just when reserve() has said "full": the race that wait_room() is for */
    unsigned full; /* how often reserve() said so */
    struct memory_reservation reserved[MEMORY_RESERVED_MAX];
    unsigned reserved_first, reserved_end;
    struct list committed; /* not flushed yet: the guest does not see them */
    struct list visible;
};

void link_memory_init(struct link_memory *memory, const uint64_t *now_ms, uint64_t *counters);
void link_memory_free(struct link_memory *memory); /* all frames */

struct memory_frame *memory_frame_new(size_t length);
void memory_frame_free(struct memory_frame *frame);

void link_memory_give_room(struct link_memory *memory, unsigned buffers);

#endif
