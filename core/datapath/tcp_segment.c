/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_segment.c: segments to the guest (RFC 9293, 3.1). Checksums are left to the guest where it allows that, and
 * computed over the pieces in its memory where it does not.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "checksum.h"
#include "tcp.h"

enum {
    TCP_HOPS = 255, /* as the contract's packets have it; the guest is the next hop in any case */
    TCP_CHECK_OFFSET = 16,
    HEADERS_MAX = ETHERNET_HEADER + IPV6_HEADER + TCP_HEADER + TCP_OPTIONS_MAX,
};

struct outgoing {
    uint32_t seq, ack;
    uint16_t window;
    uint8_t flags;
    uint8_t options[TCP_OPTIONS_MAX];
    unsigned option_bytes;
};

static unsigned ip_header_bytes(const address *a)
{
    return address_is_ipv4(a) ? IPV4_HEADER : IPV6_HEADER;
}

unsigned tcp_header_bytes(const struct flow *flow)
{
    return ETHERNET_HEADER + ip_header_bytes(&flow->key.remote) + TCP_HEADER;
}

static void scatter_header(const struct guest_room *room, const uint8_t *bytes)
{
    for (unsigned i = 0; i < room->header_count; i++) {
        memcpy(room->header[i].iov_base, bytes, room->header[i].iov_len);
        bytes += room->header[i].iov_len;
    }
}

/* Writes all headers into `at`. The check field gets the pseudo-header's sum; returns the length of the headers. */
static unsigned write_headers(uint8_t *at, const struct packet_path *path, uint16_t source_port,
                              uint16_t destination_port, const struct outgoing *out, uint32_t payload_length,
                              unsigned *ret_tcp_offset)
{
    unsigned tcp_bytes = TCP_HEADER + out->option_bytes;
    unsigned offset = packet_write_headers(at, path, IPPROTO_TCP, TCP_HOPS, tcp_bytes + payload_length);
    uint8_t *tcp = at + offset;
    uint16_t check = checksum_fold(packet_pseudo_sum(path, IPPROTO_TCP, tcp_bytes + payload_length));

    store_be16(tcp, source_port);
    store_be16(tcp + 2, destination_port);
    store_be32(tcp + 4, out->seq);
    store_be32(tcp + 8, out->ack);
    tcp[12] = (uint8_t)(tcp_bytes / 4 << 4);
    tcp[13] = out->flags;
    store_be16(tcp + 14, out->window);
    memcpy(tcp + TCP_CHECK_OFFSET, &check, sizeof(check));
    store_be16(tcp + 18, 0);
    memcpy(tcp + TCP_HEADER, out->options, out->option_bytes);
    *ret_tcp_offset = offset;
    return offset + tcp_bytes;
}

/* Completes the checksum in software: the check field holds the pseudo-header's sum, which counts like data. */
static void finish_checksum(uint8_t *headers, unsigned tcp_offset, unsigned header_bytes, const struct iovec *payload,
                            uint32_t payload_length)
{
    uint64_t sum = checksum_add(0, headers + tcp_offset, header_bytes - tcp_offset);
    uint16_t check = (uint16_t)~checksum_fold(checksum_add_pieces(sum, payload, payload_length));

    memcpy(headers + tcp_offset + TCP_CHECK_OFFSET, &check, sizeof(check));
}

static int send_bare(struct engine *engine, const struct packet_path *path, uint16_t source_port,
                     uint16_t destination_port, const struct outgoing *out)
{
    struct offload offload = {0};
    struct guest_room room;
    uint8_t headers[HEADERS_MAX];
    unsigned tcp_offset;
    unsigned length = write_headers(headers, path, source_port, destination_port, out, 0, &tcp_offset);
    int err = engine->link->operations->reserve(engine->link, length, 0, NULL, &room);

    if (err)
        return err;
    if (engine->link->csum)
        offload =
            (struct offload){.needs_csum = true, .csum_start = (uint16_t)tcp_offset, .csum_offset = TCP_CHECK_OFFSET};
    else
        finish_checksum(headers, tcp_offset, length, NULL, 0);
    scatter_header(&room, headers);
    engine->link->operations->commit(engine->link, length, &offload);
    return 0;
}

static void write_syn_options(struct outgoing *out, uint16_t mss, const struct flow *flow)
{
    uint8_t *option = out->options;

    *option++ = 2;
    *option++ = 4;
    store_be16(option, mss);
    option += 2;
    if (flow->tcp.sack_allowed) {
        *option++ = 1;
        *option++ = 1;
        *option++ = 4;
        *option++ = 2;
    }
    if (flow->tcp.our_scale) { /* only if the guest offered it (RFC 7323, 2.2) */
        *option++ = 1;
        *option++ = 3;
        *option++ = 3;
        *option++ = (uint8_t)flow->tcp.our_scale;
    }
    out->option_bytes = (unsigned)(option - out->options);
}

static void write_sack_block(struct outgoing *out, struct range range)
{
    store_be32(out->options + out->option_bytes, range.start);
    store_be32(out->options + out->option_bytes + 4, range.end);
    out->option_bytes += 8;
}

