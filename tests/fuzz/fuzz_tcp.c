/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_tcp.c: a few TCP connections of a guest that sends segments ahead, behind, twice and not at all, that loses what
 * it is sent and acknowledges what it likes, while peers and clock move on; and that comes to its senses at the end.
 *
 * Called by libFuzzer. Adversary: the input is the guest, its peers, and time. What must hold, beside what fuzz_frame.c
 * asks for:
 *  - each byte arrives as it was sent, in both directions: bytes follow from their position in the stream, so that one
 *    which is lost, doubled or of another connection shows at once;
 *  - nothing is acknowledged that the kernel has not taken;
 *  - the window that was offered stays offered;
 *  - from any state an honest guest and a patient peer get all bytes through and both FINs, and then nothing is left.
 */
#include <errno.h>
#include <netinet/in.h>

#include "fake_kernel.h"
#include "input.h"
#include "tcp.h"
#include "to_guest.h"

enum limits {
    CONNECTIONS = 3,
    STEPS_MAX = 100,
    SETTLE_MAX = 400,
    FINISH_ROUNDS_MAX = 4000,
    GUEST_PORT = 1000,
    PEER_PORT = 80,
    SEGMENT_MAX = 1400,
    STREAM_MAX = 1 << 20, /* bytes of the guest in one input */
    TIME_STEP_MS = 10,
};

/* One connection as its guest sees it. Positions count bytes of payload; those of the guest's stream are its sequence
 * numbers less `guest_iss` and one. */
struct connection {
    uint32_t guest_iss;
    uint32_t next; /* position behind the last byte that the guest has ever sent */
    bool fin_sent; /* at some time: the stream ends at `next`, and grows no more */
    bool open;     /* a SYN-ACK has come */
    bool reset;    /* or an RST, or one was sent */
    int fd;
    uint32_t iss;      /* ours */
    uint32_t received; /* position in the peer's stream up to which the guest has it all */
    bool fin_received;
    uint32_t acked; /* position in the guest's stream, by the last ACK */
    uint8_t scale;
    bool edge_known;
    uint32_t edge; /* sequence number: how far the guest was allowed to send */
};

static struct {
    struct connection connection[CONNECTIONS];
    bool ipv6;
    unsigned lose; /* frames to the guest that it will not see */
} guest;

/* ---- what the engine has ---- */

static bool flow_of(unsigned index, struct script_flow *ret_flow)
{
    uint32_t cursor = 0;

    while (script_flow(&cursor, ret_flow)) {
        if (ret_flow->guest_port == GUEST_PORT + index)
            return true;
    }
    return false;
}

static void settle(void)
{
    REQUIRE(script_settle(SETTLE_MAX) >= 0, "the engine never rests");
    check_world();
}

/* ---- segments of the guest ---- */

struct segment {
    uint32_t seq, ack;
    uint16_t window;
    uint8_t flags;
    uint32_t length;
    uint8_t options[40];
    unsigned option_bytes;
};

static struct packet_path path_to_peer(void)
{
    struct packet_path path = {.guest_mac = {2, 0, 0, 0, 0, 1}, .our_mac = {2, 0, 0, 0, 0, 2}};

    if (guest.ipv6) {
        path.source = (address){{0x20, 0x01, 0x0d, 0xb8, [15] = 15}};
        path.destination = (address){{0x20, 0x01, 0x0d, 0xb8, 1, [15] = 7}};
    } else {
        path.source = address_from_ipv4((const uint8_t[]){192, 0, 2, 15});
        path.destination = address_from_ipv4((const uint8_t[]){198, 51, 100, 7});
    }
    return path;
}

