/* SPDX-License-Identifier: Apache-2.0
 *
 * gather.c: when a stream gathers, see gather.h. Behind QEMU's emulator at an MTU of 1500, where 8 KB came at a time, 36 KB
 * do, for little more than half of the processor time, and the guest gets through more. Of a container's at 3 GB/s a wake-up
 * brings 350 KB instead of 90, for a sixth less, and a sixth more arrives. (Sleeps of three times the length gained more
 * here, and cost a single stream of User-mode Linux a tenth of its rate.)
 */
#include "gather.h"

#include "counters.h"

/* What somebody may be waiting for who is not the stream. */
static uint64_t others(const uint64_t *counters)
{
    static const enum counter waited_for[] = {
        C_tcp_bytes_to_guest,    C_tcp_opened,
        C_tcp_accepted,          C_tcp_closed,
        C_datagrams_from_guest,  C_datagrams_to_guest,
        C_arp_replies,           C_ns_replies,
        C_echo_replies,          C_punts,
        C_frames_injected,       C_frames_between_guests,
        C_splice_bytes_to_guest, C_splice_bytes_from_guest,
        C_splice_datagrams,      C_splice_opened,
    };
    uint64_t sum = 0;

    for (unsigned i = 0; i < sizeof(waited_for) / sizeof(waited_for[0]); i++)
        sum += counters[waited_for[i]];
    return sum;
}

static void enter(struct gather *gather, enum gather_state state)
{
    gather->state = state;
    gather->steps = 0;
    if (state == GATHER_plain)
        gather->plain_ns = gather->plain_bytes = 0;
}

static void begin(struct gather *gather, uint64_t now_ns)
{
    gather->bytes = 0;
    gather->first_ns = now_ns;
}

/* Whether the last steps brought `eighths` of the rate of the last look without sleeps, at least. */
static bool keeps(const struct gather *gather, uint64_t ns, unsigned eighths)
{
    return gather->bytes * gather->plain_ns * 8 >= gather->plain_bytes * ns * eighths;
}

static bool too_fast(const struct gather *gather, bool copies, uint64_t ns)
{
    return !copies && gather->bytes * GATHER_NS > ns * GATHER_LENT;
}

/* Of steps without sleeps: they come often, and a second look has seen no more than the one before. */
static bool would_pay(const struct gather *gather, uint64_t ns)
{
    return ns <= (uint64_t)GATHER_STEPS * GATHER_PLAIN_NS && gather->plain_bytes && !keeps(gather, ns, 9);
}

/* Of steps with sleeps: each brings half as much again, and nearly all of the rate is still there. */
static bool pays(const struct gather *gather, uint64_t ns)
{
    return gather->bytes * 2 >= gather->plain_bytes * 3 && keeps(gather, ns, 7);
}

static void look_at_sleeps(struct gather *gather, bool copies, uint64_t ns)
{
    gather->doubts = pays(gather, ns) ? 0 : gather->doubts + 1;
    if (gather->doubts >= GATHER_DOUBTS) {
        gather->doubts = 0;
        enter(gather, GATHER_vain);
    } else if (gather->steps >= GATHER_AGAIN || too_fast(gather, copies, ns)) {
        gather->doubled = 0;
        enter(gather, GATHER_plain);
    }
}

/* After GATHER_STEPS of them. */
static void look(struct gather *gather, bool copies, uint64_t now_ns)
{
    uint64_t ns = now_ns - gather->first_ns;

    if (gather->state == GATHER_plain) {
        if (would_pay(gather, ns) && !too_fast(gather, copies, ns))
            enter(gather, GATHER_on);
        gather->plain_bytes = gather->bytes;
        gather->plain_ns = ns;
    } else if (gather->state == GATHER_on) {
        look_at_sleeps(gather, copies, ns);
    } else if (gather->steps >= (unsigned)GATHER_AGAIN << gather->doubled) {
        gather->doubled += gather->doubled < GATHER_VAIN_DOUBLED;
        enter(gather, GATHER_plain);
    }
    begin(gather, now_ns);
}

static uint64_t sleep_ns(const struct gather *gather)
{
    uint64_t ns = GATHER_BYTES * gather->plain_ns / gather->plain_bytes;

    return ns < GATHER_NS ? ns : GATHER_NS;
}

uint64_t gather_after_step(struct gather *gather, const uint64_t *counters, bool copies, uint64_t now_ns)
{
    uint64_t taken = counters[C_tcp_bytes_from_guest], other = others(counters);
    uint64_t bytes = taken - gather->taken;
    bool alone = other == gather->others, paused = bytes && now_ns - gather->last_ns > GATHER_PAUSE_NS;

    gather->taken = taken;
    gather->others = other;
    if (bytes)
        gather->last_ns = now_ns;
    if (!alone || paused) {
        gather->steps -= gather->steps % GATHER_STEPS;
        begin(gather, now_ns);
        if (gather->state !=
            GATHER_vain) /* whoever was slowed down is not to be tried again with each of its questions */
            enter(gather, GATHER_plain);
        return 0;
    }
    if (!bytes) /* a timer, an ACK of the peer's: there is no next piece to be expected */
        return 0;
    gather->bytes += bytes;
    if (++gather->steps % GATHER_STEPS == 0)
        look(gather, copies, now_ns);
    return gather->state == GATHER_on ? sleep_ns(gather) : 0;
}
