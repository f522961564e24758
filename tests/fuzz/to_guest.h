/* SPDX-License-Identifier: Apache-2.0
 *
 * to_guest.h: what every frame to the guest must be, whatever made the engine send it.
 *
 * Used by fuzz_frame.c and fuzz_tcp.c. Adversary: nobody.
 */
#ifndef FUZZ_TO_GUEST_H
#define FUZZ_TO_GUEST_H

#include "engine.h"
#include "script.h"

struct seen_frame {
    bool tcp;
    struct packet packet;       /* valid of IP */
    struct tcp_segment segment; /* valid with tcp */
};

/* Ends the run if lengths, checksums or offloads of a frame contradict each other or the rules of virtio 1.2, 5.1.6. */
void check_to_guest(const struct script_frame *frame, struct seen_frame *ret_seen);

/* Ends the run if the engine, the fake kernel or the link has found a fault. */
void check_world(void);

#endif
