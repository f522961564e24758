/* SPDX-License-Identifier: Apache-2.0
 *
 * link_switch.c: the link of link_switch.h, in the manner of a learning bridge (IEEE 802.1D, 7.8) that nothing is plugged
 * into but guests: there are no loops, and a unicast address that nobody has used is nobody's.
 *
 * Adversary: each guest, towards the gateway as ever, and towards the others. It can take over an address of theirs on
 * this network as on any other; it cannot fill more of the table than its port's share, send in the name of the gateway,
 * put more into another port than that can say the length of, or keep others waiting: frames that a port has no room for
 * are lost there, as at a real switch, and TCP sends them again.
 */
#include "link_switch.h"

#include <errno.h>
#include <string.h>

#include "counters.h"
#include "packet.h"
#include "pages.h"

enum {
    MAC_GROUP = 1, /* of the first byte */
    NOBODY = UINT8_MAX,
};

static struct link_switch *switch_of(struct link *link)
{
    return (struct link_switch *)link; /* the link is the first member */
}

/* ---- who is where ---- */

static unsigned port_of(const struct link_switch *bridge, const uint8_t *mac)
{
    for (unsigned i = 0; i < bridge->entries; i++)
        if (!memcmp(bridge->entry[i].mac, mac, ADDRESS_MAC))
            return bridge->entry[i].port;
    return NOBODY;
}

static void move_entry(struct link_switch *bridge, struct switch_entry *entry, unsigned port)
{
    bridge->port[entry->port].entries--;
    bridge->port[port].entries++;
    entry->port = (uint8_t)port;
    bridge->untold += entry->told;
    entry->told = false;
}

/* Of a port that has its share already nothing more: there is room for all others, whoever comes first. */
static void learn(struct link_switch *bridge, const uint8_t *mac, unsigned port)
{
    bool full = bridge->port[port].entries == SWITCH_PORT_ENTRIES;

    for (unsigned i = 0; i < bridge->entries; i++) {
        struct switch_entry *entry = &bridge->entry[i];
        if (memcmp(entry->mac, mac, ADDRESS_MAC))
            continue;
        if (entry->port != port && !full)
            move_entry(bridge, entry, port);
        return;
    }
    if (full)
        return;
    struct switch_entry *entry = &bridge->entry[bridge->entries++];
    *entry = (struct switch_entry){.port = (uint8_t)port};
    memcpy(entry->mac, mac, ADDRESS_MAC);
    bridge->port[port].entries++;
    bridge->untold++;
}

static void forget(struct link_switch *bridge, unsigned port)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < bridge->entries; i++) {
        if (bridge->entry[i].port != port)
            bridge->entry[kept++] = bridge->entry[i];
        else
            bridge->untold -= !bridge->entry[i].told;
    }
    bridge->entries = kept;
    bridge->port[port].entries = 0;
}

/* ---- from port to port ---- */

static void send_to(struct link_switch *bridge, unsigned port, const struct iovec *iov, unsigned count, size_t length)
{
    static const struct offload none;
    struct link *link = bridge->port[port].link;
    struct payload_pieces pieces = {.count = 0};
    struct guest_room room;

    if (length > SWITCH_FRAME_MAX) {
        bridge->counters[C_drop_length]++;
        return;
    }
    if (link->operations->reserve(link, ETHERNET_HEADER, length - ETHERNET_HEADER, &pieces, &room)) {
        bridge->counters[C_drop_no_room]++;
        return;
    }
    uint8_t *at = room.header[0].iov_base; /* these links give one piece: the payload lies behind it */
    for (unsigned i = 0; i < count; at += iov[i++].iov_len)
        memcpy(at, iov[i].iov_base, iov[i].iov_len);
    link->operations->commit(link, length, &none);
}

/* To whom a frame is; whoever it came from, SWITCH_PORTS if that was the gateway, does not get it back. */
static void distribute(struct link_switch *bridge, const uint8_t *to, const struct iovec *iov, unsigned count,
                       size_t length, unsigned from)
{
    if (to[0] & MAC_GROUP) {
        for (unsigned port = 0; port < SWITCH_PORTS; port++)
            if (port != from && bridge->port[port].link)
                send_to(bridge, port, iov, count, length);
        return;
    }
    unsigned port = port_of(bridge, to);
    if (port != NOBODY && port != from)
        send_to(bridge, port, iov, count, length);
    else
        bridge->counters[C_drop_address]++;
}

/* ---- from the guests ---- */

/* Whether the engine is to have it. */
static bool sort_frame(struct link_switch *bridge, const struct guest_frame *frame, unsigned port)
{
    const uint8_t *to = frame->head, *from = frame->head + ADDRESS_MAC;
    bool ours = !memcmp(to, bridge->our_mac, ADDRESS_MAC);

    if (!memcmp(from, bridge->our_mac, ADDRESS_MAC)) {
        bridge->counters[C_drop_address]++;
        return false;
    }
    if (!(from[0] & MAC_GROUP))
        learn(bridge, from, port);
    if (!ours) {
        bridge->counters[C_frames_between_guests]++;
        distribute(bridge, to, frame->iov, frame->iov_count, frame->length, port);
    }
    return ours || to[0] & MAC_GROUP;
}

