/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_state.h: what is remembered of one TCP connection, and every limit of the TCP engine with its reason.
 *
 * The engine translates between two TCP connections: the guest's, whose segments are made and read here, and the peer's,
 * which the host's kernel runs. Bytes from the peer stay in the kernel's receive queue until the guest has acknowledged
 * them; bytes from the guest are acknowledged when the kernel's send queue has taken them. So nothing is stored here but
 * what the kernel did not take at once, or what came ahead of a gap (hold.h).
 */
#ifndef LOCKGATE_TCP_STATE_H
#define LOCKGATE_TCP_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "hold.h"
#include "ranges.h"

/* Each direction is one half; both start in SYN, and the flow ends when both are CLOSED.
 *
 *            to the guest                            to the host
 *   SYN      our SYN-ACK is not acknowledged yet     connect() is under way
 *            (inbound: our SYN)                      (inbound: the guest's SYN-ACK has not come)
 *   OPEN     data flows                              data flows
 *   FIN_SENT our FIN is out, not acknowledged        the guest's FIN has come, its last bytes are not yet handed over
 *   CLOSED   our FIN is acknowledged                 shutdown() is done
 */
#define HALF_STATES(apply)                                                                                             \
    apply(SYN)                                                                                                         \
    apply(OPEN)                                                                                                        \
    apply(FIN_SENT)                                                                                                    \
    apply(CLOSED)

enum half_state {
#define HALF_ENUM(name) HALF_##name,
    HALF_STATES(HALF_ENUM)
#undef HALF_ENUM
};

/* Why nothing moves towards the guest. At most one reason at a time, each with its own end (design: "Readiness and
 * stalls"): new data or a rewinding ACK; an ACK or window update; the link's room event. */
#define STALLS(apply)                                                                                                  \
    apply(none)                                                                                                        \
    apply(caught_up)                                                                                                   \
    apply(window)                                                                                                      \
    apply(link)

enum stall {
#define STALL_ENUM(name) STALL_##name,
    STALLS(STALL_ENUM)
#undef STALL_ENUM
};

#define CLOSE_REASONS(apply)                                                                                           \
    apply(done)          /* both sides said FIN */                                                                     \
    apply(refused)       /* the peer did not accept */                                                                 \
    apply(unreachable)                                                                                                 \
    apply(guest_reset)                                                                                                 \
    apply(peer_reset)                                                                                                  \
    apply(timed_out)     /* the guest stopped acknowledging */                                                         \
    apply(evicted)                                                                                                     \
    apply(guest_protocol) /* the guest broke the rules of TCP */                                                       \
    apply(no_descriptor) /* the host gave no socket */                                                                 \
    apply(idle)          /* a flow of datagrams that had none for its time */                                          \
    apply(shutdown)                                                                                                    \
    apply(moved)         /* the guest has taken it to another host */

enum close_reason {
#define CLOSE_ENUM(name) CLOSE_##name,
    CLOSE_REASONS(CLOSE_ENUM)
#undef CLOSE_ENUM
};

enum tcp_limits {
    /* Window scale that we offer: 2^8 * 65535 = 16 MiB, more than a send queue grows to (tcp_wmem ends at 4 MiB as a
     * rule), and 256 bytes of granularity. */
    TCP_SCALE = 8,
    TCP_WINDOW_MAX = 65535 << TCP_SCALE,

    TCP_MSS_ASSUMED = 536,       /* RFC 9293, 3.7.1; 1220 for IPv6 would assume a path that we do not know */
    TCP_PAGE = 4096,             /* of guests and hosts as a rule; where it is more, this does no harm */
    TCP_MSS_IN_PAGES = 8 * 4096, /* of so many bytes, rounding costs little */
    TCP_MSS_MIN = 88,            /* a smaller one only multiplies our work (as Linux: tcp_min_snd_mss) */

    /* RFC 6298: (2.1) 1 s at first, (2.4) but 200 ms instead of 1 s at least: the guest is one memory copy away, and its
     * delayed ACK comes within 40 ms; (2.5) a cap of at least 60 s. */
    TCP_RTO_FIRST_MS = 1000,
    TCP_RTO_MIN_MS = 200,
    TCP_RTO_MAX_MS = 60000,
    TCP_RETRIES_MAX = 12,  /* about nine minutes with these: a guest that is stopped for a snapshot comes back */
    TCP_EXACT_RETRIES = 2, /* what was in vain that often is in no hurry: its timer fires when others do */

