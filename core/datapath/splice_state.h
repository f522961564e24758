/* SPDX-License-Identifier: Apache-2.0
 *
 * splice_state.h: what is remembered of two joined sockets, of the pool that they come from, and every limit with its
 * reason.
 */
#ifndef LOCKGATE_SPLICE_STATE_H
#define LOCKGATE_SPLICE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "list.h"
#include "packet.h"

enum splice_limits {
    /* The most that an unprivileged process may ask for as a rule (fs.pipe-max-size). Such a pipe has room for 256 pieces
     * of memory, and a segment of loopback is of 2 or 3: with the usual 16 a call would move a few segments only. A user may
     * have 64 of them (fs.pipe-user-pages-soft); the rest are as small as the kernel makes them. */
    SPLICE_PIPE_BYTES = 1 << 20,
    SPLICE_PIPES_KEPT = 8, /* empty ones; a connection has one only while the other side does not take what is in it */
    SPLICE_TURN_BYTES = 4 << 20, /* then other flows have theirs */

    SPLICE_STREAM_BYTES = 4 << 20,    /* without a pause make a stream, at first */
    SPLICE_STREAM_DOUBLED = 8,        /* times at most: a gigabyte */
    SPLICE_STREAM_LASTING = 64 << 20, /* is not held to have been tried in vain, whenever it ends */
    SPLICE_STREAM_LEAST = 128 << 10,  /* in a millisecond: of a slower one, that is what comes at a time anyway */
    SPLICE_STREAM_MOST = SPLICE_PIPE_BYTES / 2, /* twice as much saves one alone a sixth, and makes others wait */
    SPLICE_STREAM_PAUSE_MS = 3,                 /* a sender waits for the processor so long now and then, and goes on */

    SPLICE_SOCKETS_ASKED = 32, /* at once: they cost their maker 5 us each, and as many connections come in a burst */
    SPLICE_SOCKETS_LOW = 16,   /* so many left: more are asked for */
    SPLICE_SOCKETS_MAX = 64,
};

/*   WAITING     for a socket of the guest's namespace
 *   CONNECTING  connect() is under way
 *   JOINED      bytes move */
#define SPLICE_STATES(apply)                                                                                           \
    apply(WAITING)                                                                                                     \
    apply(CONNECTING)                                                                                                  \
    apply(JOINED)

enum splice_state {
#define SPLICE_ENUM(name) SPLICE_##name,
    SPLICE_STATES(SPLICE_ENUM)
#undef SPLICE_ENUM
};

enum splice_kind {
    SPLICE_TCP4,
    SPLICE_TCP6,
    SPLICE_UDP4,
    SPLICE_UDP6,
    SPLICE_KINDS
};

struct splice_pipe {
    int read_fd, write_fd;
};

enum splice_side_name {
    SPLICE_NEAR,
    SPLICE_FAR,
    SPLICE_SIDES
}; /* that was accepted; that we opened */

/* What comes from a side, see splice_stream.c. */
struct splice_stream {
    uint64_t bytes, since_ns; /* without a pause; since then, or since it became a stream */
    uint64_t moved_ms;        /* the last of them */
    uint32_t low_water;       /* what the socket was told, SO_RCVLOWAT; 0: it is no stream, and each byte is told */
    uint8_t doubled;          /* see SPLICE_STREAM_DOUBLED */
};

/* One of the two sockets, and what came from it. */
struct splice_side {
    int fd;                  /* -1: not yet, or no more */
    uint32_t interest;       /* what epoll was last told */
    struct splice_pipe pipe; /* while something is in it */
    uint32_t held;           /* bytes in the pipe: read here, and not taken by the other side */
    struct splice_stream stream;
    int error;     /* of a reset, or what a write met, positive; 0 none. What it has said before is passed on */
    bool readable; /* an edge told of bytes that have not been read up to EAGAIN */
    bool writable; /* nothing was refused since an edge told of room */
    bool urgent;   /* it may have sent bytes that splice() stops before */
    bool muted;    /* an edge came while its bytes could not move: no more of them until they can */
    bool ended;    /* it said FIN */
    bool shut;     /* the other side's FIN was passed on to it */
};

struct splice {
    struct splice_side side[SPLICE_SIDES];
    address target; /* of the far socket */
    uint16_t port;  /* there */
    uint8_t state;  /* enum splice_state */
    bool other;     /* if it is refused, that of the other family may be tried */
    bool woken;     /* by an event of a socket, in this step */
    bool offered;   /* it waited for a pipe, and one was given back: if not by it, it is to be used by the next */
};

/* Sockets of one kind, not yet of use. */
struct splice_sockets {
    int fd[SPLICE_SOCKETS_MAX];
    unsigned count;
    bool asked;          /* for more, and there was no answer yet */
    int refusal;         /* for the datagram that waits, negative; 0 none */
    struct list waiting; /* flows */
};

struct splice_pool {
    struct splice_sockets kind[SPLICE_KINDS];
    struct splice_pipe pipe[SPLICE_PIPES_KEPT];
    unsigned pipes;           /* of them */
    unsigned pipes_lent;      /* others */
    struct list waiting_pipe; /* flows that found none */
};

#endif
