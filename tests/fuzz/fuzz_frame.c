/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_frame.c: any bytes as frames from the guest, through the whole engine between the fake kernel and the fake link of
 * tests/script, while the peers of what it opens answer, send and go away.
 *
 * Called by libFuzzer. Adversary: the input is the guest, and its peers. What must hold: no assertion, nothing that a
 * sanitizer reports, no call that the fake kernel finds wrong, no loop that never rests, and every frame to the guest is
 * well formed.
 */
#include <errno.h>
#include <netinet/in.h>

#include "fake_kernel.h"
#include "input.h"
#include "to_guest.h"

enum limits {
    FLOW_LIMIT = 4, /* so that the table is full now and then */
    STEPS_MAX = 64,
    SETTLE_MAX = 200,
    FRAME_MAX = 2000,
    SEVERAL = 192,    /* a frame of several datagrams: beyond, what would be padding is their size */
    PIECE_BYTES = 64, /* of a packet's piece that the input says; the rest of it does not matter */
};

static void prepare_view(unsigned choice)
{
    struct lg_net_view *view = script_view();

    *view = (struct lg_net_view){
        .flags = choice & 1 ? UINT32_MAX : LG_VIEW_IPV4 | LG_VIEW_IPV6 | LG_VIEW_TCP | LG_VIEW_ICMP | LG_VIEW_NDP,
        .mtu = choice & 2   ? 1500
               : choice & 4 ? 65535
                            : 68,
        .our_mac = {0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55},
        .guest4 = {[10] = 0xff, [11] = 0xff, [12] = 192, [14] = 2, [15] = 15},
        .gateway4 = {[10] = 0xff, [11] = 0xff, [12] = 192, [14] = 2, [15] = 1},
        .map_host4 = {[10] = 0xff, [11] = 0xff, [12] = 192, [14] = 2, [15] = 1},
        .guest6 = {0x20, 0x01, 0x0d, 0xb8, [15] = 15},
        .gateway6 = {0x20, 0x01, 0x0d, 0xb8, [15] = 1},
        .our_link_local = {0xfe, 0x80, [15] = 1},
    };
}

static void prepare_link(unsigned choice)
{
    static const size_t buffers[] = {65550, 1526, 90, 4096};
    const struct script_link link = {
        .piece_bytes = choice & 1 ? 65550 : 7,
        .batch_max = choice & 2 ? 64 : 1,
        .buffer_bytes = buffers[choice >> 2 & 3],
        .copies = choice & 1,
        .merge = choice & 16,
        .connected = true,
        .csum = choice & 32,
        .tso4 = choice & 64 && choice & 32,
        .tso6 = choice & 128 && choice & 32,
        .uso4 = choice & 64 && choice & 32,
        .uso6 = choice & 128 && choice & 32,
    };

    script_set_link(&link);
}

static void from_guest(struct input *input)
{
    uint8_t frame[FRAME_MAX];
    size_t length = input_bytes(input, frame, input_word(input) % FRAME_MAX);
    unsigned padding = input_byte(input);

    if (padding >= SEVERAL)
        script_from_guest_several(frame, length, (uint16_t)((padding - SEVERAL) * 4 + 1));
    else
        script_from_guest(frame, length, 1, 0, padding * 16u);
}

/* A piece of one of a few packets: its numbers are the input's, its header is right, so that packets become whole. */
static void piece_from_guest(struct input *input)
{
    static const uint8_t protocols[2][4] = {{IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_ICMP},
                                            {IPPROTO_UDP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_DSTOPTS}};
    unsigned choice = input_byte(input), more = choice >> 1 & 1, offset = input_word(input), rest = input_word(input);
    bool ipv6 = choice & 1;
    uint8_t frame[ETHERNET_HEADER + IPV6_HEADER + IPV6_FRAGMENT_HEADER + PIECE_BYTES] = {0};
    const struct lg_net_view *view = script_view();
    struct packet_path path = {.source = address_from(ipv6 ? view->guest6 : view->guest4),
                               .destination = address_from(ipv6 ? view->gateway6 : view->gateway4)};
    uint8_t bytes[PIECE_BYTES], protocol = protocols[ipv6][choice >> 4 & 3];
    size_t length = input_bytes(input, bytes, input_byte(input) % (PIECE_BYTES + 1));
    struct script_link link;

    path.destination.byte[15] = (uint8_t)(path.destination.byte[15] + (choice >> 6));
    script_get_link(&link);
    rest %=
        link.piece_bytes < 65550 ? LINK_PIECES * 7 - sizeof(frame) : 65536 - sizeof(frame); /* what a chain carries */
    unsigned header = packet_write_headers(frame, &path, ipv6 ? IPPROTO_FRAGMENT : protocol, 64,
                                           (uint32_t)length + rest + (ipv6 ? IPV6_FRAGMENT_HEADER : 0));
    uint8_t *fields = frame + (ipv6 ? header + 2 : ETHERNET_HEADER + 6); /* RFC 8200, 4.5; RFC 791, 3.1 */
    store_be16(fields, ipv6 ? offset << 3 | more : more << 13 | (offset & 0x1fff));
    fields[ipv6 ? 5 : -1] = choice >> 2 & 3;
    if (ipv6)
        frame[header] = protocol;
    header += ipv6 ? IPV6_FRAGMENT_HEADER : 0;
    memcpy(frame + header, bytes, length);
    TRACE("a piece at %u, %zu bytes and %u, more %u, packet %u\n", offset, length, rest, more, choice >> 2 & 3);
    script_from_guest(frame, header + length, 1, 0, rest);
}

