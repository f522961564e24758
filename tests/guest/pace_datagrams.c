/* SPDX-License-Identifier: Apache-2.0
 *
 * pace_datagrams: UDP at a given pace, and how much of it arrives.
 * pace_datagrams -l IPV4-ADDRESS PORT: serves one run after another, until it is killed.
 * pace_datagrams IPV4-ADDRESS PORT send|receive SIZE RATE MILLISECONDS JOINED BUFFER: one run with that server: who asks
 *   sends, or receives, datagrams of SIZE bytes, RATE a second, in calls of many (sendmmsg, recvmmsg). JOINED 1: as a
 *   program does that has many for one peer (UDP_SEGMENT, UDP_GRO). BUFFER: of the receiving socket, in bytes.
 *
 * TCP only brings a run about. Its end is told by datagrams, which follow upon the others as soon as a full queue has gone:
 * a helper that loses frames under load may need many seconds to repair a TCP connection.
 *
 * Runs in the guest and beside the helper. Prints "sent N in S s, received M in T s" and ends with 0, or says what went
 * wrong and ends with 1. Adversary: nobody. Why not iperf3: it reads the clock for each datagram, which costs a guest
 * without a processor of its own several times the datagram, so that all that it measures is that.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 64,           /* datagrams in one call */
    JOINED_BYTES = 62000, /* in one piece: what fits an IP packet */
    BYTES_MAX = 65536,
    PIECES = 16, /* in one call of the receiver's */
    PATIENCE_MS = 10000,
    SILENCE_MS = 150, /* after the last that the sender says: it has our answer */
    AGAIN_MS = 20,    /* until it has */
    TURN_NS = 1000000,
};

struct run {
    uint32_t size, rate, milliseconds, joined, buffer;
    uint32_t server_sends;
};

struct told {
    uint64_t count, nanoseconds;
};

/* The sender's last word, and the receiver's answer: a struct told, of a size that no datagram of a run has. */
enum {
    END_BYTES = sizeof(struct told) + 3
};

static _Noreturn void fail(const char *what)
{
    printf("pace_datagrams: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000 + (uint64_t)at.tv_nsec;
}

static void read_all(int fd, void *bytes, size_t length)
{
    if (recv(fd, bytes, length, MSG_WAITALL) != (ssize_t)length)
        fail("the other side has gone");
}

static void write_all(int fd, const void *bytes, size_t length)
{
    if (send(fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length)
        fail("the other side does not listen");
}

/* Up to `due` datagrams in one call, at most a batch. How many went. */
static uint64_t send_some(int fd, const struct run *run, uint64_t due)
{
    static unsigned char bytes[BYTES_MAX];
    struct iovec piece = {bytes, run->size};
    struct mmsghdr messages[BATCH];
    uint64_t most = run->joined ? JOINED_BYTES / run->size : BATCH;
    unsigned count = (unsigned)(due < most ? due : most), pieces = run->joined ? 1 : count;

    if (run->joined)
        piece.iov_len = (size_t)count * run->size;
    for (unsigned i = 0; i < pieces; i++)
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &piece, .msg_iovlen = 1}};
    int sent = sendmmsg(fd, messages, pieces, 0);
    if (sent < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
        fail("sendmmsg");
    if (sent < 0)
        return 0;
    return run->joined ? count : (uint64_t)sent;
}

static struct told send_paced(int fd, const struct run *run)
{
    uint64_t began = now(), length = (uint64_t)run->milliseconds * 1000000, passed = 0;
    struct told told = {0, 0};

    while ((passed = now() - began) < length) {
        uint64_t due = (uint64_t)((double)passed * run->rate / 1e9) + 1;

        if (due > told.count) {
            told.count += send_some(fd, run, due - told.count);
            continue;
        }
        /* Not before the next turn, nor before a datagram is due. */
        uint64_t each = 1000000000 / run->rate, wait = each > TURN_NS ? each : TURN_NS;
        nanosleep(&(struct timespec){(time_t)(wait / 1000000000), (long)(wait % 1000000000)}, NULL);
    }
    told.nanoseconds = passed;
    return told;
}

/* The datagrams that one message holds. */
static uint64_t datagrams(const struct msghdr *message, uint32_t length)
{
    int each = 0;

    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR((struct msghdr *)message, part)) {
        if (part->cmsg_level == IPPROTO_UDP && part->cmsg_type == UDP_GRO)
            memcpy(&each, CMSG_DATA(part), sizeof(each));
    }
    return each > 0 ? (length + (uint32_t)each - 1) / (uint32_t)each : 1;
}

/* How many datagrams came; *ret_ended, and what the sender told, if its last word was among them. */
static uint64_t take_some(int fd, bool *ret_ended, struct told *ret_sent)
{
    static unsigned char bytes[PIECES][BYTES_MAX];
    static char control[PIECES][CMSG_SPACE(sizeof(int))];
    struct iovec pieces[PIECES];
    struct mmsghdr messages[PIECES];
    uint64_t count = 0;

    for (int i = 0; i < PIECES; i++) {
        pieces[i] = (struct iovec){bytes[i], BYTES_MAX};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &pieces[i],
                                                   .msg_iovlen = 1,
                                                   .msg_control = control[i],
                                                   .msg_controllen = sizeof(control[i])}};
    }
    int got = recvmmsg(fd, messages, PIECES, MSG_DONTWAIT, NULL);
    for (int i = 0; i < got; i++) {
        uint64_t here = datagrams(&messages[i].msg_hdr, messages[i].msg_len);

        if (messages[i].msg_len == here * END_BYTES) {
            memcpy(ret_sent, bytes[i], sizeof(*ret_sent));
            *ret_ended = true;
        } else if (messages[i].msg_len > 1) { /* not the first one, which only shows the way */
            count += here;
        }
    }
    return count;
}