static unsigned switch_from_guest(struct link *link, struct guest_frame *frames, bool *ret_more)
{
    struct link_switch *bridge = switch_of(link);
    unsigned kept = 0;
    bool more;

    bridge->lender = NULL;
    *ret_more = false;
    for (unsigned i = 0; i < SWITCH_PORTS; i++) {
        unsigned port = bridge->turn;
        struct link *one = bridge->port[port].link;

        bridge->turn = (port + 1) % SWITCH_PORTS;
        if (!one)
            continue;
        if (bridge->lender) { /* whether it has something is found out at its turn */
            *ret_more = true;
            bridge->turn = port;
            break;
        }
        unsigned count = one->operations->from_guest(one, frames, &more);
        *ret_more |= more;
        if (!count)
            continue;
        bridge->lender = one;
        for (unsigned frame = 0; frame < count; frame++) {
            if (!sort_frame(bridge, &frames[frame], port))
                continue;
            if (kept != frame)
                frames[kept] = frames[frame];
            kept++;
        }
    }
    return kept;
}

static void switch_release(struct link *link)
{
    struct link_switch *bridge = switch_of(link);

    if (bridge->lender)
        bridge->lender->operations->release(bridge->lender);
    bridge->lender = NULL;
}

/* ---- from the gateway ---- */

static int switch_reserve(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                          struct guest_room *ret_room)
{
    return frame_batch_reserve(&switch_of(link)->out, 0, header, payload, pieces, ret_room);
}

static void switch_rollback(struct link *link)
{
    frame_batch_rollback(&switch_of(link)->out);
}

static void switch_commit(struct link *link, size_t length, const struct offload *offload)
{
    struct link_switch *bridge = switch_of(link);
    uint8_t *frame = frame_batch_commit(&bridge->out);
    const struct iovec iov = {frame, length};

    (void)offload; /* there is none: link.csum and link.tso* are false */
    distribute(bridge, frame, &iov, 1, length, SWITCH_PORTS);
}

static void switch_flush(struct link *link, uint64_t now_ms)
{
    struct link_switch *bridge = switch_of(link);

    for (unsigned port = 0; port < SWITCH_PORTS; port++) {
        struct link *one = bridge->port[port].link;
        if (one)
            one->operations->flush(one, now_ms);
    }
}

static bool switch_wait_room(struct link *link)
{
    (void)link; /* it never says that it is full */
    return false;
}

static const struct link_operations operations = {
    .from_guest = switch_from_guest,
    .release = switch_release,
    .reserve = switch_reserve,
    .commit = switch_commit,
    .rollback = switch_rollback,
    .flush = switch_flush,
    .wait_room = switch_wait_room,
};

/* ---- life ---- */

int link_switch_init(struct link_switch *bridge, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                     uint64_t source, const uint8_t *our_mac)
{
    *bridge = (struct link_switch){
        .link = {.operations = &operations, .flush_ms = UINT64_MAX, .look_ms = UINT64_MAX},
        .counters = counters,
        .pcap = pcap,
        .epoll_fd = epoll_fd,
        .source = source,
        .our_mac = our_mac,
        .port = pages_reserve(SWITCH_PORTS * sizeof(struct switch_port)), /* costs nothing until it is used */
    };
    return bridge->port ? frame_batch_init(&bridge->out) : -ENOMEM;
}

/* Both links of a port have their buffers from its first guest on, and nobody before. */
static int make_port(struct link_switch *bridge, unsigned number)
{
    uint64_t source = bridge->source + number;
    int err;

    if (number >= SWITCH_PORTS)
        return -EINVAL;
    struct switch_port *port = &bridge->port[number];
    if (port->link)
        return -EBUSY;
    if (port->made)
        return 0;
    if ((err = link_stream_init(&port->stream, bridge->counters, bridge->pcap, bridge->epoll_fd, source)) ||
        (err = link_dgram_init(&port->dgram, bridge->counters, bridge->pcap, bridge->epoll_fd, source)))
        return err;
    port->made = true;
    return 0;
}

int link_switch_attach_stream(struct link_switch *bridge, unsigned port, int fd, unsigned framing)
{
    int err = make_port(bridge, port);

    if (!err)
        err = link_stream_attach(&bridge->port[port].stream, fd, framing);
    if (!err)
        bridge->port[port].link = &bridge->port[port].stream.socket.link;
    return err;
}

int link_switch_attach_dgram(struct link_switch *bridge, unsigned port, int fd)
{
    int err = make_port(bridge, port);

    if (!err)
        err = link_dgram_attach(&bridge->port[port].dgram, fd);
    if (!err)
        bridge->port[port].link = &bridge->port[port].dgram.socket.link;
    return err;
}

void link_switch_detach(struct link_switch *bridge, unsigned number)
{
    if (number >= SWITCH_PORTS || !bridge->port[number].link)
        return;
    struct switch_port *port = &bridge->port[number];
    link_socket_detach(link_socket_of(port->link));
    port->link = NULL;
    forget(bridge, number);
}

void link_switch_event(struct link_switch *bridge, unsigned number, uint32_t events)
{
    struct link *link = bridge->port[number].link;

    if (link)
        link_socket_event(link_socket_of(link), events);
}

struct switch_entry *link_switch_untold(struct link_switch *bridge)
{
    for (unsigned i = 0; bridge->untold && i < bridge->entries; i++)
        if (!bridge->entry[i].told)
            return &bridge->entry[i];
    return NULL;
}

bool link_switch_ended(const struct link_switch *bridge, unsigned *ret_port, struct lg_link_end *ret_end)
{
    for (unsigned number = 0; number < SWITCH_PORTS; number++) {
        const struct switch_port *port = &bridge->port[number];
        const struct link_socket *socket = link_socket_of(port->link);
        if (!socket || !socket->ended)
            continue;
        *ret_port = number;
        *ret_end = (struct lg_link_end){.error = socket->error,
                                        .length = socket == &port->stream.socket ? port->stream.length : 0};
        return true;
    }
    return false;
}
