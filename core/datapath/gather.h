/* SPDX-License-Identifier: Apache-2.0
 *
 * gather.h: a guest's stream is let gather while the worker sleeps, as drivers of real cards put off their interrupts.
 *
 * A guest hands over a few frames at a time, each of which would wake the worker: much of what a gigabyte costs is then
 * waking up and going to sleep again, where the guest is emulated on a processor that it needs, too. So where data goes one
 * way, out of the guest, and nobody waits for an answer, the worker sleeps a little before it asks what there is. Whatever
 * else happens (payload to the guest, a datagram, a connection, a question to the gateway, a frame from one guest of a
 * switch to another) ends it at once: a program that asks and waits is never kept waiting by more than the one sleep that
 * is under way.
 *
 * A sender that measures its round trips may slow down for it (BBR, whose window is twice what they seem to hold), and one
 * that still grows must not be kept from it. So only a stream that has found its rate is slept on, and one that loses an
 * eighth of it is left alone, each time for twice as long.
 *
 * A fast stream gathers only where the guest has its memory back at once. Its kernel lets a flow have no more than so much
 * under way (TCP small queues), and where frames lie in a ring until we have looked, that is what sleeping would measure.
 *
 * Called by engine.c after each step. Adversary: the guest, which can make its own frames wait for GATHER_NS, and no more.
 */
#ifndef LOCKGATE_GATHER_H
#define LOCKGATE_GATHER_H

#include <stdbool.h>
#include <stdint.h>

enum gather_limits {
    GATHER_NS = 100000,        /* one sleep at most; the kernel's timer slack adds up to half as much */
    GATHER_BYTES = 64 << 10,   /* ... or until as much as a large frame may have come */
    GATHER_LENT = 16 << 10,    /* come during the longest sleep at most, where frames lie in the guest's memory */
    GATHER_STEPS = 32,         /* that took data: so many are looked at together */
    GATHER_PLAIN_NS = 250000,  /* between two of them on average, without sleeps: rarer ones would gather nothing */
    GATHER_PAUSE_NS = 4000000, /* without data ends a stream */
    GATHER_AGAIN = 1024,       /* steps, after which it is seen once more what there is without sleeps */
    GATHER_DOUBTS = 2,         /* looks in a row that show no gain: one may be the machine's */
    GATHER_VAIN_DOUBLED = 4,   /* times at most */
};

enum gather_state {
    GATHER_plain, /* steps are counted, and come as the frames do */
    GATHER_on,
    GATHER_vain, /* sleeping has brought no more at a time, or cost an eighth of the rate: the guest waits for us */
};

struct gather {
    enum gather_state state;
    unsigned steps;                    /* in this state */
    unsigned doubts, doubled;          /* see GATHER_DOUBTS and GATHER_VAIN_DOUBLED */
    uint64_t taken, others;            /* the counters at the last step */
    uint64_t last_ns, first_ns, bytes; /* the last step with data; since when, and how much, those looked at together */
    uint64_t plain_ns, plain_bytes;    /* the same of the last look in GATHER_plain; 0: there was none */
};

/* After each step: for how many nanoseconds the worker is to sleep before the next; 0 not at all. `copies`: see link.h. */
uint64_t gather_after_step(struct gather *gather, const uint64_t *counters, bool copies, uint64_t now_ns);

#endif
