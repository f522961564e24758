/* SPDX-License-Identifier: Apache-2.0
 *
 * ping.c: echo requests of the guest's by the host's ping sockets (icmp(7), net.ipv4.ping_group_range). The kernel writes
 * the identifier and the checksum; the guest's identifier is put back into the reply.
 */
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "icmp.h"

enum {
    IDENTIFIER = 4, /* its place in the message (RFC 792; RFC 4443, 4.1) */
};

void ping_from_guest(struct engine *engine, const struct guest_frame *frame, const struct packet *packet)
{
    const uint8_t *message = frame->head + packet->l4_offset;
    uint8_t request = packet->ipv6 ? ICMPV6_ECHO_REQUEST : ICMPV4_ECHO_REQUEST;

    if (packet->l4_length < ICMP_HEADER || packet->l4_offset + ICMP_HEADER > frame->head_length || message[1] ||
        message[0] != request || packet->l4_length > ICMP_MESSAGE_MAX) {
        count(engine, C_drop_protocol);
        return;
    }
    if (address_is_loopback(&packet->destination) || address_is_unset(&packet->destination) ||
        address_is_unset(&packet->source)) {
        count(engine, C_drop_address);
        return;
    }
    struct flow_key key = {
        .guest = packet->source,
        .remote = packet->destination,
        .guest_port = load_be16(message + IDENTIFIER),
        .protocol = packet->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP,
    };
    struct flow *flow = datagram_flow(engine, &key, packet);
    if (flow)
        datagram_take(engine, flow, frame, packet->l4_offset, packet->l4_length);
}

void ping_to_guest(struct engine *engine, struct flow *flow, uint8_t *message, uint32_t length)
{
    uint8_t reply = flow->key.protocol == IPPROTO_ICMP ? ICMPV4_ECHO_REPLY : ICMPV6_ECHO_REPLY;

    if (length < ICMP_HEADER || message[0] != reply)
        return; /* of what else a ping socket may say, the guest asked for nothing */
    store_be16(message + IDENTIFIER, flow->key.guest_port);
    if (icmp_send(engine, &flow->key.remote, &flow->key.guest, message, length))
        count(engine, C_echo_replies);
    else
        count(engine, C_drop_no_room);
}
