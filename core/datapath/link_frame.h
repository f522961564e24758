/* SPDX-License-Identifier: Apache-2.0
 *
 * link_frame.h: what every link does with a frame of the guest's that it lends.
 */
#ifndef LOCKGATE_LINK_FRAME_H
#define LOCKGATE_LINK_FRAME_H

#include <string.h>

#include "counters.h"
#include "link.h"
#include "pcap_ring.h"

/* A frame that lies in one piece, which has FRAME_BYTES_MAX at most. `datagram`: as in guest_frame. */
static inline void link_frame_fill(struct guest_frame *frame, const struct iovec *piece, uint16_t datagram)
{
    const size_t head_length = piece->iov_len < FRAME_HEAD_MAX ? piece->iov_len : FRAME_HEAD_MAX;

    memcpy(frame->head, piece->iov_base, head_length);
    frame->head_length = (uint16_t)head_length;
    frame->length = (uint32_t)piece->iov_len;
    frame->datagram = datagram;
    frame->iov = piece;
    frame->iov_count = 1;
}

static inline void link_frame_record(const struct guest_frame *frame, uint64_t *counters, struct pcap_ring *pcap)
{
    counters[C_frames_from_guest]++;
    counters[C_bytes_from_guest] += frame->length;
    if (pcap->on)
        pcap_ring_put(pcap, frame->iov, frame->iov_count, frame->length, false);
}

#endif
