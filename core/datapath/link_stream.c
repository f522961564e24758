/* SPDX-License-Identifier: Apache-2.0
 *
 * link_stream.c: the link of link_stream.h. One copy in and one out, many frames a system call.
 *
 * Adversary: the other end, which may say any length, stop in the middle of a frame, or never read. A length is checked
 * before it is used; a part of a frame that could not be sent waits for EPOLLOUT with all that is behind it, and nobody
 * else waits for it.
 */
#include "link_stream.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "counters.h"
#include "packet.h"
#include "pages.h"
#include "sys.h"

static struct link_stream *stream_of(struct link *link)
{
    return (struct link_stream *)link; /* the link is the first member */
}

static void end(struct link_stream *stream, int error)
{
    if (stream->ended)
        return;
    stream->ended = true;
    stream->error = error;
}

/* OUT only while it is waited for: each time that the other end reads, a unix socket reports it again. */
static void apply_interest(struct link_stream *stream)
{
    uint32_t interest = EPOLLIN | EPOLLRDHUP | EPOLLET | (stream->blocked ? (uint32_t)EPOLLOUT : 0);

    if (interest == stream->interest)
        return;
    stream->interest = interest;
    sys_epoll_ctl(stream->epoll_fd, EPOLL_CTL_MOD, stream->fd, interest, stream->source);
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

/* The length of the frame at in_start, if all of it is there; 0: not yet, or the stream is lost. */
static uint32_t whole_frame(struct link_stream *stream)
{
    for (;;) {
        size_t have = stream->in_end - stream->in_start;

        if (have < stream->length_bytes)
            return 0;
        uint32_t length = load_length(stream);
        bool none = length < STREAM_FRAME_MIN && stream->framing & LG_STREAM_SKIP_SHORT;
        if ((length < STREAM_FRAME_MIN && !none) || length > STREAM_FRAME_MAX) {
            stream->length = length;
            end(stream, EPROTO);
            return 0;
        }
        if (have - stream->length_bytes < length)
            return 0;
        if (!none)
            return length;
        stream->in_start += stream->length_bytes + length;
        stream->counters[C_drop_short]++;
    }
}

/* Room behind what is there of the next frame. It is moved to the front only where the frame might not fit: a large frame
 * comes in two or three pieces as a rule (the socket's queue is of pieces of 36 KiB), and each move would be a copy. */
static void make_room(struct link_stream *stream)
{
    size_t rest = stream->in_end - stream->in_start;

    if (rest && STREAM_IN_BYTES - stream->in_end >= stream->length_bytes + STREAM_FRAME_MAX)
        return;
    memmove(stream->in, stream->in + stream->in_start, rest);
    stream->in_start = 0;
    stream->in_end = rest;
}

static void receive(struct link_stream *stream)
{
    make_room(stream);

    struct iovec iov = {stream->in + stream->in_end, STREAM_IN_BYTES - stream->in_end};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n = sys_recvmsg(stream->fd, &msg, MSG_DONTWAIT);

    /* What comes after a shorter read is a new edge, but not an end whose edge has been seen. */
    stream->unread = n == (ssize_t)iov.iov_len || (n > 0 && stream->hung_up);
    if (n > 0)
        stream->in_end += (size_t)n;
    else if (n != -EAGAIN)
        end(stream, (int)-n);
}

static unsigned take_frames(struct link_stream *stream, struct guest_frame *frames)
{
    unsigned count = 0;
    uint32_t length;

    while (count < LINK_BATCH && (length = whole_frame(stream))) {
        uint8_t *bytes = stream->in + stream->in_start + stream->length_bytes;
        struct guest_frame *frame = &frames[count];

        stream->in_start += stream->length_bytes + length;
        stream->frame_iov[count] = (struct iovec){bytes, length};
        frame->iov = &stream->frame_iov[count];
        frame->iov_count = 1;
        frame->datagram = 0;
        frame->length = length;
        frame->head_length = length < FRAME_HEAD_MAX ? (uint16_t)length : FRAME_HEAD_MAX;
        memcpy(frame->head, bytes, frame->head_length);
        stream->counters[C_frames_from_guest]++;
        stream->counters[C_bytes_from_guest] += length;
        if (stream->pcap->on)
            pcap_ring_put(stream->pcap, frame->iov, 1, length, false);
        count++;
    }
    return count;
}

static unsigned stream_from_guest(struct link *link, struct guest_frame *frames, bool *ret_more)
{
    struct link_stream *stream = stream_of(link);
    unsigned count;

    *ret_more = false;
    if (stream->fd < 0 || stream->ended)
        return 0;
    count = take_frames(stream, frames);
    if (!count && stream->unread && !stream->ended) {
        receive(stream);
        count = take_frames(stream, frames);
    }
    *ret_more = !stream->ended && (stream->unread || whole_frame(stream));
    return count;
}

static void stream_release(struct link *link)
{
    (void)link; /* the bytes are ours, and were taken with the frame */
}

/* ---- to the guest ---- */

static int stream_reserve(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                          struct guest_room *ret_room)
{
    struct link_stream *stream = stream_of(link);

    if (stream->fd < 0 || stream->ended)
        return -ENOTCONN;
    return frame_ring_reserve(&stream->out, header, payload, pieces, ret_room);
}

static void stream_rollback(struct link *link)
{
    frame_ring_rollback(&stream_of(link)->out);
}

static void stream_commit(struct link *link, size_t length, const struct offload *offload)
{
    struct link_stream *stream = stream_of(link);
    size_t padded = length;
    uint8_t *at = frame_ring_commit(&stream->out, &padded);

    (void)offload; /* there is none: link.csum and link.tso* are false */
    stream->counters[C_frames_to_guest]++;
    stream->counters[C_bytes_to_guest] += length;
    if (stream->pcap->on) {
        struct iovec iov = {at + stream->length_bytes, length};
        pcap_ring_put(stream->pcap, &iov, 1, (uint32_t)length, true);
    }
    store_length(stream, at, (uint32_t)padded);
}

/* Only between two batches: no reservation is out. */
static void send_committed(struct link_stream *stream)
{
    while (!stream->blocked && !stream->ended && !frame_ring_is_empty(&stream->out)) {
        struct iovec iov[2];
        size_t bytes;
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = frame_ring_pieces(&stream->out, iov, &bytes)};
        ssize_t sent = sys_sendmsg(stream->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && sent != -EAGAIN && sent != -ENOBUFS) {
            end(stream, (int)-sent);
            return;
        }
        if (sent > 0)
            frame_ring_consume(&stream->out, (size_t)sent);
        stream->blocked = sent < (ssize_t)bytes;
    }
}

