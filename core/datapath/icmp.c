/* SPDX-License-Identifier: Apache-2.0
 *
 * icmp.c: errors about what the host could not do for the guest. The original header is made again from the flow: the
 * guest's own was not kept.
 */
#include "icmp.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "checksum.h"

enum {
    ICMP_HOPS = 255, /* RFC 4861, 7.1: a neighbour's message that came over a router must not be believed */
    TCP_QUOTED = 8,  /* ports and sequence number: what RFC 792 asks for */
    UDP_QUOTED = 8,  /* all of its header */
};

static int send_whole(struct engine *engine, const struct packet_path *path, uint8_t protocol, const uint8_t *message,
                      size_t length)
{
    uint8_t frame[ETHERNET_HEADER + IPV6_HEADER + ICMP_MESSAGE_MAX];
    unsigned header = packet_write_headers(frame, path, protocol, ICMP_HOPS, (uint32_t)length);

    memcpy(frame + header, message, length);
    return engine_send_frame(engine, frame, header + length);
}

bool icmp_send(struct engine *engine, const address *source, const address *destination, uint8_t *message,
               size_t length)
{
    struct packet_path path;
    bool ipv4 = address_is_ipv4(source);
    uint8_t protocol = ipv4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
    const struct iovec l4 = {message, length};
    int err = -EMSGSIZE;

    if (length > ICMP_MESSAGE_MAX)
        return false;
    engine_path(engine, source, destination, &path);
    /* ICMPv6 has the pseudo-header in its sum (RFC 4443, 2.3), ICMP has not. */
    uint64_t sum = ipv4 ? 0 : packet_pseudo_sum(&path, protocol, (uint32_t)length);
    memset(message + 2, 0, 2);
    uint16_t check = (uint16_t)~checksum_fold(checksum_add(sum, message, length));
    memcpy(message + 2, &check, sizeof(check));
    if (!cut_needed(engine, &path, (uint32_t)length))
        err = send_whole(engine, &path, protocol, message, length);
    if (err == -EMSGSIZE && cut_exceeds_mtu(engine, &path, (uint32_t)length))
        err = cut_send(engine, &path, protocol, ICMP_HOPS, &l4, 1, (uint32_t)length, &(struct cut){0});
    return !err;
}

struct icmp_error icmp_unreachable(bool ipv4, int error)
{
    bool prohibited = error == EACCES || error == EPERM, network = error == ENETUNREACH || error == ENETDOWN;

    if (ipv4) /* RFC 1812, 5.2.7.1: 0 network, 1 host, 13 prohibited */
        return (struct icmp_error){ICMPV4_UNREACHABLE, prohibited ? 13 : network ? 0 : 1, 0};
    return (struct icmp_error){ICMPV6_UNREACHABLE, prohibited ? 1 : network ? 0 : 3, 0}; /* RFC 4443, 3.1 */
}

/* The guest's IP header, written anew, in front of what it sent. Returns its length. */
static unsigned quote_header(const struct flow *flow, uint8_t *quoted, uint32_t l4_length)
{
    uint8_t original[ETHERNET_HEADER + IPV6_HEADER];
    struct packet_path path = {.source = flow->key.guest, .destination = flow->key.remote};
    unsigned header = packet_write_headers(original, &path, flow->key.protocol, 64, l4_length) - ETHERNET_HEADER;

    memcpy(quoted, original + ETHERNET_HEADER, header);
    return header;
}

