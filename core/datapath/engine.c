/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.c: frames from the guest to whoever they concern, and the order of work in one step.
 *
 * A batch of frames is looked at as a whole before anything is sent: each frame only leaves its facts with its flow, then
 * every flow that was touched is settled once. Only then the guest gets its buffers back.
 */
#include "engine.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "gateway.h"
#include "icmp.h"
#include "outbound.h"
#include "pages.h"
#include "splice.h"
#include "sys.h"
#include "tcp.h"

static const size_t INBOX_BYTES = (size_t)DATAGRAM_RECEIVE_MAX * DATAGRAM_RECEIVE_BYTES;

void engine_set_time(struct engine *engine, uint64_t now_ns)
{
    engine->now_ns = now_ns;
    engine->now_ms = now_ns / 1000000;
}

int engine_init(struct engine *engine, uint64_t *counters, const struct engine_options *options,
                const uint8_t random[32])
{
    struct siphash_key table_key;

    memset(engine, 0, sizeof(*engine));
    engine->epoll_fd = -1;
    engine->counters = counters;
    engine->peek_off = options->peek_off;
    engine->paces = options->paces;
    engine->reorder = options->reorder;
    engine->ack_delay_ms = options->ack_delay_ms;
    memcpy(&table_key, random, sizeof(table_key));
    memcpy(&engine->secret, random + sizeof(table_key), sizeof(engine->secret));
    list_init(&engine->ready);
    list_init(&engine->waiting);
    list_init(&engine->surplus);
    list_init(&engine->waiting_ports);
    splice_pool_init(&engine->splice);
    engine_set_time(engine, sys_monotonic_ns());
    wheel_init(&engine->wheel, engine->now_ms);
    engine->view.mtu = 1500;
    memset(engine->seen.mac, 0xff, sizeof(engine->seen.mac)); /* until the guest has spoken */

    engine->discard = options->peek_off ? NULL : pages_reserve(TCP_REREAD_MAX);
    engine->inbox.bytes = pages_reserve(INBOX_BYTES);
    engine->arrivals.inbox.bytes = pages_reserve(INBOX_BYTES);
    engine->relayed.bytes = pages_reserve(INBOX_BYTES);
    if (listener_table_init(&engine->listeners, ENGINE_LISTENER_FIRST) || hold_pool_init(&engine->holds) ||
        fragments_init(&engine->fragments, counters) || datagram_ports_init(engine) ||
        (!options->peek_off && !engine->discard) || !engine->inbox.bytes || !engine->arrivals.inbox.bytes ||
        !engine->relayed.bytes)
        return -ENOMEM;
    return flow_table_init(&engine->flows, options->flow_limit < FLOWS_MAX ? options->flow_limit : FLOWS_MAX,
                           table_key);
}

void engine_free(struct engine *engine)
{
    uint32_t cursor = 0;

    for (struct flow *flow; (flow = flow_next(&engine->flows, &cursor));) {
        flow_close(engine, flow, CLOSE_shutdown);
        flow_remove(&engine->flows, flow);
    }
    flow_table_free(&engine->flows);
    listener_table_free(&engine->listeners);
    hold_pool_free(&engine->holds);
    fragments_free(&engine->fragments);
    splice_pool_free(&engine->splice);
    datagram_ports_free(engine);
    pages_free(engine->inbox.bytes, INBOX_BYTES);
    pages_free(engine->arrivals.inbox.bytes, INBOX_BYTES);
    pages_free(engine->relayed.bytes, INBOX_BYTES);
    pages_free(engine->discard, TCP_REREAD_MAX);
}

/* RFC 1112, 6.4; RFC 2464, 7. */
static void group_mac(const address *group, uint8_t mac[ADDRESS_MAC])
{
    static const uint8_t ipv4[3] = {1, 0, 0x5e}, ipv6[2] = {0x33, 0x33};

    if (address_is_ipv4(group)) {
        memcpy(mac, ipv4, sizeof(ipv4));
        memcpy(mac + 3, group->byte + 13, 3);
        mac[3] &= 0x7f;
    } else {
        memcpy(mac, ipv6, sizeof(ipv6));
        memcpy(mac + 2, group->byte + 12, 4);
    }
}