static void tell(int fd, const struct told *told)
{
    unsigned char bytes[END_BYTES] = {0};

    memcpy(bytes, told, sizeof(*told));
    if (send(fd, bytes, sizeof(bytes), 0) < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
        fail("send");
}

/* Until the sender's last word, and then as long as it says it again. */
static struct told receive(int fd, struct told *ret_sent)
{
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    struct told told = {0, 0};
    uint64_t first = 0, last = 0;
    bool ended = false;

    while (poll(&waiting, 1, ended ? SILENCE_MS : PATIENCE_MS) > 0) {
        bool again = false;
        uint64_t count = take_some(fd, &again, ret_sent);

        if (count) {
            last = now();
            if (!first)
                first = last;
            told.count += count;
            told.nanoseconds = last - first;
        }
        ended |= again;
        if (again)
            tell(fd, &told);
    }
    if (!ended)
        fail("the sender never ends");
    return told;
}

/* What the receiver says once it has heard that this is the end. */
static struct told ask_received(int fd, const struct told *sent)
{
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    struct told received = {0, 0};
    bool answered = false;

    for (int tries = 0; !answered && tries < PATIENCE_MS / AGAIN_MS; tries++) {
        tell(fd, sent);
        if (poll(&waiting, 1, AGAIN_MS) > 0)
            take_some(fd, &answered, &received);
    }
    if (!answered)
        fail("the receiver never answers");
    return received;
}

static int datagram_socket(const struct run *run)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1, size = (int)run->size, buffer = (int)run->buffer;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer)) ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
        fail("socket");
    if (run->joined && (setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof(size)) ||
                        setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof(on))))
        fail("UDP_SEGMENT");
    return fd;
}

static void serve_one(int control, const struct sockaddr_in *at)
{
    struct sockaddr_in from;
    socklen_t length = sizeof(from);
    struct told sent;
    struct run run;
    char hello;

    read_all(control, &run, sizeof(run));
    int fd = datagram_socket(&run);
    if (bind(fd, (const void *)at, sizeof(*at)))
        fail("bind");
    write_all(control, "r", 1);
    if (recvfrom(fd, &hello, 1, 0, (void *)&from, &length) < 0 || connect(fd, (void *)&from, length))
        fail("no first datagram");
    write_all(control, "g", 1);
    if (run.server_sends) {
        sent = send_paced(fd, &run);
        ask_received(fd, &sent);
    } else {
        receive(fd, &sent);
    }
    close(fd);
}

static int serve(const struct sockaddr_in *at)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
        bind(listener, (const void *)at, sizeof(*at)) || listen(listener, 1))
        fail("listen");
    for (;;) {
        int control = accept(listener, NULL, NULL);

        if (control < 0)
            fail("accept");
        serve_one(control, at);
        close(control);
    }
}

static int ask(const struct sockaddr_in *to, const struct run *run)
{
    int control = socket(AF_INET, SOCK_STREAM, 0), fd = datagram_socket(run);
    struct told sent, received;
    char answer;

    if (control < 0 || connect(control, (const void *)to, sizeof(*to)) || connect(fd, (const void *)to, sizeof(*to)))
        fail("connect");
    write_all(control, run, sizeof(*run));
    read_all(control, &answer, 1);
    struct pollfd waiting = {.fd = control, .events = POLLIN};
    for (int tries = 0; tries == 0 || (tries < 20 && !poll(&waiting, 1, 100)); tries++)
        write_all(fd, "h", 1);
    read_all(control, &answer, 1);
    if (run->server_sends) {
        received = receive(fd, &sent);
    } else {
        sent = send_paced(fd, run);
        received = ask_received(fd, &sent);
    }
    printf("sent %" PRIu64 " in %.6f s, received %" PRIu64 " in %.6f s\n", sent.count, (double)sent.nanoseconds / 1e9,
           received.count, (double)received.nanoseconds / 1e9);
    return 0;
}

int main(int argc, char **argv)
{
    bool server = argc == 4 && !strcmp(argv[1], "-l");
    struct sockaddr_in peer = {.sin_family = AF_INET};

    if ((!server && argc != 9) || inet_pton(AF_INET, argv[server ? 2 : 1], &peer.sin_addr) != 1) {
        fprintf(stderr,
                "pace_datagrams ADDRESS PORT send|receive SIZE RATE MILLISECONDS JOINED BUFFER, or -l ADDRESS PORT\n");
        return 2;
    }
    peer.sin_port = htons((unsigned short)atoi(argv[server ? 3 : 2]));
    if (server)
        return serve(&peer);
    struct run run = {(uint32_t)atoi(argv[4]), (uint32_t)atoi(argv[5]), (uint32_t)atoi(argv[6]),
                      (uint32_t)atoi(argv[7]), (uint32_t)atoi(argv[8]), !strcmp(argv[3], "receive")};
    return ask(&peer, &run);
}
