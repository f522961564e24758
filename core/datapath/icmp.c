/* SPDX-License-Identifier: Apache-2.0
 *
 * icmp.c: errors for connections that the host could not make. The original header is made again from the flow: the
 * guest's own was not kept.
 */
#include "icmp.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "checksum.h"

enum {
    ICMP_HOPS = 255, /* RFC 4861, 7.1: a neighbour's message that came over a router must not be believed */
    MESSAGE_MAX = 65535 - IPV4_HEADER,
    TCP_QUOTED = 8, /* ports and sequence number: what RFC 792 asks for */
};

bool icmp_send(struct engine *engine, const address *source, const address *destination, uint8_t *message,
               size_t length)
{
    uint8_t frame[ETHERNET_HEADER + IPV6_HEADER + MESSAGE_MAX];
    struct packet_path path;
    bool ipv4 = address_is_ipv4(source);
    uint8_t protocol = ipv4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;

    if (length > MESSAGE_MAX)
        return false;
    engine_path(engine, source, destination, &path);
    unsigned header = packet_write_headers(frame, &path, protocol, ICMP_HOPS, (uint32_t)length);
    /* ICMPv6 has the pseudo-header in its sum (RFC 4443, 2.3), ICMP has not. */
    uint64_t sum = ipv4 ? 0 : packet_pseudo_sum(&path, protocol, (uint32_t)length);
    memset(message + 2, 0, 2);
    uint16_t check = (uint16_t)~checksum_fold(checksum_add(sum, message, length));
    memcpy(message + 2, &check, sizeof(check));
    memcpy(frame + header, message, length);
    return !engine_send_frame(engine, frame, header + length);
}

static uint8_t unreachable_code(bool ipv4, int error)
{
    bool prohibited = error == EACCES || error == EPERM;

    if (ipv4) /* RFC 1812, 5.2.7.1: 0 network, 1 host, 13 prohibited */
        return prohibited ? 13 : error == ENETUNREACH || error == ENETDOWN ? 0 : 1;
    return prohibited ? 1 : error == ENETUNREACH || error == ENETDOWN ? 0 : 3; /* RFC 4443, 3.1 */
}

bool icmp_send_unreachable(struct engine *engine, const struct flow *flow, int error)
{
    uint8_t message[ICMP_HEADER + ETHERNET_HEADER + IPV6_HEADER + TCP_QUOTED] = {0};
    uint8_t original[ETHERNET_HEADER + IPV6_HEADER];
    bool ipv4 = address_is_ipv4(&flow->key.remote);
    struct packet_path path = {.source = flow->key.guest, .destination = flow->key.remote};
    unsigned header = packet_write_headers(original, &path, IPPROTO_TCP, 64, TCP_HEADER) - ETHERNET_HEADER;
    uint8_t *quoted = message + ICMP_HEADER;
    address source;

    memcpy(source.byte, ipv4 ? engine->view.gateway4 : engine->view.gateway6, sizeof(source.byte));
    if (address_is_unset(&source))
        return false;
    message[0] = ipv4 ? ICMPV4_UNREACHABLE : ICMPV6_UNREACHABLE;
    message[1] = unreachable_code(ipv4, error);
    memcpy(quoted, original + ETHERNET_HEADER, header);
    store_be16(quoted + header, flow->key.guest_port);
    store_be16(quoted + header + 2, flow->key.remote_port);
    store_be32(quoted + header + 4, flow->tcp.rcv_nxt - 1); /* the SYN's own number: the guest checks it */
    return icmp_send(engine, &source, &flow->key.guest, message, ICMP_HEADER + header + TCP_QUOTED);
}