static void send_segment(unsigned index, const struct segment *segment)
{
    const struct connection *connection = &guest.connection[index];
    const struct packet_path path = path_to_peer();
    uint8_t head[ETHERNET_HEADER + IPV6_HEADER + TCP_HEADER + TCP_OPTIONS_MAX + SEGMENT_MAX] = {0};
    unsigned tcp_bytes = TCP_HEADER + segment->option_bytes;
    unsigned offset = packet_write_headers(head, &path, IPPROTO_TCP, 64, tcp_bytes + segment->length);
    uint8_t *tcp = head + offset;
    int32_t position = (int32_t)(segment->seq - connection->guest_iss - 1);
    uint32_t before = position < 0 ? (uint32_t)-position : 0; /* bytes that are no part of the stream */

    if (before > segment->length)
        before = segment->length;
    TRACE("%llu connection %u < flags %#x, %d (%u bytes), ack %d, window %u\n", (unsigned long long)script_now_ms(),
          index, segment->flags, position, segment->length, (int)(segment->ack - connection->iss - 1), segment->window);
    store_be16(tcp, GUEST_PORT + index);
    store_be16(tcp + 2, PEER_PORT);
    store_be32(tcp + 4, segment->seq);
    store_be32(tcp + 8, segment->ack);
    tcp[12] = (uint8_t)(tcp_bytes / 4 << 4);
    tcp[13] = segment->flags;
    store_be16(tcp + 14, segment->window);
    memcpy(tcp + TCP_HEADER, segment->options, segment->option_bytes);
    script_from_guest(head, offset + tcp_bytes + before, 2 * (uint32_t)connection->fd + 1, (uint32_t)position + before,
                      segment->length - before);
    settle();
}

static void send_syn(unsigned index, struct input *input)
{
    struct connection *connection = &guest.connection[index];
    unsigned choice = input_byte(input);
    struct segment syn = {.seq = connection->guest_iss, .window = (uint16_t)input_word(input), .flags = TCP_SYN};
    uint8_t *option = syn.options;
    struct script_flow flow;
    int last = fake_last_socket();

    if (choice & 1) {
        memcpy(option, (uint8_t[]){2, 4, (uint8_t)(choice >> 4), 180}, 4);
        option += 4;
    }
    if (choice & 2) {
        memcpy(option, (uint8_t[]){1, 3, 3, (uint8_t)(choice >> 5)}, 4);
        option += 4;
    }
    if (choice & 4) {
        memcpy(option, (uint8_t[]){1, 1, 4, 2}, 4);
        option += 4;
    }
    syn.option_bytes = (unsigned)(option - syn.options);
    if (!flow_of(index, &flow)) /* a new life of the same ports */
        *connection = (struct connection){.guest_iss = connection->guest_iss, .fd = -1};
    send_segment(index, &syn);
    if (fake_last_socket() != last)
        connection->fd = fake_last_socket();
}

/* A number near another: mostly the same, often a little off, seldom far. */
static uint32_t near(struct input *input)
{
    unsigned choice = input_byte(input);

    switch (choice & 7) {
    case 0:
        return (uint32_t)-1;
    case 1:
        return 1;
    case 2:
        return 10 * (choice >> 3);
    case 3:
        return (uint32_t)-(int)(10 * (choice >> 3));
    case 4:
        return 1000 * (choice >> 3);
    case 5:
        return choice >> 3 ? 0 : (uint32_t)input_word(input) << 16;
    default:
        return 0;
    }
}

static void write_sack(const struct connection *connection, struct input *input, struct segment *segment)
{
    uint32_t start = connection->iss + 1 + connection->received + near(input);

    memcpy(segment->options, (uint8_t[]){1, 1, 5, 10}, 4);
    store_be32(segment->options + 4, start);
    store_be32(segment->options + 8, start + 100 * input_byte(input));
    segment->option_bytes = 12;
}

/* Makes a segment part of the guest's one stream, which has one end; false: it cannot be. */
static bool join_stream(struct connection *connection, struct segment *segment)
{
    int32_t end = (int32_t)(segment->seq - connection->guest_iss - 1 + segment->length);

    if (end > STREAM_MAX || segment->flags & TCP_SYN)
        return false; /* SYNs have their own step, which knows the life that they begin */
    if (end > (int32_t)connection->next) {
        if (connection->fin_sent)
            return false;                 /* what lies behind the end was never sent */
        connection->next = (uint32_t)end; /* what lies before this segment was sent, too, and lost */
    }
    if (!(segment->flags & TCP_FIN))
        return true;
    if (end != (int32_t)connection->next)
        segment->flags &= (uint8_t)~TCP_FIN;
    else
        connection->fin_sent = true;
    return true;
}

