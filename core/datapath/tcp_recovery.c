/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_recovery.c: what the guest did not get, and when it goes again (RFC 6675; RFC 6582 where the guest has no SACK).
 *
 * Bytes need not be kept for it: they are in the kernel's queue until they are acknowledged. There is no congestion
 * window: between us and the guest there is no network, only its receive window and its buffers.
 *
 * Adversary: the guest. A SACK block counts only inside what is outstanding; lies cost the liar its own data.
 */
#include "tcp.h"

void tcp_recovery_sacked(struct engine *engine, struct flow *flow, const struct tcp_segment *segment)
{
    struct tcp *tcp = &flow->tcp;
    struct range first_gap;

    for (unsigned i = 0; i < segment->sack_count; i++) {
        struct range block = segment->sack[i];
        if (!seq_before(block.start, block.end) || seq_before(block.start, tcp->snd_una) ||
            seq_after(block.end, tcp->snd_nxt))
            continue; /* a duplicate report (RFC 2883), or nonsense */
        ranges_add(&tcp->sacked, block.start, block.end, RANGES_MAX);
    }
    if (!tcp->sacked.count)
        return;
    /* RFC 6675, 2, IsLost(): three segments' worth was received behind the gap. */
    bool lost = ranges_bytes(&tcp->sacked) >= TCP_DUPLICATE_ACKS * (uint32_t)tcp->mss ||
                tcp->duplicate_acks >= TCP_DUPLICATE_ACKS;
    if (!tcp->recovering && (!lost || !ranges_gap(&tcp->sacked, tcp->snd_una, &first_gap)))
        return;
    if (!tcp->recovering) {
        count(engine, C_tcp_fast_retransmits);
        tcp->recovering = true;
        tcp->recover = tcp->snd_nxt;
        tcp->resend_at = tcp->snd_una;
        tcp->resend_end = tcp->snd_una;
    }
    /* All gaps below the highest block are lost; what is above it may still be under way. */
    uint32_t highest = tcp->sacked.range[tcp->sacked.count - 1].start;
    if (seq_after(highest, tcp->resend_end))
        tcp->resend_end = highest;
}

/* One segment from snd_una on: all that is known to be lost without SACK. */
static void resend_first(struct tcp *tcp)
{
    tcp->resend_at = tcp->snd_una;
    tcp->resend_end = tcp->snd_nxt - tcp->snd_una < tcp->mss ? tcp->snd_nxt : tcp->snd_una + tcp->mss;
}

void tcp_recovery_duplicate(struct engine *engine, struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->duplicate_acks < UINT8_MAX)
        tcp->duplicate_acks++;
    if (tcp->duplicate_acks != TCP_DUPLICATE_ACKS || tcp->recovering || tcp->sacked.count)
        return;
    count(engine, C_tcp_fast_retransmits);
    tcp->recovering = true;
    tcp->recover = tcp->snd_nxt;
    resend_first(tcp);
}

void tcp_recovery_acked(struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    tcp->duplicate_acks = 0;
    ranges_drop_before(&tcp->sacked, tcp->snd_una);
    if (seq_before(tcp->resend_at, tcp->snd_una))
        tcp->resend_at = tcp->snd_una;
    if (seq_before(tcp->resend_end, tcp->resend_at))
        tcp->resend_end = tcp->resend_at;
    if (!tcp->recovering)
        return;
    if (!seq_before(tcp->snd_una, tcp->recover))
        tcp->recovering = false;
    else if (!tcp->sacked.count && tcp->resend_at == tcp->resend_end)
        resend_first(tcp); /* RFC 6582, 3.2: a partial ACK names the next hole */
}

/* RFC 6298, (5.4), and RFC 6675, 5.1: all that is outstanding counts as lost. What was SACKed is believed the first
 * time only: a receiver may take it back (RFC 2018, 8). */
void tcp_recovery_timed_out(struct flow *flow)
{
    struct tcp *tcp = &flow->tcp;

    if (tcp->retries > 1)
        tcp->sacked.count = 0;
    tcp->duplicate_acks = 0;
    tcp->recovering = true;
    tcp->recover = tcp->snd_nxt;
    tcp->resend_at = tcp->snd_una;
    tcp->resend_end = tcp->snd_nxt;
}

bool tcp_recovery_next(struct flow *flow, struct range *ret_range)
{
    struct tcp *tcp = &flow->tcp;
    struct range gap;

    tcp->resend_at = ranges_end_of(&tcp->sacked, tcp->resend_at);
    if (!seq_before(tcp->resend_at, tcp->resend_end))
        return false;
    ret_range->start = tcp->resend_at;
    ret_range->end = tcp->resend_end;
    if (ranges_gap(&tcp->sacked, tcp->resend_at, &gap) && seq_before(gap.end, ret_range->end))
        ret_range->end = gap.end;
    return true;
}
