/* SPDX-License-Identifier: Apache-2.0
 *
 * packet.c: parsing and writing headers; see packet.h for who writes what is parsed here.
 */
#include "packet.h"

#include <netinet/in.h>
#include <string.h>

#include "checksum.h"

/* No drop: C_wakeups can be no reason, so that its number serves as "none". */
_Static_assert(C_wakeups == 0, "0 means that a packet was parsed");

enum header_fields {
    IPV4_MORE = 0x2000, /* RFC 791, 3.1: flags and offset, the latter in units of 8 bytes */
    IPV4_OFFSET = 0x1fff,
    IPV6_NEXT_HEADER = 6,
    IPV6_OFFSET = 0xfff8, /* RFC 8200, 4.5: in its place it counts bytes */
    IPV6_MORE = 1,
    TRANSPORT_HEADER_MIN = 8, /* UDP's, and ICMP's */
};

static const uint8_t mapped_prefix[12] = {[10] = 0xff, [11] = 0xff};

bool address_is_ipv4(const address *a)
{
    return !memcmp(a->byte, mapped_prefix, sizeof(mapped_prefix));
}

bool address_is_unset(const address *a)
{
    static const address zero;
    return address_equal(a, &zero);
}

bool address_equal(const address *a, const address *b)
{
    return !memcmp(a, b, sizeof(*a));
}

bool address_is_loopback(const address *a)
{
    static const address loopback6 = {.byte = {[15] = 1}};
    return address_is_ipv4(a) ? a->byte[12] == 127 : address_equal(a, &loopback6);
}

bool address_is_multicast(const address *a)
{
    /* 224.0.0.0/4 and the reserved 240.0.0.0/4 behind it, whose last is the limited broadcast. */
    return address_is_ipv4(a) ? a->byte[12] >= 224 : a->byte[0] == 0xff;
}

bool address_is_group(const address *a)
{
    return address_is_multicast(a) && (!address_is_ipv4(a) || a->byte[12] < 240);
}

bool address_is_link_local(const address *a)
{
    return a->byte[0] == 0xfe && (a->byte[1] & 0xc0) == 0x80;
}

address address_from_ipv4(const uint8_t *bytes)
{
    address a;
    memcpy(a.byte, mapped_prefix, sizeof(mapped_prefix));
    memcpy(a.byte + sizeof(mapped_prefix), bytes, 4);
    return a;
}

address address_from(const uint8_t bytes[16])
{
    address a;
    memcpy(a.byte, bytes, sizeof(a.byte));
    return a;
}

bool address_is(const uint8_t bytes[16], const address *a)
{
    return !memcmp(bytes, a->byte, sizeof(a->byte));
}

static enum counter parse_ipv4(const struct guest_frame *frame, struct packet *packet)
{
    const uint8_t *ip = frame->head + ETHERNET_HEADER;
    unsigned header, total;

    if (frame->head_length < ETHERNET_HEADER + IPV4_HEADER)
        return C_drop_short;
    header = (ip[0] & 15u) * 4;
    total = load_be16(ip + 2);
    if (ip[0] >> 4 != 4 || header < IPV4_HEADER || total < header)
        return C_drop_ip_header;
    if (total > frame->length - ETHERNET_HEADER)
        return C_drop_short;
    packet->ipv6 = false;
    packet->protocol = ip[9];
    packet->hops = ip[8];
    packet->traffic_class = ip[1];
    packet->l4_offset = (uint16_t)(ETHERNET_HEADER + header);
    packet->l4_length = total - header;
    packet->source = address_from_ipv4(ip + 12);
    packet->destination = address_from_ipv4(ip + 16);
    packet->fragmented = load_be16(ip + 6) & (IPV4_MORE | IPV4_OFFSET);
    if (!packet->fragmented)
        return 0;
    packet->fragment = (struct fragment){.identification = load_be16(ip + 4),
                                         .offset = (uint16_t)((load_be16(ip + 6) & IPV4_OFFSET) * 8),
                                         .more = load_be16(ip + 6) & IPV4_MORE};
    return C_fragments;
}

