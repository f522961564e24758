/* SPDX-License-Identifier: Apache-2.0
 *
 * link_dgram.c: the link of link_dgram.h. One copy in and one out, many frames a system call.
 *
 * Adversary: the other end, which may send messages of any length, or never read. What is no frame is dropped and counted,
 * and hurts nothing else: here no length is ever lost.
 */
#include "link_dgram.h"

#include <errno.h>
#include <string.h>

#include "counters.h"
#include "packet.h"
#include "pages.h"
#include "sys.h"

typedef uint32_t frame_length; /* before each frame in the ring */

static struct link_dgram *dgram_of(struct link *link)
{
    return (struct link_dgram *)link; /* the link is the first member */
}

static void end(struct link_dgram *dgram, int error)
{
    if (dgram->ended)
        return;
    dgram->ended = true;
    dgram->unread = false;
    dgram->error = error;
}

/* OUT only while it is waited for. */
static void apply_interest(struct link_dgram *dgram)
{
    uint32_t interest = EPOLLIN | EPOLLRDHUP | EPOLLET | (dgram->blocked ? (uint32_t)EPOLLOUT : 0);

    if (interest == dgram->interest)
        return;
    dgram->interest = interest;
    sys_epoll_ctl(dgram->epoll_fd, EPOLL_CTL_MOD, dgram->fd, interest, dgram->source);
}

/* ---- from the guest ---- */

static bool take_message(struct link_dgram *dgram, unsigned index, struct guest_frame *frame)
{
    const struct mmsghdr *message = &dgram->message[index];
    struct iovec *iov = &dgram->frame_iov[index];
    uint32_t length = message->msg_len;

    if (!length && dgram->packets) {
        end(dgram, 0);
        return false;
    }
    if (length < ETHERNET_HEADER || length > FRAME_BYTES_MAX || message->msg_hdr.msg_flags & MSG_TRUNC) {
        dgram->counters[length < ETHERNET_HEADER ? C_drop_short : C_drop_length]++;
        return false;
    }
    iov->iov_len = length;
    frame->iov = iov;
    frame->iov_count = 1;
    frame->datagram = 0;
    frame->length = length;
    frame->head_length = length < FRAME_HEAD_MAX ? (uint16_t)length : FRAME_HEAD_MAX;
    memcpy(frame->head, iov->iov_base, frame->head_length);
    dgram->counters[C_frames_from_guest]++;
    dgram->counters[C_bytes_from_guest] += length;
    if (dgram->pcap->on)
        pcap_ring_put(dgram->pcap, iov, 1, length, false);
    return true;
}

static unsigned dgram_from_guest(struct link *link, struct guest_frame *frames, bool *ret_more)
{
    struct link_dgram *dgram = dgram_of(link);
    unsigned count = 0;

    *ret_more = false;
    if (dgram->fd < 0 || dgram->ended || !dgram->unread)
        return 0;
    for (unsigned i = 0; i < LINK_BATCH; i++) {
        dgram->frame_iov[i] = (struct iovec){dgram->in + (size_t)i * DGRAM_ROOM, DGRAM_ROOM};
        dgram->message[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &dgram->frame_iov[i], .msg_iovlen = 1}};
    }
    int received = sys_recvmmsg(dgram->fd, dgram->message, LINK_BATCH, MSG_DONTWAIT);
    if (received < 0) {
        dgram->unread = received == -EINTR;
        if (received != -EAGAIN && received != -EINTR)
            end(dgram, -received);
        return 0;
    }
    dgram->unread = received == LINK_BATCH; /* what comes after fewer is a new edge */
    for (int i = 0; i < received && !dgram->ended; i++)
        count += take_message(dgram, (unsigned)i, &frames[count]);
    *ret_more = dgram->unread;
    return count;
}

static void dgram_release(struct link *link)
{
    (void)link; /* the bytes are ours, and were taken with the message */
}

/* ---- to the guest ---- */

static int dgram_reserve(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                         struct guest_room *ret_room)
{
    struct link_dgram *dgram = dgram_of(link);

    if (dgram->fd < 0 || dgram->ended)
        return -ENOTCONN;
    return frame_ring_reserve(&dgram->out, header, payload, pieces, ret_room);
}

static void dgram_rollback(struct link *link)
{
    frame_ring_rollback(&dgram_of(link)->out);
}

static void dgram_commit(struct link *link, size_t length, const struct offload *offload)
{
    struct link_dgram *dgram = dgram_of(link);
    size_t padded = length;
    uint8_t *at = frame_ring_commit(&dgram->out, &padded);
    const frame_length prefix = (frame_length)padded;

    (void)offload; /* there is none: link.csum and link.tso* are false */
    dgram->counters[C_frames_to_guest]++;
    dgram->counters[C_bytes_to_guest] += length;
    if (dgram->pcap->on) {
        struct iovec iov = {at + sizeof(prefix), length};
        pcap_ring_put(dgram->pcap, &iov, 1, (uint32_t)length, true);
    }
    memcpy(at, &prefix, sizeof(prefix));
}