static void send_any(unsigned index, struct input *input)
{
    struct connection *connection = &guest.connection[index];
    unsigned choice = input_byte(input), base = choice & 1 ? connection->next : connection->acked;
    struct segment segment = {
        .seq = connection->guest_iss + 1 + base + (choice & 2 ? near(input) : 0),
        .ack = connection->iss + 1 + connection->received + connection->fin_received + (choice & 4 ? near(input) : 0),
        .window = choice & 8 ? (uint16_t)input_word(input) : UINT16_MAX,
        .flags = TCP_ACK,
        .length = choice & 16 ? input_word(input) % SEGMENT_MAX : 0,
    };
    unsigned flags = choice & 32 ? input_byte(input) : 0;

    if (choice & 64)
        write_sack(connection, input, &segment);
    if (flags & 1)
        segment.flags = (uint8_t)input_byte(input);
    if (flags & 2)
        segment.flags |= TCP_FIN;
    if (!join_stream(connection, &segment))
        return;
    connection->reset |= segment.flags & TCP_RST;
    send_segment(index, &segment);
}

/* ---- frames to the guest ---- */

static void check_data(const struct connection *connection, const struct script_frame *frame,
                       const struct tcp_segment *segment, uint32_t position)
{
    const uint8_t *payload = frame->bytes + segment->payload_offset;
    const struct fake_socket *socket = fake_socket_at(connection->fd);
    size_t match = fake_pattern_match(2 * (uint32_t)connection->fd, position, payload, segment->payload_length);

    REQUIRE(match == segment->payload_length, "byte %zu of the peer's stream is another", position + match);
    REQUIRE(position + segment->payload_length <= socket->arrived, "bytes that never came");
    if (segment->flags & TCP_FIN)
        REQUIRE(socket->fin_received && position + segment->payload_length == socket->arrived, "a FIN before the end");
}

static void check_ack(struct connection *connection, const struct tcp_segment *segment)
{
    const struct fake_socket *socket = fake_socket_at(connection->fd);
    uint32_t acked = segment->ack - connection->guest_iss - 1;
    uint32_t edge = segment->ack + ((uint32_t)segment->window << (segment->flags & TCP_SYN ? 0 : connection->scale));

    REQUIRE(acked <= socket->sent + (connection->fin_sent && socket->write_shut),
            "%u bytes acknowledged, %llu with the kernel", acked, (unsigned long long)socket->sent);
    REQUIRE(!connection->edge_known || !seq_before(edge, connection->edge - ((1u << connection->scale) - 1)),
            "the window moved back by %u bytes", connection->edge - edge);
    if (!connection->edge_known || seq_after(edge, connection->edge))
        connection->edge = edge;
    connection->edge_known = true;
    if (acked > connection->acked)
        connection->acked = acked < connection->next ? acked : connection->next;
}

