/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_kernel.h: a kernel small enough to read, for the conversations of this folder. It implements the functions that
 * core/datapath/sys.h declares under LG_FAKE_SYS: TCP sockets whose peers are played by the test, epoll with its edges,
 * and a clock that moves when it is told to.
 *
 * Called by the core (sys_*) and by the tests (fake_*). Adversary: nobody; but a core that uses a descriptor after close()
 * or hands over other bytes than the guest sent has done wrong, which fake_violation() then says.
 *
 * Invariants: what it does is what kernel_facts.py found the real kernel to do, in the same assertions. A socket option
 * that is not modelled is a violation, never a silent success. Descriptors are not used twice, so that a stale one shows.
 */
#ifndef FAKE_KERNEL_H
#define FAKE_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* A socket's TCP_CONGESTION unless it was chosen: this kernel's default. */
#define FAKE_CONGESTION "bbr"

/* cdef: begin */

void fake_kernel_reset(void); /* no descriptors, no counts, no violation */
void fake_clock_set(uint64_t ns);

/* What the core called, and how often. fake_fail() lets the next call of a kind fail with a positive errno. */
unsigned fake_call_kinds(void);
const char *fake_call_name(unsigned kind);
uint64_t fake_call_count(unsigned kind);
void fake_fail(unsigned kind, int error);
const char *fake_violation(void); /* the first; empty: none */

/* Every stream of bytes is a pattern that follows from its number and the position in it: nothing is stored, and a byte
 * that is lost, doubled or of another flow does not match. */
#define FAKE_PATTERN_PERIOD 65521
void fake_pattern_fill(uint32_t stream, uint64_t position, void *bytes, size_t length);
size_t fake_pattern_match(uint32_t stream, uint64_t position, const void *bytes, size_t length); /* how many match */

/* ---- sockets ---- */

#define FAKE_IDLE 0
#define FAKE_CONNECTING 1
#define FAKE_CONNECTED 2
#define FAKE_CLOSED 3 /* refused, or reset by the peer: TCP's state CLOSE */

struct fake_datagrams;

struct fake_socket {
    int state; /* FAKE_* */
    int family;
    uint8_t address[16]; /* where connect() was to go, IPv4 as ::ffff:a.b.c.d */
    uint16_t port;
    uint32_t scope_id;              /* of an IPv6 address */
    uint32_t stream_in, stream_out; /* pattern numbers: from the peer, to the peer */

    uint64_t arrived;                  /* bytes that came from the peer, in order */
    uint64_t taken;                    /* of them, read or discarded */
    uint64_t urgent;                   /* position of the urgent byte; valid with has_urgent */
    int64_t peek_offset;               /* SO_PEEK_OFF, -1 off */
    uint32_t receive_limit, low_water; /* the latter as set by the core, SO_RCVLOWAT; 0: left alone */
    uint32_t low_water_limit;          /* what it may be set to: half of the last number of tcp_rmem */

    uint64_t sent;    /* bytes that the core handed over */
    uint64_t drained; /* of them, acknowledged by the peer */
    uint32_t send_limit;
    int error; /* SO_ERROR */

    bool has_urgent;
    bool fin_received;
    bool read_shut, write_shut;
    bool no_space; /* a send came short: OUT is due when a third is free */
    bool fin_acked;
    bool nodelay, oob_inline, linger_hard, keepalive;
    bool quick_ack;          /* TCP_QUICKACK: what comes is answered at once */
    char congestion[16];     /* TCP_CONGESTION, as set by the core; empty: left alone */
    bool congestion_late;    /* it was set when connect() had been called already */
    int hops, traffic_class; /* as set by the core; 0: left alone */
    bool closed;             /* by the core */
    bool aborted;            /* ... with RST: SO_LINGER 0, or unread data */

    bool listening;
    int backlog[512]; /* descriptors that accept() will hand out */
    unsigned backlog_count;

    /* of datagrams: UDP, or with a protocol, of echo requests */
    int protocol;
    uint16_t own_port; /* that it was bound to */
    bool ipv6_only;
    bool receive_errors, reuse_address, broadcast, receive_segments, freebind;
    bool packet_info4, packet_info6;  /* tells where each datagram was sent to */
    bool all_groups;                  /* hears what others on the host have joined a group for */
    bool bound_shared;                /* SO_REUSEADDR was set when it was bound */
    bool no_segments;                 /* refuses UDP_SEGMENT */
    unsigned out_count;               /* datagrams that the core sent */
    struct fake_datagrams *datagrams; /* what is queued; NULL: TCP */

