/* SPDX-License-Identifier: Apache-2.0
 *
 * pace_queries IPV4-ADDRESS PORT NAME EXPECTED RATE MILLISECONDS: asks that resolver for the IPv4 address of NAME,
 *   RATE times a second, and measures how long each answer takes.
 *
 * Nothing waits for an answer before the next query goes, so a resolver that falls behind is seen to do so. From
 * several ports in turn, because programs take a new one for each query, and a helper may keep something for each. An
 * answer's time begins when its query is sent, not when it was due: a guest that is late is not the helper's fault.
 *
 * Runs in the guest. Prints "sent N in S s, answered M, half within A us, 99 % within B us" and ends with 0, or says
 * what went wrong and ends with 1: an answer that is not EXPECTED is no answer. Adversary: nobody. Why not dnsperf: it
 * knows no percentiles, and it is threads and libraries that a guest under emulation would have to carry.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    SOCKETS = 16,
    IDS = 1 << 16,
    QUERIES_MAX = 1 << 20,
    HEADER_BYTES = 12,
    LABEL_BYTES_MAX = 63,
    BYTES_MAX = 512, /* of a message over UDP, without EDNS */
    BATCH = 32,      /* a guest that is late looks for answers after so many */
};

static const uint64_t SECOND = 1000000000, PATIENCE = 2 * SECOND;

struct asking {
    struct pollfd sockets[SOCKETS];
    unsigned char query[BYTES_MAX];
    size_t length;
    struct in_addr expected;
    uint64_t sent_at[IDS]; /* 0: no answer is due */
    uint32_t microseconds[QUERIES_MAX];
    uint32_t sent, answered;
};

static _Noreturn void fail(const char *what, const char *why)
{
    printf("pace_queries: %s: %s\n", what, why);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * SECOND + (uint64_t)at.tv_nsec;
}

/* One question of type A and class IN, with recursion desired; RFC 1035, 4.1. */
static void make_query(struct asking *asking, const char *name)
{
    static const unsigned char header[HEADER_BYTES] = {[2] = 1, [5] = 1}, tail[] = {0, 0, 1, 0, 1};

    if (HEADER_BYTES + 1 + strlen(name) + sizeof(tail) > BYTES_MAX)
        fail(name, "too long for a name");
    memcpy(asking->query, header, sizeof(header));
    asking->length = HEADER_BYTES;
    while (*name) {
        size_t label = strcspn(name, ".");

        if (label == 0 || label > LABEL_BYTES_MAX)
            fail(name, "expected labels of 1 to 63 bytes");
        asking->query[asking->length] = (unsigned char)label;
        memcpy(asking->query + asking->length + 1, name, label);
        asking->length += 1 + label;
        name += label + (name[label] == '.');
    }
    memcpy(asking->query + asking->length, tail, sizeof(tail));
    asking->length += sizeof(tail);
}

static void ask(struct asking *asking)
{
    uint16_t id = (uint16_t)asking->sent;
    unsigned char bytes[2] = {(unsigned char)(id >> 8), (unsigned char)id};

    memcpy(asking->query, bytes, sizeof(bytes));
    asking->sent_at[id] = now();
    if (send(asking->sockets[id % SOCKETS].fd, asking->query, asking->length, 0) < 0)
        fail("send", strerror(errno));
    asking->sent++;
}

/* The question, and behind it one record that ends with the address. */
static bool is_expected(const struct asking *asking, const unsigned char *bytes, size_t length)
{
    static const unsigned char counts[] = {0, 1, 0, 1, 0, 0, 0, 0};
    size_t question = asking->length - HEADER_BYTES;

    return length >= asking->length + sizeof(asking->expected) && (bytes[2] & 0x80) && (bytes[3] & 0x0f) == 0 &&
           !memcmp(bytes + 4, counts, sizeof(counts)) &&
           !memcmp(bytes + HEADER_BYTES, asking->query + HEADER_BYTES, question) &&
           !memcmp(bytes + length - sizeof(asking->expected), &asking->expected, sizeof(asking->expected));
}