    /* How long a guest is asked to take a connection, by our SYN or SYN-ACK: seven with the times above; or those who dial
     * into a virtual network wait as long as with gvproxy. It counts whether or not there was a link for them. */
    TCP_DIAL_MS = 123000,
    TCP_DIAL_VIRTUAL_MS = 10000,

    /* RFC 9293, 3.8.4: after two hours without a byte the guest is asked whether it is still there (and its own questions
     * make the host ask the peer); the interval and number of the questions are Linux' defaults. */
    TCP_KEEPALIVE_MS = 7200000,
    TCP_KEEPALIVE_INTERVAL_MS = 75000,
    TCP_KEEPALIVE_PROBES = 9,

    /* RFC 9293, 3.8.6.3, allows half a second. A peer that answers does so within this time if it is near, and then the
     * ACK travels with the answer; a guest whose Nagle waits for the ACK loses no more than this, and only once. */
    TCP_ACK_DELAY_MS = 2,

    /* In the middle of a long transfer an ACK for so many bytes: for each frame it costs the guest more than us. Not in the
     * first bytes, while the guest's congestion window is small. Where an ACK went because it had waited as long as it may,
     * the guest is slow, and fewer bytes do; where it happens again, its buffer is small, and it has nothing to do until it
     * hears of us: then each frame's, for a long while. Waiting for 5 ms instead cost such a guest a sixth of its rate. */
    TCP_ACK_BULK = 96 << 10,
    TCP_ACK_BULK_SLOW = 24 << 10,
    TCP_ACK_BULK_FROM = 1 << 20,
    TCP_ACK_BULK_AGAIN = 64 << 20,

    TCP_DUPLICATE_ACKS = 3, /* RFC 5681, 3.2; RFC 6675, 2 */

    /* RFC 5961, 7: challenge ACKs, for all flows together. A guest that is answered less often only harms itself. */
    TCP_CHALLENGES_PER_SECOND = 1000,

    /* To a guest that reads more slowly than its peer sends, no less goes than a quarter of its buffer, or this: with one
     * interrupt for it, where a frame for each read of the guest's would cost it as many interrupts as reads. Its program
     * has three quarters to read meanwhile. (Half of a ring of 256 pages.) */
    TCP_WINDOW_STEP = 512 << 10,

    /* Of what the guest has acknowledged, while more lies behind it in the socket: measured, 64 KiB gains half as much, and
     * 256 KiB leaves a single stream too little room. */
    TCP_DISCARD_STEP = 128 << 10,

    /* A flow that has carried this much to the guest is a long transfer, and its peer may send as much ahead. */
    TCP_BULK_WINDOW = 1 << 20,

    /* Of such a one, while the guest is who holds it up: its peer hears of room when half of what it may send ahead is left,
     * or where the kernel gives it less (tcp_rmem), once all that it has sent is read.
     * Sixteen downloads at 20 MB/s, a guest of 64 KB segments: a tenth less of our time than in steps as above. */
    TCP_DISCARD_STEP_HELD = TCP_BULK_WINDOW / 2,

    TCP_BUDGET_BYTES = 1 << 20, /* to the guest, before other flows have their turn; one full ring of 256 pages */

    /* Bytes that a read expects at first, and at least: reserving room costs time for each buffer of the guest's, and a
     * request's answer is short. Reads that find all they expected double it. */
    TCP_READ_FIRST = 16384,

    /* Before 6.9 Linux has no SO_PEEK_OFF for TCP: what is in flight is read again into a buffer that nobody looks at.
     * That work grows with the square of what is in flight, hence the bound. */
    TCP_REREAD_MAX = 1 << 20,
};

struct tcp {
    /* towards the guest (RFC 9293, 3.3.1, in the guest's sequence space) */
    uint32_t iss;
    uint32_t snd_una;
    uint32_t snd_nxt;    /* the highest that was sent; never moves back */
    uint32_t snd_window; /* bytes beyond snd_una */
    uint32_t window_max; /* the most that the guest has offered: about the size of its buffer */
    uint32_t snd_wl1, snd_wl2;
    uint32_t fin_seq; /* of our FIN; valid when to_guest is past OPEN */
    uint32_t acked;   /* acknowledged, not yet taken from the kernel's queue */

