/* SPDX-License-Identifier: Apache-2.0
 *
 * timer.c: the timing wheel of timer.h.
 *
 * A timer's level is the position of the highest bit in which its expiry differs from now: level 0 holds what expires
 * within this run of 64 ms, level 1 within this run of 4096 ms, and so on. Inside a level all timers share the higher
 * bits with now, so that no slot ever holds timers of two turns.
 */
#include "timer.h"

#include <string.h>

#define WHEEL_EXPIRED UINT16_MAX

void wheel_init(struct wheel *wheel, uint64_t now_ms)
{
    memset(wheel, 0, sizeof(*wheel));
    wheel->now_ms = now_ms;
}

static void list_push(struct timer **head, struct timer *timer)
{
    timer->next = *head;
    if (timer->next)
        timer->next->link = &timer->next;
    timer->link = head;
    *head = timer;
}

void wheel_cancel(struct wheel *wheel, struct timer *timer)
{
    if (!timer->link)
        return;
    *timer->link = timer->next;
    if (timer->next)
        timer->next->link = timer->link;
    timer->link = NULL;
    if (timer->slot != WHEEL_EXPIRED && !wheel->slot[timer->slot])
        wheel->pending[timer->slot / WHEEL_SLOTS] &= ~(UINT64_C(1) << (timer->slot % WHEEL_SLOTS));
}

void wheel_arm(struct wheel *wheel, struct timer *timer, uint64_t expires_ms)
{
    wheel_cancel(wheel, timer);
    if (expires_ms <= wheel->now_ms)
        expires_ms = wheel->now_ms + 1;

    unsigned level = (unsigned)(63 - __builtin_clzll(expires_ms ^ wheel->now_ms)) / WHEEL_BITS;
    unsigned place = (unsigned)(expires_ms >> (level * WHEEL_BITS)) % WHEEL_SLOTS;
    unsigned slot = level * WHEEL_SLOTS + place;

    timer->expires_ms = expires_ms;
    timer->slot = (uint16_t)slot;
    if (!wheel->slot[slot] || expires_ms < wheel->earliest[slot])
        wheel->earliest[slot] = expires_ms;
    list_push(&wheel->slot[slot], timer);
    wheel->pending[level] |= UINT64_C(1) << place;
}

uint64_t wheel_next(const struct wheel *wheel)
{
    if (wheel->expired)
        return wheel->now_ms;
    for (unsigned level = 0; level < WHEEL_LEVELS; level++) {
        /* All that is in a lower level expires before all that is in a higher one, and slots are in order. */
        if (wheel->pending[level])
            return wheel->earliest[level * WHEEL_SLOTS + (unsigned)__builtin_ctzll(wheel->pending[level])];
    }
    return UINT64_MAX;
}

/* Takes one slot apart: what has expired goes to the expired list, the rest to the slots that fit the new time. */
static void slot_empty(struct wheel *wheel, unsigned slot)
{
    struct timer *timer = wheel->slot[slot];

    wheel->slot[slot] = NULL;
    wheel->pending[slot / WHEEL_SLOTS] &= ~(UINT64_C(1) << (slot % WHEEL_SLOTS));
    while (timer) {
        struct timer *next = timer->next;

        timer->link = NULL;
        if (timer->expires_ms > wheel->now_ms) {
            wheel_arm(wheel, timer, timer->expires_ms);
        } else {
            timer->slot = WHEEL_EXPIRED;
            list_push(&wheel->expired, timer);
        }
        timer = next;
    }
}

void wheel_advance(struct wheel *wheel, uint64_t now_ms)
{
    uint64_t before = wheel->now_ms;

    if (now_ms <= before)
        return;
    wheel->now_ms = now_ms;
    for (unsigned level = 0; level < WHEEL_LEVELS; level++) {
        unsigned shift = level * WHEEL_BITS;
        uint64_t passed = wheel->pending[level];

        if (before >> shift == now_ms >> shift)
            return; /* neither this level nor a higher one has moved */
        if (before >> (shift + WHEEL_BITS) == now_ms >> (shift + WHEEL_BITS)) {
            /* The same turn of this level: the slots up to and including today's. */
            unsigned today = (unsigned)(now_ms >> shift) % WHEEL_SLOTS;
            passed &= today == WHEEL_SLOTS - 1 ? UINT64_MAX : (UINT64_C(1) << (today + 1)) - 1;
        }
        for (; passed; passed &= passed - 1)
            slot_empty(wheel, level * WHEEL_SLOTS + (unsigned)__builtin_ctzll(passed));
    }
}

struct timer *wheel_pop(struct wheel *wheel)
{
    struct timer *timer = wheel->expired;

    if (timer)
        wheel_cancel(wheel, timer);
    return timer;
}
