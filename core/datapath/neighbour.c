/* SPDX-License-Identifier: Apache-2.0
 *
 * neighbour.c: what the guest asks of its neighbours: ARP (RFC 826), neighbour solicitations (RFC 4861), and echo to the
 * gateway's own addresses. Answered here from the view, so that a control plane which hangs costs no neighbour.
 *
 * The guest's link is a wire with one other end: every address but the guest's own is reached through us. What is said
 * to have it is the neighbour of the host that really has, where control knows of one.
 *
 * Adversary: the guest. All lengths are checked by the parser; what is answered is bounded by what was asked.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "gateway.h"
#include "icmp.h"
#include "pieces.h"

enum {
    ARP_BYTES = 28,
    ARP_REQUEST = 1,
    ARP_REPLY = 2,
    NS_BYTES = 24,   /* type, code, checksum, reserved, target */
    NA_BYTES = 32,   /* and an option with a link-layer address */
    NA_FLAGS = 0xe0, /* router, solicited, override (RFC 4861, 4.4) */
    OPTION_TARGET_LINK_ADDRESS = 2,
    OPTION_SOURCE_LINK_ADDRESS = 1,
    MAC_GROUP = 1,  /* of the first byte: multicast and broadcast, which nobody has */
    SEEK_MS = 1000, /* RFC 4861, 10: RETRANS_TIMER */
};

int neighbour_replace(struct engine *engine, const struct lg_neighbours *table)
{
    if (table->count > LG_NEIGHBOURS_MAX || (table->others4[0] | table->others6[0]) & MAC_GROUP)
        return -EINVAL;
    for (uint32_t i = 0; i < table->count; i++) {
        const struct lg_neighbour *one = &table->entry[i];
        if (one->mac[0] & MAC_GROUP || (i && memcmp(one[-1].address, one->address, sizeof(one->address)) >= 0))
            return -EINVAL;
    }
    engine->neighbours = *table;
    return 0;
}

const uint8_t *neighbour_mac(const struct engine *engine, const address *of)
{
    static const uint8_t none[ADDRESS_MAC];
    const struct lg_neighbours *table = &engine->neighbours;
    uint32_t from = 0, to = table->count;

    while (from < to) {
        uint32_t middle = (from + to) / 2;
        int order = memcmp(table->entry[middle].address, of->byte, sizeof(of->byte));
        if (!order)
            return table->entry[middle].mac;
        if (order < 0)
            from = middle + 1;
        else
            to = middle;
    }
    const uint8_t *others = address_is_ipv4(of) ? table->others4 : table->others6;
    return memcmp(others, none, ADDRESS_MAC) ? others : engine->view.our_mac;
}

void neighbour_arp(struct engine *engine, const struct guest_frame *frame)
{
    /* hardware type, protocol type, their lengths, operation, sender MAC and IP, target MAC and IP */
    static const uint8_t expected[8] = {0, 1, 8, 0, 6, 4, 0, ARP_REQUEST}, nobody[4];
    const uint8_t *arp = frame->head + ETHERNET_HEADER;
    uint8_t reply[ETHERNET_HEADER + ARP_BYTES];

    if (frame->head_length < ETHERNET_HEADER + ARP_BYTES) {
        count(engine, C_drop_short);
        return;
    }
    const uint8_t *sender_ip = arp + 14, *target_ip = arp + 24;
    const address sender = address_from_ipv4(sender_ip), target = address_from_ipv4(target_ip);
    if (engine->several && sender_ip[0] && !(arp[8] & MAC_GROUP) &&
        !gateway_is_stranger(&engine->view, &sender)) /* also in its answers */
        guest_table_learn(&engine->guests, &sender, arp + 8);
    if (memcmp(arp, expected, sizeof(expected)) || !(engine->view.flags & LG_VIEW_IPV4) ||
        !memcmp(sender_ip, target_ip, 4) ||         /* an announcement */
        address_is(engine->view.guest4, &target) || /* a probe for the guest's own */
        (engine->view.flags & LG_VIEW_VIRTUAL && !gateway_has(&engine->view, &target)))
        return;
    /* A probe for an address that the guest would like to have (RFC 5227, 2.1.1): only ours is taken. */
    if (!memcmp(sender_ip, nobody, 4) && !address_is(engine->view.gateway4, &target))
        return;

    const uint8_t *mac = neighbour_mac(engine, &target);
    memcpy(reply, arp + 8, ADDRESS_MAC);
    memcpy(reply + ADDRESS_MAC, mac, ADDRESS_MAC);
    store_be16(reply + 12, ETHERTYPE_ARP_FRAME);
    memcpy(reply + ETHERNET_HEADER, expected, sizeof(expected));
    reply[ETHERNET_HEADER + 7] = ARP_REPLY;
    memcpy(reply + ETHERNET_HEADER + 8, mac, ADDRESS_MAC);
    memcpy(reply + ETHERNET_HEADER + 14, target_ip, 4);
    memcpy(reply + ETHERNET_HEADER + 18, arp + 8, ADDRESS_MAC);
    memcpy(reply + ETHERNET_HEADER + 24, sender_ip, 4);
    if (engine_send_frame(engine, reply, sizeof(reply)))
        count(engine, C_drop_no_room);
    else
        count(engine, C_arp_replies);
}