    uint8_t local[16];      /* that it was bound to, or accepted at */
    uint32_t joined_stream; /* whose bytes are spliced into it; 0 nobody's */
};

/* What ip(7) calls an extended error; the offender as ::ffff:a.b.c.d or an IPv6 address. */
struct fake_path_error {
    int error;
    uint8_t origin, type, code;
    uint32_t info;
    uint8_t offender[16];
};

/* A listening socket, and a peer that connects to it: the descriptor that accept() will return. */
int fake_listen(void);
int fake_listen_at(const uint8_t address[16], uint16_t port);
int fake_peer_connect(int listener, const uint8_t address[16], uint16_t port);

/* The same on a socket that is connected to nobody: from an address and port, to what its header says, which is the host's
 * address `local` or a group or broadcast address that it hears there. */
int fake_datagram_arrive_from(int fd, const uint8_t address[16], uint16_t port, const uint8_t to[16],
                              const uint8_t local[16], const void *bytes, uint32_t length, uint16_t segment);
/* The broadcast address of one of the host's networks, beside 255.255.255.255. */
void fake_broadcast_address(const uint8_t address[16]);
void fake_prohibited_address(const uint8_t address[16]); /* by a route; or a firewall */
/* Whom the datagram that fake_datagram_sent() told of last was for, and from which address. */
const uint8_t *fake_datagram_sent_to(void);
uint16_t fake_datagram_sent_port(void);
const uint8_t *fake_datagram_sent_from(void);
int fake_datagram_arrive(int fd, const void *bytes, uint32_t length,
                         uint16_t segment); /* segment: of UDP_GRO; 0 none */
int fake_datagram_error(int fd, const struct fake_path_error *error, const void *bytes, uint32_t length);
int64_t fake_datagram_sent(int fd, void *bytes, uint32_t max); /* the oldest that was not looked at; -EAGAIN none */
void fake_datagram_no_segments(int fd);

/* Of new sockets. The overhead of the send queue's memory is in per cent of the bytes. */
void fake_defaults(uint32_t send_limit, uint32_t receive_limit, uint32_t send_overhead, int peek_off);
int fake_last_socket(void); /* the newest descriptor of a socket, also when it was closed since; -1 none */
const struct fake_socket *fake_socket_at(int fd); /* NULL: no socket ever had this descriptor */
unsigned fake_sockets_open(void);
int fake_socket_made(int family, bool datagram); /* by somebody else, who hands it over */
void fake_send_limit(int fd, uint32_t bytes);

/* What F_SETPIPE_SZ grants at most, in slots of FAKE_SLOT_BYTES, and how many pipes there may be before pipe() is EMFILE. */
#define FAKE_SLOT_BYTES 4096
void fake_pipe_limits(unsigned slots, unsigned pipes);
unsigned fake_pipes_open(void);
int fake_pipe(int *read_fd, int *write_fd, unsigned bytes); /* for the facts */

/* What the peer does. 0, or a negative errno where it cannot. */
int fake_peer_accept(int fd);
int fake_peer_refuse(int fd, int error);
int64_t fake_peer_send(int fd, uint64_t length);        /* one segment; how much of it our window takes */
int64_t fake_peer_send_urgent(int fd, uint64_t length); /* its last byte is urgent */
int fake_peer_fin(int fd);
int fake_peer_reset(int fd);
int64_t fake_peer_take(int fd, uint64_t length); /* reads: the kernel's send queue drains */

/* For the facts, which speak to this kernel without a core in between. */
int fake_eventfd(void);
int fake_epoll(void);
int fake_dup(int fd);
int fake_epoll_wait_one(int epoll_fd, uint32_t *ret_events, uint64_t *ret_data); /* 0 nothing, 1 an event */
int64_t fake_recv(int fd, void *bytes, size_t length, int flags);
int64_t fake_send(int fd, const void *bytes, size_t length);

