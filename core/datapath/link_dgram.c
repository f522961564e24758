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
#include "link_frame.h"
#include "packet.h"
#include "pages.h"
#include "sys.h"

typedef uint32_t frame_length; /* before each frame in the ring */

static struct link_dgram *dgram_of(struct link *link)
{
    return (struct link_dgram *)link; /* its socket is the first member, and has it as the first */
}

/* ---- from the guest ---- */

static bool take_message(struct link_dgram *dgram, unsigned index, struct guest_frame *frame)
{
    const struct mmsghdr *message = &dgram->message[index];
    struct link_socket *socket = &dgram->socket;
    struct iovec *iov = &dgram->frame_iov[index];
    uint32_t length = message->msg_len;

    if (!length && dgram->packets) {
        link_socket_end(socket, 0);
        return false;
    }
    if (length < ETHERNET_HEADER || length > FRAME_BYTES_MAX || message->msg_hdr.msg_flags & MSG_TRUNC) {
        socket->counters[length < ETHERNET_HEADER ? C_drop_short : C_drop_length]++;
        return false;
    }
    iov->iov_len = length;
    link_frame_fill(frame, iov, 0);
    link_frame_record(frame, socket->counters, socket->pcap);
    return true;
}

static unsigned dgram_from_guest(struct link *link, struct guest_frame *frames, bool *ret_more)
{
    struct link_dgram *dgram = dgram_of(link);
    struct link_socket *socket = &dgram->socket;
    unsigned count = 0;

    *ret_more = false;
    if (socket->fd < 0 || socket->ended || !socket->unread)
        return 0;
    for (unsigned i = 0; i < LINK_BATCH; i++) {
        dgram->frame_iov[i] = (struct iovec){dgram->in + (size_t)i * DGRAM_ROOM, DGRAM_ROOM};
        dgram->message[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &dgram->frame_iov[i], .msg_iovlen = 1}};
    }
    int received = sys_recvmmsg(socket->fd, dgram->message, LINK_BATCH, MSG_DONTWAIT);
    if (received < 0) {
        socket->unread = received == -EINTR;
        if (received != -EAGAIN && received != -EINTR)
            link_socket_end(socket, -received);
        return 0;
    }
    socket->unread = received == LINK_BATCH; /* what comes after fewer is a new edge */
    for (int i = 0; i < received && !socket->ended; i++)
        count += take_message(dgram, (unsigned)i, &frames[count]);
    *ret_more = socket->unread;
    return count;
}

/* ---- to the guest ---- */

static void dgram_commit(struct link *link, size_t length, const struct offload *offload)
{
    frame_length prefix;
    uint8_t *at = link_socket_commit(link_socket_of(link), length, &prefix);

    (void)offload; /* there is none: link.csum and link.tso* are false */
    memcpy(at, &prefix, sizeof(prefix));
}

/* The oldest frames, one a message, LINK_BATCH at most. The ring holds whole frames, in one piece or two. */
static unsigned prepare(const struct frame_ring *ring, struct mmsghdr *message, struct iovec *iov)
{
    struct iovec piece[2];
    size_t bytes;
    unsigned pieces = frame_ring_pieces(ring, piece, &bytes), count = 0;

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

static void dgram_flush(struct link *link, uint64_t now_ms)
{
    struct link_socket *socket = link_socket_of(link);
    struct mmsghdr message[LINK_BATCH];
    struct iovec iov[LINK_BATCH];

    (void)now_ms;
    while (link_socket_sends(socket)) {
        unsigned count = prepare(&socket->out, message, iov);
        int sent = sys_sendmmsg(socket->fd, message, count, MSG_DONTWAIT | MSG_NOSIGNAL);
        size_t bytes = 0;

        if (sent < 0 && sent != -EAGAIN && sent != -ENOBUFS && sent != -EINTR) {
            link_socket_end(socket, -sent); /* a vanished peer shows itself in no other way */
            break;
        }
        for (int i = 0; i < sent; i++)
            bytes += sizeof(frame_length) + iov[i].iov_len;
        frame_ring_consume(&socket->out, bytes);
        socket->blocked = sent < (int)count && sent != -EINTR;
    }
    link_socket_flushed(socket);
}

static const struct link_operations operations = {
    .from_guest = dgram_from_guest,
    .release = link_socket_release,
    .reserve = link_socket_reserve,
    .commit = dgram_commit,
    .rollback = link_socket_rollback,
    .flush = dgram_flush,
    .wait_room = link_socket_wait_room,
};

/* ---- life ---- */

int link_dgram_init(struct link_dgram *dgram, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd, uint64_t source)
{
    *dgram = (struct link_dgram){.in = pages_reserve(DGRAM_IN_BYTES)}; /* costs nothing until it is used */
    return dgram->in ? link_socket_init(&dgram->socket, &operations, counters, pcap, epoll_fd, source) : -ENOMEM;
}

int link_dgram_attach(struct link_dgram *dgram, int fd)
{
    static const int send_queue = DGRAM_SEND_QUEUE, receive_queue = DGRAM_RECEIVE_QUEUE;
    int type = 0;
    socklen_t length = sizeof(type);

    int err = sys_getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length);
    if (err)
        return err;
    if (type != SOCK_DGRAM && type != SOCK_SEQPACKET)
        return -EPROTOTYPE;
    err = link_socket_attach(&dgram->socket, fd, sizeof(frame_length));
    if (err)
        return err;
    sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_queue, sizeof(send_queue));
    sys_setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_queue, sizeof(receive_queue));
    dgram->packets = type == SOCK_SEQPACKET;
    return 0;
}