/* What came ahead of a gap; the range that grew last is the first (RFC 2018, 4). */
static void write_sack(struct outgoing *out, const struct tcp *tcp)
{
    enum {
        BLOCKS_MAX = 4
    };
    const struct hold *hold = tcp->hold;
    unsigned blocks = 0;

    if (!hold || !tcp->sack_allowed)
        return;
    out->option_bytes = 4; /* two NOP, kind and length */
    for (int recent = 1; recent >= 0; recent--) {
        for (unsigned i = 0; i < hold->ranges.count && blocks < BLOCKS_MAX; i++) {
            struct range range = hold->ranges.range[i];
            bool grew = !seq_before(hold->recent, range.start) && seq_before(hold->recent, range.end);
            /* What is in sequence is no gap's business: it waits for the kernel's queue. */
            if (grew != recent || !seq_after(range.start, tcp->rcv_taken))
                continue;
            write_sack_block(out, range);
            blocks++;
        }
    }
    out->option_bytes = blocks ? out->option_bytes : 0;
    memcpy(out->options, (uint8_t[]){1, 1, 5, (uint8_t)(2 + 8 * blocks)}, 4);
}

/* Of what the MTU allows, whole pages where it is many: a guest that writes in pages, as most do, then has no page in two
 * segments, nor ends each of its writes with a segment of a few bytes; and no copy on the way is of bytes that lie a few
 * bytes further in their page than they did before, which takes some processors many times as long. */
static uint16_t our_mss(const struct engine *engine, const struct flow *flow)
{
    uint32_t most = engine->view.mtu - ip_header_bytes(&flow->key.remote) - TCP_HEADER;

    return (uint16_t)(most < TCP_MSS_IN_PAGES ? most : most - most % TCP_PAGE);
}

/* The guest has been told of all up to rcv_nxt. */
static void acknowledged(struct tcp *tcp)
{
    tcp->rcv_acked = tcp->rcv_nxt;
    tcp->ack_due = false;
    tcp->ack_due_ms = 0;
}

int tcp_send_control(struct engine *engine, struct flow *flow, uint32_t seq, uint8_t flags)
{
    struct packet_path path;
    struct outgoing out = {.seq = seq, .ack = flow->tcp.rcv_nxt, .flags = flags | TCP_ACK};
    int err;

    if (flow->tcp.inbound &&
        flow->tcp.to_host == HALF_SYN) { /* nothing came from the guest that could be acknowledged */
        out.flags = flags;
        out.ack = 0;
    }
    out.window = tcp_advertise(flow);
    if (flags & TCP_SYN) {
        /* The window of a SYN is not scaled (RFC 7323, 2.2). */
        uint32_t window = flow->tcp.rcv_edge - flow->tcp.rcv_nxt;
        out.window = window > UINT16_MAX ? UINT16_MAX : (uint16_t)window;
        write_syn_options(&out, our_mss(engine, flow), flow);
    } else if (!(flags & TCP_RST)) {
        write_sack(&out, &flow->tcp);
    }
    engine_path(engine, &flow->key.remote, &flow->key.guest, &path);
    err = send_bare(engine, &path, flow->key.remote_port, flow->key.guest_port, &out);
    if (!err)
        acknowledged(&flow->tcp);
    return err;
}

void tcp_commit_data(struct engine *engine, struct flow *flow, const struct guest_room *room,
                     const struct iovec *payload, uint32_t payload_length, uint32_t seq, uint8_t flags)
{
    struct packet_path path;
    struct outgoing out = {.seq = seq, .ack = flow->tcp.rcv_nxt, .flags = flags | TCP_ACK};
    struct offload offload = {0};
    uint8_t headers[HEADERS_MAX];
    unsigned tcp_offset;

    out.window = tcp_advertise(flow);
    engine_path(engine, &flow->key.remote, &flow->key.guest, &path);
    unsigned length =
        write_headers(headers, &path, flow->key.remote_port, flow->key.guest_port, &out, payload_length, &tcp_offset);
    if (engine->link->csum) {
        offload.needs_csum = true;
        offload.csum_start = (uint16_t)tcp_offset;
        offload.csum_offset = TCP_CHECK_OFFSET;
    } else {
        finish_checksum(headers, tcp_offset, length, payload, payload_length);
    }
    if (payload_length > flow->tcp.mss) {
        offload.gso_type = address_is_ipv4(&flow->key.remote) ? GSO_TCPV4 : GSO_TCPV6;
        offload.gso_size = flow->tcp.mss;
        offload.header_length = (uint16_t)length;
    }
    scatter_header(room, headers);
    engine->link->operations->commit(engine->link, length + payload_length, &offload);
    if ((uint32_t)engine->now_ms - flow->tcp.asked_ms <= engine->ack_delay_ms)
        flow->tcp.slow_answers = false;
    if (!flow->tcp.hold)
        acknowledged(&flow->tcp); /* it went along; an ACK that has a gap to report goes by itself */
}

void tcp_send_reset_unknown(struct engine *engine, const struct packet *packet, const struct tcp_segment *segment)
{
    struct packet_path path;
    struct outgoing out = {.flags = TCP_RST};

    if (segment->flags & TCP_RST || address_is_multicast(&packet->destination) || address_is_unset(&packet->source))
        return; /* RFC 9293, 3.10.7.1; RFC 1122, 4.2.3.10: what was sent to a group is not for TCP */
    if (segment->flags & TCP_ACK) {
        out.seq = segment->ack;
    } else {
        out.flags |= TCP_ACK;
        out.ack = segment->seq + segment->payload_length + !!(segment->flags & TCP_SYN) + !!(segment->flags & TCP_FIN);
    }
    engine_path(engine, &packet->destination, &packet->source, &path);
    if (send_bare(engine, &path, segment->destination_port, segment->source_port, &out))
        count(engine, C_drop_no_room); /* the guest will ask again */
    else
        count(engine, C_tcp_resets_sent);
}
