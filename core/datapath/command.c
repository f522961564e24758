/* SPDX-License-Identifier: Apache-2.0
 *
 * command.c: what control asks of the worker, between two batches. Each command has one row in a table that says how
 * long it is and how many descriptors it may bring; what does not fit its row is refused before its function sees it.
 * Descriptors that a command does not keep are closed here.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "datagram.h"
#include "gateway.h"
#include "splice.h"
#include "sys.h"
#include "tcp.h"
#include "worker.h"

union command {
    struct lg_cmd_header header;
    struct lg_cmd_value value;
    struct lg_cmd_net_view net_view;
    struct lg_cmd_mem mem;
    struct lg_cmd_vring vring;
    struct lg_cmd_log log;
    struct lg_cmd_listen listen;
    struct lg_cmd_seen seen;
    struct lg_cmd_flow flow;
    struct lg_cmd_neighbours neighbours;
    struct lg_cmd_serve serve;
    struct lg_cmd_dial dial;
};

_Static_assert(LG_LISTEN_MAX == LG_MEM_SLOTS, "a request has room for the descriptors of either");
_Static_assert(LG_FROZEN_PAGE <= LG_MEM_SLOTS, "and so has a reply");
_Static_assert(LG_FRAME_HEAD == FRAME_HEAD_MAX, "control gives back what it was given of a frame");

struct request {
    const union command *command;
    int fd[LG_MEM_SLOTS]; /* -1: taken over by the command, or never there */
    unsigned fd_count;
    bool fds_lost;  /* there were more than any command takes */
    uint64_t value; /* for the reply */
};

static int take_fd(struct request *request, unsigned index)
{
    int fd = index < request->fd_count ? request->fd[index] : -1;

    if (fd >= 0)
        request->fd[index] = -1;
    return fd;
}

static int run_net_view(struct worker *worker, struct request *request)
{
    const struct lg_net_view *view = &request->command->net_view.view;

    if (view->mtu < 68 || view->mtu > 65535) /* RFC 791, 3.2; a frame's length field */
        return -EINVAL;
    engine_take_view(&worker->engine, view);
    return 0;
}

static int run_neighbours(struct worker *worker, struct request *request)
{
    return neighbour_replace(&worker->engine, &request->command->neighbours.table);
}

static bool rings_running(const struct worker *worker)
{
    return worker->vhost.ring[RECEIVEQ].desc || worker->vhost.ring[TRANSMITQ].desc;
}

static int run_mem_table(struct worker *worker, struct request *request)
{
    const struct lg_cmd_mem *mem = &request->command->mem;
    int err = 0;

    if (mem->count > LG_MEM_SLOTS || mem->count != request->fd_count)
        return -EINVAL;
    if (rings_running(worker))
        return -EBUSY;
    memory_clear(&worker->vhost.memory);
    for (unsigned i = 0; i < mem->count && !err; i++)
        err = memory_add(&worker->vhost.memory, &mem->region[i], request->fd[i]);
    if (err)
        memory_clear(&worker->vhost.memory);
    return err;
}

static int run_mem_add(struct worker *worker, struct request *request)
{
    if (request->command->mem.count != 1)
        return -EINVAL;
    return memory_add(&worker->vhost.memory, &request->command->mem.region[0], request->fd[0]);
}

static int run_mem_remove(struct worker *worker, struct request *request)
{
    if (request->command->mem.count != 1)
        return -EINVAL;
    return link_vhost_memory_remove(&worker->vhost, &request->command->mem.region[0]);
}

static int run_features(struct worker *worker, struct request *request)
{
    link_vhost_features(&worker->vhost, request->command->value.value);
    return 0;
}

static int run_stream_attach(struct worker *worker, struct request *request)
{
    int err = worker_attach_stream(worker, request->command->header.port, request->fd[0],
                                   (unsigned)request->command->value.value);

    if (!err)
        take_fd(request, 0);
    return err;
}

static int run_dgram_attach(struct worker *worker, struct request *request)
{
    int err = worker_attach_dgram(worker, request->command->header.port, request->fd[0]);

    if (!err)
        take_fd(request, 0);
    return err;
}