void engine_path(const struct engine *engine, const address *source, const address *destination,
                 struct packet_path *ret_path)
{
    const uint8_t *known = engine->several ? guest_table_find(&engine->guests, destination) : NULL;

    memcpy(ret_path->guest_mac, known ? known : engine->seen.mac, ADDRESS_MAC);
    if (address_is_group(destination))
        group_mac(destination, ret_path->guest_mac);
    memcpy(ret_path->our_mac, neighbour_mac(engine, source), ADDRESS_MAC);
    ret_path->source = *source;
    ret_path->destination = *destination;
}

int engine_send_frame(struct engine *engine, const uint8_t *frame, size_t length)
{
    static const struct offload none;
    const struct link_operations *link = engine->link->operations;
    struct guest_room room;
    int err;

    engine->pieces.count = 0;
    err = link->reserve(engine->link, ETHERNET_HEADER, length - ETHERNET_HEADER, &engine->pieces, &room);
    if (err == -ENOTCONN)
        count(engine, C_drop_disconnected);
    if (err)
        return err;
    if (room.payload < length - ETHERNET_HEADER) {
        link->rollback(engine->link);
        return -EMSGSIZE;
    }
    for (unsigned i = 0; i < room.header_count; i++) {
        memcpy(room.header[i].iov_base, frame, room.header[i].iov_len);
        frame += room.header[i].iov_len;
    }
    for (unsigned i = 0; i < engine->pieces.count; i++) {
        memcpy(engine->pieces.iov[i].iov_base, frame, engine->pieces.iov[i].iov_len);
        frame += engine->pieces.iov[i].iov_len;
    }
    link->commit(engine->link, length, &none);
    return 0;
}

/* ---- what is seen of the guest ---- */

static void see_bytes(struct engine *engine, uint8_t *known, const uint8_t *now, size_t length)
{
    if (!memcmp(known, now, length))
        return;
    memcpy(known, now, length);
    engine->seen_changed = true;
}

/* Where an address of the guest's is remembered; NULL: it is nobody's. */
static uint8_t *place_of(struct engine *engine, const address *a)
{
    if (address_is_unset(a) || address_is_multicast(a) || address_is_loopback(a))
        return NULL;
    if (address_is_ipv4(a))
        return a->byte[12] ? engine->seen.addr4 : NULL; /* 0.0.0.0, before the guest has an address */
    return address_is_link_local(a) ? engine->seen.link_local : engine->seen.addr6;
}

static bool is_withdrawn(const struct engine *engine, const address *a)
{
    for (unsigned i = 0; i < ENGINE_WITHDRAWN; i++)
        if (address_equal(&engine->withdrawn[i], a))
            return true;
    return false;
}

/* From `old` to `now`, of one family; unset: it has none. */
static void move_guest(struct engine *engine, uint8_t seen[16], const uint8_t old[16], const uint8_t now[16])
{
    const address from = address_from(old);

    if (address_is(now, &from))
        return;
    for (unsigned i = 0; i < ENGINE_WITHDRAWN; i++)
        if (address_is(now, &engine->withdrawn[i]))
            engine->withdrawn[i] = (address){{0}};
    if (!address_is_unset(&from))
        engine->withdrawn[engine->withdrawn_next++ % ENGINE_WITHDRAWN] = from;
    if (address_is(seen, &from))
        see_bytes(engine, seen, now, sizeof(from.byte));
}

void engine_take_view(struct engine *engine, const struct lg_net_view *view)
{
    if (view->flags & LG_VIEW_PLACED) {
        move_guest(engine, engine->seen.addr4, engine->view.guest4, view->guest4);
        move_guest(engine, engine->seen.addr6, engine->view.guest6, view->guest6);
    }
    engine->view = *view;
}

static void see_address(struct engine *engine, const address *source, const uint8_t *mac)
{
    uint8_t *known = place_of(engine, source);

    if (engine->several) {
        if (known)
            guest_table_learn(&engine->guests, source, mac);
        return;
    }
    const struct lg_net_view *view = &engine->view;
    uint32_t flag = known == engine->seen.addr4 ? LG_VIEW_FIXED4 : known == engine->seen.addr6 ? LG_VIEW_FIXED6 : 0;
    const uint8_t *own = flag == LG_VIEW_FIXED4 ? view->guest4 : view->guest6;
    bool fixed = view->flags & flag && !memcmp(known, own, sizeof(source->byte));

    /* Almost every frame comes from where the last one did. */
    if (known && !fixed && memcmp(known, source->byte, sizeof(source->byte)) && !is_withdrawn(engine, source))
        see_bytes(engine, known, source->byte, sizeof(source->byte));
}