static bool is_extension(uint8_t protocol)
{
    return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
           protocol == IPPROTO_FRAGMENT;
}

/* One extension header, the first 8 bytes of which are there. Its length, or 0: none that may stand there. */
static unsigned take_extension(struct packet *packet, const uint8_t *extension)
{
    switch (packet->protocol) {
    case IPPROTO_HOPOPTS: /* directly behind the IPv6 header only (RFC 8200, 4.3) */
        return packet->l4_offset == ETHERNET_HEADER + IPV6_HEADER ? (extension[1] + 1u) * 8 : 0;
    case IPPROTO_ROUTING: /* that it has not been to the end of means somebody who is not its destination (4.4) */
        return extension[3] ? 0 : (extension[1] + 1u) * 8;
    case IPPROTO_FRAGMENT:
        if (packet->fragmented) /* a fragment of a fragment */
            return 0;
        packet->fragmented = true;
        packet->fragment.identification = load_be32(extension + 4);
        packet->fragment.offset = load_be16(extension + 2) & IPV6_OFFSET;
        packet->fragment.more = extension[3] & IPV6_MORE;
        return IPV6_FRAGMENT_HEADER;
    default:
        return (extension[1] + 1u) * 8;
    }
}

/* Goes over the extension headers (RFC 8200, 4.1), up to what they carry or the header of a fragment. What their options
 * ask for is nothing to us: nothing of them goes further. */
static enum counter skip_extensions(const struct guest_frame *frame, struct packet *packet, unsigned named_at)
{
    while (is_extension(packet->protocol)) {
        const uint8_t *extension = frame->head + packet->l4_offset;
        if (packet->l4_length < 8 || packet->l4_offset + 8u > frame->head_length)
            return C_drop_ip_header;
        bool fragment = packet->protocol == IPPROTO_FRAGMENT;
        unsigned length = take_extension(packet, extension);
        if (!length || length > packet->l4_length || packet->l4_offset + length > frame->head_length)
            return C_drop_ip_header;
        if (fragment)
            packet->fragment.named_at = (uint16_t)named_at;
        named_at = packet->l4_offset;
        packet->protocol = extension[0];
        packet->l4_offset = (uint16_t)(packet->l4_offset + length);
        packet->l4_length -= length;
        if (fragment && (packet->fragment.more || packet->fragment.offset))
            return C_fragments;
    } /* a fragment that is all of its packet is one like any other (RFC 6946) */
    return 0;
}

static enum counter parse_ipv6(const struct guest_frame *frame, struct packet *packet)
{
    const uint8_t *ip = frame->head + ETHERNET_HEADER;
    enum counter reason;

    if (frame->head_length < ETHERNET_HEADER + IPV6_HEADER)
        return C_drop_short;
    if (ip[0] >> 4 != 6)
        return C_drop_ip_header;
    packet->l4_offset = ETHERNET_HEADER + IPV6_HEADER;
    packet->l4_length = load_be16(ip + 4);
    if (packet->l4_length > frame->length - packet->l4_offset)
        return C_drop_short;
    packet->ipv6 = true;
    packet->fragmented = false;
    packet->protocol = ip[6];
    packet->hops = ip[7];
    packet->traffic_class = (uint8_t)(ip[0] << 4 | ip[1] >> 4);
    packet->source = address_from(ip + 8);
    packet->destination = address_from(ip + 24);
    reason = skip_extensions(frame, packet, ETHERNET_HEADER + IPV6_NEXT_HEADER);
    if (reason && reason != C_fragments)
        return reason;
    if (address_is_ipv4(&packet->source) || address_is_ipv4(&packet->destination))
        return C_drop_address; /* never on a wire (RFC 6890, 2.2.3), and to us it would mean IPv4 */
    return reason;
}

enum counter packet_parse(const struct guest_frame *frame, struct packet *ret_packet)
{
    ret_packet->ip_offset = ETHERNET_HEADER;
    switch (frame_ethertype(frame)) {
    case ETHERTYPE_IPV4:
        return parse_ipv4(frame, ret_packet);
    case ETHERTYPE_IPV6_FRAME:
        return parse_ipv6(frame, ret_packet);
    default:
        return C_drop_ethertype;
    }
}