static void take_segment(const struct script_frame *frame, const struct seen_frame *seen)
{
    const struct tcp_segment *segment = &seen->segment;
    unsigned index = segment->destination_port - GUEST_PORT;

    REQUIRE(index < CONNECTIONS && segment->source_port == PEER_PORT, "port %u", segment->destination_port);
    struct connection *connection = &guest.connection[index];
    TRACE("%llu connection %u > flags %#x, %d (%u bytes), ack %d, window %u\n", (unsigned long long)frame->time_ms,
          index, segment->flags, (int)(segment->seq - connection->iss - 1), segment->payload_length,
          (int)(segment->ack - connection->guest_iss - 1), segment->window);
    if (segment->flags & TCP_RST) {
        connection->reset = true; /* or there is no such connection any more */
        return;
    }
    REQUIRE(segment->flags & TCP_ACK, "flags %#x", segment->flags);
    if (segment->flags & TCP_SYN) {
        REQUIRE(segment->ack == connection->guest_iss + 1, "%u", segment->ack);
        REQUIRE(!connection->open || connection->iss == segment->seq, "a SYN-ACK with another number");
        connection->open = true;
        connection->iss = segment->seq;
        connection->scale = segment->has_scale ? segment->scale : 0;
        check_ack(connection, segment);
        return;
    }
    REQUIRE(connection->open, "a segment before the SYN-ACK");
    check_ack(connection, segment);
    uint32_t position = segment->seq - connection->iss - 1;
    if (!segment->payload_length && !(segment->flags & TCP_FIN))
        return;
    check_data(connection, frame, segment, position);
    if (guest.lose) {
        guest.lose--;
        return;
    }
    uint32_t end = position + segment->payload_length;
    if (position > connection->received || end < connection->received)
        return;
    connection->received = end;
    connection->fin_received |= segment->flags & TCP_FIN;
}

static void take_frames(void)
{
    struct script_frame frame;
    struct seen_frame seen;

    while (script_to_guest(&frame)) {
        check_to_guest(&frame, &seen);
        if (seen.tcp)
            take_segment(&frame, &seen);
    }
}

/* ---- an honest end ---- */

/* What an honest guest sends next: what is not acknowledged, as far as it may, and its FIN behind the last byte. */
static void send_honest(unsigned index)
{
    struct connection *connection = &guest.connection[index];
    uint32_t left = connection->next - connection->acked;
    uint32_t allowed = connection->edge - (connection->guest_iss + 1 + connection->acked);
    struct segment segment = {
        .seq = connection->guest_iss + 1 + connection->acked,
        .ack = connection->iss + 1 + connection->received + connection->fin_received,
        .window = UINT16_MAX,
        .flags = TCP_ACK,
        .length = left < SEGMENT_MAX ? left : SEGMENT_MAX,
    };

    if ((int32_t)allowed < 0)
        allowed = 0;
    if (segment.length > allowed)
        segment.length = allowed;
    if (segment.length == left) {
        segment.flags |= TCP_FIN;
        connection->fin_sent = true;
    }
    send_segment(index, &segment);
}

/* One round of everybody's best will. What is left of the connection, for a message. */
static void finish_round(unsigned index, const struct script_flow *flow)
{
    script_give_room(64);
    fake_send_limit(flow->fd, 1u << 16);
    fake_peer_accept(flow->fd);
    fake_peer_take(flow->fd, UINT64_MAX);
    fake_peer_fin(flow->fd);
    settle();
    take_frames();
    if (guest.connection[index].open)
        send_honest(index);
    take_frames();
}

static void finish(unsigned index)
{
    const struct connection *connection = &guest.connection[index];
    struct script_flow flow;

    guest.lose = 0;
    for (unsigned round = 0; flow_of(index, &flow); round++) {
        uint64_t next = script_next_ms(), now = script_now_ms();

        REQUIRE(
            round < FINISH_ROUNDS_MAX,
            "connection %u never ends: the guest has %u of %llu bytes, the peer %llu of %u; halves %d and %d, stall %d",
            index, connection->received, (unsigned long long)fake_socket_at(flow.fd)->arrived,
            (unsigned long long)fake_socket_at(flow.fd)->sent, connection->next, flow.to_guest, flow.to_host,
            flow.stall);
        finish_round(index, &flow);
        if (round % 4 == 3) /* nobody hurries a timer: it may be what must happen next */
            script_set_time(next > now && next != UINT64_MAX ? next : now + TIME_STEP_MS);
    }
    if (!connection->open || connection->reset || !fake_socket_at(connection->fd)->fin_received)
        return; /* it ended in another way: refused, reset, given up */
    REQUIRE(connection->received == fake_socket_at(connection->fd)->arrived, "%u bytes", connection->received);
    REQUIRE(connection->next == fake_socket_at(connection->fd)->sent, "%u bytes", connection->next);
}