void engine_see_tentative(struct engine *engine, const address *target)
{
    static const address none;
    uint8_t *known = place_of(engine, target);

    if (known && !memcmp(known, none.byte, sizeof(none.byte)))
        see_bytes(engine, known, target->byte, sizeof(target->byte));
}

/* ---- packets in pieces ---- */

/* One timer for all, which stands where the oldest would have had to be whole: moving it with each packet would cost more
 * than one look in half a minute. */
static void arm_fragments(struct engine *engine)
{
    struct timer *timer = &engine->fragments.timer;
    uint64_t due = fragments_next_ms(&engine->fragments);

    if (due == UINT64_MAX)
        wheel_cancel(&engine->wheel, timer);
    else if (!timer_armed(timer))
        wheel_arm(&engine->wheel, timer, due);
}

static void drop_late_fragments(struct engine *engine)
{
    struct fragmented *packet;

    while ((packet = fragments_late(&engine->fragments, engine->now_ms))) {
        if (!packet->spoiled) {
            count(engine, C_fragments_late);
            if (packet->begun)
                icmp_send_incomplete(engine, &packet->frame, &packet->first);
        }
        fragments_drop(&engine->fragments, packet);
    }
    arm_fragments(engine);
}

/* ---- one frame ---- */

/* Why no packet like this is taken, whatever is in it; 0: it is. */
static enum counter refusal(const struct engine *engine, const struct guest_frame *frame, const struct packet *packet)
{
    static const address nobody4 = {{[10] = 0xff, [11] = 0xff}};

    if (!(engine->view.flags & (packet->ipv6 ? LG_VIEW_IPV6 : LG_VIEW_IPV4)))
        return C_drop_protocol;
    if (!gateway_is_stranger(&engine->view, &packet->source))
        return 0;
    return address_equal(&packet->source, &nobody4) && udp_asks_for_address(frame, packet) ? 0 : C_drop_source;
}

static void take_packet(struct engine *engine, const struct guest_frame *frame, const struct packet *packet)
{
    enum counter reason = refusal(engine, frame, packet);

    if (reason) {
        count(engine, reason);
        return;
    }
    if (!udp_asks_for_address(frame, packet))
        see_address(engine, &packet->source, frame->head + ADDRESS_MAC);
    if (packet->protocol == IPPROTO_TCP)
        tcp_from_guest(engine, frame, packet);
    else if (packet->protocol == IPPROTO_UDP)
        udp_from_guest(engine, frame, packet);
    else if (packet->protocol == IPPROTO_ICMP && !packet->ipv6)
        neighbour_icmpv4(engine, frame, packet);
    else if (packet->protocol == IPPROTO_ICMPV6 && packet->ipv6)
        neighbour_icmpv6(engine, frame, packet);
    else
        count(engine, C_drop_protocol);
}

/* A piece of a packet: what it makes whole goes the way of any other. */
static void take_fragment(struct engine *engine, const struct guest_frame *frame, struct packet *packet)
{
    enum counter reason = refusal(engine, frame, packet);

    if (reason) {
        count(engine, reason);
        return;
    }
    const struct guest_frame *whole = fragments_take(&engine->fragments, frame, packet, engine->now_ms);
    arm_fragments(engine);
    if (!whole)
        return;
    reason = packet_parse(whole, packet);
    if (!reason && !packet->fragmented) {
        packet->fragmented = true;
        take_packet(engine, whole, packet);
    } else {
        count(engine, C_drop_fragment); /* a guest that changed its frame while we looked */
    }
}

static void take_ip(struct engine *engine, const struct guest_frame *frame)
{
    struct packet packet;
    enum counter reason = packet_parse(frame, &packet);

    if (!reason) {
        take_packet(engine, frame, &packet);
        return;
    }
    count(engine, reason);
    if (reason == C_fragments)
        take_fragment(engine, frame, &packet);
}

