/* SPDX-License-Identifier: Apache-2.0
 *
 * script.c: the world of script.h. See there for who calls it, and the invariants.
 */
#include "script.h"

#include <assert.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include "engine.h"
#include "fake_kernel.h"
#include "gateway.h"
#include "link_memory.h"
#include "script_parts.h"
#include "sys.h"
#include "tcp.h"

enum {
    EVENTS_KEPT = 1 << 12,
};

static struct {
    struct engine engine;
    struct link_memory link;
    struct event_sink sink;
    struct memory_frame *taken; /* what Python looks at */
    uint64_t counters[C_COUNT];
    bool open, guest_ready;
    unsigned events, punts;
    uint64_t gather_ns;
    uint8_t punted[FRAME_HEAD_MAX];
    size_t punted_head, punted_length;
    struct lg_event event[EVENTS_KEPT];
    char left[512];
} world;

/* ---- faults: what would end the process becomes a text, so that the test that met it has a name ---- */

static char fault[4096];
static jmp_buf escape;

const char *script_fault(void)
{
    return fault;
}

/* In place of the C library's, which calls abort(). */
void __assert_fail(const char *assertion, const char *file, unsigned line, const char *function)
{
    if (!fault[0])
        snprintf(fault, sizeof(fault), "assertion: %s:%u: %s(): %s", file, line, function, assertion);
    longjmp(escape, 1);
}

#ifdef SCRIPT_SANITIZED
#include <sanitizer/asan_interface.h>

const char *__asan_default_options(void);
const char *__ubsan_default_options(void);
void __ubsan_on_report(void);
void __ubsan_get_current_report_data(const char **kind, const char **message, const char **file, unsigned *line,
                                     unsigned *column, char **address);

/* Python was there first, and has handlers of its own; what it lost is not ours to count. */
const char *__asan_default_options(void)
{
    return "verify_asan_link_order=0:detect_leaks=0:halt_on_error=0:handle_segv=0:handle_sigbus=0:handle_sigfpe=0:"
           "handle_abort=0:quarantine_size_mb=16:detect_stack_use_after_return=0";
}

const char *__ubsan_default_options(void)
{
    return "halt_on_error=0:print_stacktrace=1";
}

static void on_address_report(const char *text)
{
    if (!fault[0])
        snprintf(fault, sizeof(fault), "%s", text);
}

void __ubsan_on_report(void)
{
    const char *kind, *message, *file;
    unsigned line, column;
    char *address;

    __ubsan_get_current_report_data(&kind, &message, &file, &line, &column, &address);
    if (!fault[0])
        snprintf(fault, sizeof(fault), "undefined behaviour: %s:%u: %s: %s", file, line, kind, message);
}

static void watch_for_faults(void)
{
    __asan_set_error_report_callback(on_address_report);
}
#else
static void watch_for_faults(void)
{
}
#endif

/* ---- life ---- */

static void keep_event(struct event_sink *sink, const struct lg_event *event)
{
    (void)sink;
    if (world.events < EVENTS_KEPT)
        world.event[world.events++] = *event;
}

static void note_punt(struct engine *engine, const struct guest_frame *frame)
{
    (void)engine;
    memcpy(world.punted, frame->head, frame->head_length);
    world.punted_head = frame->head_length;
    world.punted_length = frame->length;
    world.punts++;
}

int script_open(uint64_t start_ms, uint32_t flow_limit, bool peek_off, bool paces, bool reorder, uint32_t ack_delay_ms)
{
    static const uint8_t random[32] = {7};
    const struct engine_options options = {.flow_limit = flow_limit,
                                           .peek_off = peek_off,
                                           .paces = paces,
                                           .reorder = reorder,
                                           .ack_delay_ms = ack_delay_ms};
    int err;

    watch_for_faults();
    fault[0] = '\0';
    world.events = world.punts = 0;
    wakeups_forget();
    world.guest_ready = false;
    memset(world.counters, 0, sizeof(world.counters));
    fake_clock_set(start_ms * 1000000);
    if (setjmp(escape))
        return -1;
    err = engine_init(&world.engine, world.counters, &options, random);
    if (err)
        return err;
    link_memory_init(&world.link, &world.engine.now_ms, world.counters);
    world.sink = (struct event_sink){.emit = keep_event, .level = 2};
    world.engine.link = &world.link.link;
    world.engine.events = &world.sink;
    world.engine.punt = note_punt;
    script_agent_init(&world.engine);
    world.engine.epoll_fd = fake_epoll();
    world.open = true;
    return 0;
}