static int run_tap_attach(struct worker *worker, struct request *request)
{
    int flags = fcntl(request->fd[0], F_GETFL);

    if (flags < 0 || !(flags & O_NONBLOCK)) /* a read would keep all else waiting */
        return -EINVAL;
    int err = worker_attach_tap(worker, request->fd[0], request->command->value.value & LG_TAP_USO);
    if (!err)
        take_fd(request, 0);
    return err;
}

static int run_link_reset(struct worker *worker, struct request *request)
{
    (void)request;
    link_vhost_reset(&worker->vhost);
    worker_detach_links(worker);
    worker->faults_told = 0;
    engine_link_room(&worker->engine); /* datagrams that wait were for this guest */
    return 0;
}

static int run_vring_start(struct worker *worker, struct request *request)
{
    const struct lg_cmd_vring *setup = &request->command->vring;
    int fd[3] = {-1, -1, -1};
    unsigned next = 0;

    if (setup->index >= VHOST_QUEUES ||
        request->fd_count !=
            (unsigned)__builtin_popcount(setup->flags & (LG_VRING_HAS_KICK | LG_VRING_HAS_CALL | LG_VRING_HAS_ERR)))
        return -EINVAL;
    for (unsigned i = 0; i < 3; i++) {
        if (setup->flags >> i & 1)
            fd[i] = request->fd[next++];
    }
    int err = link_vhost_start(&worker->vhost, setup, fd[0], fd[1], fd[2]);
    if (err)
        return err;
    for (unsigned i = 0; i < next; i++)
        take_fd(request, i);
    worker_ring_started(worker, setup->index);
    return 0;
}

static int run_vring_stop(struct worker *worker, struct request *request)
{
    uint64_t index = request->command->value.value;
    uint16_t next_avail;

    if (index >= VHOST_QUEUES)
        return -EINVAL;
    int err = link_vhost_stop(&worker->vhost, (unsigned)index, &next_avail);
    request->value = err ? 0 : next_avail;
    worker->faults_told &= ~(1u << index);
    return err;
}

static int run_vring_enable(struct worker *worker, struct request *request)
{
    uint32_t index = (uint32_t)request->command->value.value;

    if (index >= VHOST_QUEUES)
        return -EINVAL;
    worker->vhost.ring[index].enabled = request->command->value.value >> 32;
    worker_ring_started(worker, index);
    return 0;
}

static struct vring *named_ring(struct worker *worker, const struct request *request)
{
    uint64_t index = request->command->value.value;

    return index < VHOST_QUEUES ? &worker->vhost.ring[index] : NULL;
}

static int run_vring_call(struct worker *worker, struct request *request)
{
    struct vring *ring = named_ring(worker, request);

    if (!ring)
        return -EINVAL;
    vring_set_call(ring, take_fd(request, 0));
    vring_call(ring); /* a call on the old descriptor may have been missed */
    return 0;
}

static int run_vring_err(struct worker *worker, struct request *request)
{
    struct vring *ring = named_ring(worker, request);

    if (!ring)
        return -EINVAL;
    if (ring->err_fd >= 0)
        close(ring->err_fd);
    ring->err_fd = take_fd(request, 0);
    return 0;
}

static int run_dirty_log(struct worker *worker, struct request *request)
{
    const struct lg_cmd_log *log = &request->command->log;
    void *table = NULL;

    if (request->fd_count) {
        if (!log->size || log->size > SIZE_MAX / 2)
            return -EINVAL;
        table = mmap(NULL, log->size, PROT_READ | PROT_WRITE, MAP_SHARED, request->fd[0], (off_t)log->offset);
        if (table == MAP_FAILED)
            return -errno;
    }
    link_vhost_log(&worker->vhost, table, log->size, take_fd(request, 1));
    return 0;
}

static int run_splice_agent(struct worker *worker, struct request *request)
{
    int err = agent_attach(worker, request->fd[0]);

    if (!err)
        take_fd(request, 0);
    return err;
}