static void take_frame(struct engine *engine, const struct guest_frame *frame)
{
    if (frame->length < ETHERNET_HEADER) {
        count(engine, C_drop_short);
        return;
    }
    const uint8_t *source_mac = frame->head + ADDRESS_MAC;
    if (!(source_mac[0] & 1) && !engine->several) /* a group address is nobody's */
        see_bytes(engine, engine->seen.mac, source_mac, ADDRESS_MAC);
    if (frame_ethertype(frame) == ETHERTYPE_ARP_FRAME)
        neighbour_arp(engine, frame);
    else
        take_ip(engine, frame);
}

/* ---- one step ---- */

static void settle_ready(struct engine *engine)
{
    struct list now;
    struct node *node;

    list_move(&engine->ready, &now);
    while ((node = list_pop(&now)))
        flow_settle(engine, container_of(node, struct flow, ready));
}

/* Frames that are as large as these were on average; where only one is allowed, none is waited for. */
static unsigned one_way_frames(uint64_t frames, uint64_t bytes)
{
    uint64_t allowed = bytes ? ONE_WAY_BYTES * frames / bytes : 0;

    if (allowed > ONE_WAY_FRAMES)
        return ONE_WAY_FRAMES;
    return allowed > 1 ? (unsigned)allowed : 0;
}

static uint64_t with_step(uint64_t sum, uint64_t step)
{
    return sum - sum / ONE_WAY_STEPS + step * ONE_WAY_STEPS;
}

static bool is_stream(const struct one_way *late)
{
    return late->steps == ONE_WAY_STEPS && late->late_ns <= late->late_frames * ONE_WAY_GAP_NS &&
           late->late_bytes * ONE_WAY_WAKE_NS < late->late_ns * ONE_WAY_WAKE_BYTES;
}

/* After a step that took so many frames: whether more of the same is to be expected, see ONE_WAY_STEPS. */
static void see_one_way(struct engine *engine, uint64_t frames, uint64_t bytes)
{
    struct one_way *last = &engine->one_way, now = {.last_ns = engine->now_ns,
                                                    .datagrams = engine->counters[C_datagrams_from_guest],
                                                    .frames_to_guest = engine->counters[C_frames_to_guest]};
    uint64_t sent = now.datagrams - last->datagrams, passed_ns = now.last_ns - last->last_ns;

    if (!frames) { /* a look of our own, between two bursts perhaps: the next frame is to say that it is there */
        engine->link->expected = 0;
        return;
    }
    if (sent && now.frames_to_guest == last->frames_to_guest && passed_ns <= ONE_WAY_PAUSE_NS) {
        now.steps = last->steps < ONE_WAY_STEPS ? last->steps + 1 : ONE_WAY_STEPS;
        now.late_ns = with_step(last->late_ns, passed_ns);
        now.late_frames = with_step(last->late_frames, frames < sent ? frames : sent); /* one may bring several (USO) */
        now.late_bytes = with_step(last->late_bytes, bytes);
    }
    *last = now;
    engine->link->expected = is_stream(last) ? one_way_frames(frames, bytes) : 0;
}

bool engine_from_guest(struct engine *engine)
{
    const struct link_operations *link = engine->link->operations;
    uint64_t frames_taken = 0, bytes_taken = 0;
    bool more = true;

    engine->link->expected = 0; /* until it is known what these are: the link's flushes in between ask the guest anew */
    for (unsigned batch = 0; batch < BATCHES_PER_STEP && more; batch++) {
        unsigned frames = link->from_guest(engine->link, engine->frame, &more);

        engine->segment_count = 0;
        for (unsigned i = 0; i < frames; i++) {
            bytes_taken += engine->frame[i].length;
            take_frame(engine, &engine->frame[i]);
        }
        frames_taken += frames;
        settle_ready(engine); /* after it no flow holds a piece of the batch any more */
        if (engine->fragments.whole)
            fragments_release(&engine->fragments);
        link->release(engine->link);
        link->flush(engine->link, engine->now_ms);
    }
    see_one_way(engine, frames_taken, bytes_taken);
    return more;
}

void engine_socket_event(struct engine *engine, uint64_t handle, uint32_t events)
{
    struct flow *flow = flow_from_handle(&engine->flows, handle & ~FLOW_FAR);

    if (flow)
        flow_event(engine, flow, handle & FLOW_FAR, events);
}

