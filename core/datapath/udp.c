/* SPDX-License-Identifier: Apache-2.0
 *
 * udp.c: UDP (RFC 768) from the guest and to it. What concerns the guest's own configuration goes to control.
 *
 * Adversary: the guest, whose lengths are checked before they are used.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "checksum.h"
#include "datagram.h"
#include "gateway.h"

enum {
    UDP_HEADER = 8,
    UDP_CHECK_OFFSET = 6,
    /* Behind a guest there may be networks with a smaller MTU: those of containers have what their maker liked. Unlike TCP's,
     * most senders of datagrams do not look for it; what is larger than this may be cut on the way. */
    UDP_UNCUT = 1200,
    UDP_HOPS = 255, /* as TCP's: the guest is the next hop in any case */
    DHCP_SERVER_PORT = 67,
    DHCPV6_SERVER_PORT = 547,
};

static bool is_configuration(const struct lg_net_view *view, const struct packet *packet, uint16_t port)
{
    return packet->ipv6 ? port == DHCPV6_SERVER_PORT && view->flags & LG_VIEW_DHCPV6
                        : port == DHCP_SERVER_PORT && view->flags & LG_VIEW_DHCP;
}

bool udp_asks_for_address(const struct guest_frame *frame, const struct packet *packet)
{
    return packet->protocol == IPPROTO_UDP && !packet->ipv6 && packet->l4_length >= UDP_HEADER &&
           packet->l4_offset + UDP_HEADER <= frame->head_length &&
           load_be16(frame->head + packet->l4_offset + 2) == DHCP_SERVER_PORT;
}

static bool may_leave(struct engine *engine, const struct packet *packet, const struct flow_key *key)
{
    const address *source = &packet->source, *destination = &packet->destination;

    if (!(engine->view.flags & LG_VIEW_UDP) || address_is_loopback(source) || address_is_multicast(source) ||
        address_is_unset(source) || address_is_loopback(destination) || address_is_unset(destination) ||
        (!packet->ipv6 && (!source->byte[12] || !destination->byte[12])))
        return false;
    /* Whoever was led to the guest may be answered, by whatever name of the gateway's it goes. */
    return !gateway_forbids(&engine->view, destination, key->remote_port) || flow_find(&engine->flows, key);
}

void udp_from_guest(struct engine *engine, const struct guest_frame *frame, const struct packet *packet)
{
    const uint8_t *udp = frame->head + packet->l4_offset;

    if (packet->l4_length < UDP_HEADER || packet->l4_offset + UDP_HEADER > frame->head_length) {
        count(engine, C_drop_short);
        return;
    }
    uint16_t length = load_be16(udp + 4);
    struct flow_key key = {
        .guest = packet->source,
        .remote = packet->destination,
        .guest_port = load_be16(udp),
        .remote_port = load_be16(udp + 2),
        .protocol = IPPROTO_UDP,
    };
    if (is_configuration(&engine->view, packet, key.remote_port) ||
        gateway_serves(&engine->view, IPPROTO_UDP, &key.remote, key.remote_port)) {
        engine->punt(engine, frame);
        return;
    }
    if (length < UDP_HEADER || length > packet->l4_length || !key.remote_port) {
        count(engine, C_drop_udp_header);
        return;
    }
    if (frame->datagram && length - UDP_HEADER > frame->datagram * DATAGRAM_IN_FRAME_MAX) {
        count(engine, C_drop_length);
        return;
    }
    if (!may_leave(engine, packet, &key)) {
        count(engine, engine->view.flags & LG_VIEW_UDP ? C_drop_address : C_drop_protocol);
        return;
    }
    struct flow *flow = datagram_flow(engine, &key, packet);
    if (flow)
        datagram_take(engine, flow, frame, packet->l4_offset + UDP_HEADER, length - UDP_HEADER);
}

/* The check field: of all zeros it would say that there is none (RFC 768; RFC 8200, 8.1). */
static uint16_t finished(uint64_t sum)
{
    uint16_t check = (uint16_t)~checksum_fold(sum);
    return check ? check : 0xffff;
}

static unsigned write_headers(const struct flow_key *key, const struct packet_path *path, bool partial,
                              const uint8_t *payload, uint32_t length, uint8_t *headers, struct offload *ret_offload)
{
    unsigned offset = packet_write_headers(headers, path, IPPROTO_UDP, UDP_HOPS, UDP_HEADER + length);
    uint8_t *udp = headers + offset;
    uint64_t sum = packet_pseudo_sum(path, IPPROTO_UDP, UDP_HEADER + length);

    store_be16(udp, key->remote_port);
    store_be16(udp + 2, key->guest_port);
    store_be16(udp + 4, UDP_HEADER + length);
    memset(udp + UDP_CHECK_OFFSET, 0, 2);
    *ret_offload = (struct offload){0};
    uint16_t check = checksum_fold(sum);
    if (partial) {
        ret_offload->needs_csum = true;
        ret_offload->csum_start = (uint16_t)offset;
        ret_offload->csum_offset = UDP_CHECK_OFFSET;
    } else {
        check = finished(checksum_add(checksum_add(sum, udp, UDP_HEADER), payload, length));
    }
    memcpy(udp + UDP_CHECK_OFFSET, &check, sizeof(check));
    return offset + UDP_HEADER;
}