    /* Loss recovery (RFC 6675; without SACK RFC 6582). What lies between resend_at and resend_end and is not SACKed is
     * taken as lost and goes again, once: resend_at only moves forward until `recover` is acknowledged. */
    struct ranges sacked;
    uint32_t resend_at, resend_end;
    uint32_t recover;     /* snd_nxt when the recovery began */
    uint32_t peek_offset; /* what the socket's SO_PEEK_OFF is now */
    uint32_t read_hint;   /* bytes that the next read should find: room for more would be reserved in vain */
    uint16_t mss;         /* payload of a segment to the guest */
    uint8_t guest_scale;
    uint8_t duplicate_acks;
    uint8_t retries;    /* the timer's back-off */
    uint8_t unanswered; /* timeouts since the guest's last sign of life: how long it is waited for */

    /* from the guest */
    uint32_t rcv_nxt;   /* taken by the kernel: what we acknowledge */
    uint32_t rcv_acked; /* acknowledged */
    uint32_t asked_ms;  /* when the guest's last byte was taken, modulo 2^32 */
    uint32_t rcv_taken; /* rcv_nxt, and what this batch or the hold has in sequence behind it */
    uint32_t rcv_edge;  /* of the window that we have advertised; it never moves back */
    uint32_t room;      /* bytes that the kernel's send queue takes, as last asked, less what was sent since */
    uint32_t room_asked;
    uint32_t rcv_window_max;          /* the most that we have advertised */
    uint32_t guest_fin;               /* the sequence number of the guest's FIN; valid with fin_seen */
    struct hold *hold;                /* NULL: the kernel has all that came */
    uint16_t batch_first, batch_last; /* segments of this batch, index + 1; 0 none */
    uint8_t our_scale;                /* 0 if the guest does not scale */
    uint8_t send_error;               /* errno of a send that met the peer's end; 0 none */
    uint8_t gap_acks;                 /* ACKs that are due for segments ahead of a gap, beyond the first */

    uint8_t to_guest, to_host; /* enum half_state */
    uint8_t stall;             /* enum stall */

    /* facts that are orthogonal to the halves */
    bool inbound : 1;         /* the peer opened it: our SYN, and the guest's SYN-ACK */
    bool readable : 1;        /* an edge told of data, or of an end, that has not been read up to EAGAIN */
    bool peer_hup : 1;        /* RDHUP, HUP or ERR was seen: read until the end shows itself */
    bool ended_elsewhere : 1; /* the peer's FIN came before its connection did: the end of the queue is the end */
    bool urgent : 1;          /* the peer sent urgent data: reads stop at the mark, so a short read is no end of data */
    bool muted : 1;           /* an edge came during a window or link stall: IN is masked until the stall ends */
    bool woken : 1;           /* by its socket, in this step */
    bool send_blocked : 1;    /* the kernel's send queue is full: we wait for OUT */
    bool fin_seen : 1;        /* the guest's FIN is known; it counts once all before it is with the kernel */
    bool sack_allowed : 1;    /* both sides offered it (RFC 2018, 2) */
    bool recovering : 1;
    bool bulk : 1; /* a long transfer to the guest: see TCP_BULK_WINDOW */
    bool syn_ack_due : 1;
    bool disowned : 1;  /* the guest answered our SYN as if it were of another connection */
    bool keepalive : 1; /* the guest asks for life now and then: so does our socket */
    bool ack_due : 1;
    bool bulk_slow : 1;      /* an ACK of a long transfer waited in vain for as many bytes as others have */
    bool slow_answers : 1;   /* the last ACK waited for an answer in vain */
    bool reset_due : 1;      /* and the guest's RST waits for room */
    bool probe_due : 1;      /* the guest's window is closed and its time to be asked has come */
    bool window_pending : 1; /* data waits for the guest's window: the persist timer runs */

    /* RTT and RTO (RFC 6298), in microseconds */
    uint32_t srtt_us, rttvar_us;
    uint32_t rtt_seq;      /* the ACK beyond this ends the sample */
    uint64_t rtt_start_ns; /* 0: no sample is running */
    uint64_t bulk_from;    /* from so many bytes of the guest's on */
    uint64_t ack_due_ms;   /* when the ACK that waits for an answer must go; 0: none waits */
    uint64_t rto_start_ms; /* when the running period began; 0: the timer is off */
};

#endif