/* A datagram, or an error of one, as a call takes it: lengths and negative errnos. Addresses as ::ffff:a.b.c.d or IPv6's. */
struct fake_heard {
    int64_t length;
    bool cut;                    /* more than there was room for */
    int segment;                 /* of UDP_GRO; 0 none */
    bool where4, where6;         /* IP_PKTINFO and IPV6_PKTINFO are there */
    uint8_t to4[16], local4[16]; /* in the first */
    uint8_t to6[16];             /* in the second */
    uint8_t peer[16];
    uint16_t port;
};
struct fake_heard fake_hear(int fd, void *bytes, size_t length);
int64_t fake_hear_error(int fd, struct fake_path_error *ret_error);
int64_t fake_say(int fd, const void *bytes, size_t length, uint16_t segment);
int fake_bind(int fd, uint16_t port);

/* cdef: end */

/* ---- between the fake kernel's files ---- */

enum {
    FAKE_DESCRIPTORS = 8192, /* of one conversation, since none is used twice */
    FAKE_DESCRIPTOR_FIRST = 3,
};

#define FAKE_CALLS(apply)                                                                                              \
    apply(socket)                                                                                                      \
    apply(bind)                                                                                                        \
    apply(connect)                                                                                                     \
    apply(accept)                                                                                                      \
    apply(setsockopt)                                                                                                  \
    apply(getsockopt)                                                                                                  \
    apply(recvmsg)                                                                                                     \
    apply(sendmsg)                                                                                                     \
    apply(recvmmsg)                                                                                                    \
    apply(sendmmsg)                                                                                                    \
    apply(discard)                                                                                                     \
    apply(getsockname)                                                                                                 \
    apply(getpeername)                                                                                                 \
    apply(pipe)                                                                                                        \
    apply(splice)                                                                                                      \
    apply(write)                                                                                                       \
    apply(shutdown)                                                                                                    \
    apply(close)                                                                                                       \
    apply(epoll_ctl)                                                                                                   \
    apply(epoll_wait)                                                                                                  \
    apply(eventfd_signal)

enum fake_call {
#define CALL_ENUM(name) CALL_##name,
    FAKE_CALLS(CALL_ENUM)
#undef CALL_ENUM
    CALL_COUNT
};

struct fake_pipe;

/* Counts a call; a negative errno if it was told to fail. */
int fake_called(enum fake_call call);
void fake_violate(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A new descriptor of a socket. -EMFILE: none is left. */
int fake_socket_descriptor(void);
struct fake_socket *fake_socket_of(int fd, const char *call); /* open ones only; NULL: the violation is noted */

/* The two descriptors of a pipe, and the pipe of one; NULL: it is none, or the other end. */
int fake_pipe_descriptors(struct fake_pipe *pipe, int fd[2]);
struct fake_pipe *fake_pipe_of(int fd, bool write_end);

/* Wakes all that wait for the socket: mask as the kernel's wake functions have it, 0 for a change of state. */
void fake_wake(int fd, uint32_t mask);

/* fake_socket.c */
bool fake_has_peek_off(void);
void fake_socket_init(struct fake_socket *socket, int fd);
uint32_t fake_socket_poll(struct fake_socket *socket);
void fake_socket_closed(struct fake_socket *socket); /* the last descriptor has gone */
void fake_socket_shown(const uint8_t address[16], uint16_t port, int family, struct sockaddr *addr, socklen_t *length);
ssize_t fake_socket_nothing(struct fake_socket *socket); /* what reading says where there is nothing to be read */
void fake_socket_take(struct fake_socket *socket, uint64_t length);     /* so much is read */
void fake_socket_wake(const struct fake_socket *socket, uint32_t mask); /* whoever watches it; 0: for any event */
bool fake_socket_readable(const struct fake_socket *socket);
bool fake_socket_writable(const struct fake_socket *socket);
void fake_socket_fin(struct fake_socket *socket);       /* its FIN is acknowledged when all before it is */
int fake_socket_send_error(struct fake_socket *socket); /* negative, or 0: it is open to bytes */
uint64_t fake_socket_room(const struct fake_socket *socket);
void fake_last_read(uint32_t *ret_stream, uint64_t *ret_position, uint64_t *ret_length); /* by recvmsg(), not a peek */

/* fake_splice.c */
void fake_pipe_closed(struct fake_pipe *pipe); /* one of its two ends */

/* fake_datagram.c */
struct fake_datagrams *fake_datagrams_make(void);
void fake_datagrams_free(struct fake_datagrams *datagrams);
uint32_t fake_datagram_poll(const struct fake_socket *socket);
ssize_t fake_datagram_recvmsg(struct fake_socket *socket, struct msghdr *msg, int flags);

#endif
