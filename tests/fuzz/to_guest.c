/* SPDX-License-Identifier: Apache-2.0
 *
 * to_guest.c: the checks of to_guest.h. The parsers are those of the engine, which tests/unit holds to another.
 */
#include "to_guest.h"

#include <netinet/in.h>

#include "checksum.h"
#include "fake_kernel.h"
#include "input.h"

static uint64_t pseudo_sum(const struct packet *packet)
{
    const struct packet_path path = {.source = packet->source, .destination = packet->destination};

    return packet_pseudo_sum(&path, packet->protocol, packet->l4_length);
}

static void check_ip(const struct script_frame *frame, const struct packet *packet)
{
    size_t l4_end = packet->l4_offset + (size_t)packet->l4_length;

    REQUIRE(l4_end == frame->length, "%zu bytes of IP in a frame of %zu", l4_end, frame->length);
    if (!packet->ipv6)
        REQUIRE(checksum_fold(checksum_add(0, frame->bytes + ETHERNET_HEADER, IPV4_HEADER)) == 0xffff, "IPv4 checksum");
}

static void check_plain_checksum(const struct script_frame *frame, const struct packet *packet)
{
    bool icmpv4 = packet->protocol == IPPROTO_ICMP;
    uint64_t sum = checksum_add(icmpv4 ? 0 : pseudo_sum(packet), frame->bytes + packet->l4_offset, packet->l4_length);

    REQUIRE(checksum_fold(sum) == 0xffff, "checksum of protocol %u", packet->protocol);
}

static void check_offload(const struct script_frame *frame, const struct seen_frame *seen)
{
    const struct packet *packet = &seen->packet;
    uint16_t check, partial = checksum_fold(pseudo_sum(packet));
    struct script_link link;

    script_get_link(&link);
    REQUIRE(frame->needs_csum == link.csum, "partial checksum %d", frame->needs_csum);
    if (frame->needs_csum) {
        memcpy(&check, frame->bytes + packet->l4_offset + 16, sizeof(check));
        REQUIRE(frame->csum_start == packet->l4_offset && frame->csum_offset == 16, "%u", frame->csum_start);
        REQUIRE(check == partial, "the check field holds %04x, the pseudo-header adds up to %04x", check, partial);
    }
    if (!frame->gso_type) {
        REQUIRE(frame->length <= ETHERNET_HEADER + script_view()->mtu, "%zu bytes, no offload", frame->length);
        return;
    }
    REQUIRE(packet->ipv6 ? link.tso6 : link.tso4, "a super-segment that the guest does not take");
    REQUIRE(frame->gso_type == (packet->ipv6 ? GSO_TCPV6 : GSO_TCPV4), "%u", frame->gso_type);
    REQUIRE(frame->header_length == seen->segment.payload_offset, "%u", frame->header_length);
    REQUIRE(frame->gso_size && frame->gso_size < seen->segment.payload_length, "%u", frame->gso_size);
}

static void check_datagrams(const struct script_frame *frame, const struct packet *packet)
{
    struct script_link link;

    script_get_link(&link);
    if (!frame->gso_type)
        return;
    unsigned header = packet->l4_offset + 8u;
    REQUIRE(frame->needs_csum && frame->gso_type == GSO_UDP_L4, "%u", frame->gso_type);
    REQUIRE(packet->ipv6 ? link.uso6 : link.uso4, "several datagrams in one frame, which the guest does not take");
    REQUIRE(frame->header_length == header, "%u", frame->header_length);
    REQUIRE(frame->gso_size && frame->gso_size < frame->length - header, "%u", frame->gso_size);
    REQUIRE(header + frame->gso_size <= ETHERNET_HEADER + script_view()->mtu, "%u", frame->gso_size);
}

void check_to_guest(const struct script_frame *frame, struct seen_frame *ret_seen)
{
    struct guest_frame copy = {.length = (uint32_t)frame->length};

    memset(ret_seen, 0, sizeof(*ret_seen));
    copy.head_length = frame->length < FRAME_HEAD_MAX ? (uint16_t)frame->length : FRAME_HEAD_MAX;
    memcpy(copy.head, frame->bytes, copy.head_length);
    REQUIRE(frame->length >= ETHERNET_HEADER, "%zu bytes", frame->length);
    if (frame_ethertype(&copy) == ETHERTYPE_ARP_FRAME) {
        REQUIRE(frame->length == ETHERNET_HEADER + 28 && !frame->needs_csum, "%zu bytes of ARP", frame->length);
        return;
    }
    enum counter reason = packet_parse(&copy, &ret_seen->packet);
    REQUIRE(!reason || reason == C_fragments, "a frame that we would drop ourselves");
    check_ip(frame, &ret_seen->packet);
    if (reason) {
        REQUIRE(!frame->needs_csum && !frame->gso_type, "a piece of a packet with offloads");
        REQUIRE(frame->length <= ETHERNET_HEADER + script_view()->mtu, "a piece of %zu bytes", frame->length);
        return;
    }
    ret_seen->tcp = ret_seen->packet.protocol == IPPROTO_TCP;
    if (ret_seen->tcp) {
        REQUIRE(tcp_segment_parse(&copy, &ret_seen->packet, &ret_seen->segment), "a TCP header that does not fit");
        check_offload(frame, ret_seen);
    }
    if (ret_seen->packet.protocol == IPPROTO_UDP)
        check_datagrams(frame, &ret_seen->packet);
    if (!frame->needs_csum)
        check_plain_checksum(frame, &ret_seen->packet);
}

void check_world(void)
{
    REQUIRE(!script_fault()[0], "%s", script_fault());
    REQUIRE(!fake_violation()[0], "%s", fake_violation());
}
