/* SPDX-License-Identifier: Apache-2.0
 *
 * gateway.c: the gateway of a virtual network, see gateway.h. Its subnet is made up: an address in it is a guest's, the
 * gateway's, or one that the view maps to something real, and never anybody's on the host's own network.
 *
 * Adversary: the guest, which would like to reach what it is not shown: every address that a flow is opened to comes by
 * here first. So does every source, before there is a flow: with made-up ones a guest would have as many as it likes. The
 * frame that control gives back has been the guest's and is parsed again.
 */
#include "gateway.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "engine.h"
#include "host_address.h"
#include "tcp.h"

static const uint8_t unset[16];

static bool is_one_of(const uint8_t (*list)[16], unsigned length, const address *a)
{
    for (unsigned i = 0; i < length && memcmp(list[i], unset, sizeof(unset)); i++)
        if (address_is(list[i], a))
            return true;
    return false;
}

/* The gateway by one of its own names, not by one that is mapped to somebody else. */
static bool is_gateway(const struct lg_net_view *view, const address *a)
{
    return address_is(view->gateway4, a) || address_is(view->gateway6, a) || address_is(view->our_link_local, a);
}

bool gateway_has(const struct lg_net_view *view, const address *a)
{
    return is_gateway(view, a) || address_is(view->map_host4, a) || address_is(view->map_host6, a) ||
           is_one_of(view->gateway_other, LG_GATEWAY_OTHER_MAX, a);
}

bool gateway_serves(const struct lg_net_view *view, uint8_t protocol, const address *to, uint16_t port)
{
    const uint16_t *ports = protocol == IPPROTO_TCP ? view->service_tcp : view->service_udp;

    if (!(view->flags & LG_VIEW_VIRTUAL) || !is_gateway(view, to))
        return false;
    for (unsigned i = 0; i < LG_SERVICES_MAX && ports[i]; i++)
        if (ports[i] == port)
            return true;
    return false;
}

bool gateway_translates(const struct lg_net_view *view, const address *to, address *ret_real)
{
    for (unsigned i = 0; i < LG_NAT_MAX && memcmp(view->nat[i].shown, unset, sizeof(unset)); i++) {
        if (!address_is(view->nat[i].shown, to))
            continue;
        *ret_real = address_from(view->nat[i].real);
        return true;
    }
    return false;
}

static bool in_subnet(const struct lg_net_view *view, const address *a)
{
    const uint8_t *subnet = address_is_ipv4(a) ? view->subnet4 : view->subnet6;
    unsigned bits = address_is_ipv4(a) ? 96u + view->subnet4_bits : view->subnet6_bits;
    unsigned whole = bits / 8, rest = bits % 8;

    if (!memcmp(subnet, unset, sizeof(unset)) || bits > 128 || memcmp(subnet, a->byte, whole))
        return false;
    return !rest || !((subnet[whole] ^ a->byte[whole]) >> (8 - rest));
}

/* A guest of IPv6 has a link-local address as well, and before it has one, none (RFC 4862, 5.4.2). */
bool gateway_is_stranger(const struct lg_net_view *view, const address *a)
{
    return view->flags & LG_VIEW_VIRTUAL && !in_subnet(view, a) &&
           (address_is_ipv4(a) || !(address_is_link_local(a) || address_is_unset(a)));
}

/* Where clouds keep a machine's credentials: an address of RFC 3927, or of IPv6 those of Amazon's and Google's. */
static bool is_metadata(const address *a)
{
    static const address amazon = {{0xfd, 0, 0x0e, 0xc2, [14] = 2, [15] = 0x54}};
    static const address google = {{0xfd, 0x20, 0, 0xce, [14] = 2, [15] = 0x54}};

    return (address_is_ipv4(a) && a->byte[12] == 169 && a->byte[13] == 254) || address_equal(a, &amazon) ||
           address_equal(a, &google);
}

static bool is_open(const struct lg_net_view *view, uint16_t port)
{
    for (unsigned i = 0; i < LG_HOST_PORTS_MAX && view->host_port[i].last; i++)
        if (view->host_port[i].first <= port && port <= view->host_port[i].last)
            return true;
    return false;
}

bool gateway_forbids(const struct lg_net_view *view, const address *to, uint16_t port)
{
    address real;

    if (!(view->flags & LG_VIEW_VIRTUAL))
        return false;
    if (!host_address_mapped(view, to, port, &real)) /* groups, too, end with the network: the host's own are others' */
        return is_gateway(view, to) || in_subnet(view, to) || address_is_multicast(to) ||
               (is_metadata(to) && !(view->flags & LG_VIEW_LINK_LOCAL4));
    return address_is_loopback(&real) && view->flags & LG_VIEW_HOST_PORTS && !is_open(view, port);
}

int gateway_serve(struct engine *engine, const uint8_t *head, uint32_t head_length, uint32_t length, int fd)
{
    struct guest_frame frame = {.head_length = (uint16_t)head_length, .length = length};
    struct tcp_segment segment;
    struct packet packet;

    if (head_length > FRAME_HEAD_MAX || head_length > length || head_length < ETHERNET_HEADER)
        return -EINVAL;
    memcpy(frame.head, head, head_length);
    if (packet_parse(&frame, &packet) || packet.protocol != IPPROTO_TCP ||
        !tcp_segment_parse(&frame, &packet, &segment) || !tcp_opens(&segment))
        return -EINVAL;
    return tcp_open_served(engine, &packet, &segment, fd);
}

int gateway_dial(struct engine *engine, const address *guest, uint16_t guest_port, uint16_t gateway_port, int fd)
{
    const struct flow_key key = {
        .guest = *guest,
        .remote = address_from(address_is_ipv4(guest) ? engine->view.gateway4 : engine->view.gateway6),
        .guest_port = guest_port,
        .remote_port = gateway_port,
        .protocol = IPPROTO_TCP,
    };

    if (address_is_unset(guest) || address_is_multicast(guest) || address_is_unset(&key.remote) || !guest_port ||
        !gateway_port)
        return -EINVAL;
    return tcp_open_inbound(engine, &key, fd);
}
