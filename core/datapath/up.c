/* SPDX-License-Identifier: Apache-2.0
 *
 * up.c: the lossy channel between worker and control. A control process that does not keep up loses punts and events,
 * which are counted; only what is seen of the guest, and the end of its link, are sent until they fit.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "list.h"
#include "sys.h"
#include "worker.h"

static int up_send(struct worker *worker, uint32_t type, uint32_t port, const struct iovec *body, unsigned count,
                   uint32_t length)
{
    struct lg_up header = {.type = type, .port = port, .length = length};
    struct iovec iov[LINK_PIECES] = {{.iov_base = &header, .iov_len = sizeof(header)}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 1};

    for (unsigned i = 0; i < count && length && msg.msg_iovlen < LINK_PIECES; i++) {
        size_t part = body[i].iov_len < length ? body[i].iov_len : length;
        iov[msg.msg_iovlen++] = (struct iovec){body[i].iov_base, part};
        length -= (uint32_t)part;
    }
    if (length)
        return -EMSGSIZE; /* in more pieces than one call takes: no record may be shorter than it says */
    ssize_t sent = sys_sendmsg(worker->up_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent < 0 ? (int)sent : 0;
}

void up_punt(struct engine *engine, const struct guest_frame *frame)
{
    struct worker *worker = container_of(engine, struct worker, engine);

    if (up_send(worker, LG_UP_PUNT, 0, frame->iov, frame->iov_count, frame->length))
        count(engine, C_punts_lost);
    else
        count(engine, C_punts);
}

void up_emit(struct event_sink *sink, const struct lg_event *event)
{
    struct worker *worker = container_of(sink, struct worker, sink);
    struct iovec body = {.iov_base = (void *)(uintptr_t)event, .iov_len = sizeof(*event)};

    if (up_send(worker, LG_UP_EVENT, 0, &body, 1, sizeof(*event)))
        count(&worker->engine, C_events_lost);
}

static bool owed(struct worker *worker, bool due, uint32_t type, uint32_t port, void *record, uint32_t length)
{
    struct iovec body = {.iov_base = record, .iov_len = length};

    return due && up_send(worker, type, port, &body, 1, length) == -EAGAIN;
}

/* Who is behind which port of a switch. True: there is more to tell. */
static bool owes_entries(struct worker *worker)
{
    struct switch_entry *entry;

    while ((entry = link_switch_untold(&worker->bridge))) {
        struct lg_cam cam = {0};
        memcpy(cam.mac, entry->mac, sizeof(cam.mac));
        if (owed(worker, true, LG_UP_CAM, entry->port + 1u, &cam, sizeof(cam)))
            return true;
        entry->told = true;
        worker->bridge.untold--;
    }
    return false;
}

void up_send_owed(struct worker *worker)
{
    struct engine *engine = &worker->engine;

    if (!engine->seen_changed && !worker->link_ended && !worker->bridge.untold && !worker->up_blocked)
        return;
    engine->seen_changed = owed(worker, engine->seen_changed, LG_UP_SEEN, 0, &engine->seen, sizeof(engine->seen));
    worker->link_ended = owed(worker, worker->link_ended, LG_UP_LINK_END, worker->link_end_port, &worker->link_end,
                              sizeof(worker->link_end));
    bool blocked = owes_entries(worker) || engine->seen_changed || worker->link_ended;
    if (blocked == worker->up_blocked)
        return;
    worker->up_blocked = blocked;
    sys_epoll_ctl(worker->engine.epoll_fd, EPOLL_CTL_MOD, worker->up_fd, EPOLLIN | EPOLLET | (blocked ? EPOLLOUT : 0),
                  SOURCE_UP);
}

void up_receive(struct worker *worker)
{
    struct engine *engine = &worker->engine;
    struct iovec iov = {.iov_base = worker->up_buffer, .iov_len = sizeof(worker->up_buffer)};

    for (;;) {
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n = sys_recvmsg(worker->up_fd, &msg, MSG_DONTWAIT);
        struct lg_up header;

        if (n <= 0)
            return;
        memcpy(&header, worker->up_buffer, sizeof(header));
        if ((size_t)n < sizeof(header) || header.type != LG_UP_FRAME || header.length != (size_t)n - sizeof(header) ||
            header.length < ETHERNET_HEADER || header.length > FRAME_BYTES_MAX)
            continue;
        if (engine_send_frame(engine, worker->up_buffer + sizeof(header), header.length))
            count(engine, C_frames_injected_lost);
        else
            count(engine, C_frames_injected);
    }
}
