/* SPDX-License-Identifier: Apache-2.0
 *
 * client: one TCP connection out of the guest, with what a test must know about it.
 * Called by the test scripts in the guest:  client [-r REQUEST] [-e] [-t] ADDRESS PORT <input >output
 *   -r REQUEST  a line to send first
 *   -t          tells on stderr how long everything took, as "N ms"
 *   -e          input is sent only after the peer has closed its direction (its half-close must not end ours)
 * Adversary: nobody. Input is sent while output arrives; the end of the input closes our direction, and only that.
 * Status 0: both directions ended in order; 1: the connection broke; 3: it never came about. Errors go to stderr as
 * "connect: NUMBER TEXT after N ms", measured with the guest's own clock. (busybox nc ends at the peer's half-close.)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    STATUS_BROKEN = 1,
    STATUS_USAGE = 2,
    STATUS_NO_CONNECTION = 3,
    BUFFER_BYTES = 1 << 18
};

struct transfer {
    int socket_fd;
    bool after_eof;   /* see -e */
    bool input_open;  /* our direction */
    bool output_open; /* the peer's */
    char buffer[BUFFER_BYTES];
    size_t start, end; /* what is to be sent */
};

static struct timespec began;

static long milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000;
}

static _Noreturn void fail(int status, const char *what)
{
    int error = errno;

    fprintf(stderr, "%s: %d %s after %ld ms\n", what, error, strerror(error), milliseconds());
    exit(status);
}

/* Length of the socket address for "192.0.2.1", "fd00::1" or "fe80::1%eth0"; 0 if it is none of these. */
static socklen_t parse_address(char *text, unsigned short port, struct sockaddr_storage *ret_address)
{
    struct sockaddr_in *ipv4 = (void *)ret_address;
    struct sockaddr_in6 *ipv6 = (void *)ret_address;

    if (inet_pton(AF_INET, text, &ipv4->sin_addr) == 1) {
        ipv4->sin_family = AF_INET;
        ipv4->sin_port = htons(port);
        return sizeof(*ipv4);
    }
    char *scope = strchr(text, '%');

    if (scope) {
        *scope++ = '\0';
        ipv6->sin6_scope_id = if_nametoindex(scope);
    }
    if (inet_pton(AF_INET6, text, &ipv6->sin6_addr) != 1)
        return 0;
    ipv6->sin6_family = AF_INET6;
    ipv6->sin6_port = htons(port);
    return sizeof(*ipv6);
}

static int connect_to(char *address, const char *port)
{
    struct sockaddr_storage to = {0};
    socklen_t length = parse_address(address, (unsigned short)atoi(port), &to);

    if (length == 0) {
        fprintf(stderr, "client: %s: expected an IPv4 or IPv6 address\n", address);
        exit(STATUS_USAGE);
    }
    int fd = socket(to.ss_family, SOCK_STREAM, 0);

    if (fd < 0 || connect(fd, (void *)&to, length) < 0)
        fail(STATUS_NO_CONNECTION, "connect");
    return fd;
}

static void write_all(const char *data, size_t size)
{
    while (size > 0) {
        ssize_t written = write(STDOUT_FILENO, data, size);

        if (written < 0)
            fail(STATUS_BROKEN, "output");
        data += written;
        size -= (size_t)written;
    }
}

static void receive(struct transfer *transfer)
{
    static char data[BUFFER_BYTES];
    ssize_t length = recv(transfer->socket_fd, data, sizeof(data), MSG_DONTWAIT);

    if (length < 0 && errno != EAGAIN)
        fail(STATUS_BROKEN, "receive");
    if (length == 0)
        transfer->output_open = false;
    if (length > 0)
        write_all(data, (size_t)length);
}

static void read_input(struct transfer *transfer)
{
    ssize_t length = read(STDIN_FILENO, transfer->buffer, BUFFER_BYTES);

    if (length < 0)
        fail(STATUS_BROKEN, "input");
    transfer->start = 0;
    transfer->end = (size_t)length;
    if (length == 0) {
        transfer->input_open = false;
        if (shutdown(transfer->socket_fd, SHUT_WR) < 0)
            fail(STATUS_BROKEN, "shutdown");
    }
}

static void send_some(struct transfer *transfer)
{
    size_t left = transfer->end - transfer->start;
    ssize_t sent = send(transfer->socket_fd, transfer->buffer + transfer->start, left, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent < 0 && errno != EAGAIN)
        fail(STATUS_BROKEN, "send");
    transfer->start += sent > 0 ? (size_t)sent : 0;
}

/* What the socket is watched for. Nothing, once all is sent and received: POLLHUP would come for ever. */
static short socket_events(const struct transfer *transfer)
{
    return (short)((transfer->output_open ? POLLIN : 0) | (transfer->start < transfer->end ? POLLOUT : 0));
}

static bool input_wanted(const struct transfer *transfer)
{
    if (transfer->after_eof && transfer->output_open)
        return false;
    return transfer->input_open && transfer->start == transfer->end;
}

static void run(struct transfer *transfer)
{
    while (transfer->output_open || transfer->input_open) {
        short events = socket_events(transfer);
        struct pollfd watched[2] = {
            {.fd = events ? transfer->socket_fd : -1, .events = events},
            {.fd = input_wanted(transfer) ? STDIN_FILENO : -1, .events = POLLIN},
        };

        if (poll(watched, 2, -1) < 0)
            fail(STATUS_BROKEN, "poll");
        if (watched[0].revents & ~POLLOUT && transfer->output_open)
            receive(transfer);
        if (watched[0].revents & (POLLOUT | POLLERR) && events & POLLOUT)
            send_some(transfer);
        if (watched[1].revents)
            read_input(transfer);
    }
}

int main(int argc, char **argv)
{
    static struct transfer transfer = {.input_open = true, .output_open = true};
    const char *request = NULL;
    bool timed = false;
    int option;

    while ((option = getopt(argc, argv, "r:et")) != -1) {
        if (option == 'r')
            request = optarg;
        else if (option == 'e')
            transfer.after_eof = true;
        else if (option == 't')
            timed = true;
        else
            return STATUS_USAGE;
    }
    if (argc - optind != 2) {
        fprintf(stderr, "client [-r REQUEST] [-e] [-t] ADDRESS PORT <input >output\n");
        return STATUS_USAGE;
    }
    clock_gettime(CLOCK_MONOTONIC, &began);
    transfer.socket_fd = connect_to(argv[optind], argv[optind + 1]);
    if (request)
        transfer.end = (size_t)snprintf(transfer.buffer, BUFFER_BYTES, "%s\n", request);
    run(&transfer);
    if (timed)
        fprintf(stderr, "%ld ms\n", milliseconds());
    return 0;
}