/* Datagrams of the peer's, joined or one by one. */
static void datagrams_of_peer(struct input *input, int fd)
{
    static const uint8_t bytes[FRAME_MAX];
    const struct fake_socket *socket = fake_socket_at(fd);
    uint32_t length = input_word(input) % FRAME_MAX, each = 8u * input_byte(input);

    if (socket && socket->datagrams && !socket->closed)
        fake_datagram_arrive(fd, bytes, length, each < length ? (uint16_t)each : 0);
}

static void peer(struct input *input)
{
    static const int errors[] = {ECONNREFUSED, EHOSTUNREACH, ETIMEDOUT, EACCES};
    unsigned choice = input_byte(input);
    int fd = fake_last_socket() - (int)(choice >> 6);

    switch (choice % 8) {
    case 0:
        fake_peer_accept(fd);
        break;
    case 1:
        fake_peer_refuse(fd, errors[choice >> 3 & 3]);
        break;
    case 2:
        fake_peer_send(fd, 40u * input_word(input));
        break;
    case 3:
        fake_peer_fin(fd);
        break;
    case 4:
        fake_peer_reset(fd);
        break;
    case 5:
        fake_peer_take(fd, 40u * input_word(input));
        break;
    case 6:
        fake_peer_send_urgent(fd, 1 + input_byte(input));
        break;
    default:
        if (choice & 8)
            fake_send_limit(fd, 16u * input_word(input));
        else
            datagrams_of_peer(input, fd);
    }
}

/* The next call of a kind fails as a kernel's can: no descriptor or memory is left, nobody is there, the guest's memory
 * has gone. */
static void let_fail(struct input *input)
{
    static const struct {
        enum fake_call call;
        int error;
    } failures[] = {{CALL_socket, EMFILE},  {CALL_socket, ENOBUFS},   {CALL_connect, ENETUNREACH},
                    {CALL_connect, EACCES}, {CALL_epoll_ctl, ENOSPC}, {CALL_sendmsg, ENOBUFS},
                    {CALL_sendmsg, EPIPE},  {CALL_recvmsg, EFAULT},   {CALL_sendmsg, EFAULT}};
    unsigned choice = input_byte(input) % (sizeof(failures) / sizeof(failures[0]));

    fake_fail(failures[choice].call, failures[choice].error);
}

static void step(struct input *input)
{
    unsigned choice = input_byte(input);

    switch (choice % 8) {
    case 0:
    case 1:
        from_guest(input);
        break;
    case 2:
        piece_from_guest(input);
        break;
    case 3:
    case 4:
        peer(input);
        break;
    case 5: /* to the next timer, or a little further */
        script_set_time(choice & 128 || script_next_ms() == UINT64_MAX ? script_now_ms() + 8 * input_byte(input)
                                                                       : script_next_ms());
        break;
    case 6:
        if (choice & 128)
            script_set_room(input_byte(input) % 4);
        else
            script_give_room(input_byte(input));
        break;
    default:
        let_fail(input);
    }
}

static void take_frames(void)
{
    struct script_frame frame;
    struct seen_frame seen;

    while (script_to_guest(&frame))
        check_to_guest(&frame, &seen);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {.at = data, .left = size};
    unsigned choice = input_byte(&input);

    fake_kernel_reset();
    fake_defaults(1u << 16, 1u << 16, 25, choice & 8);
    REQUIRE(!script_open(1000, FLOW_LIMIT, choice & 8, false, choice & 16, choice >> 6), "%s", script_fault());
    prepare_view(choice);
    prepare_link(input_byte(&input));
    for (unsigned steps = 0; input.left && steps < STEPS_MAX && !script_memory_fault(); steps++) {
        step(&input);
        REQUIRE(script_settle(SETTLE_MAX) >= 0, "the engine never rests");
        check_world();
        take_frames();
    }
    script_close();
    check_world();
    REQUIRE(!fake_sockets_open(), "%u sockets are left open", fake_sockets_open());
    return 0;
}
