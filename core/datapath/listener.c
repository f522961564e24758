/* SPDX-License-Identifier: Apache-2.0
 *
 * listener.c: the table of listener.h, and whom the guest sees in a peer.
 *
 * A TCP listener is edge-triggered: without a descriptor for what waits there, nobody is to spin on it. A UDP one is not:
 * its datagrams are always taken, unless the link is full, and then it is not watched (datagram_accept.c).
 */
#include "listener.h"

#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>

#include "engine.h"
#include "host_address.h"
#include "pages.h"
#include "sys.h"

static const int one = 1, queue = DATAGRAM_QUEUE_BYTES;

int listener_table_init(struct listener_table *table, uint64_t source)
{
    *table =
        (struct listener_table){.listener = pages_reserve(LISTENERS_MAX * sizeof(struct listener)), .source = source};
    return table->listener ? 0 : -ENOMEM;
}

void listener_table_free(struct listener_table *table)
{
    for (uint32_t slot = 0; slot < table->used; slot++) {
        if (listener_at(table, slot))
            sys_close(table->listener[slot].fd);
    }
    table->used = 0;
    pages_free(table->listener, LISTENERS_MAX * sizeof(struct listener));
    table->listener = NULL;
}

/* To what the socket of a port for datagrams is bound. */
static void learn_own(struct listener *listener)
{
    struct sockaddr_storage own = {0};
    char interface[IFNAMSIZ];
    int only = 0, fd = listener->fd;
    socklen_t length = sizeof(own), interface_length = sizeof(interface), only_length = sizeof(only);

    sys_getsockname(fd, (struct sockaddr *)&own, &length);
    listener->own_port = port_from_host((const struct sockaddr *)&own);
    address at = address_from_host((const struct sockaddr *)&own);
    bool ipv4 = address_is_ipv4(&at), any = ipv4 ? !at.byte[12] : address_is_unset(&at);

    if (!any || sys_getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, interface, &interface_length) || interface_length)
        return;
    if (!ipv4)
        sys_getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, &only_length);
    listener->any4 = ipv4 || !only;
    listener->any6 = !ipv4;
}

static uint32_t interest_in(const struct listener *listener)
{
    return EPOLLIN | (listener->protocol == IPPROTO_TCP ? (uint32_t)EPOLLET : 0);
}

int listener_add(struct listener_table *table, int epoll_fd, uint32_t slot, const struct listener *listener)
{
    if (slot >= LISTENERS_MAX)
        return -EINVAL;
    if (listener_at(table, slot))
        return -EEXIST;
    if (listener->protocol == IPPROTO_UDP) { /* refused or not: it is only quicker so */
        sys_setsockopt(listener->fd, IPPROTO_UDP, UDP_GRO, &one, sizeof(one));
        sys_setsockopt(listener->fd, SOL_SOCKET, SO_RCVBUF, &queue, sizeof(queue));
    }
    int err = sys_epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener->fd, interest_in(listener), table->source + slot);
    if (err)
        return err;
    table->listener[slot] = *listener;
    if (listener->protocol == IPPROTO_UDP)
        learn_own(&table->listener[slot]);
    if (table->used <= slot)
        table->used = slot + 1;
    return 0;
}

/* The same interest once more makes the kernel look at the socket anew (epoll_ctl(2), EPOLL_CTL_MOD), without a list of
 * ours that would have to outlive the listener, and after what other sockets have had to say. */
void listener_look_again(const struct listener_table *table, int epoll_fd, const struct listener *listener)
{
    sys_epoll_ctl(epoll_fd, EPOLL_CTL_MOD, listener->fd, interest_in(listener),
                  table->source + listener_slot(table, listener));
}

void listener_close(struct listener_table *table, int epoll_fd, uint32_t slot)
{
    struct listener *listener = listener_at(table, slot);

    if (!listener)
        return;
    /* Others hold the same socket: closing ours alone would leave it in epoll (epoll(7), questions 1 and 6). */
    sys_epoll_ctl(epoll_fd, EPOLL_CTL_DEL, listener->fd, 0, 0);
    sys_close(listener->fd);
    node_leave(&listener->waiting);
    *listener = (struct listener){.fd = -1};
}

struct listener *listener_at(const struct listener_table *table, uint64_t slot)
{
    return slot < table->used && table->listener[slot].protocol ? &table->listener[slot] : NULL;
}

uint32_t listener_slot(const struct listener_table *table, const struct listener *listener)
{
    return (uint32_t)(listener - table->listener);
}

struct listener *listener_of(const struct listener_table *table, uint64_t data)
{
    return data >= table->source ? listener_at(table, data - table->source) : NULL;
}

/* The host's loopback address itself, which the guest knows by another name. */
static bool is_host(const address *a)
{
    static const uint8_t loopback4[4] = {127, 0, 0, 1};

    return address_is_loopback(a) && (!address_is_ipv4(a) || !memcmp(a->byte + 12, loopback4, sizeof(loopback4)));
}

/* The host's own address, which the guest has as well. */
static bool is_shared(const struct lg_net_view *view, const address *a)
{
    static const uint8_t none[16];

    if (address_is(view->guest4, a) || address_is(view->guest6, a))
        return true;
    for (unsigned i = 0; i < LG_SHARED_MAX && memcmp(view->shared[i], none, sizeof(none)); i++)
        if (address_is(view->shared[i], a))
            return true;
    return false;
}