bool icmp_send_unreachable(struct engine *engine, const struct flow *flow, int error)
{
    uint8_t message[ICMP_HEADER + IPV6_HEADER + TCP_QUOTED] = {0};
    bool ipv4 = address_is_ipv4(&flow->key.remote);
    struct icmp_error icmp = icmp_unreachable(ipv4, error);
    unsigned header = quote_header(flow, message + ICMP_HEADER, TCP_HEADER);
    uint8_t *quoted = message + ICMP_HEADER + header;
    address source = address_from(ipv4 ? engine->view.gateway4 : engine->view.gateway6);
    if (address_is_unset(&source))
        return false;
    message[0] = icmp.type;
    message[1] = icmp.code;
    store_be16(quoted, flow->key.guest_port);
    store_be16(quoted + 2, flow->key.remote_port);
    store_be32(quoted + 4, flow->tcp.rcv_nxt - 1); /* the SYN's own number: the guest checks it */
    return icmp_send(engine, &source, &flow->key.guest, message, ICMP_HEADER + header + TCP_QUOTED);
}

static bool may_tell(struct engine *engine)
{
    if (engine->now_ms - engine->icmp_ms >= 1000) {
        engine->icmp_ms = engine->now_ms;
        engine->icmp_left = ICMP_PER_SECOND;
    }
    if (!engine->icmp_left)
        return false;
    engine->icmp_left--;
    return true;
}

bool icmp_send_error(struct engine *engine, const struct flow *flow, const address *source,
                     const struct icmp_error *error, const uint8_t *payload, uint32_t length)
{
    uint8_t message[ICMP_HEADER + IPV6_HEADER + UDP_QUOTED + DATAGRAM_QUOTED_MAX] = {0};
    bool udp = flow->key.protocol == IPPROTO_UDP;
    uint32_t l4_length = (udp ? UDP_QUOTED : 0) + length;
    unsigned at = ICMP_HEADER + quote_header(flow, message + ICMP_HEADER, l4_length);

    if (!may_tell(engine))
        return false;
    message[0] = error->type;
    message[1] = error->code;
    store_be32(message + 4, error->word);
    if (udp) { /* the guest finds its socket by the ports; the checksum was never seen */
        store_be16(message + at, flow->key.guest_port);
        store_be16(message + at + 2, flow->key.remote_port);
        store_be16(message + at + 4, l4_length);
        at += UDP_QUOTED;
    }
    uint32_t quoted = length < DATAGRAM_QUOTED_MAX ? length : DATAGRAM_QUOTED_MAX;
    if (quoted)
        memcpy(message + at, payload, quoted);
    if (!udp && quoted >= ICMP_HEADER) /* the kernel had put its own identifier there */
        store_be16(message + at + 4, flow->key.guest_port);
    return icmp_send(engine, source, &flow->key.guest, message, at + quoted);
}

/* Nobody, a group and this host itself are no single other host. */
static bool is_host(const address *a)
{
    return !address_is_unset(a) && !address_is_multicast(a) && !address_is_loopback(a) &&
           (!address_is_ipv4(a) || a->byte[12]);
}

/* Errors are not answered by errors; of ICMP, all but what asks for an echo counts as one. */
static bool may_answer(const struct guest_frame *frame, const struct packet *packet)
{
    uint8_t type = packet->l4_offset < frame->head_length ? frame->head[packet->l4_offset] : 0;

    if (!is_host(&packet->source) || !is_host(&packet->destination))
        return false;
    if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6)
        return type == (packet->ipv6 ? ICMPV6_ECHO_REQUEST : ICMPV4_ECHO_REQUEST);
    return true;
}

void icmp_send_incomplete(struct engine *engine, const struct guest_frame *frame, const struct packet *first)
{
    uint8_t message[ICMP_HEADER + FRAME_HEAD_MAX] = {first->ipv6 ? ICMPV6_TIME_EXCEEDED : ICMPV4_TIME_EXCEEDED,
                                                     ICMP_TIME_REASSEMBLY};
    uint32_t end = first->l4_offset + first->l4_length, quoted = end < frame->head_length ? end : frame->head_length;

    if (!may_answer(frame, first) || !may_tell(engine))
        return;
    quoted -= ETHERNET_HEADER;
    memcpy(message + ICMP_HEADER, frame->head + ETHERNET_HEADER, quoted);
    if (icmp_send(engine, &first->destination, &first->source, message, ICMP_HEADER + quoted))
        count(engine, C_datagram_errors);
}
