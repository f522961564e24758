/* SPDX-License-Identifier: Apache-2.0
 *
 * host_address.c: the redirections of the net view, for flows of every protocol.
 */
#include "host_address.h"

#include <netinet/in.h>
#include <string.h>

#include "gateway.h"

enum {
    DNS_PORT = 53,
    DNS_TLS_PORT = 853, /* RFC 7858, 3.1; and over QUIC RFC 9250, 4.1.1 */
};

bool host_address_mapped(const struct lg_net_view *view, const address *remote, uint16_t port, address *ret_real)
{
    static const address loopback4 = {.byte = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}};
    static const address loopback6 = {.byte = {[15] = 1}};

    if (port == DNS_PORT || port == DNS_TLS_PORT) {
        const uint8_t *host = address_is(view->dns_match4, remote)   ? view->dns_host4
                              : address_is(view->dns_match6, remote) ? view->dns_host6
                                                                     : NULL;
        if (host) {
            *ret_real = address_from(host);
            return true;
        }
    }
    if (address_is(view->map_host4, remote))
        *ret_real = loopback4;
    else if (address_is(view->map_host6, remote) ||
             (view->flags & LG_VIEW_MAP_ROUTER && address_is(view->our_link_local, remote)))
        *ret_real = loopback6;
    else if (address_is(view->map_guest4, remote))
        *ret_real = address_from(view->guest4);
    else if (address_is(view->map_guest6, remote))
        *ret_real = address_from(view->guest6);
    else
        return gateway_translates(view, remote, ret_real);
    return true;
}

static address translated(const struct lg_net_view *view, const address *remote, uint16_t port)
{
    address real;

    return host_address_mapped(view, remote, port, &real) ? real : *remote;
}

unsigned host_address_names(const struct lg_net_view *view, const address *remote, uint16_t port,
                            address ret_name[HOST_ADDRESS_NAMES])
{
    bool ipv4 = address_is_ipv4(remote);
    address to = translated(view, remote, port);
    const address candidate[HOST_ADDRESS_NAMES] = {
        to,
        address_from(ipv4 ? view->dns_match4 : view->dns_match6),
        address_from(ipv4 ? view->map_host4 : view->map_host6),
        address_from(ipv4 ? view->map_guest4 : view->map_guest6),
        address_from(view->our_link_local),
    };
    unsigned names = 0;

    for (unsigned i = 0; i < HOST_ADDRESS_NAMES; i++) {
        address leads_to = translated(view, &candidate[i], port);
        if (address_equal(&leads_to, &to))
            ret_name[names++] = candidate[i];
    }
    return names;
}

socklen_t address_to_host(const address *a, uint16_t port, uint32_t scope_id, struct sockaddr_storage *ret_addr)
{
    memset(ret_addr, 0, sizeof(*ret_addr));
    if (address_is_ipv4(a)) {
        struct sockaddr_in *in = (struct sockaddr_in *)ret_addr;
        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        memcpy(&in->sin_addr, a->byte + 12, sizeof(in->sin_addr));
        return sizeof(*in);
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret_addr;
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(port);
    memcpy(&in6->sin6_addr, a->byte, sizeof(in6->sin6_addr));
    if (address_is_link_local(a) || (address_is_multicast(a) && (a->byte[1] & 15) <= 2))
        in6->sin6_scope_id = scope_id; /* of a unicast or multicast address that means nothing without its link */
    return sizeof(*in6);
}

socklen_t host_address(const struct lg_net_view *view, const address *remote, uint16_t port,
                       struct sockaddr_storage *ret_addr)
{
    address to = translated(view, remote, port);

    return address_to_host(&to, port, view->scope_id, ret_addr);
}

address address_from_host(const struct sockaddr *addr)
{
    static const address none;

    if (addr->sa_family == AF_INET)
        return address_from_ipv4((const uint8_t *)&((const struct sockaddr_in *)addr)->sin_addr);
    if (addr->sa_family == AF_INET6)
        return address_from((const uint8_t *)&((const struct sockaddr_in6 *)addr)->sin6_addr);
    return none;
}

uint16_t port_from_host(const struct sockaddr *addr)
{
    return ntohs(((const struct sockaddr_in *)(const void *)addr)->sin_port); /* sin6_port lies at the same place */
}