void script_close(void)
{
    if (!world.open)
        return;
    world.open = false;
    if (!fault[0] && !setjmp(escape))
        engine_free(&world.engine);
    link_memory_free(&world.link);
    if (world.taken)
        memory_frame_free(world.taken);
    world.taken = NULL;
}

struct engine *script_engine(void)
{
    return &world.engine;
}

struct lg_net_view *script_view(void)
{
    return &world.engine.view;
}

int script_neighbours(const struct lg_neighbours *table)
{
    return neighbour_replace(&world.engine, table);
}

/* ---- the loop ---- */

uint64_t script_now_ms(void)
{
    return sys_monotonic_ns() / 1000000;
}

uint64_t script_next_ms(void)
{
    return engine_next_ms(&world.engine);
}

void script_set_time(uint64_t ms)
{
    fake_clock_set(ms * 1000000);
}

void script_pass(uint64_t ns)
{
    fake_clock_set(sys_monotonic_ns() + ns);
}

static int step(void)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    struct engine *engine = &world.engine;
    int n = sys_epoll_wait(engine->epoll_fd, events, EVENTS_PER_WAIT, 0);
    bool due;

    engine_set_time(engine, sys_monotonic_ns());
    due = engine_next_ms(engine) <= engine->now_ms;
    for (int i = 0; i < n; i++) {
        wakeup_begins(engine, &events[i]);
        if (events[i].data.u64 >> 32)
            engine_socket_event(engine, events[i].data.u64, events[i].events);
        else
            engine_listener_event(engine, events[i].data.u64, events[i].events);
    }
    due |= world.link.room_event || !list_empty(&world.link.queued) || world.guest_ready;
    if (world.link.room_event) {
        world.link.room_event = false;
        engine_link_room(engine);
    }
    if (!list_empty(&world.link.queued) || world.guest_ready)
        world.guest_ready = engine_from_guest(engine);
    engine_settle(engine);
    if (engine->gather_ns)
        world.gather_ns = engine->gather_ns;
    wakeups_end(engine);
    if (!list_empty(&world.link.committed) && !world.link.violation)
        world.link.violation = "a frame was committed and never flushed";
    if (!list_empty(&world.link.lent) && !world.link.violation)
        world.link.violation = "frames of the guest were not released";
    return n || due;
}

int script_listen(uint32_t slot, int fd, uint8_t protocol, uint16_t port, const uint8_t target[16])
{
    struct listener listener = {.fd = fd, .protocol = protocol, .port = port};

    memcpy(listener.target.byte, target, sizeof(listener.target.byte));
    return engine_listen(&world.engine, slot, &listener);
}

void script_listen_close(uint32_t first, uint32_t count)
{
    engine_listen_close(&world.engine, first, count);
}

int script_step(void)
{
    if (fault[0] || setjmp(escape))
        return 0;
    return step();
}

int script_settle(unsigned steps_max)
{
    for (unsigned steps = 0; steps < steps_max; steps++) {
        if (!script_step())
            return (int)steps;
    }
    return -1;
}

/* ---- the guest's side ---- */

void script_set_link(const struct script_link *settings)
{
    struct link_memory *link = &world.link;

    link->piece_bytes = settings->piece_bytes;
    link->batch_max = settings->batch_max;
    link->buffer_bytes = settings->buffer_bytes;
    link->merge = settings->merge;
    link->link.copies = settings->copies;
    link->link.large = settings->merge || settings->tso4 || settings->tso6 || settings->uso4 || settings->uso6;
    link->connected = settings->connected;
    link->link.csum = settings->csum;
    link->link.tso4 = settings->tso4;
    link->link.tso6 = settings->tso6;
    link->link.uso4 = settings->uso4;
    link->link.uso6 = settings->uso6;
}

void script_get_link(struct script_link *ret_settings)
{
    const struct link_memory *link = &world.link;

    *ret_settings = (struct script_link){
        .piece_bytes = link->piece_bytes,
        .batch_max = link->batch_max,
        .buffer_bytes = link->buffer_bytes,
        .merge = link->merge,
        .copies = link->link.copies,
        .connected = link->connected,
        .csum = link->link.csum,
        .tso4 = link->link.tso4,
        .tso6 = link->link.tso6,
        .uso4 = link->link.uso4,
        .uso6 = link->link.uso6,
    };
}

