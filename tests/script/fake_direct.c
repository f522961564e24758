/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_direct.c: calls of the fake kernel for the facts of datagrams, which speak to it without a core in between.
 *
 * Called by test_datagram_facts.py. Adversary: nobody.
 */
#include <time.h> /* errqueue.h needs it */

#include <linux/errqueue.h>

#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdalign.h>
#include <string.h>

#include "fake_kernel.h"
#include "host_address.h"
#include "sys.h"

enum {
    CONTROL_BYTES = 256,
};

static void copy(uint8_t to[16], const address *from)
{
    memcpy(to, from->byte, sizeof(from->byte));
}

static void note_control(const struct cmsghdr *c, struct fake_heard *heard)
{
    if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
        memcpy(&heard->segment, CMSG_DATA(c), sizeof(heard->segment));
    } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
        struct in_pktinfo info;
        memcpy(&info, CMSG_DATA(c), sizeof(info));
        address to = address_from_ipv4((const uint8_t *)&info.ipi_addr);
        address local = address_from_ipv4((const uint8_t *)&info.ipi_spec_dst);
        heard->where4 = true;
        copy(heard->to4, &to);
        copy(heard->local4, &local);
    } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
        struct in6_pktinfo info;
        memcpy(&info, CMSG_DATA(c), sizeof(info));
        heard->where6 = true;
        memcpy(heard->to6, &info.ipi6_addr, sizeof(heard->to6));
    }
}

struct fake_heard fake_hear(int fd, void *bytes, size_t length)
{
    alignas(struct cmsghdr) char control[CONTROL_BYTES];
    struct sockaddr_storage peer = {0};
    struct iovec iov = {bytes, length};
    struct mmsghdr message = {.msg_hdr = {.msg_name = &peer,
                                          .msg_namelen = sizeof(peer),
                                          .msg_iov = &iov,
                                          .msg_iovlen = 1,
                                          .msg_control = control,
                                          .msg_controllen = sizeof(control)}};
    int n = sys_recvmmsg(fd, &message, 1, MSG_DONTWAIT);
    struct fake_heard heard = {.length = n < 0 ? n : (int64_t)message.msg_len};

    if (n < 0)
        return heard;
    heard.cut = message.msg_hdr.msg_flags & MSG_TRUNC;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message.msg_hdr); c; c = CMSG_NXTHDR(&message.msg_hdr, c))
        note_control(c, &heard);
    address from = address_from_host((const struct sockaddr *)&peer);
    copy(heard.peer, &from);
    heard.port = ntohs(((const struct sockaddr_in *)(const void *)&peer)->sin_port); /* IPv6's lies there, too */
    return heard;
}

int64_t fake_hear_error(int fd, struct fake_path_error *ret_error)
{
    alignas(struct cmsghdr) char control[CONTROL_BYTES];
    uint8_t bytes[2048];
    struct iovec iov = {bytes, sizeof(bytes)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t n = sys_recvmsg(fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT);
    struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&msg);

    if (!c)
        return n;
    struct sock_extended_err *error = (struct sock_extended_err *)(void *)CMSG_DATA(c);
    address offender = address_from_host(SO_EE_OFFENDER(error));
    *ret_error = (struct fake_path_error){.error = (int)error->ee_errno,
                                          .origin = error->ee_origin,
                                          .type = error->ee_type,
                                          .code = error->ee_code,
                                          .info = error->ee_info};
    copy(ret_error->offender, &offender);
    return n;
}

int64_t fake_say(int fd, const void *bytes, size_t length, uint16_t segment)
{
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(segment))];
    struct iovec iov = {(void *)(uintptr_t)bytes, length};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &iov, .msg_iovlen = 1}};

    if (segment) {
        struct cmsghdr *c = (struct cmsghdr *)(void *)control;
        c->cmsg_level = IPPROTO_UDP;
        c->cmsg_type = UDP_SEGMENT;
        c->cmsg_len = CMSG_LEN(sizeof(segment));
        memcpy(CMSG_DATA(c), &segment, sizeof(segment));
        message.msg_hdr.msg_control = control;
        message.msg_hdr.msg_controllen = sizeof(control);
    }
    int n = sys_sendmmsg(fd, &message, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? n : (int64_t)message.msg_len;
}

int fake_bind(int fd, uint16_t port)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};

    return sys_bind(fd, (const struct sockaddr *)&any, sizeof(any));
}