bool packet_fragment_has_headers(const struct guest_frame *frame, const struct packet *fragment)
{
    struct packet inner = *fragment; /* marked as one already: no other fragment header may follow */

    if (inner.ipv6 && skip_extensions(frame, &inner, 0))
        return false;
    return inner.l4_length >= (inner.protocol == IPPROTO_TCP ? TCP_HEADER : TRANSPORT_HEADER_MIN);
}

static void write_ipv4_check(uint8_t *ip, unsigned header)
{
    memset(ip + 10, 0, 2);
    uint16_t check = (uint16_t)~checksum_fold(checksum_add(0, ip, header));
    memcpy(ip + 10, &check, sizeof(check));
}

unsigned packet_write_whole(uint8_t *head, const struct packet *first, uint32_t l4_length)
{
    uint8_t *ip = head + ETHERNET_HEADER;

    if (first->ipv6) {
        unsigned end = first->l4_offset - IPV6_FRAGMENT_HEADER;
        uint32_t payload = end - ETHERNET_HEADER - IPV6_HEADER + l4_length;
        if (payload > IP_PAYLOAD_MAX)
            return 0;
        store_be16(ip + 4, payload);
        head[first->fragment.named_at] = first->protocol;
        return end;
    }
    uint32_t total = first->l4_offset - ETHERNET_HEADER + l4_length;
    if (total > IP_PAYLOAD_MAX)
        return 0;
    store_be16(ip + 2, total);
    memset(ip + 6, 0, 2);
    write_ipv4_check(ip, first->l4_offset - ETHERNET_HEADER);
    return first->l4_offset;
}

enum tcp_option {
    OPTION_END = 0,
    OPTION_NOP = 1,
    OPTION_MSS = 2,
    OPTION_SCALE = 3,
    OPTION_SACK_ALLOWED = 4,
    OPTION_SACK = 5,
    SCALE_MAX = 14, /* RFC 7323, 2.3 */
};

/* One option, all of whose bytes are there. Of a length that it may not have it counts as unknown. */
static void take_tcp_option(struct tcp_segment *segment, const uint8_t *option)
{
    unsigned length = option[1];

    if (option[0] == OPTION_MSS && length == 4)
        segment->mss = load_be16(option + 2);
    if (option[0] == OPTION_SCALE && length == 3) {
        segment->has_scale = true;
        segment->scale = option[2] > SCALE_MAX ? SCALE_MAX : option[2];
    }
    if (option[0] == OPTION_SACK_ALLOWED && length == 2)
        segment->sack_allowed = true;
    if (option[0] == OPTION_SACK && length <= 2 + sizeof(segment->sack)) {
        segment->sack_count = (uint8_t)((length - 2) / 8);
        for (unsigned i = 0; i < segment->sack_count; i++)
            segment->sack[i] = (struct range){load_be32(option + 2 + 8 * i), load_be32(option + 6 + 8 * i)};
    }
}

static void parse_tcp_options(struct tcp_segment *segment, const uint8_t *option, unsigned left)
{
    while (left) {
        if (option[0] == OPTION_END)
            return;
        if (option[0] == OPTION_NOP) {
            option++;
            left--;
            continue;
        }
        if (left < 2 || option[1] < 2 || option[1] > left)
            return; /* the rest makes no sense; RFC 9293, 3.1 leaves what to do to us */
        take_tcp_option(segment, option);
        left -= option[1];
        option += option[1];
    }
}

bool tcp_segment_parse(const struct guest_frame *frame, const struct packet *packet, struct tcp_segment *ret_segment)
{
    const uint8_t *tcp = frame->head + packet->l4_offset;
    unsigned header;

    if (packet->l4_length < TCP_HEADER || packet->l4_offset + TCP_HEADER > frame->head_length)
        return false;
    header = (tcp[12] >> 4) * 4u;
    if (header < TCP_HEADER || header > packet->l4_length || packet->l4_offset + header > frame->head_length)
        return false;
    *ret_segment = (struct tcp_segment){
        .source_port = load_be16(tcp),
        .destination_port = load_be16(tcp + 2),
        .seq = load_be32(tcp + 4),
        .ack = load_be32(tcp + 8),
        .flags = tcp[13],
        .window = load_be16(tcp + 14),
        .payload_offset = packet->l4_offset + header,
        .payload_length = packet->l4_length - header,
    };
    if (header > TCP_HEADER)
        parse_tcp_options(ret_segment, tcp + TCP_HEADER, header - TCP_HEADER);
    return true;
}

