/* SPDX-License-Identifier: Apache-2.0
 *
 * packet.h: what the headers of a frame say, and how ours are written.
 *
 * Adversary: the guest. packet_parse() and tcp_segment_parse() alone see its bytes; they check every length before it is
 * used, and what they return holds. Checksums from the guest are not verified: over shared memory nothing can damage
 * them, and with offloads they are not there.
 */
#ifndef LOCKGATE_PACKET_H
#define LOCKGATE_PACKET_H

#include <stdbool.h>
#include <stdint.h>

#include "counters.h"
#include "link.h"
#include "ranges.h"

typedef struct address { /* network order, IPv4 as ::ffff:a.b.c.d */
    uint8_t byte[16];
} address;

enum packet_sizes {
    ETHERNET_HEADER = 14,
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    IPV6_FRAGMENT_HEADER = 8,
    IP_PAYLOAD_MAX = 65535, /* of IPv6; of IPv4 with its header */
    TCP_HEADER = 20,
    TCP_OPTIONS_MAX = 40,
    ICMP_HEADER = 8,
    ADDRESS_MAC = 6,
};

enum ethertype {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_ARP_FRAME = 0x0806,
    ETHERTYPE_IPV6_FRAME = 0x86dd,
};

struct packet {
    bool ipv6;
    uint8_t protocol;
    uint8_t hops;                  /* TTL or hop limit */
    uint8_t traffic_class;         /* TOS or traffic class: DSCP and ECN */
    uint16_t ip_offset, l4_offset; /* within the head, or at its end */
    uint32_t l4_length;            /* header and payload, without Ethernet padding */
    address source, destination;
    bool fragmented; /* it has a fragment header (IPv6), or is a fragment, or was made of some */
    struct fragment {
        uint32_t identification;
        uint16_t offset;   /* of its first byte in what IP carries */
        bool more;         /* it is not the last */
        uint16_t named_at; /* in the frame: the field that names the fragment header (IPv6) */
    } fragment;            /* of a packet that came whole it means nothing */
};

enum tcp_flags {
    TCP_FIN = 1,
    TCP_SYN = 2,
    TCP_RST = 4,
    TCP_PSH = 8,
    TCP_ACK = 16,
    TCP_URG = 32,
};

struct tcp_segment {
    uint16_t source_port, destination_port;
    uint32_t seq, ack;
    uint16_t window; /* as in the header, not scaled */
    uint8_t flags;
    bool has_scale;
    uint8_t scale;
    bool sack_allowed;
    uint8_t sack_count;
    uint16_t mss;            /* 0: no option */
    struct range sack[4];    /* RFC 2018, 3; not checked against anything yet */
    uint32_t payload_offset; /* from the start of the frame */
    uint32_t payload_length;
};

static inline uint16_t load_be16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t load_be32(const uint8_t *at)
{
    return (uint32_t)load_be16(at) << 16 | load_be16(at + 2);
}

static inline void store_be16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void store_be32(uint8_t *at, uint32_t value)
{
    store_be16(at, value >> 16);
    store_be16(at + 2, value & 0xffff);
}

bool address_is_ipv4(const address *a);
bool address_is_unset(const address *a);
bool address_equal(const address *a, const address *b);
bool address_is_loopback(const address *a);
bool address_is_multicast(const address *a);  /* or IPv4 broadcast */
bool address_is_group(const address *a);      /* multicast alone */
bool address_is_link_local(const address *a); /* of IPv6 */
address address_from_ipv4(const uint8_t *bytes);
address address_from(const uint8_t bytes[16]);
bool address_is(const uint8_t bytes[16], const address *a); /* the same one */

/* The Ethernet type of a frame of at least ETHERNET_HEADER bytes. */
static inline uint16_t frame_ethertype(const struct guest_frame *frame)
{
    return load_be16(frame->head + 12);
}

/* Parses the IP header and the IPv6 extension headers. 0, or the counter of the reason why the frame is no packet: of a
 * fragment (C_fragments) all is known then, with l4_offset and l4_length those of the piece. */
enum counter packet_parse(const struct guest_frame *frame, struct packet *ret_packet);

/* Whether a first fragment has all headers, up to the transport's: what has not is not taken (RFC 7112, 5; for
 * TCP over IPv4 RFC 3128), since nobody sends such but to get past a filter. */
bool packet_fragment_has_headers(const struct guest_frame *frame, const struct packet *fragment);

/* Makes the head of a first fragment that of the whole packet, `l4_length` bytes of which lie behind it. Returns the
 * length of the head, or 0: the whole would be longer than an IP packet can be. */
unsigned packet_write_whole(uint8_t *head, const struct packet *first, uint32_t l4_length);

/* Parses a TCP header and its options. False: the header does not fit what is there. */
bool tcp_segment_parse(const struct guest_frame *frame, const struct packet *packet, struct tcp_segment *ret_segment);

/* Addresses of a packet to the guest. */
struct packet_path {
    uint8_t guest_mac[ADDRESS_MAC];
    uint8_t our_mac[ADDRESS_MAC];
    address source, destination; /* both of one family */
};

/* Writes Ethernet and IP headers for `l4_length` bytes of `protocol`; returns their length. */
unsigned packet_write_headers(uint8_t *at, const struct packet_path *path, uint8_t protocol, uint8_t hops,
                              uint32_t l4_length);

/* Of such a packet of IPv4, whoever is behind the guest may cut it: by this number its pieces are found together. */
void packet_let_cut(uint8_t *headers, uint16_t identification);

/* The same for one piece of a packet. */
unsigned packet_write_fragment_headers(uint8_t *at, const struct packet_path *path, uint8_t protocol, uint8_t hops,
                                       const struct fragment *fragment, uint32_t l4_length);

/* The pseudo-header's sum for the same path. */
uint64_t packet_pseudo_sum(const struct packet_path *path, uint8_t protocol, uint32_t l4_length);

#endif
