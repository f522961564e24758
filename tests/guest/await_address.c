/* SPDX-License-Identifier: Apache-2.0
 *
 * await_address: waits in the guest until an interface has a usable global address of each family that is named.
 * Called by network-up.sh, before the interface goes up:  await_address SECONDS INTERFACE [inet] [inet6]
 * Adversary: nobody. Prints "inet 192.0.2.1/24" lines; status 1 when the time is over. busybox has no `ip monitor`, and a
 * loop that looks again and again would be a sleep in a test.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum family {
    INET,
    INET6,
    FAMILIES
};

static const char *const family_name[FAMILIES] = {"inet", "inet6"};

static void dump_request(int fd, int family)
{
    struct {
        struct nlmsghdr header;
        struct ifaddrmsg body;
    } request = {
        .header = {.nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETADDR, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .body = {.ifa_family = (unsigned char)family},
    };

    if (send(fd, &request, sizeof(request), 0) < 0)
        perror("await_address: netlink");
}

/* The bit of the family that this message settles, after printing its address; else 0. */
static unsigned settled(struct nlmsghdr *message, unsigned index, unsigned missing)
{
    struct ifaddrmsg *body = NLMSG_DATA(message);
    int length = (int)IFA_PAYLOAD(message);
    unsigned flags = body->ifa_flags;
    const void *address = NULL;
    char text[INET6_ADDRSTRLEN];
    enum family family = body->ifa_family == AF_INET ? INET : INET6;

    if (!(missing & 1u << family) || body->ifa_index != index || body->ifa_scope != RT_SCOPE_UNIVERSE)
        return 0;
    for (struct rtattr *attribute = IFA_RTA(body); RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length)) {
        if (attribute->rta_type == IFA_FLAGS)
            flags = *(unsigned *)RTA_DATA(attribute);
        if (attribute->rta_type == IFA_ADDRESS)
            address = RTA_DATA(attribute);
    }
    if (!address || (flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)))
        return 0;
    inet_ntop(body->ifa_family, address, text, sizeof(text));
    printf("%s %s/%u\n", family_name[family], text, body->ifa_prefixlen);
    return 1u << family;
}

static int milliseconds_left(const struct timespec *start, long seconds)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    long left = seconds * 1000 - (now.tv_sec - start->tv_sec) * 1000 - (now.tv_nsec - start->tv_nsec) / 1000000;

    return left > 0 ? (int)left : 0;
}

/* The families that a datagram of messages settles, as bits. */
static unsigned settled_by(int fd, unsigned index, unsigned missing)
{
    char buffer[16384] __attribute__((aligned(NLMSG_ALIGNTO)));
    unsigned found = 0;
    int length = (int)recv(fd, buffer, sizeof(buffer), 0);

    for (struct nlmsghdr *message = (void *)buffer; length > 0 && NLMSG_OK(message, (unsigned)length);
         message = NLMSG_NEXT(message, length)) {
        if (message->nlmsg_type == RTM_NEWADDR)
            found |= settled(message, index, missing & ~found);
    }
    return found;
}

int main(int argc, char **argv)
{
    struct sockaddr_nl group = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    unsigned index = argc > 2 ? if_nametoindex(argv[2]) : 0, missing = 0;
    struct timespec start;

    for (int i = 3; i < argc; i++)
        for (enum family family = INET; family < FAMILIES; family++)
            missing |= strcmp(argv[i], family_name[family]) == 0 ? 1u << family : 0;
    if (index == 0 || fd < 0 || bind(fd, (void *)&group, sizeof(group)) < 0) {
        fprintf(stderr, "await_address: SECONDS INTERFACE [inet] [inet6], with an interface that exists\n");
        return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &start);
    dump_request(fd, AF_UNSPEC); /* what is there already; what comes later is told to the group */
    while (missing) {
        struct pollfd readable = {.fd = fd, .events = POLLIN};

        if (poll(&readable, 1, milliseconds_left(&start, atol(argv[1]))) <= 0)
            return 1;
        missing &= ~settled_by(fd, index, missing);
    }
    return 0;
}