/* ---- steps ---- */

static void peer(int fd, struct input *input)
{
    static const int errors[] = {ECONNREFUSED, EHOSTUNREACH, ETIMEDOUT, ENETUNREACH};
    unsigned choice = input_byte(input);

    TRACE("%llu peer of descriptor %d: %u\n", (unsigned long long)script_now_ms(), fd, choice % 8);
    switch (choice % 8) {
    case 0:
    case 1:
        fake_peer_accept(fd);
        break;
    case 2:
        fake_peer_send(fd, 8u * input_word(input));
        break;
    case 3:
        fake_peer_take(fd, 8u * input_word(input));
        break;
    case 4:
        fake_peer_fin(fd);
        break;
    case 5:
        fake_peer_send_urgent(fd, 1 + input_byte(input));
        break;
    case 6:
        fake_send_limit(fd, 2u * input_word(input) + 100);
        break;
    default: /* the end, one way or the other */
        if (choice & 128)
            fake_peer_reset(fd);
        else if (choice & 64)
            fake_peer_refuse(fd, errors[choice >> 4 & 3]);
    }
}

static void step(struct input *input)
{
    unsigned choice = input_byte(input), index = (choice >> 4) % CONNECTIONS;
    const struct connection *connection = &guest.connection[index];

    switch (choice % 8) {
    case 0:
        send_syn(index, input);
        break;
    case 1:
    case 2:
    case 3:
        if (connection->open)
            send_any(index, input);
        break;
    case 4:
    case 5:
        if (connection->fd >= 0)
            peer(connection->fd, input);
        break;
    case 6:
        if (choice & 128)
            script_set_time(script_now_ms() + 5 * input_byte(input));
        else if (script_next_ms() != UINT64_MAX)
            script_set_time(script_next_ms());
        break;
    default:
        if (choice & 128)
            script_set_room(input_byte(input) % 8);
        else if (choice & 64)
            guest.lose = input_byte(input) % 8;
        else
            script_give_room(input_byte(input));
    }
    settle();
    take_frames();
}

static void prepare(struct input *input)
{
    static const size_t buffers[] = {65550, 1526, 2048, 200};
    unsigned choice = input_byte(input), how = input_byte(input);
    struct script_link link = {
        .piece_bytes = how & 1 ? 65550 : 100,
        .batch_max = 64,
        .buffer_bytes = buffers[how >> 1 & 3],
        .copies = how & 1,
        .merge = how & 8,
        .connected = true,
        .csum = how & 16,
        .tso4 = (how & 48) == 48,
        .tso6 = (how & 48) == 48,
    };

    memset(&guest, 0, sizeof(guest));
    guest.ipv6 = choice & 1;
    for (unsigned i = 0; i < CONNECTIONS; i++) /* the second wraps on its way */
        guest.connection[i] = (struct connection){.guest_iss = i == 1 ? UINT32_MAX - 500 : 7000 * i, .fd = -1};
    fake_kernel_reset();
    fake_defaults(choice & 2 ? 1u << 16 : 4000, choice & 4 ? 1u << 16 : 3000, 25, choice & 8);
    REQUIRE(!script_open(1000, CONNECTIONS, choice & 8, false, choice & 16, choice >> 6), "%s", script_fault());
    *script_view() = (struct lg_net_view){.flags = UINT32_MAX, .mtu = choice & 32 ? 1500 : 65520};
    script_set_link(&link);
    script_set_room(choice & 64 ? 3 : 1u << 20);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {.at = data, .left = size};

    prepare(&input);
    for (unsigned steps = 0; input.left && steps < STEPS_MAX; steps++)
        step(&input);
    for (unsigned i = 0; i < CONNECTIONS; i++)
        finish(i);
    REQUIRE(!script_left()[0], "%s", script_left());
    script_close();
    check_world();
    return 0;
}
