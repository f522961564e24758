/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_send.c: the datagrams of a flow in one batch, straight out of the guest's memory. Those of one size that follow
 * each other are one message, which the kernel cuts up as late as it can (UDP_SEGMENT, udp(7)); all messages are one call.
 *
 * What the host's queue does not take is lost, as on any wire. A flow whose path refuses UDP_SEGMENT does without.
 * Between two sockets of one host, what came in one call goes out in one.
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

/* The next datagram to be sent: a place in engine->segment (index + 1; 0: there is none left), and the datagrams of that
 * frame that are out already. */
struct cursor {
    uint16_t place;
    uint32_t offset; /* bytes */
};

/* How long the datagram at the cursor is. */
static uint32_t size_at(const struct engine *engine, struct cursor at)
{
    const struct batch_segment *segment = &engine->segment[at.place - 1];
    uint32_t left = segment->length - at.offset;

    return segment->datagram && segment->datagram < left ? segment->datagram : left;
}

static struct cursor advanced(const struct engine *engine, struct cursor at, uint32_t bytes)
{
    const struct batch_segment *segment = &engine->segment[at.place - 1];

    at.offset += bytes;
    return at.offset < segment->length ? at : (struct cursor){.place = segment->next};
}

/* Appends the pieces of so many bytes, which are `datagrams` datagrams of one frame, to the message that is being made;
 * false: they find no room. */
static bool append(const struct engine *engine, struct outgoing *out, struct cursor at, uint32_t bytes,
                   unsigned datagrams)
{
    const struct batch_segment *segment = &engine->segment[at.place - 1];
    unsigned room = LINK_PIECES - out->pieces;
    unsigned pieces = bytes ? pieces_slice(segment->frame->iov, segment->frame->iov_count, segment->offset + at.offset,
                                           bytes, out->iov + out->pieces, room)
                            : 0;

    if (bytes && !pieces)
        return false;
    out->pieces += pieces;
    out->message[out->count].msg_hdr.msg_iovlen += pieces;
    out->datagrams[out->count] += datagrams;
    return true;
}

/* How many datagrams of the frame at the cursor may go into a message that has some of `size` bytes: all are of one size but
 * the last, which may be shorter; none of no bytes, which nobody could see. Most guests send one a frame. */
static unsigned run_at(const struct engine *engine, struct cursor at, uint32_t size, unsigned datagrams, uint32_t bytes)
{
    const struct batch_segment *segment = &engine->segment[at.place - 1];
    uint32_t next = size_at(engine, at);

    if (!next || next > size || datagrams == DATAGRAM_SEGMENTS_MAX || bytes + next > DATAGRAM_PAYLOAD_MAX)
        return 0;
    if (next < size || segment->datagram != size)
        return 1;
    unsigned run = (segment->length - at.offset) / size, room = DATAGRAM_SEGMENTS_MAX - datagrams,
             fit = (DATAGRAM_PAYLOAD_MAX - bytes) / size;
    room = room < fit ? room : fit;
    return run < room ? run : room;
}

/* One message: the datagram at the cursor, and as many behind it as may be cut from one piece. Returns where the next
 * begins: at the cursor itself if the pieces found no room. */
static struct cursor make_message(const struct engine *engine, const struct flow *flow, struct outgoing *out,
                                  struct cursor at, bool segments)
{
    uint32_t size = size_at(engine, at), bytes = 0, part = size;
    unsigned run = 1;

    out->message[out->count] = (struct mmsghdr){.msg_hdr.msg_iov = out->iov + out->pieces};
    out->datagrams[out->count] = 0;
    while (run && append(engine, out, at, part, run)) {
        bool shorter = part < run * size;
        bytes += part;
        at = advanced(engine, at, part);
        if (!segments || !size || shorter || !at.place)
            break;
        run = run_at(engine, at, size, out->datagrams[out->count], bytes);
        part = run * size_at(engine, at);
    }
    if (!out->datagrams[out->count])
        return at;
    address_peer(out, &flow->datagram.peer);
    if (out->datagrams[out->count] > 1)
        add_control(out, IPPROTO_UDP, UDP_SEGMENT, &(uint16_t){(uint16_t)size}, sizeof(uint16_t));
    out->count++;
    return at;
}

static struct cursor gather(const struct engine *engine, const struct flow *flow, struct outgoing *out,
                            struct cursor at)
{
    bool segments = flow->key.protocol == IPPROTO_UDP && !flow->datagram.no_segments;

    out->count = out->pieces = 0;
    while (at.place && out->count < DATAGRAM_SEND_MAX) {
        unsigned made = out->count;
        at = make_message(engine, flow, out, at, segments);
        if (out->count == made)
            break;
    }
    return at;
}