/* What it accepts has it from the first byte on. A worker before us may have chosen otherwise. */
static void choose_pacing(const struct engine *engine, int fd)
{
    if (engine->paces)
        outbound_unpace(fd);
    else
        outbound_repace(fd);
}

int engine_listen(struct engine *engine, uint32_t slot, const struct listener *listener)
{
    int err = listener_add(&engine->listeners, engine->epoll_fd, slot, listener);

    if (!err && listener->protocol == IPPROTO_TCP)
        choose_pacing(engine, listener->fd);
    if (!err)
        datagram_port_led_to(engine, listener_at(&engine->listeners, slot));
    return err;
}

void engine_listen_close(struct engine *engine, uint32_t first, uint32_t count)
{
    uint32_t cursor = 0, used = engine->listeners.used;
    bool datagrams = false;

    for (uint32_t slot = first; slot < used && slot - first < count; slot++) {
        const struct listener *listener = listener_at(&engine->listeners, slot);
        datagrams |= listener && listener->protocol == IPPROTO_UDP;
        datagram_accept_close(engine, slot);
        listener_close(&engine->listeners, engine->epoll_fd, slot);
    }
    /* Whatever the guest answers there would go out of a socket that is gone. */
    for (struct flow *flow; datagrams && (flow = flow_next(&engine->flows, &cursor));) {
        if (flow->key.protocol == IPPROTO_UDP && flow->datagram.peer.addr_length && !flow->datagram.group &&
            flow->datagram.peer.slot - first < count)
            flow_close(engine, flow, CLOSE_shutdown);
    }
}

void engine_listener_event(struct engine *engine, uint64_t data, uint32_t events)
{
    struct listener *listener = listener_of(&engine->listeners, data);

    if (listener && listener->protocol == IPPROTO_TCP)
        tcp_accept(engine, listener);
    else if (listener)
        datagram_accept(engine, listener, events);
}

void engine_link_room(struct engine *engine)
{
    struct node *node;

    engine->link_full = false;
    while ((node = list_pop(&engine->waiting)))
        list_append(&engine->ready, &container_of(node, struct flow, waiting)->ready);
    datagram_accept_room(engine);
}

static void fire_timers(struct engine *engine)
{
    struct timer *timer;

    wheel_advance(&engine->wheel, engine->now_ms);
    while ((timer = wheel_pop(&engine->wheel))) {
        count(engine, C_timers_fired);
        if (timer == &engine->fragments.timer)
            drop_late_fragments(engine);
        else
            flow_timer_fired(engine, container_of(timer, struct flow, timer));
    }
}

/* What leaves a socket makes room, and a peer on this machine sends into it within our own system call, with the timers
 * by which its kernel spaces that out: last of all, so that they do not come between two frames to the guest. */
static void drop_surplus(struct engine *engine)
{
    struct node *node;

    while ((node = list_pop(&engine->surplus))) {
        struct flow *flow = container_of(node, struct flow, surplus);
        if (!flow->done)
            tcp_discard_acked(engine, flow);
    }
}

void engine_settle(struct engine *engine)
{
    fire_timers(engine);
    settle_ready(engine);
    /* Room may have come between "full" and our asking for the room event; one more try is enough for a step. */
    if (engine->link_full && !engine->link->operations->wait_room(engine->link)) {
        engine_link_room(engine);
        settle_ready(engine);
        if (engine->link_full && !engine->link->operations->wait_room(engine->link))
            engine_link_room(engine);
    }
    engine->link->operations->flush(engine->link, engine->now_ms);
    drop_surplus(engine);
    tcp_accept_again(engine);
    engine->gather_ns = gather_after_step(&engine->gather, engine->counters, engine->link->copies, engine->now_ns);
}

uint64_t engine_next_ms(const struct engine *engine)
{
    const struct link *link = engine->link;
    uint64_t timer = wheel_next(&engine->wheel),
             wanted = link->flush_ms < link->look_ms ? link->flush_ms : link->look_ms;

    if (!list_empty(&engine->ready))
        return engine->now_ms;
    if (engine->accept_owed && engine->accept_ms < wanted)
        wanted = engine->accept_ms;
    return timer < wanted ? timer : wanted;
}