static int run_listen(struct worker *worker, struct request *request)
{
    const struct lg_cmd_listen *listen = &request->command->listen;

    if (listen->count != request->fd_count || (listen->protocol != IPPROTO_TCP && listen->protocol != IPPROTO_UDP))
        return -EINVAL;
    for (unsigned i = 0; i < listen->count; i++) {
        struct listener listener = {.fd = request->fd[i],
                                    .protocol = listen->protocol,
                                    .port = listen->guest_port[i],
                                    .target = address_from(listen->target),
                                    .outward = listen->outward};
        int err = engine_listen(&worker->engine, listen->slot[i], &listener);
        if (err)
            return err;
        take_fd(request, i);
    }
    return 0;
}

static int run_listen_close(struct worker *worker, struct request *request)
{
    uint64_t slots = request->command->value.value;

    engine_listen_close(&worker->engine, (uint32_t)slots, (uint32_t)(slots >> 32));
    return 0;
}

static int run_listen_target(struct worker *worker, struct request *request)
{
    const struct lg_cmd_listen *listen = &request->command->listen;

    if (listen->count > LG_LISTEN_MAX)
        return -EINVAL;
    for (unsigned i = 0; i < listen->count; i++) {
        struct listener *listener = listener_at(&worker->engine.listeners, listen->slot[i]);
        if (!listener || listener->protocol != listen->protocol)
            return -ENOENT;
        listener->port = listen->guest_port[i];
        listener->target = address_from(listen->target);
        datagram_port_led_to(&worker->engine, listener);
    }
    return 0;
}

static int run_seen(struct worker *worker, struct request *request)
{
    worker->engine.seen = request->command->seen.seen;
    worker->engine.seen_changed = true;
    return 0;
}

/* The frozen flow of that id, or each of them. -ENOENT: there is none of that id. */
static int for_frozen(struct worker *worker, uint64_t id, void (*act)(struct engine *engine, struct flow *flow))
{
    struct engine *engine = &worker->engine;
    uint32_t cursor = 0;

    if (id) {
        struct flow *flow = flow_from_handle(&engine->flows, id);
        if (!flow || !flow->frozen)
            return -ENOENT;
        act(engine, flow);
        return 0;
    }
    for (struct flow *flow; (flow = flow_next(&engine->flows, &cursor));) {
        if (flow->frozen)
            act(engine, flow);
    }
    return 0;
}

static int run_thaw(struct worker *worker, struct request *request)
{
    return for_frozen(worker, request->command->value.value, tcp_thaw);
}

static int run_forget(struct worker *worker, struct request *request)
{
    return for_frozen(worker, request->command->value.value, tcp_forget);
}

static int run_adopt(struct worker *worker, struct request *request)
{
    int err = tcp_adopt(&worker->engine, &request->command->flow.flow, request->fd[0]);

    if (!err)
        take_fd(request, 0);
    return err;
}

static int run_serve(struct worker *worker, struct request *request)
{
    const struct lg_cmd_serve *serve = &request->command->serve;
    int err = gateway_serve(&worker->engine, serve->head, serve->head_length, serve->length, request->fd[0]);

    if (!err)
        take_fd(request, 0);
    return err;
}

static int run_dial(struct worker *worker, struct request *request)
{
    const struct lg_cmd_dial *dial = &request->command->dial;
    const address guest = address_from(dial->guest);
    int err = gateway_dial(&worker->engine, &guest, dial->guest_port, dial->gateway_port, request->fd[0]);

    if (!err)
        take_fd(request, 0);
    return err;
}

static int run_events(struct worker *worker, struct request *request)
{
    worker->sink.level = (unsigned)request->command->value.value;
    return 0;
}

static int run_pcap(struct worker *worker, struct request *request)
{
    if (!worker->pcap.head)
        return -ENODEV;
    worker->pcap.on = request->command->value.value;
    return 0;
}