/* Whether the same messages may be tried once more, each datagram by itself: what cannot be cut up may still be sent. */
static bool refuses_segments(int error)
{
    return error == EINVAL || error == EMSGSIZE || error == EIO || error == EOPNOTSUPP;
}

/* Sends all from message `at`; returns the index of one that must be made anew without UDP_SEGMENT, or out->count. */
static unsigned send_messages(struct engine *engine, struct flow *flow, int fd, struct outgoing *out, unsigned at,
                              enum counter sent)
{
    bool again = false; /* the socket told of an error of the past: the message itself was not tried */

    while (at < out->count) {
        int n = sys_sendmmsg(fd, out->message + at, out->count - at, MSG_DONTWAIT | MSG_NOSIGNAL);

        for (int i = 0; i < n; i++)
            engine->counters[sent] += out->datagrams[at + (unsigned)i];
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

/* The first datagram of message `index`. */
static struct cursor first_of(const struct engine *engine, const struct outgoing *out, struct cursor at, unsigned index)
{
    for (unsigned message = 0; message < index; message++)
        for (unsigned i = 0; i < out->datagrams[message]; i++)
            at = advanced(engine, at, size_at(engine, at));
    return at;
}

void datagram_send_batch(struct engine *engine, struct flow *flow)
{
    struct outgoing out;
    struct cursor at = {.place = flow->datagram.batch_first};
    int fd = flow->datagram.peer.addr_length ? flow->datagram.peer.fd : flow->fd;

    flow->datagram.batch_first = flow->datagram.batch_last = 0;
    while (at.place) {
        struct cursor next = gather(engine, flow, &out, at);

        if (!out.count) { /* of more pieces than one call takes: no frame has as many */
            engine->counters[C_datagrams_unsent]++;
            at = advanced(engine, at, size_at(engine, at));
            continue;
        }
        unsigned sent = send_messages(engine, flow, fd, &out, 0, C_datagrams_from_guest);
        at = sent < out.count ? first_of(engine, &out, at, sent) : next;
        flow->active_ms = engine->now_ms;
    }
}

/* Appends bytes that lie in one piece as a message, of one datagram or of several of one size. */
static void add_message(struct outgoing *out, const struct flow *flow, int fd, struct iovec bytes, uint16_t each)
{
    unsigned at = out->count;

    out->iov[at] = bytes;
    out->message[at] = (struct mmsghdr){.msg_hdr = {.msg_iov = &out->iov[at], .msg_iovlen = 1}};
    out->datagrams[at] = bytes.iov_len > each ? ((unsigned)bytes.iov_len + each - 1) / each : 1;
    if (fd != flow->fd)
        address_peer(out, &flow->datagram.peer);
    if (out->datagrams[at] > 1)
        add_control(out, IPPROTO_UDP, UDP_SEGMENT, &each, sizeof(each));
    out->count++;
}

/* The datagrams of a message that was not to be cut up, each by itself: the MTU may be smaller than they are. */
static void relay_apart(struct engine *engine, struct flow *flow, int fd, struct iovec joined, uint16_t each)
{
    struct outgoing out;

    while (joined.iov_len) {
        for (out.count = 0; joined.iov_len && out.count < DATAGRAM_SEND_MAX;) {
            size_t part = joined.iov_len < each ? joined.iov_len : each;
            add_message(&out, flow, fd, (struct iovec){joined.iov_base, part}, each);
            joined = (struct iovec){(uint8_t *)joined.iov_base + part, joined.iov_len - part};
        }
        send_messages(engine, flow, fd, &out, 0, C_splice_datagrams);
    }
}

uint64_t datagram_relay(struct engine *engine, struct flow *flow, int fd, struct datagram_inbox *inbox,
                        unsigned messages)
{
    uint16_t each[DATAGRAM_RECEIVE_MAX];
    struct outgoing out;
    uint64_t bytes = 0;

    for (out.count = 0; out.count < messages;) {
        uint32_t length = inbox->length[inbox->next];

        each[out.count] = (uint16_t)inbox->each[inbox->next];
        add_message(&out, flow, fd, (struct iovec){inbox_bytes(inbox, inbox->next), length}, each[out.count]);
        bytes += length;
        inbox_advance(inbox, length);
    }
    for (unsigned at = 0; (at = send_messages(engine, flow, fd, &out, at, C_splice_datagrams)) < out.count; at++)
        relay_apart(engine, flow, fd, out.iov[at], each[at]);
    flow->active_ms = engine->now_ms;
    return bytes;
}