static void stream_flush(struct link *link, uint64_t now_ms)
{
    struct link_stream *stream = stream_of(link);

    (void)now_ms;
    if (stream->fd >= 0) {
        send_committed(stream);
        apply_interest(stream);
    }
    pcap_ring_flush(stream->pcap);
}

static bool stream_wait_room(struct link *link)
{
    struct link_stream *stream = stream_of(link);

    stream_flush(link, 0);
    return stream->blocked || stream->fd < 0 || stream->ended; /* else all is sent: there is room already */
}

static const struct link_operations operations = {
    .from_guest = stream_from_guest,
    .release = stream_release,
    .reserve = stream_reserve,
    .commit = stream_commit,
    .rollback = stream_rollback,
    .flush = stream_flush,
    .wait_room = stream_wait_room,
};

void link_stream_event(struct link_stream *stream, uint32_t events)
{
    if (events & ~(uint32_t)EPOLLOUT)
        stream->unread = true;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        stream->hung_up = true;
    if (!(events & EPOLLOUT) || stream->fd < 0)
        return;
    stream->blocked = false;
    stream_flush(&stream->link, 0);
}

/* ---- life ---- */

int link_stream_init(struct link_stream *stream, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                     uint64_t source)
{
    *stream = (struct link_stream){
        .link = {.operations = &operations, .flush_ms = UINT64_MAX, .look_ms = UINT64_MAX},
        .counters = counters,
        .pcap = pcap,
        .epoll_fd = epoll_fd,
        .source = source,
        .fd = -1,
    };
    stream->in = pages_reserve(STREAM_IN_BYTES); /* costs nothing until it is used */
    return stream->in ? frame_ring_init(&stream->out) : -ENOMEM;
}

int link_stream_attach(struct link_stream *stream, int fd, unsigned framing)
{
    static const int queue = STREAM_QUEUE_BYTES;
    const uint32_t interest = EPOLLIN | EPOLLRDHUP | EPOLLET;

    if (stream->fd >= 0)
        return -EBUSY;
    int err = sys_epoll_ctl(stream->epoll_fd, EPOLL_CTL_ADD, fd, interest, stream->source);
    if (err)
        return err;
    /* Its own end only is ours to set, and it is what both directions of a unix socket are made of, one each. */
    sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &queue, sizeof(queue));
    stream->fd = fd;
    stream->framing = framing;
    stream->length_bytes = framing & LG_STREAM_LENGTH_16 ? 2 : 4;
    stream->interest = interest;
    stream->unread = true;
    stream->blocked = stream->hung_up = stream->ended = false;
    stream->in_start = stream->in_end = 0;
    frame_ring_clear(&stream->out, stream->length_bytes);
    return 0;
}

void link_stream_detach(struct link_stream *stream)
{
    if (stream->fd < 0)
        return;
    /* Others may hold the same socket: closing ours alone would leave it in epoll (epoll(7), questions 1 and 6). */
    sys_epoll_ctl(stream->epoll_fd, EPOLL_CTL_DEL, stream->fd, 0, 0);
    sys_close(stream->fd);
    stream->fd = -1;
    stream->ended = stream->blocked = false;
}
