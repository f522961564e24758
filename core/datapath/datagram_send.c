/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_send.c: the datagrams of a flow in one batch, straight out of the guest's memory. Those of one size that follow
 * each other are one message, which the kernel cuts up as late as it can (UDP_SEGMENT, udp(7)); all messages are one call.
 *
 * What the host's queue does not take is lost, as on any wire. A flow whose path refuses UDP_SEGMENT does without.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>

#include "datagram.h"
#include "pieces.h"
#include "sys.h"

struct outgoing {
    struct mmsghdr message[DATAGRAM_SEND_MAX];
    unsigned datagrams[DATAGRAM_SEND_MAX]; /* in each message */
    unsigned count;
    struct iovec iov[LINK_PIECES];
    unsigned pieces;
    union {
        char bytes[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(struct in6_pktinfo))];
        struct cmsghdr align;
    } control[DATAGRAM_SEND_MAX];
};

/* Appends a control message to the message that is being made. */
static void add_control(struct outgoing *out, int level, int type, const void *value, size_t length)
{
    struct msghdr *msg = &out->message[out->count].msg_hdr;
    char *bytes = out->control[out->count].bytes;
    struct cmsghdr *c = (struct cmsghdr *)(void *)(bytes + msg->msg_controllen);

    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(length);
    memcpy(CMSG_DATA(c), value, length);
    msg->msg_control = bytes;
    msg->msg_controllen += CMSG_SPACE(length);
}

/* To a peer that asked first, through the socket of the port that it asked, and from the address that it asked. */
static void address_peer(struct outgoing *out, const struct datagram_peer *peer)
{
    struct msghdr *msg = &out->message[out->count].msg_hdr;
    static const uint8_t unset[sizeof(peer->local)];

    if (!peer->addr_length)
        return;
    msg->msg_name = (void *)(uintptr_t)&peer->addr;
    msg->msg_namelen = peer->addr_length;
    if (!memcmp(peer->local, unset, sizeof(unset)))
        return;
    if (peer->addr.sin6_family == AF_INET) {
        struct in_pktinfo info = {0};
        memcpy(&info.ipi_spec_dst, peer->local + 12, sizeof(info.ipi_spec_dst));
        add_control(out, IPPROTO_IP, IP_PKTINFO, &info, sizeof(info));
    } else { /* on a socket of both families also for IPv4, mapped (ipv6(7)) */
        struct in6_pktinfo info = {.ipi6_ifindex = peer->interface};
        memcpy(&info.ipi6_addr, peer->local, sizeof(info.ipi6_addr));
        add_control(out, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof(info));
    }
}

/* Appends the pieces of one datagram to the message that is being made; false: they find no room. */
static bool append(struct outgoing *out, const struct batch_segment *segment)
{
    unsigned room = LINK_PIECES - out->pieces;
    unsigned pieces = segment->length ? pieces_slice(segment->frame->iov, segment->frame->iov_count, segment->offset,
                                                     segment->length, out->iov + out->pieces, room)
                                      : 0;

    if (segment->length && !pieces)
        return false;
    out->pieces += pieces;
    out->message[out->count].msg_hdr.msg_iovlen += pieces;
    out->datagrams[out->count]++;
    return true;
}

/* One message: the datagram at `place`, and as many behind it as may be cut from one piece. Returns the next place, or
 * `place` itself where the pieces found no room. */
static uint16_t make_message(const struct engine *engine, const struct flow *flow, struct outgoing *out, uint16_t place,
                             bool segments)
{
    const struct batch_segment *segment = &engine->segment[place - 1];
    uint32_t size = segment->length, bytes = size;

    out->message[out->count] = (struct mmsghdr){.msg_hdr.msg_iov = out->iov + out->pieces};
    out->datagrams[out->count] = 0;
    if (!append(out, segment))
        return place;
    uint16_t next = segment->next;
    while (segments && size && next) {
        segment = &engine->segment[next - 1];
        /* All of one size but the last, which may be shorter; none of no bytes, which nobody could see. */
        if (!segment->length || segment->length > size || bytes + segment->length > DATAGRAM_PAYLOAD_MAX ||
            out->datagrams[out->count] == DATAGRAM_SEGMENTS_MAX || !append(out, segment))
            break;
        bytes += segment->length;
        next = segment->next;
        if (segment->length < size)
            break;
    }
    address_peer(out, &flow->datagram.peer);
    if (out->datagrams[out->count] > 1)
        add_control(out, IPPROTO_UDP, UDP_SEGMENT, &(uint16_t){(uint16_t)size}, sizeof(uint16_t));
    out->count++;
    return next;
}

static uint16_t gather(const struct engine *engine, const struct flow *flow, struct outgoing *out, uint16_t first)
{
    bool segments = flow->key.protocol == IPPROTO_UDP && !flow->datagram.no_segments;

    out->count = out->pieces = 0;
    while (first && out->count < DATAGRAM_SEND_MAX) {
        uint16_t next = make_message(engine, flow, out, first, segments);
        if (next == first)
            break;
        first = next;
    }
    return first;
}

/* Whether the same messages may be tried once more, each datagram by itself: what cannot be cut up may still be sent. */
static bool refuses_segments(int error)
{
    return error == EINVAL || error == EMSGSIZE || error == EIO || error == EOPNOTSUPP;
}

/* Sends all; returns the index of a message that must be made anew without UDP_SEGMENT, or out->count. */
static unsigned send_messages(struct engine *engine, struct flow *flow, struct outgoing *out)
{
    int fd = flow->datagram.peer.addr_length ? flow->datagram.peer.fd : flow->fd;
    unsigned at = 0;
    bool again = false; /* the socket told of an error of the past: the message itself was not tried */

    while (at < out->count) {
        int n = sys_sendmmsg(fd, out->message + at, out->count - at, MSG_DONTWAIT | MSG_NOSIGNAL);

        for (int i = 0; i < n; i++)
            engine->counters[C_datagrams_from_guest] += out->datagrams[at + (unsigned)i];
        if (n > 0) {
            at += (unsigned)n;
            again = false;
            continue;
        }
        engine->memory_fault |= n == -EFAULT;
        flow->datagram.errors = true;
        if (out->datagrams[at] > 1 && refuses_segments(-n)) {
            flow->datagram.no_segments = true;
            return at;
        }
        if (!again && n != -EAGAIN && n != -ENOBUFS && n != -EFAULT) {
            again = true;
            continue;
        }
        engine->counters[C_datagrams_unsent] += out->datagrams[at++];
        again = false;
    }
    return at;
}

/* The place of the first datagram of message `index`. */
static uint16_t place_of(const struct engine *engine, const struct outgoing *out, uint16_t first, unsigned index)
{
    for (unsigned message = 0; message < index; message++)
        for (unsigned i = 0; i < out->datagrams[message]; i++)
            first = engine->segment[first - 1].next;
    return first;
}

void datagram_send_batch(struct engine *engine, struct flow *flow)
{
    struct outgoing out;
    uint16_t first = flow->datagram.batch_first;

    flow->datagram.batch_first = flow->datagram.batch_last = 0;
    while (first) {
        uint16_t next = gather(engine, flow, &out, first);

        if (!out.count) { /* of more pieces than one call takes: no frame has as many */
            engine->counters[C_datagrams_unsent]++;
            first = engine->segment[first - 1].next;
            continue;
        }
        unsigned sent = send_messages(engine, flow, &out);
        first = sent < out.count ? place_of(engine, &out, first, sent) : next;
        flow->active_ms = engine->now_ms;
    }
}