uint64_t script_gather_ns(void)
{
    uint64_t ns = world.gather_ns;

    world.gather_ns = 0;
    return ns;
}

unsigned script_expected(void)
{
    return world.link.kick_after;
}

void script_look(void)
{
    world.guest_ready = engine_from_guest(&world.engine);
}

unsigned script_room(void)
{
    return world.link.buffers;
}

void script_set_room(unsigned room)
{
    world.link.buffers = room;
}

void script_give_room(unsigned buffers)
{
    link_memory_give_room(&world.link, buffers);
}

void script_give_room_late(unsigned buffers)
{
    world.link.late = buffers;
}

void script_attach(void)
{
    world.link.room_event = true;
}

void script_from_guest(const uint8_t *head, size_t head_length, uint32_t stream, uint64_t position, size_t payload)
{
    struct memory_frame *frame = memory_frame_new(head_length + payload);

    memcpy(frame->bytes, head, head_length);
    fake_pattern_fill(stream, position, frame->bytes + head_length, payload);
    list_append(&world.link.queued, &frame->node);
}

void script_from_guest_several(const uint8_t *bytes, size_t length, uint16_t datagram)
{
    struct memory_frame *frame = memory_frame_new(length);

    memcpy(frame->bytes, bytes, length);
    frame->datagram = datagram;
    list_append(&world.link.queued, &frame->node);
}

unsigned script_frames_waiting(void)
{
    unsigned count = 0;

    for (struct node *node = world.link.visible.head.next; node != &world.link.visible.head; node = node->next)
        count++;
    return count;
}

int script_to_guest(struct script_frame *ret_frame)
{
    struct node *node = list_pop(&world.link.visible);

    if (world.taken)
        memory_frame_free(world.taken);
    world.taken = NULL;
    if (!node)
        return 0;
    world.taken = container_of(node, struct memory_frame, node);
    *ret_frame = (struct script_frame){
        .bytes = world.taken->bytes,
        .length = world.taken->length,
        .time_ms = world.taken->time_ms,
        .needs_csum = world.taken->offload.needs_csum,
        .gso_type = world.taken->offload.gso_type,
        .gso_size = world.taken->offload.gso_size,
        .header_length = world.taken->offload.header_length,
        .csum_start = world.taken->offload.csum_start,
        .csum_offset = world.taken->offload.csum_offset,
    };
    return 1;
}

/* ---- what became of it ---- */

bool script_flow(uint32_t *cursor, struct script_flow *ret_flow)
{
    const struct flow *flow = flow_next(&world.engine.flows, cursor);

    if (!flow)
        return false;
    static const struct tcp none;
    const struct tcp *tcp = flow->key.protocol == IPPROTO_TCP && flow->key.port == PORT_LINK ? &flow->tcp : &none;
    *ret_flow = (struct script_flow){
        .id = flow_handle(flow),
        .fd = flow->fd,
        .port = flow->key.port,
        .protocol = flow->key.protocol,
        .to_guest = tcp->to_guest,
        .to_host = tcp->to_host,
        .stall = tcp->stall,
        .interest = flow->interest,
        .iss = tcp->iss,
        .snd_una = tcp->snd_una,
        .snd_nxt = tcp->snd_nxt,
        .snd_window = tcp->snd_window,
        .rcv_nxt = tcp->rcv_nxt,
        .rcv_taken = tcp->rcv_taken,
        .rcv_edge = tcp->rcv_edge,
        .held = tcp->hold ? ranges_bytes(&tcp->hold->ranges) : 0,
        .done = flow->done,
        .readable = tcp->readable,
        .muted = tcp->muted,
        .guest_port = flow->key.guest_port,
        .remote_port = flow->key.remote_port,
    };
    memcpy(ret_flow->guest_addr, &flow->key.guest, sizeof(ret_flow->guest_addr));
    memcpy(ret_flow->remote_addr, &flow->key.remote, sizeof(ret_flow->remote_addr));
    return true;
}

/* ---- a guest that moves ---- */

unsigned script_freeze(struct lg_tcp_flow *ret_states, unsigned max)
{
    uint32_t cursor = 0;
    unsigned frozen = 0;

    for (struct flow *flow; frozen < max && (flow = flow_next(&world.engine.flows, &cursor));)
        frozen += tcp_freeze(&world.engine, flow, &ret_states[frozen]);
    return frozen;
}