static void ask_by_arp(struct engine *engine, const address *guest)
{
    static const uint8_t head[8] = {0, 1, 8, 0, 6, 4, 0, ARP_REQUEST};
    const address gateway = address_from(engine->view.gateway4);
    const uint8_t *mac = neighbour_mac(engine, &gateway);
    uint8_t request[ETHERNET_HEADER + ARP_BYTES] = {0};
    uint8_t *arp = request + ETHERNET_HEADER;

    memset(request, 0xff, ADDRESS_MAC);
    memcpy(request + ADDRESS_MAC, mac, ADDRESS_MAC);
    store_be16(request + 12, ETHERTYPE_ARP_FRAME);
    memcpy(arp, head, sizeof(head));
    memcpy(arp + 8, mac, ADDRESS_MAC);
    memcpy(arp + 14, gateway.byte + 12, 4);
    memcpy(arp + 24, guest->byte + 12, 4);
    engine_send_frame(engine, request, sizeof(request)); /* lost: asked again with the next packet */
}

static void ask_by_solicitation(struct engine *engine, const address *guest)
{
    address ours = address_from(engine->view.our_link_local);
    address group = {{0xff, 2, [11] = 1, [12] = 0xff}}; /* RFC 4291, 2.7.1 */
    uint8_t ns[NA_BYTES] = {ICMPV6_NEIGHBOUR_SOLICITATION};

    memcpy(group.byte + 13, guest->byte + 13, 3);
    memcpy(ns + 8, guest->byte, sizeof(guest->byte));
    ns[NS_BYTES] = OPTION_SOURCE_LINK_ADDRESS;
    ns[NS_BYTES + 1] = 1; /* in units of 8 bytes */
    memcpy(ns + NS_BYTES + 2, engine->view.our_mac, ADDRESS_MAC);
    icmp_send(engine, &ours, &group, ns, sizeof(ns));
}

bool neighbour_has_spoken(const struct engine *engine, const address *guest)
{
    return engine->several ? guest_table_find(&engine->guests, guest) != NULL : !(engine->seen.mac[0] & MAC_GROUP);
}

void neighbour_seek(struct engine *engine, const address *guest, bool again)
{
    uint32_t needed = address_is_ipv4(guest) ? LG_VIEW_IPV4 : LG_VIEW_NDP;

    if ((!again && neighbour_has_spoken(engine, guest)) || !(engine->view.flags & needed) ||
        (engine->sought_ms && engine->now_ms - engine->sought_ms < SEEK_MS))
        return;
    engine->sought_ms = engine->now_ms;
    if (address_is_ipv4(guest))
        ask_by_arp(engine, guest);
    else
        ask_by_solicitation(engine, guest);
}

