/* SPDX-License-Identifier: Apache-2.0
 *
 * link_stream.c: the link of link_stream.h. One copy in and one out, many frames a system call.
 *
 * Adversary: the other end, which may say any length, stop in the middle of a frame, or never read. A length is checked
 * before it is used; a part of a frame that could not be sent is followed by its rest.
 */
#include "link_stream.h"

#include <errno.h>
#include <string.h>

#include "counters.h"
#include "link_frame.h"
#include "packet.h"
#include "pages.h"
#include "sys.h"

static struct link_stream *stream_of(struct link *link)
{
    return (struct link_stream *)link; /* its socket is the first member, and has it as the first */
}

/* ---- from the guest ---- */

static uint32_t load_length(const struct link_stream *stream)
{
    const uint8_t *at = stream->in + stream->in_start;

    return stream->framing & LG_STREAM_LENGTH_16 ? at[0] | (uint32_t)at[1] << 8 : load_be32(at);
}

static void store_length(const struct link_stream *stream, uint8_t *at, uint32_t length)
{
    if (stream->framing & LG_STREAM_LENGTH_16) {
        at[0] = (uint8_t)length;
        at[1] = (uint8_t)(length >> 8);
    } else {
        store_be32(at, length);
    }
}

/* The longest that may come: beyond it, the stream is lost. */
static uint32_t longest(const struct link_stream *stream)
{
    return stream->framing & LG_STREAM_SKIP ? STREAM_SKIP_MAX : STREAM_FRAME_MAX;
}

/* The length of the frame at in_start, if all of it is there; 0: not yet, or the stream is lost. */
static uint32_t whole_frame(struct link_stream *stream)
{
    bool skips = stream->framing & LG_STREAM_SKIP;

    for (;;) {
        size_t have = stream->in_end - stream->in_start;

        if (have < stream->length_bytes)
            return 0;
        uint32_t length = load_length(stream);
        bool too_short = length < STREAM_FRAME_MIN;
        if ((too_short && !skips) || length > longest(stream)) {
            stream->length = length;
            link_socket_end(&stream->socket, EPROTO);
            return 0;
        }
        if (have - stream->length_bytes < length)
            return 0;
        if (!too_short && length <= FRAME_BYTES_MAX)
            return length;
        stream->in_start += stream->length_bytes + length;
        stream->socket.counters[too_short ? C_drop_short : C_drop_length]++;
    }
}

/* Room behind what is there of the next frame. It is moved to the front only where the frame might not fit: a large frame
 * comes in two or three pieces as a rule (the socket's queue is of pieces of 36 KiB), and each move would be a copy. */
static void make_room(struct link_stream *stream)
{
    size_t rest = stream->in_end - stream->in_start;

    if (rest && STREAM_IN_BYTES - stream->in_end >= stream->length_bytes + longest(stream))
        return;
    memmove(stream->in, stream->in + stream->in_start, rest);
    stream->in_start = 0;
    stream->in_end = rest;
}

static void receive(struct link_stream *stream)
{
    struct link_socket *socket = &stream->socket;

    make_room(stream);

    struct iovec iov = {stream->in + stream->in_end, STREAM_IN_BYTES - stream->in_end};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n = sys_recvmsg(socket->fd, &msg, MSG_DONTWAIT);

    /* What comes after a shorter read is a new edge, but not an end whose edge has been seen. */
    socket->unread = n == (ssize_t)iov.iov_len || (n > 0 && socket->hung_up);
    if (n > 0)
        stream->in_end += (size_t)n;
    else if (n != -EAGAIN)
        link_socket_end(socket, (int)-n);
}

static unsigned take_frames(struct link_stream *stream, struct guest_frame *frames)
{
    unsigned count = 0;
    uint32_t length;

    while (count < LINK_BATCH && (length = whole_frame(stream))) {
        struct iovec *iov = &stream->frame_iov[count];

        *iov = (struct iovec){stream->in + stream->in_start + stream->length_bytes, length};
        stream->in_start += stream->length_bytes + length;
        link_frame_fill(&frames[count], iov, 0);
        link_frame_record(&frames[count], stream->socket.counters, stream->socket.pcap);
        count++;
    }
    return count;
}

static unsigned stream_from_guest(struct link *link, struct guest_frame *frames, bool *ret_more)
{
    struct link_stream *stream = stream_of(link);
    const struct link_socket *socket = &stream->socket;
    unsigned count;

    *ret_more = false;
    if (socket->fd < 0 || socket->ended)
        return 0;
    count = take_frames(stream, frames);
    if (!count && socket->unread && !socket->ended) {
        receive(stream);
        count = take_frames(stream, frames);
    }
    *ret_more = !socket->ended && (socket->unread || whole_frame(stream));
    return count;
}

/* ---- to the guest ---- */

static void stream_commit(struct link *link, size_t length, const struct offload *offload)
{
    uint32_t bytes;
    uint8_t *at = link_socket_commit(link_socket_of(link), length, &bytes);

    (void)offload; /* there is none: link.csum and link.tso* are false */
    store_length(stream_of(link), at, bytes);
}

static void stream_flush(struct link *link, uint64_t now_ms)
{
    struct link_socket *socket = link_socket_of(link);

    (void)now_ms;
    while (link_socket_sends(socket)) {
        struct iovec iov[2];
        size_t bytes;
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = frame_ring_pieces(&socket->out, iov, &bytes)};
        ssize_t sent = sys_sendmsg(socket->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && sent != -EAGAIN && sent != -ENOBUFS) {
            link_socket_end(socket, (int)-sent);
            break;
        }
        if (sent > 0)
            frame_ring_consume(&socket->out, (size_t)sent);
        socket->blocked = sent < (ssize_t)bytes;
    }
    link_socket_flushed(socket);
}

static const struct link_operations operations = {
    .from_guest = stream_from_guest,
    .release = link_socket_release,
    .reserve = link_socket_reserve,
    .commit = stream_commit,
    .rollback = link_socket_rollback,
    .flush = stream_flush,
    .wait_room = link_socket_wait_room,
};

/* ---- life ---- */

int link_stream_init(struct link_stream *stream, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                     uint64_t source)
{
    *stream = (struct link_stream){.in = pages_reserve(STREAM_IN_BYTES)}; /* costs nothing until it is used */
    return stream->in ? link_socket_init(&stream->socket, &operations, counters, pcap, epoll_fd, source) : -ENOMEM;
}

int link_stream_attach(struct link_stream *stream, int fd, unsigned framing)
{
    static const int queue = STREAM_QUEUE_BYTES;
    const size_t length_bytes = framing & LG_STREAM_LENGTH_16 ? 2 : 4;
    int err = link_socket_attach(&stream->socket, fd, length_bytes);

    if (err)
        return err;
    /* Its own end only is ours to set, and it is what both directions of a unix socket are made of, one each. */
    sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &queue, sizeof(queue));
    stream->framing = framing;
    stream->length_bytes = length_bytes;
    stream->in_start = stream->in_end = 0;
    return 0;
}