static void take_answers(struct asking *asking, int index)
{
    unsigned char bytes[BYTES_MAX];
    ssize_t length;

    while ((length = recv(asking->sockets[index].fd, bytes, sizeof(bytes), MSG_DONTWAIT)) >= 0) {
        uint32_t id = length >= HEADER_BYTES ? (uint32_t)bytes[0] << 8 | bytes[1] : 0;

        if (length < HEADER_BYTES || id % SOCKETS != (uint32_t)index || !asking->sent_at[id])
            continue;
        if (!is_expected(asking, bytes, (size_t)length))
            fail("an answer", (bytes[3] & 0x0f) ? "it is an error" : "it is not the expected address");
        asking->microseconds[asking->answered++] = (uint32_t)((now() - asking->sent_at[id]) / 1000);
        asking->sent_at[id] = 0;
    }
    if (errno != EAGAIN)
        fail("recv", strerror(errno));
}

static void wait_for_answers(struct asking *asking, uint64_t nanoseconds)
{
    struct timespec wait = {(time_t)(nanoseconds / SECOND), (long)(nanoseconds % SECOND)};

    if (ppoll(asking->sockets, SOCKETS, &wait, NULL) < 0)
        fail("ppoll", strerror(errno));
    for (int i = 0; i < SOCKETS; i++) {
        if (asking->sockets[i].revents)
            take_answers(asking, i);
    }
}

/* How long it took to send them. */
static uint64_t ask_paced(struct asking *asking, uint32_t rate, uint64_t length)
{
    uint64_t began = now(), passed;

    while ((passed = now() - began) < length) {
        uint32_t due = (uint32_t)((double)passed * rate / (double)SECOND) + 1;

        for (int i = 0; i < BATCH && asking->sent < due; i++)
            ask(asking);
        uint64_t next = asking->sent * SECOND / rate;
        passed = now() - began;
        wait_for_answers(asking, next > passed ? next - passed : 0);
    }
    return passed;
}

static int in_order(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

    return (a > b) - (a < b);
}

static uint32_t percentile(const struct asking *asking, uint32_t percent)
{
    uint64_t within = ((uint64_t)asking->answered * percent + 99) / 100;

    return within ? asking->microseconds[within - 1] : 0;
}

int main(int argc, char **argv)
{
    static struct asking asking;
    struct sockaddr_in server = {.sin_family = AF_INET};
    uint32_t rate = argc == 7 ? (uint32_t)atoi(argv[5]) : 0;
    uint64_t length = argc == 7 ? (uint64_t)atoi(argv[6]) * 1000000 : 0;

    if (argc != 7 || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1 ||
        inet_pton(AF_INET, argv[4], &asking.expected) != 1 || rate == 0 ||
        (double)length * rate / (double)SECOND + 1 > QUERIES_MAX) {
        fprintf(stderr, "pace_queries ADDRESS PORT NAME EXPECTED RATE MILLISECONDS, of at most %d queries\n",
                QUERIES_MAX);
        return 2;
    }
    server.sin_port = htons((unsigned short)atoi(argv[2]));
    make_query(&asking, argv[3]);
    for (int i = 0; i < SOCKETS; i++) {
        asking.sockets[i] = (struct pollfd){.fd = socket(AF_INET, SOCK_DGRAM, 0), .events = POLLIN};
        if (asking.sockets[i].fd < 0 || connect(asking.sockets[i].fd, (const void *)&server, sizeof(server)))
            fail("connect", strerror(errno));
    }
    uint64_t sending = ask_paced(&asking, rate, length), over = now() + PATIENCE;
    for (uint64_t at; asking.answered < asking.sent && (at = now()) < over;)
        wait_for_answers(&asking, over - at);
    qsort(asking.microseconds, asking.answered, sizeof(asking.microseconds[0]), in_order);
    printf("sent %" PRIu32 " in %.6f s, answered %" PRIu32 ", half within %" PRIu32 " us, 99 %% within %" PRIu32
           " us\n",
           asking.sent, (double)sending / (double)SECOND, asking.answered, percentile(&asking, 50),
           percentile(&asking, 99));
    return 0;
}