/* The oldest frames, one a message, LINK_BATCH at most. The ring holds whole frames, in one piece or two. */
static unsigned prepare(const struct link_dgram *dgram, struct mmsghdr *message, struct iovec *iov)
{
    struct iovec piece[2];
    size_t bytes;
    unsigned pieces = frame_ring_pieces(&dgram->out, piece, &bytes), count = 0;

    for (unsigned i = 0; i < pieces; i++) {
        uint8_t *at = piece[i].iov_base, *behind = at + piece[i].iov_len;
        while (at < behind && count < LINK_BATCH) {
            frame_length length;
            memcpy(&length, at, sizeof(length));
            iov[count] = (struct iovec){at + sizeof(length), length};
            message[count] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iov[count], .msg_iovlen = 1}};
            at += sizeof(length) + length;
            count++;
        }
    }
    return count;
}

/* Only between two batches: no reservation is out. */
static void send_committed(struct link_dgram *dgram)
{
    struct mmsghdr message[LINK_BATCH];
    struct iovec iov[LINK_BATCH];

    while (!dgram->blocked && !dgram->ended && !frame_ring_is_empty(&dgram->out)) {
        unsigned count = prepare(dgram, message, iov);
        int sent = sys_sendmmsg(dgram->fd, message, count, MSG_DONTWAIT | MSG_NOSIGNAL);
        size_t bytes = 0;

        if (sent < 0 && sent != -EAGAIN && sent != -ENOBUFS && sent != -EINTR) {
            end(dgram, -sent); /* a vanished peer shows itself in no other way */
            return;
        }
        for (int i = 0; i < sent; i++)
            bytes += sizeof(frame_length) + iov[i].iov_len;
        frame_ring_consume(&dgram->out, bytes);
        dgram->blocked = sent < (int)count && sent != -EINTR;
    }
}

static void dgram_flush(struct link *link, uint64_t now_ms)
{
    struct link_dgram *dgram = dgram_of(link);

    (void)now_ms;
    if (dgram->fd >= 0) {
        send_committed(dgram);
        apply_interest(dgram);
    }
    pcap_ring_flush(dgram->pcap);
}

static bool dgram_wait_room(struct link *link)
{
    struct link_dgram *dgram = dgram_of(link);

    dgram_flush(link, 0);
    return dgram->blocked || dgram->fd < 0 || dgram->ended; /* else all is sent: there is room already */
}

static const struct link_operations operations = {
    .from_guest = dgram_from_guest,
    .release = dgram_release,
    .reserve = dgram_reserve,
    .commit = dgram_commit,
    .rollback = dgram_rollback,
    .flush = dgram_flush,
    .wait_room = dgram_wait_room,
};

void link_dgram_event(struct link_dgram *dgram, uint32_t events)
{
    if (events & ~(uint32_t)EPOLLOUT)
        dgram->unread = true;
    if (!(events & EPOLLOUT) || dgram->fd < 0)
        return;
    dgram->blocked = false;
    dgram_flush(&dgram->link, 0);
}

/* ---- life ---- */

int link_dgram_init(struct link_dgram *dgram, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd, uint64_t source)
{
    *dgram = (struct link_dgram){
        .link = {.operations = &operations, .flush_ms = UINT64_MAX, .look_ms = UINT64_MAX},
        .counters = counters,
        .pcap = pcap,
        .epoll_fd = epoll_fd,
        .source = source,
        .fd = -1,
    };
    dgram->in = pages_reserve(DGRAM_IN_BYTES); /* costs nothing until it is used */
    return dgram->in ? frame_ring_init(&dgram->out) : -ENOMEM;
}

int link_dgram_attach(struct link_dgram *dgram, int fd)
{
    static const int send_queue = DGRAM_SEND_QUEUE, receive_queue = DGRAM_RECEIVE_QUEUE;
    const uint32_t interest = EPOLLIN | EPOLLRDHUP | EPOLLET;
    int type = 0;
    socklen_t length = sizeof(type);

    if (dgram->fd >= 0)
        return -EBUSY;
    int err = sys_getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length);
    if (err)
        return err;
    if (type != SOCK_DGRAM && type != SOCK_SEQPACKET)
        return -EPROTOTYPE;
    err = sys_epoll_ctl(dgram->epoll_fd, EPOLL_CTL_ADD, fd, interest, dgram->source);
    if (err)
        return err;
    sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_queue, sizeof(send_queue));
    sys_setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_queue, sizeof(receive_queue));
    dgram->fd = fd;
    dgram->packets = type == SOCK_SEQPACKET;
    dgram->interest = interest;
    dgram->unread = true;
    dgram->blocked = dgram->ended = false;
    frame_ring_clear(&dgram->out, sizeof(frame_length));
    return 0;
}

void link_dgram_detach(struct link_dgram *dgram)
{
    if (dgram->fd < 0)
        return;
    /* Others may hold the same socket: closing ours alone would leave it in epoll (epoll(7), questions 1 and 6). */
    sys_epoll_ctl(dgram->epoll_fd, EPOLL_CTL_DEL, dgram->fd, 0, 0);
    sys_close(dgram->fd);
    dgram->fd = -1;
    dgram->ended = dgram->blocked = false;
}
