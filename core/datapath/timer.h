/* SPDX-License-Identifier: Apache-2.0
 *
 * timer.h: a hierarchical timing wheel (Varghese and Lauck, 1987), in milliseconds.
 *
 * Arm and cancel are a list operation each, whatever the number of timers. The wheel has no tick: wheel_next() says when
 * the loop must wake, and between that time and now nothing is touched. A timer that is cancelled costs no wake-up
 * unless it was the earliest of its slot; timers are not cascaded ahead of time, only when the loop is awake anyway.
 */
#ifndef LOCKGATE_TIMER_H
#define LOCKGATE_TIMER_H

#include <stdbool.h>
#include <stdint.h>

enum wheel_limits {
    WHEEL_BITS = 6,
    WHEEL_SLOTS = 1 << WHEEL_BITS,
    WHEEL_LEVELS = 7, /* 2^42 ms, 139 years: a deadline never lies beyond the wheel */
};

struct timer {
    struct timer *next;
    struct timer **link; /* what points at this timer; NULL: not armed */
    uint64_t expires_ms;
    uint16_t slot; /* level * WHEEL_SLOTS + slot, or WHEEL_EXPIRED */
};

struct wheel {
    uint64_t now_ms;
    uint64_t pending[WHEEL_LEVELS]; /* a bit for each slot that is not empty */
    struct timer *slot[WHEEL_LEVELS * WHEEL_SLOTS];
    uint64_t earliest[WHEEL_LEVELS * WHEEL_SLOTS]; /* no timer of the slot expires before this */
    struct timer *expired;
};

void wheel_init(struct wheel *wheel, uint64_t now_ms);

/* Arms or moves a timer; a time that is not after the wheel's now becomes the next millisecond. */
void wheel_arm(struct wheel *wheel, struct timer *timer, uint64_t expires_ms);
void wheel_cancel(struct wheel *wheel, struct timer *timer);

static inline bool timer_armed(const struct timer *timer)
{
    return timer->link != 0;
}

/* When the wheel must next be advanced; UINT64_MAX without timers. */
uint64_t wheel_next(const struct wheel *wheel);

/* Moves the wheel to now; then wheel_pop() hands out each expired timer, unarmed, until it returns NULL. */
void wheel_advance(struct wheel *wheel, uint64_t now_ms);
struct timer *wheel_pop(struct wheel *wheel);

#endif
