/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_option.c: setsockopt() of the fake kernel's sockets, as a table of what is modelled.
 *
 * Called by the core through sys.h. Adversary: nobody. Invariant: an option that is not here is a violation, never a silent
 * success.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stddef.h>
#include <string.h>

#include "fake_kernel.h"
#include "sys.h"

/* Options of one number each: where the number is kept; NULL: nowhere, for nothing here depends on it. */
struct number_option {
    int family, level, name; /* family 0: both */
    size_t bytes, offset;    /* of the member; 0: not kept */
};

#define KEPT(member) sizeof(((struct fake_socket *)0)->member), offsetof(struct fake_socket, member)

static const struct number_option options[] = {
    {0, IPPROTO_TCP, TCP_NODELAY, KEPT(nodelay)},
    {0, IPPROTO_TCP, TCP_QUICKACK, KEPT(quick_ack)},
    {0, SOL_SOCKET, SO_OOBINLINE, KEPT(oob_inline)},
    {0, SOL_SOCKET, SO_KEEPALIVE, KEPT(keepalive)},
    {0, SOL_SOCKET, SO_RCVLOWAT, KEPT(low_water)},
    {AF_INET, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 0, 0},
    {AF_INET, IPPROTO_IP, IP_TTL, KEPT(hops)},
    {AF_INET6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, KEPT(hops)},
    {AF_INET, IPPROTO_IP, IP_TOS, KEPT(traffic_class)},
    {AF_INET6, IPPROTO_IPV6, IPV6_TCLASS, KEPT(traffic_class)},
    {AF_INET, IPPROTO_IP, IP_RECVERR, KEPT(receive_errors)},
    {AF_INET6, IPPROTO_IPV6, IPV6_RECVERR, KEPT(receive_errors)},
    {0, SOL_SOCKET, SO_REUSEADDR, KEPT(reuse_address)},
    {0, SOL_SOCKET, SO_BROADCAST, KEPT(broadcast)},
    {AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, KEPT(ipv6_only)},
    {0, IPPROTO_UDP, UDP_GRO, KEPT(receive_segments)},
    {AF_INET, IPPROTO_IP, IP_FREEBIND, KEPT(freebind)},
    {AF_INET6, IPPROTO_IPV6, IPV6_FREEBIND, KEPT(freebind)},
    {0, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 0, 0},
    {0, IPPROTO_IP, IP_PKTINFO, KEPT(packet_info4)},
    {AF_INET6, IPPROTO_IPV6, IPV6_RECVPKTINFO, KEPT(packet_info6)},
    {AF_INET, IPPROTO_IP, IP_MULTICAST_ALL, KEPT(all_groups)},
    {AF_INET6, IPPROTO_IPV6, IPV6_MULTICAST_ALL, KEPT(all_groups)},
    {AF_INET, IPPROTO_IP, IP_MULTICAST_TTL, 0, 0},
    {AF_INET6, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 0, 0},
};

/* [tcp_set_rcvlowat] */
static void low_water_set(struct fake_socket *socket)
{
    if (socket->low_water > socket->low_water_limit)
        socket->low_water = socket->low_water_limit;
    if (fake_socket_readable(socket))
        fake_socket_wake(socket, EPOLLIN | EPOLLPRI);
    if (socket->receive_limit < socket->low_water)
        socket->receive_limit = socket->low_water; /* and stays so */
}

/* False: not modelled. */
static bool set_number(struct fake_socket *socket, int level, int name, int value)
{
    if (socket->datagrams && level == SOL_SOCKET && name == SO_RCVBUF)
        return true; /* TCP's would end the kernel's tuning */
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        const struct number_option *option = &options[i];
        if (option->level != level || option->name != name || (option->family && option->family != socket->family))
            continue;
        uint8_t *member = (uint8_t *)socket + option->offset;
        if (option->bytes == sizeof(bool))
            *(bool *)member = value;
        else if (option->bytes)
            memcpy(member, &value, sizeof(value));
        if (option->offset == offsetof(struct fake_socket, low_water))
            low_water_set(socket);
        return true;
    }
    return false;
}

/* Those that are no number. False: not modelled. */
static bool set_other(struct fake_socket *socket, int level, int name, const void *value, socklen_t length)
{
    if (level == SOL_SOCKET && name == SO_LINGER && length == sizeof(struct linger)) {
        const struct linger *linger = value;
        socket->linger_hard = linger->l_onoff && !linger->l_linger;
        return true;
    }
    if (level == IPPROTO_TCP && name == TCP_CONGESTION && length < sizeof(socket->congestion)) {
        memset(socket->congestion, 0, sizeof(socket->congestion));
        memcpy(socket->congestion, value, length);
        socket->congestion_late = socket->state != FAKE_IDLE;
        return true;
    }
    return false;
}

int sys_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    int err = fake_called(CALL_setsockopt);
    struct fake_socket *socket = fake_socket_of(fd, "setsockopt");
    int number = 0;

    if (err || !socket)
        return err ? err : -EBADF;
    memcpy(&number, value, length < sizeof(number) ? length : sizeof(number));
    if (level == SOL_SOCKET && name == SO_PEEK_OFF) {
        if (!fake_has_peek_off())
            return -EOPNOTSUPP;
        socket->peek_offset = number;
    } else if (!set_other(socket, level, name, value, length) &&
               (length != sizeof(int) || !set_number(socket, level, name, number))) {
        fake_violate("setsockopt(): level %d, option %d is not modelled", level, name);
        return -ENOPROTOOPT;
    }
    return 0;
}
