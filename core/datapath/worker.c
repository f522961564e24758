/* SPDX-License-Identifier: Apache-2.0
 *
 * worker.c: the worker's loop. One epoll_wait(), one reading of the clock, everything that became possible, and back:
 * there is no tick, so that a worker whose guest is silent makes no system call.
 */
#include "worker.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "outbound.h"
#include "sys.h"

void worker_ring_started(struct worker *worker, unsigned queue)
{
    if (queue == TRANSMITQ)
        worker->guest_ready = true;
    else
        engine_link_room(&worker->engine);
}

static void link_attached(struct worker *worker, struct link *link)
{
    worker->engine.link = link;
    worker->engine.several = link == &worker->bridge.link;
    worker->guest_ready = true;
    engine_link_room(&worker->engine);
}

int worker_attach_stream(struct worker *worker, uint32_t port, int fd, unsigned framing)
{
    int err = port ? link_switch_attach_stream(&worker->bridge, port - 1, fd, framing)
                   : link_stream_attach(&worker->stream, fd, framing);

    if (!err)
        link_attached(worker, port ? &worker->bridge.link : &worker->stream.socket.link);
    return err;
}

int worker_attach_dgram(struct worker *worker, uint32_t port, int fd)
{
    int err = port ? link_switch_attach_dgram(&worker->bridge, port - 1, fd) : link_dgram_attach(&worker->dgram, fd);

    if (!err)
        link_attached(worker, port ? &worker->bridge.link : &worker->dgram.socket.link);
    return err;
}

int worker_attach_tap(struct worker *worker, int fd, bool uso)
{
    int err = link_tap_attach(&worker->tap, fd, uso);

    if (!err)
        link_attached(worker, &worker->tap.link);
    return err;
}

static void socket_event(struct worker *worker, struct link_socket *socket, uint32_t events)
{
    link_socket_event(socket, events);
    if (events & EPOLLOUT)
        engine_link_room(&worker->engine);
    if (events & ~(uint32_t)EPOLLOUT)
        worker->guest_ready = true; /* an end shows itself behind the last frame */
}

void worker_detach_links(struct worker *worker)
{
    link_socket_detach(&worker->stream.socket);
    link_tap_detach(&worker->tap);
    link_socket_detach(&worker->dgram.socket);
    for (unsigned port = 0; port < SWITCH_PORTS; port++)
        link_switch_detach(&worker->bridge, port);
}

/* Whatever ended the connection, its flows wait for the next one; datagrams that wait for room do not. */
static void end_link(struct worker *worker)
{
    const struct link_socket *stream = &worker->stream.socket, *dgram = &worker->dgram.socket;
    const struct link_tap *tap = &worker->tap;

    if (!stream->ended && !tap->ended && !dgram->ended)
        return;
    worker->link_end = (struct lg_link_end){.error = stream->ended ? stream->error
                                                     : tap->ended  ? tap->error
                                                                   : dgram->error,
                                            .length = stream->ended ? worker->stream.length : 0};
    worker->link_ended = true;
    worker->link_end_port = 0;
    worker->guest_ready = false;
    worker_detach_links(worker);
    engine_link_room(&worker->engine);
}

/* One at a time: the next is told of when control has been. */
static void end_port(struct worker *worker)
{
    unsigned port;

    if (!worker->engine.several || worker->link_ended || !link_switch_ended(&worker->bridge, &port, &worker->link_end))
        return;
    link_switch_detach(&worker->bridge, port);
    worker->link_ended = true;
    worker->link_end_port = port + 1;
}

/* Also of ports that ended in the same step: nothing would wake us for them any more. */
static void tell_owed(struct worker *worker)
{
    bool told;

    do {
        end_port(worker);
        told = worker->link_ended;
        up_send_owed(worker);
        told = told && !worker->link_ended;
    } while (told);
}

static void take_event(struct worker *worker, const struct epoll_event *event)
{
    struct engine *engine = &worker->engine;

    if (event->data.u64 >> 32) {
        engine_socket_event(engine, event->data.u64, event->events);
        return;
    }
    if (event->data.u64 >= ENGINE_LISTENER_FIRST) {
        engine_listener_event(engine, event->data.u64, event->events);
        return;
    }
    if (event->data.u64 >= SOURCE_SWITCH_FIRST) {
        link_switch_event(&worker->bridge, (unsigned)(event->data.u64 - SOURCE_SWITCH_FIRST), event->events);
        worker->guest_ready = true;
        return;
    }
    switch ((enum loop_source)event->data.u64) {
    case SOURCE_KICK_TRANSMITQ:
        count(engine, C_kicks);
        worker->guest_ready = true;
        break;
    case SOURCE_KICK_RECEIVEQ:
        count(engine, C_kicks);
        engine_link_room(engine);
        break;
    case SOURCE_STREAM:
        socket_event(worker, &worker->stream.socket, event->events);
        break;
    case SOURCE_TAP:
        link_tap_event(&worker->tap);
        worker->guest_ready = true;
        break;
    case SOURCE_DGRAM:
        socket_event(worker, &worker->dgram.socket, event->events);
        break;
    case SOURCE_AGENT:
        agent_receive(worker);
        break;
    case SOURCE_CMD:
        worker->end |= !command_run(worker);
        break;
    case SOURCE_UP:
        up_receive(worker);
        break;
    case SOURCE_KEEPER:
        worker->end = true; /* nothing is ever sent to us there: its end is ours */
        break;
    case SOURCE_SWITCH_FIRST:
        break; /* see above */
    }
}