static void for_frozen(void (*act)(struct engine *engine, struct flow *flow))
{
    uint32_t cursor = 0;

    for (struct flow *flow; (flow = flow_next(&world.engine.flows, &cursor));)
        if (flow->frozen)
            act(&world.engine, flow);
}

void script_thaw(void)
{
    for_frozen(tcp_thaw);
}

void script_forget(void)
{
    for_frozen(tcp_forget);
}

int script_take(uint64_t id)
{
    struct flow *flow = flow_from_handle(&world.engine.flows, id);
    int fd = flow->fd;

    flow->fd = -1;
    tcp_forget(&world.engine, flow);
    return fd;
}

int script_adopt(const struct lg_tcp_flow *state, int fd)
{
    return tcp_adopt(&world.engine, state, fd);
}

uint64_t script_counter(unsigned counter)
{
    return counter < C_COUNT ? world.counters[counter] : 0;
}

unsigned script_events(void)
{
    return world.events;
}

const struct lg_event *script_event(unsigned index)
{
    return index < world.events ? &world.event[index] : NULL;
}

unsigned script_punts(void)
{
    return world.punts;
}

size_t script_punted(uint8_t *bytes, size_t max)
{
    memcpy(bytes, world.punted, world.punted_head < max ? world.punted_head : max);
    return world.punted_length;
}

int script_gateway_serve(const uint8_t *head, uint32_t head_length, uint32_t length, int fd)
{
    return gateway_serve(&world.engine, head, head_length, length, fd);
}

int script_gateway_dial(const uint8_t guest[16], uint16_t guest_port, uint16_t gateway_port, int fd)
{
    const address to = address_from(guest);

    return gateway_dial(&world.engine, &to, guest_port, gateway_port, fd);
}

const struct lg_seen *script_seen(void)
{
    return &world.engine.seen;
}

void script_take_view(const struct lg_net_view *view)
{
    engine_take_view(&world.engine, view);
}

bool script_memory_fault(void)
{
    return world.engine.memory_fault;
}

static void add(unsigned count, const char *what)
{
    size_t used = strlen(world.left);

    if (count)
        snprintf(world.left + used, sizeof(world.left) - used, "%s%u %s", used ? ", " : "", count, what);
}

/* Sockets that are there for whoever comes: ports, and those of the pool. */
static unsigned sockets_kept(const struct engine *engine)
{
    unsigned kept = 0;

    for (uint32_t slot = 0; slot < engine->listeners.used; slot++)
        kept += listener_at(&engine->listeners, slot) != NULL;
    for (unsigned kind = 0; kind < SPLICE_KINDS; kind++)
        kept += engine->splice.kind[kind].count;
    return kept;
}

static unsigned timers_armed(const struct wheel *wheel)
{
    unsigned armed = wheel->expired != NULL;

    for (unsigned level = 0; level < WHEEL_LEVELS; level++)
        armed += (unsigned)__builtin_popcountll(wheel->pending[level]);
    return armed;
}

const char *script_left(void)
{
    const struct engine *engine = &world.engine;
    const struct link_memory *link = &world.link;

    world.left[0] = '\0';
    add(engine->flows.count, "flows");
    add(!list_empty(&engine->flows.by_age), "list of flows by age");
    add(timers_armed(&engine->wheel), "timer slots");
    add((unsigned)__builtin_popcountll(engine->holds.used), "holds");
    add((unsigned)__builtin_popcountll(engine->holds.used_large), "large holds");
    add(!list_empty(&engine->ready), "list of ready flows");
    add(!list_empty(&engine->waiting), "list of waiting flows");
    add(link->reserved_end - link->reserved_first, "reservations");
    add(!list_empty(&link->lent), "batch of the guest's frames");
    add(fake_sockets_open() - sockets_kept(engine), "sockets");
    add(fake_pipes_open() - engine->splice.pipes, "pipes");
    add(engine->splice.pipes_lent, "pipes lent");
    add(!list_empty(&engine->splice.waiting_pipe), "list of flows that wait for a pipe");
    for (unsigned kind = 0; kind < SPLICE_KINDS; kind++)
        add(!list_empty(&engine->splice.kind[kind].waiting), "list of flows that wait for a socket");
    add(world.counters[C_flows] != engine->flows.count, "wrong count of flows");
    if (link->violation)
        add(1, link->violation);
    return world.left;
}
