/* SPDX-License-Identifier: Apache-2.0
 *
 * icmp.h: ICMP and ICMPv6 messages that we write for the guest.
 */
#ifndef LOCKGATE_ICMP_H
#define LOCKGATE_ICMP_H

#include "engine.h"

enum icmp_types { /* RFC 792, RFC 4443, RFC 4861 */
    ICMPV4_ECHO_REPLY = 0,
    ICMPV4_UNREACHABLE = 3,
    ICMPV4_FRAGMENTATION_NEEDED = 4, /* a code of it */
    ICMPV4_ECHO_REQUEST = 8,
    ICMPV4_TIME_EXCEEDED = 11,
    ICMPV6_UNREACHABLE = 1,
    ICMPV6_TOO_BIG = 2,
    ICMPV6_TIME_EXCEEDED = 3,
    ICMP_TIME_REASSEMBLY = 1, /* a code of both */
    ICMPV6_ECHO_REQUEST = 128,
    ICMPV6_ECHO_REPLY = 129,
    ICMPV6_ROUTER_SOLICITATION = 133,
    ICMPV6_NEIGHBOUR_SOLICITATION = 135,
    ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136,
};

enum icmp_limits {
    ICMP_MESSAGE_MAX = IP_PAYLOAD_MAX - IPV4_HEADER, /* of IPv6, 20 bytes more would fit: of which nobody makes use */
};

struct icmp_error {
    uint8_t type, code;
    uint32_t word; /* the four bytes behind the checksum: an MTU, or unused */
};

/* How an errno of connect() is said. */
struct icmp_error icmp_unreachable(bool ipv4, int error);

/* Tells the guest that the SYN of this flow met `error` (an errno of connect()). False: the link is full. */
bool icmp_send_unreachable(struct engine *engine, const struct flow *flow, int error);

/* Tells the guest of an error about a datagram of this flow, whose payload began so; as much of it is quoted as RFC 1812,
 * 4.3.2.3, and RFC 4443, 2.4 (c), have room for. False: the link is full, or it was told of too many in this second. */
bool icmp_send_error(struct engine *engine, const struct flow *flow, const address *source,
                     const struct icmp_error *error, const uint8_t *payload, uint32_t length);

/* Tells the guest that the rest of a packet did not come in time, where it may be told (RFC 1122, 3.2.2; RFC 4443, 2.4 (e)).
 * `frame` holds the head of the first piece, `first` what it says. */
void icmp_send_incomplete(struct engine *engine, const struct guest_frame *frame, const struct packet *first);

/* Sends `length` bytes of ICMP message, whose checksum field is filled in here, from source to destination. */
bool icmp_send(struct engine *engine, const address *source, const address *destination, uint8_t *message,
               size_t length);

#endif