static unsigned write_ipv4(uint8_t *ip, const struct packet_path *path, uint8_t protocol, uint8_t hops,
                           uint32_t l4_length)
{
    memset(ip, 0, IPV4_HEADER);
    ip[0] = 0x45;
    store_be16(ip + 2, IPV4_HEADER + l4_length);
    store_be16(ip + 6, 0x4000); /* don't fragment; with it an identification of 0 is unique enough (RFC 6864, 4.1) */
    ip[8] = hops;
    ip[9] = protocol;
    memcpy(ip + 12, path->source.byte + 12, 4);
    memcpy(ip + 16, path->destination.byte + 12, 4);
    write_ipv4_check(ip, IPV4_HEADER);
    return IPV4_HEADER;
}

void packet_let_cut(uint8_t *headers, uint16_t identification)
{
    uint8_t *ip = headers + ETHERNET_HEADER;

    store_be16(ip + 4, identification);
    memset(ip + 6, 0, 2);
    write_ipv4_check(ip, IPV4_HEADER);
}

static unsigned write_ipv6(uint8_t *ip, const struct packet_path *path, uint8_t protocol, uint8_t hops,
                           uint32_t l4_length)
{
    store_be32(ip, 6u << 28);
    store_be16(ip + 4, l4_length);
    ip[6] = protocol;
    ip[7] = hops;
    memcpy(ip + 8, path->source.byte, 16);
    memcpy(ip + 24, path->destination.byte, 16);
    return IPV6_HEADER;
}

unsigned packet_write_headers(uint8_t *at, const struct packet_path *path, uint8_t protocol, uint8_t hops,
                              uint32_t l4_length)
{
    bool ipv4 = address_is_ipv4(&path->source);

    memcpy(at, path->guest_mac, ADDRESS_MAC);
    memcpy(at + ADDRESS_MAC, path->our_mac, ADDRESS_MAC);
    store_be16(at + 12, ipv4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6_FRAME);
    at += ETHERNET_HEADER;
    return ETHERNET_HEADER +
           (ipv4 ? write_ipv4(at, path, protocol, hops, l4_length) : write_ipv6(at, path, protocol, hops, l4_length));
}

unsigned packet_write_fragment_headers(uint8_t *at, const struct packet_path *path, uint8_t protocol, uint8_t hops,
                                       const struct fragment *fragment, uint32_t l4_length)
{
    if (!address_is_ipv4(&path->source)) {
        unsigned header = packet_write_headers(at, path, IPPROTO_FRAGMENT, hops, IPV6_FRAGMENT_HEADER + l4_length);
        at[header] = protocol;
        at[header + 1] = 0;
        store_be16(at + header + 2, fragment->offset | (fragment->more ? IPV6_MORE : 0));
        store_be32(at + header + 4, fragment->identification);
        return header + IPV6_FRAGMENT_HEADER;
    }
    unsigned header = packet_write_headers(at, path, protocol, hops, l4_length);
    uint8_t *ip = at + ETHERNET_HEADER;
    store_be16(ip + 4, fragment->identification & UINT16_MAX);
    store_be16(ip + 6, fragment->offset / 8u | (fragment->more ? IPV4_MORE : 0));
    write_ipv4_check(ip, IPV4_HEADER);
    return header;
}

uint64_t packet_pseudo_sum(const struct packet_path *path, uint8_t protocol, uint32_t l4_length)
{
    if (address_is_ipv4(&path->source))
        return checksum_pseudo(path->source.byte + 12, path->destination.byte + 12, 4, protocol, l4_length);
    return checksum_pseudo(path->source.byte, path->destination.byte, 16, protocol, l4_length);
}
