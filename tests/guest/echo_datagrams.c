/* SPDX-License-Identifier: Apache-2.0
 *
 * echo_datagrams ADDRESS PORT SIZE...: sends a UDP datagram of each size from one socket and waits for the same bytes.
 * echo_datagrams -s EACH ADDRESS PORT SIZE...: of each size several datagrams in one call, of EACH bytes but for the last
 *   (UDP_SEGMENT), which may be read joined (UDP_GRO).
 * echo_datagrams -l PORT: sends each datagram back to whoever sent it, over either family, until it is killed.
 *
 * Runs in the guest. Prints "echoed N" and ends with 0, or says what went wrong first and ends with 1: "send E", "receive E"
 * (numbers of errno), "other bytes", "silence".
 */
#define _GNU_SOURCE /* addrinfo, in strict C11 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    PATIENCE_MS = 5000,
    BYTES_MAX = 65536,
};

static int fail(const char *what, int error)
{
    if (error)
        printf("%s %d\n", what, error);
    else
        printf("%s\n", what);
    return 1;
}

static int echo(int fd, size_t size, int each)
{
    static unsigned char sent[BYTES_MAX], received[BYTES_MAX];
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    for (size_t i = 0; i < size; i++)
        sent[i] = (unsigned char)(i * 31 + size);
    if (send(fd, sent, size, 0) < 0)
        return fail("send", errno);
    size_t got = 0;
    do { /* one datagram, unless several were sent */
        if (poll(&poll_fd, 1, PATIENCE_MS) != 1)
            return fail("silence", 0);
        ssize_t n = recv(fd, received + got, sizeof(received) - got, 0);
        if (n < 0)
            return fail("receive", errno);
        got += (size_t)n;
    } while (each && got < size);
    return got == size && !memcmp(sent, received, size) ? 0 : fail("other bytes", 0);
}

static int serve(const char *port)
{
    static unsigned char bytes[BYTES_MAX];
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((unsigned short)atoi(port))};
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);

    if (fd < 0 || bind(fd, (const struct sockaddr *)&any, sizeof(any)))
        return fail("bind", errno);
    for (;;) {
        struct sockaddr_in6 from;
        socklen_t length = sizeof(from);
        ssize_t n = recvfrom(fd, bytes, sizeof(bytes), 0, (struct sockaddr *)&from, &length);
        if (n < 0 || sendto(fd, bytes, (size_t)n, 0, (const struct sockaddr *)&from, length) < 0)
            return fail("serve", errno);
    }
}

/* A socket towards the peer, which sends datagrams of `each` bytes if that is not 0; -1 with errno. */
static int connected(const struct addrinfo *to, int each)
{
    static const int on = 1;
    int fd = socket(to->ai_family, SOCK_DGRAM, 0);

    if (fd < 0 || connect(fd, to->ai_addr, to->ai_addrlen))
        return -1;
    if (each && (setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &each, sizeof(each)) ||
                 setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof(on))))
        return -1;
    return fd;
}

int main(int argc, char **argv)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *to;
    int each = 0;

    if (argc == 3 && !strcmp(argv[1], "-l"))
        return serve(argv[2]);
    if (argc > 3 && !strcmp(argv[1], "-s")) {
        each = atoi(argv[2]);
        argv += 2;
        argc -= 2;
    }
    if (argc < 4 || getaddrinfo(argv[1], argv[2], &hints, &to))
        return fail("usage: echo_datagrams [-s EACH] ADDRESS PORT SIZE... or -l PORT", 0);
    int fd = connected(to, each);
    if (fd < 0)
        return fail("connect", errno);
    for (int i = 3; i < argc; i++) {
        if (echo(fd, strtoul(argv[i], NULL, 10), each))
            return 1;
    }
    printf("echoed %d\n", argc - 3);
    return 0;
}
