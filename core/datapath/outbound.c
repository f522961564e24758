/* SPDX-License-Identifier: Apache-2.0
 *
 * outbound.c: the view's outbound interface and address, for sockets of every protocol. Without either, and without a
 * port to keep, the kernel chooses when the socket connects, and nothing is called here. And what a socket needs no more
 * whose peer is on this machine.
 */
#include "outbound.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

#include "host_address.h"
#include "sys.h"

#define UNPACED "reno" /* every kernel has it */

enum {
    CONGESTION_NAME_BYTES = 16, /* TCP_CA_NAME_MAX (linux/tcp.h, whose other names are those of netinet/tcp.h) */
};

bool outbound_stays_here(const struct lg_net_view *view, const address *to)
{
    return address_is_loopback(to) || address_is(view->guest4, to) || address_is(view->guest6, to);
}

/* How long its name is; 0: any will do. */
static size_t interface_for(const struct lg_net_view *view, const address *to, const char **ret_name)
{
    *ret_name = (const char *)(address_is_ipv4(to) ? view->outbound_if4 : view->outbound_if6);
    /* The host's own address takes its packets over the loopback interface: bound to another, a socket would wait for its
     * answers for ever. */
    return outbound_stays_here(view, to) ? 0 : strnlen(*ret_name, sizeof(view->outbound_if4));
}

static int choose_interface(const struct lg_net_view *view, int fd, const address *to)
{
    const char *name;
    size_t length = interface_for(view, to, &name);

    return length ? sys_setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)length) : 0;
}

/* Of the family of `to`. A loopback address reaches loopback addresses only, and others reach only others. */
static address choose_address(const struct lg_net_view *view, const address *to)
{
    static const address none6;
    static const address none4 = {.byte = {[10] = 0xff, [11] = 0xff}};
    address from = address_from(address_is_ipv4(to) ? view->outbound4 : view->outbound6);

    if (!address_is_unset(&from) && address_is_loopback(&from) == address_is_loopback(to))
        return from;
    return address_is_ipv4(to) ? none4 : none6;
}

static bool is_any(const address *a)
{
    return address_is_unset(a) || (address_is_ipv4(a) && !a->byte[12]);
}

bool outbound_is_chosen(const struct lg_net_view *view, const struct sockaddr_storage *to)
{
    const address destination = address_from_host((const struct sockaddr *)to);
    const address from = choose_address(view, &destination);
    const char *name;

    return !is_any(&from) || interface_for(view, &destination, &name);
}

int outbound_bind(const struct lg_net_view *view, int fd, const struct sockaddr_storage *to, uint16_t port)
{
    static const int one = 1;
    const address destination = address_from_host((const struct sockaddr *)to);
    const address from = choose_address(view, &destination);
    const bool any = is_any(&from);
    struct sockaddr_storage own;
    int err = choose_interface(view, fd, &destination);

    if (err)
        return -ENETUNREACH;
    if (any && !port)
        return 0;
    if (!port) /* the kernel chooses one at connect(), where it need only differ towards the same peer (ip(7)) */
        sys_setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
    socklen_t length = address_to_host(&from, port, view->scope_id, &own);
    err = sys_bind(fd, (const struct sockaddr *)&own, length);
    return err == -EADDRNOTAVAIL || err == -ENODEV ? -ENETUNREACH : err;
}

static void congestion_of(int fd, char ret_name[CONGESTION_NAME_BYTES])
{
    socklen_t length = CONGESTION_NAME_BYTES - 1;

    memset(ret_name, 0, CONGESTION_NAME_BYTES);
    sys_getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, ret_name, &length);
}

static int choose_congestion(int fd, const char *name)
{
    return sys_setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name));
}

bool outbound_can_unpace(int fresh)
{
    static const char paces[] = "bbr"; /* and bbr2, bbr3; no other that kernels bring spaces out what it sends */
    char name[CONGESTION_NAME_BYTES];

    congestion_of(fresh, name);
    return !strncmp(name, paces, sizeof(paces) - 1) && !choose_congestion(fresh, UNPACED) &&
           !choose_congestion(fresh, name);
}

void outbound_unpace(int fd)
{
    choose_congestion(fd, UNPACED);
}

void outbound_repace(int fd)
{
    char name[CONGESTION_NAME_BYTES];

    congestion_of(fd, name);
    if (strcmp(name, UNPACED) != 0)
        return; /* a route has chosen, or somebody else */
    int fresh = sys_socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fresh < 0)
        return;
    congestion_of(fresh, name);
    choose_congestion(fd, name);
    sys_close(fresh);
}
