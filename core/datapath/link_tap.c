/* SPDX-License-Identifier: Apache-2.0
 *
 * link_tap.c: frames as a tap device gives and takes them, see link_tap.h.
 */
#include "link_tap.h"

#include <errno.h>
#include <string.h>

#include "counters.h"
#include "link_frame.h"
#include "net_header.h"
#include "pages.h"
#include "sys.h"

static struct link_tap *tap_of(struct link *link)
{
    return (struct link_tap *)link; /* the link is the first member */
}

static void end(struct link_tap *tap, int error)
{
    tap->ended = true;
    tap->unread = false;
    tap->error = error;
}

/* ---- from the guest ---- */

/* One frame to `at`. Its bytes with the header; 0: there is none. */
static size_t read_frame(struct link_tap *tap, uint8_t *at)
{
    ssize_t n = sys_read(tap->fd, at, TAP_ROOM);

    if (n > 0)
        return (size_t)n;
    if (n == -EAGAIN || n == -EINTR)
        tap->unread = n == -EINTR;
    else
        end(tap, n ? (int)-n : ENODEV); /* EBADFD: it was deleted */
    return 0;
}

static bool frame_from_bytes(struct link_tap *tap, struct guest_frame *frame, struct iovec *iov, uint8_t *at,
                             size_t bytes)
{
    struct net_header header = {.gso_type = GSO_NONE};

    if (bytes <= NET_HEADER_TAP || bytes - NET_HEADER_TAP > FRAME_BYTES_MAX) {
        tap->counters[bytes <= NET_HEADER_TAP ? C_drop_short : C_drop_length]++;
        return false;
    }
    memcpy(&header, at, NET_HEADER_TAP);
    *iov = (struct iovec){at + NET_HEADER_TAP, bytes - NET_HEADER_TAP};
    link_frame_fill(frame, iov, net_header_datagram(&header));
    link_frame_record(frame, tap->counters, tap->pcap);
    return true;
}

static unsigned tap_from_guest(struct link *link, struct guest_frame *frames, bool *ret_more)
{
    enum {
        LINE = 64 /* bytes of a cache line: each frame begins with one */
    };
    struct link_tap *tap = tap_of(link);
    size_t used = 0, bytes;
    unsigned count = 0;

    while (tap->fd >= 0 && tap->unread && count < LINK_BATCH && used + TAP_ROOM <= TAP_IN_BYTES) {
        if (!(bytes = read_frame(tap, tap->in + used)))
            break;
        if (!frame_from_bytes(tap, &frames[count], &tap->frame_iov[count], tap->in + used, bytes))
            continue;
        used += (bytes + LINE - 1) / LINE * LINE;
        count++;
    }
    *ret_more = tap->unread;
    return count;
}

static void tap_release(struct link *link)
{
    (void)link; /* the bytes are ours, and were taken with the frame */
}

/* ---- to the guest ---- */

static int tap_reserve(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                       struct guest_room *ret_room)
{
    struct link_tap *tap = tap_of(link);

    if (tap->fd < 0 || tap->ended)
        return -ENOTCONN;
    return frame_batch_reserve(&tap->out, NET_HEADER_TAP, header, payload, pieces, ret_room);
}

static void tap_rollback(struct link *link)
{
    frame_batch_rollback(&tap_of(link)->out);
}

/* A frame that the device refuses (it is down, or the kernel has no memory) is lost, as on a wire. */
static void tap_commit(struct link *link, size_t length, const struct offload *offload)
{
    struct link_tap *tap = tap_of(link);
    uint8_t *at = frame_batch_commit(&tap->out);
    struct net_header header = net_header_of(offload);

    memcpy(at, &header, NET_HEADER_TAP);
    if (tap->pcap->on) {
        struct iovec iov = {at + NET_HEADER_TAP, length};
        pcap_ring_put(tap->pcap, &iov, 1, (uint32_t)length, true);
    }
    if (sys_write(tap->fd, at, NET_HEADER_TAP + length) < 0) {
        tap->counters[C_drop_disconnected]++;
        return;
    }
    tap->counters[C_frames_to_guest]++;
    tap->counters[C_bytes_to_guest] += length;
}

static void tap_flush(struct link *link, uint64_t now_ms)
{
    (void)now_ms;
    pcap_ring_flush(tap_of(link)->pcap);
}

static bool tap_wait_room(struct link *link)
{
    const struct link_tap *tap = tap_of(link);

    return tap->fd < 0 || tap->ended; /* else the reservations were too many for one turn: there is room again */
}

static const struct link_operations operations = {
    .from_guest = tap_from_guest,
    .release = tap_release,
    .reserve = tap_reserve,
    .commit = tap_commit,
    .rollback = tap_rollback,
    .flush = tap_flush,
    .wait_room = tap_wait_room,
};

void link_tap_event(struct link_tap *tap)
{
    tap->unread = tap->fd >= 0;
}

/* ---- life ---- */

int link_tap_init(struct link_tap *tap, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd, uint64_t source)
{
    *tap = (struct link_tap){
        .link = {.operations = &operations, .flush_ms = UINT64_MAX, .look_ms = UINT64_MAX},
        .counters = counters,
        .pcap = pcap,
        .epoll_fd = epoll_fd,
        .source = source,
        .fd = -1,
    };
    tap->in = pages_reserve(TAP_IN_BYTES); /* costs nothing until it is used */
    return tap->in ? frame_batch_init(&tap->out) : -ENOMEM;
}

int link_tap_attach(struct link_tap *tap, int fd, bool uso)
{
    if (tap->fd >= 0)
        return -EBUSY;
    int err = sys_epoll_ctl(tap->epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, tap->source);
    if (err)
        return err;
    tap->fd = fd;
    tap->unread = true;
    tap->ended = false;
    frame_batch_rollback(&tap->out);
    tap->link.copies = tap->link.large = tap->link.csum = tap->link.tso4 = tap->link.tso6 = true;
    tap->link.uso4 = tap->link.uso6 = uso;
    return 0;
}

void link_tap_detach(struct link_tap *tap)
{
    if (tap->fd < 0)
        return;
    /* Others hold the same device: closing ours alone would leave it in epoll (epoll(7), questions 1 and 6). */
    sys_epoll_ctl(tap->epoll_fd, EPOLL_CTL_DEL, tap->fd, 0, 0);
    sys_close(tap->fd);
    tap->fd = -1;
    tap->ended = tap->unread = false;
}
