/* SPDX-License-Identifier: Apache-2.0
 *
 * link_memory.c: the link of link_memory.h. It behaves as link_vhost.c does where link.h leaves a choice: room that is
 * smaller than what was asked for is given, a buffer that holds not even the headers is none, and a frame that leaves
 * buffers of its reservation untouched gives back the later reservations.
 *
 * Called by the engine and by script.c. Adversary: nobody. Invariants: see link_memory.h.
 */
#include "link_memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "counters.h"

static struct link_memory *memory_of(struct link *link)
{
    return (struct link_memory *)link; /* the link is the first member */
}

static void violate(struct link_memory *memory, const char *what)
{
    if (!memory->violation)
        memory->violation = what;
}

struct memory_frame *memory_frame_new(size_t length)
{
    struct memory_frame *frame = calloc(1, sizeof(*frame));

    frame->bytes = malloc(length ? length : 1);
    frame->length = length;
    return frame;
}

void memory_frame_free(struct memory_frame *frame)
{
    free(frame->bytes);
    free(frame);
}

static void frames_free(struct list *list)
{
    struct node *node;

    while ((node = list_pop(list)))
        memory_frame_free(container_of(node, struct memory_frame, node));
}

/* ---- from the guest ---- */

/* Cuts a frame into pieces; 0: they do not fit any more. */
static unsigned scatter(const struct link_memory *memory, const struct memory_frame *frame, struct iovec *iov,
                        unsigned max)
{
    unsigned count = 0;

    for (size_t at = 0; at < frame->length; count++) {
        size_t part = frame->length - at < memory->piece_bytes ? frame->length - at : memory->piece_bytes;
        if (count == max)
            return 0;
        iov[count] = (struct iovec){frame->bytes + at, part};
        at += part;
    }
    return count;
}

static unsigned memory_from_guest(struct link *link, struct guest_frame *frames, bool *ret_more)
{
    struct link_memory *memory = memory_of(link);
    unsigned count = 0, pieces = 0;

    if (!list_empty(&memory->lent))
        violate(memory, "from_guest() before release()");
    memory->kick_after = 0;
    while (count < memory->batch_max && count < LINK_BATCH && !list_empty(&memory->queued)) {
        struct memory_frame *frame = container_of(memory->queued.head.next, struct memory_frame, node);
        unsigned used = scatter(memory, frame, memory->piece + pieces, LINK_PIECES - pieces);
        size_t head = frame->length < FRAME_HEAD_MAX ? frame->length : FRAME_HEAD_MAX;
        if (!used && frame->length)
            break;
        frames[count] = (struct guest_frame){.head_length = (uint16_t)head,
                                             .length = (uint32_t)frame->length,
                                             .datagram = frame->datagram,
                                             .iov = memory->piece + pieces,
                                             .iov_count = used};
        memcpy(frames[count++].head, frame->bytes, head);
        pieces += used;
        node_leave(&frame->node);
        list_append(&memory->lent, &frame->node);
    }
    *ret_more = !list_empty(&memory->queued);
    return count;
}

static void memory_release(struct link *link)
{
    frames_free(&memory_of(link)->lent);
}

/* ---- to the guest ---- */

static void reservation_free(struct link_memory *memory, struct memory_reservation *reservation, unsigned unused)
{
    for (unsigned i = 0; i < reservation->buffers; i++)
        free(reservation->buffer[i]);
    free(reservation->buffer);
    memory->buffers += unused;
}

static void give_back(struct link_memory *memory)
{
    while (memory->reserved_first < memory->reserved_end) {
        struct memory_reservation *last = &memory->reserved[--memory->reserved_end];
        reservation_free(memory, last, last->buffers);
    }
    memory->reserved_first = memory->reserved_end = 0;
}

/* Takes buffers until they hold `wanted` bytes, or until there is one, where the guest does not merge them; no more than
 * `max`, for each is a piece. */
static size_t buffers_take(struct link_memory *memory, struct memory_reservation *reservation, size_t wanted,
                           unsigned max)
{
    size_t bytes = 0;

    reservation->buffers = 0;
    reservation->buffer = calloc(wanted / memory->buffer_bytes + 1, sizeof(reservation->buffer[0]));
    while (bytes < wanted && memory->buffers && (memory->merge || !bytes) && reservation->buffers < max) {
        reservation->buffer[reservation->buffers++] = malloc(memory->buffer_bytes);
        memory->buffers--;
        bytes += memory->buffer_bytes;
    }
    return bytes;
}

/* Splits the buffers of a reservation into the frame's headers and its payload; false: too many pieces. */
static bool split(const struct link_memory *memory, const struct memory_reservation *reservation, size_t header,
                  size_t payload, struct payload_pieces *pieces, struct guest_room *room)
{
    room->header_count = 0;
    for (unsigned i = 0; i < reservation->buffers; i++) {
        uint8_t *at = reservation->buffer[i];
        size_t left = memory->buffer_bytes;
        size_t part = header < left ? header : left;

        if (part) {
            if (room->header_count == LINK_HEADER_PIECES)
                return false;
            room->header[room->header_count++] = (struct iovec){at, part};
            header -= part;
            at += part;
            left -= part;
        }
        part = payload < left ? payload : left;
        if (part) {
            if (pieces->count == LINK_PIECES)
                return false;
            pieces->iov[pieces->count++] = (struct iovec){at, part};
            payload -= part;
        }
    }
    return true;
}