static void solicited(struct engine *engine, const struct guest_frame *frame, const struct packet *packet)
{
    const uint8_t *ns = frame->head + packet->l4_offset;
    uint8_t na[NA_BYTES] = {ICMPV6_NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, NA_FLAGS};

    /* RFC 4861, 7.1.1: what must hold for a solicitation to be looked at. */
    if (packet->l4_length < NS_BYTES || packet->l4_offset + NS_BYTES > frame->head_length || packet->hops != 255 ||
        ns[1])
        return;
    address target = address_from(ns + 8);
    if (address_is_unset(&packet->source))
        engine_see_tentative(engine, &target);
    if (address_is_unset(&packet->source) || address_is_multicast(&target) || /* detection of duplicates */
        address_equal(&target, &packet->source) || address_is(engine->view.guest6, &target) ||
        (engine->view.flags & LG_VIEW_VIRTUAL && !gateway_has(&engine->view, &target)))
        return;
    memcpy(na + 8, target.byte, sizeof(target.byte));
    na[24] = OPTION_TARGET_LINK_ADDRESS;
    na[25] = 1; /* in units of 8 bytes */
    memcpy(na + 26, neighbour_mac(engine, &target), ADDRESS_MAC);
    if (icmp_send(engine, &target, &packet->source, na, sizeof(na)))
        count(engine, C_ns_replies);
    else
        count(engine, C_drop_no_room);
}

/* An echo request to one of our own addresses goes back as it came; other destinations are no business of this file. */
static bool echo(struct engine *engine, const struct guest_frame *frame, const struct packet *packet, uint8_t request,
                 uint8_t reply)
{
    uint8_t message[ICMP_MESSAGE_MAX];
    size_t left = packet->l4_length;

    if (left < ICMP_HEADER || packet->l4_offset + ICMP_HEADER > frame->head_length ||
        frame->head[packet->l4_offset] != request || left > sizeof(message))
        return false;
    left = pieces_read(frame->iov, frame->iov_count, packet->l4_offset, message, left);
    message[0] = reply;
    message[1] = 0;
    if (icmp_send(engine, &packet->destination, &packet->source, message, left))
        count(engine, C_echo_replies);
    else
        count(engine, C_drop_no_room);
    return true;
}

void neighbour_icmpv4(struct engine *engine, const struct guest_frame *frame, const struct packet *packet)
{
    if (!(engine->view.flags & LG_VIEW_ICMP))
        count(engine, C_drop_protocol);
    else if (gateway_forbids(&engine->view, &packet->destination, 0) &&
             !address_is(engine->view.gateway4, &packet->destination))
        count(engine, C_drop_address);
    else if (!address_is(engine->view.gateway4, &packet->destination))
        ping_from_guest(engine, frame, packet);
    else if (!echo(engine, frame, packet, ICMPV4_ECHO_REQUEST, ICMPV4_ECHO_REPLY))
        count(engine, C_drop_protocol);
}

/* 0, which is no type of ICMPv6, where there is none, and for what neighbours may not say in fragments (RFC 6980, 5). */
static uint8_t type_of(const struct guest_frame *frame, const struct packet *packet)
{
    uint8_t type = packet->l4_offset < frame->head_length && packet->l4_length ? frame->head[packet->l4_offset] : 0;

    return packet->fragmented && type >= ICMPV6_ROUTER_SOLICITATION ? 0 : type;
}

void neighbour_icmpv6(struct engine *engine, const struct guest_frame *frame, const struct packet *packet)
{
    uint8_t type = type_of(frame, packet);

    if (type == ICMPV6_NEIGHBOUR_SOLICITATION && engine->view.flags & LG_VIEW_NDP) {
        solicited(engine, frame, packet);
    } else if (type == ICMPV6_ROUTER_SOLICITATION && engine->view.flags & LG_VIEW_RA) {
        engine->punt(engine, frame);
    } else if (type == ICMPV6_ECHO_REQUEST && engine->view.flags & LG_VIEW_ICMP &&
               (address_is(engine->view.gateway6, &packet->destination) ||
                address_is(engine->view.our_link_local, &packet->destination))) {
        if (!echo(engine, frame, packet, ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY))
            count(engine, C_drop_protocol);
    } else if (type == ICMPV6_ECHO_REQUEST && engine->view.flags & LG_VIEW_ICMP) {
        ping_from_guest(engine, frame, packet);
    } else {
        count(engine, C_drop_protocol);
    }
}