static bool is_guests(const struct engine *engine, const address *a)
{
    const struct lg_seen *seen = &engine->seen;

    return is_shared(&engine->view, a) || address_is(seen->addr4, a) || address_is(seen->addr6, a) ||
           address_is(seen->link_local, a);
}

/* Whom the guest sees: the peer itself, but for addresses that would mean the guest to the guest, or nobody. */
static address shown_source(const struct engine *engine, const address *peer)
{
    const struct lg_net_view *view = &engine->view;
    bool ipv4 = address_is_ipv4(peer);

    if (is_host(peer) && !(view->flags & LG_VIEW_VIRTUAL)) { /* there it is the gateway that speaks for the host */
        address mapped = address_from(ipv4 ? view->map_host4 : view->map_host6);
        if (!address_is_unset(&mapped))
            return mapped;
    }
    if (is_shared(view, peer)) {
        address mapped = address_from(ipv4 ? view->map_guest4 : view->map_guest6);
        if (!address_is_unset(&mapped))
            return mapped;
    }
    if (address_is_loopback(peer) || address_is_unset(peer) || (ipv4 && !peer->byte[12]) || is_guests(engine, peer))
        return address_from(ipv4 ? view->gateway4 : view->our_link_local);
    return *peer;
}

static address first_set(const uint8_t first[16], const uint8_t second[16])
{
    address a = address_from(first);

    return address_is_unset(&a) ? address_from(second) : a;
}

/* Whether the guest has made its link-local address of its MAC address (RFC 4291, appendix A). */
static bool is_made_of_mac(const uint8_t link_local[16], const uint8_t mac[ADDRESS_MAC])
{
    const uint8_t made[8] = {mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]};

    return !memcmp(link_local + 8, made, sizeof(made));
}

/* Where a guest is that was only heard by its link-local address. It looks for duplicates of any other before it takes it,
 * which is heard; but one without ARP, such as muvm's, does not. If the first is made of its MAC address, so is what it
 * has made of the prefix that it was told (RFC 4862, 5.5.3). Else the only address that it has for certain is the first. */
static address unspoken_address(const struct engine *engine)
{
    const struct lg_net_view *view = &engine->view;
    const struct lg_seen *seen = &engine->seen;
    address link_local = address_from(seen->link_local), guest = address_from(view->guest6);

    if (!(view->flags & LG_VIEW_RA) || address_is_unset(&guest) || !is_made_of_mac(seen->link_local, seen->mac))
        return link_local;
    memcpy(guest.byte + 8, link_local.byte + 8, 8);
    return guest;
}

/* The guest's address of the family and scope that `source` has: what it was seen to use, before what it must have, before
 * what was assigned to it, unless the caller wants that. Unset: it has none. */
static address guest_address(const struct engine *engine, const address *source)
{
    const struct lg_net_view *view = &engine->view;
    const struct lg_seen *seen = &engine->seen;
    static const uint8_t none[16];

    if (address_is_ipv4(source))
        return first_set(view->flags & LG_VIEW_FIXED4 ? none : seen->addr4, view->guest4);
    if (address_is_link_local(source))
        return first_set(seen->link_local, view->guest6);
    address unspoken = unspoken_address(engine), guest = first_set(seen->addr6, unspoken.byte);
    return first_set(guest.byte, view->guest6);
}

/* Whom one sees who may be behind the guest: a link-local address would get no further than the guest, which so sees the
 * host by its other name, if there is one. So does one of IPv4 of whoever has come by IPv6. */
static address source_beyond(const struct engine *engine, const address *source, const address *target)
{
    const struct lg_net_view *view = &engine->view;
    address mapped = address_from(view->map_guest6);

    if (address_is_ipv4(target) && !address_is_ipv4(source))
        return first_set(view->map_guest4, view->gateway4);
    return address_is_ipv4(source) || !address_is_link_local(source) || address_is_unset(&mapped) ? *source : mapped;
}

void listener_other_port(struct flow_key *key)
{
    enum {
        FIRST = 32768, /* as Linux: net.ipv4.ip_local_port_range */
        LAST = 60999,
    };

    key->remote_port = key->remote_port < LAST ? key->remote_port + 1 : FIRST;
}

bool listener_key(const struct engine *engine, const struct listener *listener, const struct sockaddr_storage *peer,
                  struct flow_key *ret_key)
{
    address source = address_from_host((const struct sockaddr *)peer);

    source = shown_source(engine, &source);
    uint16_t port = port_from_host((const struct sockaddr *)peer);
    address guest = listener->target;
    if (address_is_unset(&guest))
        guest = guest_address(engine, &source);
    else
        source = source_beyond(engine, &source, &guest);

    *ret_key = (struct flow_key){.guest = guest,
                                 .remote = source,
                                 .guest_port = listener->port,
                                 .remote_port = port,
                                 .protocol = listener->protocol};
    return !address_is_unset(&source) && !address_is_unset(&guest) &&
           address_is_ipv4(&source) == address_is_ipv4(&guest);
}