static const struct {
    int (*run)(struct worker *worker, struct request *request);
    uint16_t length;
    uint8_t fds_min, fds_max;
} commands[] = {
    [LG_CMD_NET_VIEW] = {run_net_view, sizeof(struct lg_cmd_net_view), 0, 0},
    [LG_CMD_MEM_TABLE] = {run_mem_table, sizeof(struct lg_cmd_mem), 0, LG_MEM_SLOTS},
    [LG_CMD_MEM_ADD] = {run_mem_add, sizeof(struct lg_cmd_mem), 1, 1},
    [LG_CMD_MEM_REMOVE] = {run_mem_remove, sizeof(struct lg_cmd_mem), 0, 0},
    [LG_CMD_LINK_FEATURES] = {run_features, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_LINK_RESET] = {run_link_reset, sizeof(struct lg_cmd_header), 0, 0},
    [LG_CMD_VRING_START] = {run_vring_start, sizeof(struct lg_cmd_vring), 0, 3},
    [LG_CMD_VRING_STOP] = {run_vring_stop, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_VRING_ENABLE] = {run_vring_enable, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_VRING_CALL] = {run_vring_call, sizeof(struct lg_cmd_value), 0, 1},
    [LG_CMD_VRING_ERR] = {run_vring_err, sizeof(struct lg_cmd_value), 0, 1},
    [LG_CMD_DIRTY_LOG] = {run_dirty_log, sizeof(struct lg_cmd_log), 0, 2},
    [LG_CMD_EVENTS] = {run_events, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_PCAP] = {run_pcap, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_STREAM_ATTACH] = {run_stream_attach, sizeof(struct lg_cmd_value), 1, 1},
    [LG_CMD_DGRAM_ATTACH] = {run_dgram_attach, sizeof(struct lg_cmd_header), 1, 1},
    [LG_CMD_TAP_ATTACH] = {run_tap_attach, sizeof(struct lg_cmd_value), 1, 1},
    [LG_CMD_SPLICE_AGENT] = {run_splice_agent, sizeof(struct lg_cmd_header), 1, 1},
    [LG_CMD_LISTEN] = {run_listen, sizeof(struct lg_cmd_listen), 1, LG_LISTEN_MAX},
    [LG_CMD_LISTEN_CLOSE] = {run_listen_close, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_LISTEN_TARGET] = {run_listen_target, sizeof(struct lg_cmd_listen), 0, 0},
    [LG_CMD_SEEN] = {run_seen, sizeof(struct lg_cmd_seen), 0, 0},
    [LG_CMD_FLOWS_THAW] = {run_thaw, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_FLOWS_FORGET] = {run_forget, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_FLOW_ADOPT] = {run_adopt, sizeof(struct lg_cmd_flow), 1, 1},
    [LG_CMD_NEIGHBOURS] = {run_neighbours, sizeof(struct lg_cmd_neighbours), 0, 0},
    [LG_CMD_GATEWAY_SERVE] = {run_serve, sizeof(struct lg_cmd_serve), 1, 1},
    [LG_CMD_GATEWAY_DIAL] = {run_dial, sizeof(struct lg_cmd_dial), 1, 1},
    /* These have replies of their own: reply_page(). */
    [LG_CMD_FLOWS] = {NULL, sizeof(struct lg_cmd_value), 0, 0},
    [LG_CMD_FLOWS_FREEZE] = {NULL, sizeof(struct lg_cmd_value), 0, 0},
};

/* ---- snapshots of flows, whose replies are longer than the others ---- */

static void describe(const struct flow *flow, struct lg_flow_info *info)
{
    *info = (struct lg_flow_info){
        .id = flow_handle(flow),
        .port = flow->key.port,
        .protocol = flow->key.protocol,
        .guest_port = flow->key.guest_port,
        .remote_port = flow->key.remote_port,
        .bytes_to_guest = flow->bytes_to_guest,
        .bytes_from_guest = flow->bytes_from_guest,
    };
    if (flow->key.protocol == IPPROTO_TCP && flow->key.port != PORT_LINK) {
        splice_describe(flow, info);
    } else if (flow->key.protocol == IPPROTO_TCP) {
        const struct tcp *tcp = &flow->tcp;
        info->to_guest = tcp->to_guest;
        info->to_host = tcp->to_host;
        info->stall = tcp->stall;
        info->rtt_us = tcp->srtt_us;
        info->in_flight = tcp->snd_nxt - tcp->snd_una;
        info->guest_window = tcp->snd_window;
    }
    memcpy(info->guest_addr, flow->key.guest.byte, sizeof(info->guest_addr));
    memcpy(info->remote_addr, flow->key.remote.byte, sizeof(info->remote_addr));
}

