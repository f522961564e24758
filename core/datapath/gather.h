/* SPDX-License-Identifier: Apache-2.0
 *
 * gather.h: a slow guest's stream is let gather while the worker sleeps, as drivers of real cards put off their interrupts.
 *
 * A guest that is emulated, or a stream link without offloads, hands over a few frames at a time, each of which would wake
 * the worker: most of what a gigabyte costs is then waking up and going to sleep again, on a processor that the guest needs,
 * too. So where data goes one way, out of the guest, and nobody waits for an answer, the worker sleeps a little before it
 * asks what there is. Whatever else happens (payload to the guest, a datagram, a connection, a question to the gateway, a
 * frame from one guest of a switch to another) ends it at once: a program that asks and waits is never kept waiting by more
 * than the one sleep that is under way.
 *
 * Called by engine.c after each step. Adversary: the guest, which can make its own frames wait for GATHER_NS, and no more.
 */
#ifndef LOCKGATE_GATHER_H
#define LOCKGATE_GATHER_H

#include <stdint.h>

enum gather_limits {
    GATHER_NS = 100000,        /* one sleep; the kernel's timer slack adds up to half as much */
    GATHER_STEPS = 32,         /* that took data: so many are looked at together */
    GATHER_PLAIN_NS = 250000,  /* between two of them on average, without sleeps: rarer ones would gather nothing */
    GATHER_BYTES = 16 << 10,   /* come during one sleep at most: where it is more, the worker has no rest to give up */
    GATHER_PAUSE_NS = 4000000, /* without data ends a stream */
    GATHER_AGAIN = 1024,       /* steps, after which it is seen once more what there is without sleeps */
};

enum gather_state {
    GATHER_plain, /* steps are counted, and come as the frames do */
    GATHER_on,
    GATHER_vain, /* sleeping has brought no more at a time, or cost a quarter of the rate: the guest waits for us */
};

struct gather {
    enum gather_state state;
    unsigned steps;                    /* in this state */
    uint64_t taken, others;            /* the counters at the last step */
    uint64_t last_ns, first_ns, bytes; /* the last step with data; since when, and how much, those looked at together */
    uint64_t plain_ns, plain_bytes;    /* the same of the last in GATHER_plain */
};

/* After each step: for how many nanoseconds the worker is to sleep before the next; 0 not at all. */
uint64_t gather_after_step(struct gather *gather, const uint64_t *counters, uint64_t now_ns);

#endif