static int memory_reserve(struct link *link, size_t header, size_t payload, struct payload_pieces *pieces,
                          struct guest_room *ret_room)
{
    struct link_memory *memory = memory_of(link);
    unsigned pieces_before = pieces ? pieces->count : 0;

    if (!memory->connected)
        return -ENOTCONN;
    if (memory->reserved_first == memory->reserved_end)
        memory->reserved_first = memory->reserved_end = 0;
    if (memory->reserved_end == MEMORY_RESERVED_MAX)
        return -ENOBUFS;

    struct memory_reservation *reservation = &memory->reserved[memory->reserved_end];
    unsigned pieces_left = LINK_PIECES - pieces_before;
    size_t bytes = buffers_take(memory, reservation, header + payload, pieces_left);
    bool piecemeal = reservation->buffers == pieces_left && memory->buffers;

    memory->given_seen = memory->given;
    if (bytes < header + !!payload) {
        reservation_free(memory, reservation, reservation->buffers);
        memory->full++;
        memory->buffers += memory->late;
        memory->given += memory->late;
        memory->late = 0;
        return piecemeal && memory->reserved_end ? -ENOBUFS : -EAGAIN;
    }
    if (payload > bytes - header)
        payload = bytes - header;
    if (!split(memory, reservation, header, payload, pieces, ret_room)) {
        if (pieces)
            pieces->count = pieces_before;
        reservation_free(memory, reservation, reservation->buffers);
        return memory->reserved_end ? -ENOBUFS : -EAGAIN;
    }
    ret_room->payload = payload;
    memory->reserved_end++;
    return 0;
}

static void memory_rollback(struct link *link)
{
    give_back(memory_of(link));
}

static void memory_commit(struct link *link, size_t length, const struct offload *offload)
{
    struct link_memory *memory = memory_of(link);

    if (memory->reserved_first == memory->reserved_end) {
        violate(memory, "commit() without a reservation");
        return;
    }
    struct memory_reservation *reservation = &memory->reserved[memory->reserved_first++];
    unsigned used = (unsigned)((length + memory->buffer_bytes - 1) / memory->buffer_bytes);
    struct memory_frame *frame = memory_frame_new(length);

    if (used > reservation->buffers) {
        violate(memory, "commit() of more than was reserved");
        used = reservation->buffers;
    }
    for (size_t at = 0; at < length && at / memory->buffer_bytes < used; at += memory->buffer_bytes) {
        size_t part = length - at < memory->buffer_bytes ? length - at : memory->buffer_bytes;
        memcpy(frame->bytes + at, reservation->buffer[at / memory->buffer_bytes], part);
    }
    memory->counters[C_frames_to_guest]++;
    frame->offload = *offload;
    frame->time_ms = *memory->now_ms;
    list_append(&memory->committed, &frame->node);
    bool untouched = used < reservation->buffers;
    reservation_free(memory, reservation, reservation->buffers - used);
    if (untouched)
        give_back(memory);
}

static void memory_flush(struct link *link, uint64_t now_ms)
{
    struct link_memory *memory = memory_of(link);
    struct node *node;

    (void)now_ms;
    if (link->expected)
        memory->kick_after = link->expected;
    while ((node = list_pop(&memory->committed)))
        list_append(&memory->visible, node);
}

static bool memory_wait_room(struct link *link)
{
    struct link_memory *memory = memory_of(link);

    if (memory->connected && memory->given != memory->given_seen) {
        memory->given_seen = memory->given;
        return false;
    }
    memory->room_asked = true;
    return true;
}

void link_memory_give_room(struct link_memory *memory, unsigned buffers)
{
    memory->buffers += buffers;
    memory->given += buffers;
    if (memory->room_asked) {
        memory->room_asked = false;
        memory->room_event = true;
    }
}

static const struct link_operations operations = {
    .from_guest = memory_from_guest,
    .release = memory_release,
    .reserve = memory_reserve,
    .commit = memory_commit,
    .rollback = memory_rollback,
    .flush = memory_flush,
    .wait_room = memory_wait_room,
};

void link_memory_init(struct link_memory *memory, const uint64_t *now_ms, uint64_t *counters)
{
    memset(memory, 0, sizeof(*memory));
    memory->link = (struct link){.operations = &operations,
                                 .flush_ms = UINT64_MAX,
                                 .look_ms = UINT64_MAX,
                                 .large = true,
                                 .csum = true,
                                 .tso4 = true,
                                 .tso6 = true};
    memory->now_ms = now_ms;
    memory->counters = counters;
    memory->piece_bytes = FRAME_BYTES_MAX;
    memory->batch_max = LINK_BATCH;
    memory->connected = true;
    memory->merge = true;
    memory->buffer_bytes = FRAME_BYTES_MAX;
    memory->buffers = 1u << 30; /* as good as endless, until a test says otherwise */
    list_init(&memory->queued);
    list_init(&memory->lent);
    list_init(&memory->committed);
    list_init(&memory->visible);
}

void link_memory_free(struct link_memory *memory)
{
    give_back(memory);
    frames_free(&memory->queued);
    frames_free(&memory->lent);
    frames_free(&memory->committed);
    frames_free(&memory->visible);
}