static void send_reply(struct worker *worker, void *record, size_t length, const int *fds, unsigned fd_count)
{
    union {
        char bytes[CMSG_SPACE(LG_MEM_SLOTS * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {.iov_base = record, .iov_len = length};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd_count) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&msg);
        *rights = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(fd_count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
    }
    sys_sendmsg(worker->cmd_fd, &msg, MSG_NOSIGNAL);
}

static void reply_flows(struct worker *worker, const struct lg_cmd_value *command)
{
    struct flow_table *table = &worker->engine.flows;
    struct lg_flow_page page = {.reply = {.type = command->header.type, .seq = command->header.seq}};
    uint32_t cursor = (uint32_t)command->value;

    for (struct flow *flow; page.count < LG_FLOW_PAGE && (flow = flow_next(table, &cursor));)
        describe(flow, &page.flow[page.count++]);
    page.reply.value = page.count == LG_FLOW_PAGE ? cursor : 0;
    send_reply(worker, &page, sizeof(page), NULL, 0);
}

static void reply_frozen(struct worker *worker, const struct lg_cmd_value *command)
{
    struct engine *engine = &worker->engine;
    struct lg_frozen_page page = {.reply = {.type = command->header.type, .seq = command->header.seq}};
    uint32_t cursor = (uint32_t)command->value;
    int fd[LG_FROZEN_PAGE];

    for (struct flow *flow; page.count < LG_FROZEN_PAGE && (flow = flow_next(&engine->flows, &cursor));) {
        fd[page.count] = flow->fd;
        page.count += tcp_freeze(engine, flow, &page.flow[page.count]);
    }
    page.reply.value = page.count == LG_FROZEN_PAGE ? cursor : 0;
    send_reply(worker, &page, sizeof(page), fd, page.count);
}

static bool reply_page(struct worker *worker, const struct lg_cmd_value *command)
{
    if (command->header.type == LG_CMD_FLOWS)
        reply_flows(worker, command);
    else if (command->header.type == LG_CMD_FLOWS_FREEZE)
        reply_frozen(worker, command);
    else
        return false;
    return true;
}

/* ---- one command ---- */

static void collect_fds(struct msghdr *msg, struct request *request)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t there = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < there; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (request->fd_count < LG_MEM_SLOTS)
                request->fd[request->fd_count++] = fd;
            else
                close(fd);
        }
    }
}

static int check_shape(const struct request *request, size_t length)
{
    uint32_t type = request->command->header.type;

    if (type >= sizeof(commands) / sizeof(commands[0]) || !commands[type].length)
        return -ENOSYS;
    if (length != commands[type].length || request->fds_lost || request->fd_count < commands[type].fds_min ||
        request->fd_count > commands[type].fds_max)
        return -EBADMSG;
    return 0;
}

bool command_run(struct worker *worker)
{
    union command command;
    union {
        char bytes[CMSG_SPACE(LG_MEM_SLOTS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct request request = {.command = &command};
    struct iovec iov = {.iov_base = &command, .iov_len = sizeof(command)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n;

    memset(&command, 0, sizeof(command));
    /* MSG_TRUNC: the length of the record itself, also where it is longer than what fits here. */
    n = sys_recvmsg(worker->cmd_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
    if (n <= 0)
        return n == -EAGAIN;
    collect_fds(&msg, &request);
    request.fds_lost = msg.msg_flags & MSG_CTRUNC;
    int result = check_shape(&request, (size_t)n);
    if (result || !reply_page(worker, &command.value)) {
        struct lg_reply reply = {.type = command.header.type, .seq = command.header.seq};
        reply.result = result ? result : commands[command.header.type].run(worker, &request);
        reply.value = request.value;
        send_reply(worker, &reply, sizeof(reply), NULL, 0);
    }
    for (unsigned i = 0; i < request.fd_count; i++) {
        if (request.fd[i] >= 0)
            close(request.fd[i]);
    }
    return true;
}