/* A ring that the guest broke is no longer looked at; people hear of it once. */
static void tell_faults(struct worker *worker)
{
    unsigned news = worker->vhost.faults_reported & ~worker->faults_told;

    worker->faults_told |= news;
    for (unsigned queue = 0; news; queue++, news >>= 1) {
        struct lg_event event = {
            .kind = LG_EVENT_RING_STOPPED, .value = queue, .reason = worker->vhost.ring[queue].fault};
        if (news & 1)
            up_emit(&worker->sink, &event); /* at any level: it is never the normal course of things */
    }
}

static int wait_ms(const struct worker *worker)
{
    uint64_t next = engine_next_ms(&worker->engine), now = worker->engine.now_ms;

    if (worker->guest_ready || next <= now)
        return 0;
    if (next == UINT64_MAX)
        return -1;
    return next - now < INT32_MAX ? (int)(next - now) : INT32_MAX;
}

static int step(struct worker *worker)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    struct engine *engine = &worker->engine;
    int timeout_ms = wait_ms(worker), n;

    if (engine->gather_ns && timeout_ms) {
        count(engine, C_gathers);
        sys_sleep_ns(engine->gather_ns);
    }
    n = sys_epoll_wait(engine->epoll_fd, events, EVENTS_PER_WAIT, timeout_ms);
    if (n < 0)
        return n == -EINTR ? 0 : n;
    engine_set_time(engine, sys_monotonic_ns());
    count(engine, C_wakeups);
    engine->counters[C_wakeup_events] += (unsigned)n;
    for (int i = 0; i < n; i++)
        take_event(worker, &events[i]);
    if (worker->guest_ready || engine->now_ms >= engine->link->look_ms)
        worker->guest_ready = engine_from_guest(engine);
    engine_settle(engine);
    tell_faults(worker);
    end_link(worker);
    tell_owed(worker);
    return engine->memory_fault ? -EFAULT : 0;
}

/* What the kernel's TCP is able to do, and does by default. */
static void see_kernel(struct engine_options *options)
{
    static const int zero;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    options->peek_off = !sys_setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof(zero));
    options->paces = outbound_can_unpace(fd);
    close(fd);
}

static int watch(struct worker *worker, int fd, uint32_t events, enum loop_source source)
{
    return sys_epoll_ctl(worker->engine.epoll_fd, EPOLL_CTL_ADD, fd, events, source);
}

static int worker_init(struct worker *worker, const struct lg_worker_config *config)
{
    uint8_t random[32];
    uint64_t *counters = mmap(NULL, LG_COUNTER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, config->counters_fd, 0);
    struct engine_options options = {
        .flow_limit = config->flow_limit,
        .reorder = !(config->flags & LG_WORKER_NO_REORDER),
        .ack_delay_ms = TCP_ACK_DELAY_MS,
    };
    int err;

    if (counters == MAP_FAILED || getrandom(random, sizeof(random), 0) != sizeof(random))
        return -errno;
    see_kernel(&options);
    options.peek_off &= !(config->flags & LG_WORKER_NO_PEEK_OFF);
    worker->cmd_fd = config->cmd_fd;
    worker->up_fd = config->up_fd;
    worker->keeper_fd = config->keeper_fd;
    worker->sink.emit = up_emit;
    if ((err = engine_init(&worker->engine, counters, &options, random)))
        return err;
    if (config->pcap_fd >= 0 && (err = pcap_ring_map(&worker->pcap, config->pcap_fd, config->pcap_event_fd, counters)))
        return err;
    worker->engine.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (worker->engine.epoll_fd < 0)
        return -errno;
    link_vhost_init(&worker->vhost, counters, &worker->pcap, worker->engine.epoll_fd, SOURCE_KICK_RECEIVEQ);
    if ((err = link_stream_init(&worker->stream, counters, &worker->pcap, worker->engine.epoll_fd, SOURCE_STREAM)) ||
        (err = link_tap_init(&worker->tap, counters, &worker->pcap, worker->engine.epoll_fd, SOURCE_TAP)) ||
        (err = link_dgram_init(&worker->dgram, counters, &worker->pcap, worker->engine.epoll_fd, SOURCE_DGRAM)) ||
        (err = link_switch_init(&worker->bridge, counters, &worker->pcap, worker->engine.epoll_fd, SOURCE_SWITCH_FIRST,
                                worker->engine.view.our_mac)))
        return err;
    worker->engine.link = &worker->vhost.link;
    worker->engine.events = &worker->sink;
    worker->engine.punt = up_punt;
    agent_init(worker);
    if ((err = watch(worker, config->cmd_fd, EPOLLIN, SOURCE_CMD)) ||
        (err = watch(worker, config->up_fd, EPOLLIN | EPOLLET, SOURCE_UP)) ||
        (err = watch(worker, config->keeper_fd, EPOLLIN | EPOLLRDHUP, SOURCE_KEEPER)))
        return err;
    return 0;
}

int lg_worker_run(const struct lg_worker_config *config)
{
    struct worker *worker = mmap(NULL, sizeof(*worker), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int err;

    if (worker == MAP_FAILED)
        return -errno;
    err = worker_init(worker, config);
    if (!err && write(config->keeper_fd, "R", 1) != 1)
        err = -errno;
    while (!err && !worker->end)
        err = step(worker);
    return err;
}