/* In one frame: one datagram, or several of `each` bytes, of which the last may be shorter. Of several, as many as the
 * guest's buffers hold, which changes *length. -EMSGSIZE: they do not hold one, and to wait for larger ones might be for
 * ever. */
static int send_whole(struct engine *engine, const struct flow_key *key, const struct packet_path *path,
                      const uint8_t *payload, uint32_t *length, uint32_t each)
{
    const struct link_operations *link = engine->link->operations;
    uint8_t headers[ETHERNET_HEADER + IPV6_HEADER + UDP_HEADER];
    unsigned header = ETHERNET_HEADER + (address_is_ipv4(&key->remote) ? IPV4_HEADER : IPV6_HEADER) + UDP_HEADER;
    struct offload offload;
    struct guest_room room;
    int err;

    engine->pieces.count = 0;
    err = link->reserve(engine->link, header, *length, &engine->pieces, &room);
    if (err)
        return err;
    if (room.payload < *length) {
        uint32_t fits = *length > each ? (uint32_t)room.payload / each * each : 0;
        if (!fits) {
            link->rollback(engine->link);
            return -EMSGSIZE;
        }
        *length = fits;
    }
    write_headers(key, path, engine->link->csum, payload, *length, headers, &offload);
    if (address_is_ipv4(&key->remote) && *length > UDP_UNCUT) {
        packet_let_cut(headers, (uint16_t)(engine->identification + 1)); /* of the first, and so on */
        engine->identification += (*length - 1) / each + 1;
    }
    if (*length > each) {
        offload.gso_type = GSO_UDP_L4;
        offload.gso_size = (uint16_t)each;
        offload.header_length = (uint16_t)header;
    }
    const uint8_t *from = headers;
    for (unsigned i = 0; i < room.header_count; from += room.header[i++].iov_len)
        memcpy(room.header[i].iov_base, from, room.header[i].iov_len);
    uint32_t left = *length;
    for (unsigned i = 0; left; i++) {
        uint32_t part = left < engine->pieces.iov[i].iov_len ? left : (uint32_t)engine->pieces.iov[i].iov_len;
        memcpy(engine->pieces.iov[i].iov_base, payload, part);
        payload += part;
        left -= part;
    }
    link->commit(engine->link, header + *length, &offload);
    return 0;
}

static int send_pieces(struct engine *engine, const struct flow_key *key, const struct packet_path *path,
                       const uint8_t *payload, uint32_t length, struct cut *cut)
{
    uint8_t headers[ETHERNET_HEADER + IPV6_HEADER + UDP_HEADER];
    struct offload none;
    unsigned header = write_headers(key, path, false, payload, length, headers, &none);
    const struct iovec l4[] = {{headers + header - UDP_HEADER, UDP_HEADER}, {(void *)(uintptr_t)payload, length}};

    return cut_send(engine, path, IPPROTO_UDP, UDP_HOPS, l4, 2, UDP_HEADER + length, cut);
}

/* Whether the guest takes several datagrams in one frame: none that would be beyond its MTU by itself, since it may have
 * to pass them on. */
static bool takes_several(const struct engine *engine, const struct packet_path *path, uint32_t each)
{
    return (address_is_ipv4(&path->source) ? engine->link->uso4 : engine->link->uso6) &&
           !cut_exceeds_mtu(engine, path, UDP_HEADER + each);
}

int udp_to_guest(struct engine *engine, const struct flow_key *key, const uint8_t *payload, uint32_t *length,
                 uint32_t each, struct cut *cut)
{
    uint32_t one = *length < each ? *length : each;
    struct packet_path path;
    int err = -EMSGSIZE;

    engine_path(engine, &key->remote, &key->guest, &path);
    if (*length > one && takes_several(engine, &path, one))
        err = send_whole(engine, key, &path, payload, length, one);
    if (err == -EMSGSIZE)
        *length = one;
    if (err == -EMSGSIZE && !cut->done && !cut_needed(engine, &path, UDP_HEADER + one))
        err = send_whole(engine, key, &path, payload, length, one);
    if (err == -EMSGSIZE && cut_exceeds_mtu(engine, &path, UDP_HEADER + one))
        err = send_pieces(engine, key, &path, payload, one, cut);
    if (err == -EMSGSIZE) {
        count(engine, C_drop_no_room);
        return 0;
    }
    if (!err)
        engine->counters[C_udp_bytes_to_guest] += *length;
    return err;
}
