/* SPDX-License-Identifier: Apache-2.0
 *
 * vring.c: the split virtqueue of vring.h. Adversary: the guest; all that it may write is read through load_*() once.
 */
#include "vring.h"

#include <errno.h>
#include <stddef.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys.h"

enum vring_flags { /* virtio 1.2, 2.7.5, 2.7.6, 2.7.8 */
    DESC_NEXT = 1,
    DESC_WRITE = 2,
    DESC_INDIRECT = 4,
    AVAIL_NO_INTERRUPT = 1,
    USED_NO_NOTIFY = 1,
};

static const char *const fault_names[] = {
#define VRING_FAULT_NAME(name) #name,
    VRING_FAULTS(VRING_FAULT_NAME)
#undef VRING_FAULT_NAME
};

const char *lg_fault_name(unsigned fault)
{
    return fault < sizeof(fault_names) / sizeof(fault_names[0]) ? fault_names[fault] : NULL;
}

static uint16_t load_relaxed(const uint16_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* One descriptor, copied once: the compiler may not read a field again from memory that the guest can change. */
static struct vring_desc load_desc(const struct vring_desc *desc)
{
    return (struct vring_desc){
        .addr = __atomic_load_n(&desc->addr, __ATOMIC_RELAXED),
        .length = __atomic_load_n(&desc->length, __ATOMIC_RELAXED),
        .flags = __atomic_load_n(&desc->flags, __ATOMIC_RELAXED),
        .next = __atomic_load_n(&desc->next, __ATOMIC_RELAXED),
    };
}

static const uint16_t *used_event(const struct vring *ring)
{
    return &ring->avail->ring[ring->size];
}

static uint16_t *avail_event(struct vring *ring)
{
    return (uint16_t *)&ring->used->ring[ring->size];
}

static void used_logged(struct vring *ring, size_t offset, size_t length)
{
    if (ring->log)
        dirty_log_mark(ring->log, ring->used_guest_addr + offset, length);
}

void vring_init(struct vring *ring, struct guest_memory *memory, bool writable)
{
    *ring = (struct vring){.memory = memory, .writable = writable, .kick_fd = -1, .call_fd = -1, .err_fd = -1};
}

void vring_stop(struct vring *ring)
{
    if (ring->kick_fd >= 0)
        close(ring->kick_fd);
    if (ring->call_fd >= 0)
        close(ring->call_fd);
    if (ring->err_fd >= 0)
        close(ring->err_fd);
    vring_init(ring, ring->memory, ring->writable);
}

unsigned vring_waiting(struct vring *ring)
{
    if (ring->fault != VRING_FAULT_none)
        return 0;
    if (ring->avail_seen == ring->next_avail) {
        /* Acquire: what the guest wrote before it moved the index is seen after we read it. */
        uint16_t index = __atomic_load_n(&ring->avail->index, __ATOMIC_ACQUIRE);
        if ((uint16_t)(index - ring->next_avail) > ring->size) {
            ring->fault = VRING_FAULT_avail_index;
            return 0;
        }
        ring->avail_seen = index;
    }
    return (uint16_t)(ring->avail_seen - ring->next_avail);
}

/* Appends one buffer, which may span regions that lie side by side in the guest's memory. Pieces that continue each
 * other in our memory become one: fewer for the kernel to walk. */
static int piece_append(struct vring *ring, struct vring_pieces *pieces, unsigned first, uint64_t addr, uint32_t length)
{
    while (length) {
        size_t contiguous = length;
        uint8_t *host = memory_from_guest(ring->memory, addr, &contiguous);
        struct iovec *last = pieces->count > first ? &pieces->iov[pieces->count - 1] : NULL;

        if (!host) {
            ring->fault = VRING_FAULT_address;
            return -EINVAL;
        }
        if (last && (uint8_t *)last->iov_base + last->iov_len == host && !pieces->guest_addr) {
            last->iov_len += contiguous;
        } else {
            if (pieces->count == pieces->max)
                return -EAGAIN;
            if (pieces->guest_addr)
                pieces->guest_addr[pieces->count] = addr;
            pieces->iov[pieces->count++] = (struct iovec){.iov_base = host, .iov_len = contiguous};
        }
        pieces->bytes += contiguous;
        addr += contiguous;
        length -= (uint32_t)contiguous;
    }
    return 0;
}

/* A walk through one descriptor table: the ring's own, or one that an indirect descriptor names. */
struct walk {
    const struct vring_desc *table; /* NULL: an indirect table that spans regions, fetched one by one */
    uint64_t guest_addr;            /* of an indirect table */
    uint32_t entries;
    bool indirect;
};

static int walk_enter_indirect(struct vring *ring, struct walk *walk, const struct vring_desc *desc)
{
    size_t contiguous = desc->length;

    /* No chain is longer than a queue (2.7.5.3.1): a longer table would only keep us busy with pieces of no bytes. */
    if (!ring->indirect || walk->indirect || desc->flags & DESC_NEXT || !desc->length ||
        desc->length % sizeof(struct vring_desc) || desc->length / sizeof(struct vring_desc) > VRING_SIZE_MAX) {
        ring->fault = VRING_FAULT_indirect;
        return -EINVAL;
    }
    walk->indirect = true;
    walk->entries = desc->length / sizeof(struct vring_desc);
    walk->guest_addr = desc->addr;
    walk->table = memory_from_guest(ring->memory, desc->addr, &contiguous);
    if (!walk->table || (uintptr_t)walk->table % _Alignof(struct vring_desc)) {
        ring->fault = VRING_FAULT_address;
        return -EINVAL;
    }
    if (contiguous < desc->length)
        walk->table = NULL;
    return 0;
}

static int walk_fetch(struct vring *ring, const struct walk *walk, uint32_t index, struct vring_desc *ret_desc)
{
    const struct vring_desc *at = walk->table ? walk->table + index : NULL;

    if (!at) {
        size_t length = sizeof(*at);
        at = memory_from_guest(ring->memory, walk->guest_addr + index * sizeof(*at), &length);
        if (!at || length < sizeof(*at) || (uintptr_t)at % _Alignof(struct vring_desc)) {
            ring->fault = VRING_FAULT_address;
            return -EINVAL;
        }
    }
    *ret_desc = load_desc(at);
    return 0;
}

static int chain_read(struct vring *ring, uint16_t head, struct vring_pieces *pieces)
{
    struct walk walk = {.table = ring->desc, .entries = ring->size};
    unsigned first = pieces->count;
    uint32_t index = head;

    for (uint32_t walked = 0;; walked++) {
        struct vring_desc desc;
        int err;

        if (walked == walk.entries) {
            ring->fault = VRING_FAULT_loop;
            return -EINVAL;
        }
        if ((err = walk_fetch(ring, &walk, index, &desc)))
            return err;
        if (desc.flags & DESC_INDIRECT) {
            if ((err = walk_enter_indirect(ring, &walk, &desc)))
                return err;
            index = 0;
            walked = UINT32_MAX; /* the count starts anew with the table's own length */
            continue;
        }
        if (!(desc.flags & DESC_WRITE) == ring->writable) {
            ring->fault = VRING_FAULT_direction;
            return -EINVAL;
        }
        if ((err = piece_append(ring, pieces, first, desc.addr, desc.length)))
            return err;
        if (!(desc.flags & DESC_NEXT))
            return 0;
        if (desc.next >= walk.entries) {
            ring->fault = VRING_FAULT_next_range;
            return -EINVAL;
        }
        index = desc.next;
    }
}

int vring_take(struct vring *ring, struct vring_pieces *pieces, uint16_t *ret_head)
{
    const struct vring_pieces before = *pieces;
    uint16_t head = load_relaxed(&ring->avail->ring[ring->next_avail & (ring->size - 1)]);
    int err;

    if (head >= ring->size) {
        ring->fault = VRING_FAULT_head_range;
        return -EINVAL;
    }
    err = chain_read(ring, head, pieces);
    if (err) {
        pieces->count = before.count;
        pieces->bytes = before.bytes;
        if (err == -EAGAIN && !before.count) {
            ring->fault = VRING_FAULT_too_long; /* with all the room there is: it will never fit */
            err = -EINVAL;
        }
        return err;
    }
    ring->next_avail++;
    *ret_head = head;
    return 0;
}

void vring_finish(struct vring *ring, uint16_t head, uint32_t written)
{
    unsigned slot = ring->next_used++ & (ring->size - 1);

    ring->used->ring[slot] = (struct vring_used_elem){.id = head, .length = written};
    used_logged(ring, offsetof(struct vring_used, ring) + slot * sizeof(struct vring_used_elem),
                sizeof(struct vring_used_elem));
}

bool vring_publish(struct vring *ring)
{
    if (ring->published == ring->next_used)
        return false;
    /* Release: the elements, and the bytes that they speak of, come before the index. */
    __atomic_store_n(&ring->used->index, ring->next_used, __ATOMIC_RELEASE);
    ring->published = ring->next_used;
    used_logged(ring, offsetof(struct vring_used, index), sizeof(uint16_t));

    /* The index must be out before we look whether the guest sleeps, or both could miss each other (2.7.13.4.1). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return true;
}

bool vring_wants_call(const struct vring *ring)
{
    unsigned uncalled = vring_uncalled(ring);

    if (!uncalled)
        return false;
    if (!ring->event_idx)
        return !(load_relaxed(&ring->avail->flags) & AVAIL_NO_INTERRUPT);
    /* 2.7.7: tell the guest if used_event lies in [called, published). */
    return !ring->called_valid || (uint16_t)(ring->published - load_relaxed(used_event(ring)) - 1) < uncalled;
}

void vring_called(struct vring *ring)
{
    ring->called = ring->published;
    ring->called_valid = true;
}

void vring_call(struct vring *ring)
{
    vring_called(ring);
    if (ring->call_fd < 0)
        return;
    if (ring->call_is_socket)
        sys_socket_signal(ring->call_fd);
    else
        sys_eventfd_signal(ring->call_fd);
}

void vring_set_call(struct vring *ring, int fd)
{
    struct stat stat;

    if (ring->call_fd >= 0)
        close(ring->call_fd);
    ring->call_fd = fd;
    ring->call_is_socket = fd >= 0 && !fstat(fd, &stat) && S_ISSOCK(stat.st_mode);
}

static void write_avail_event(struct vring *ring, uint16_t index)
{
    __atomic_store_n(avail_event(ring), index, __ATOMIC_RELAXED);
    used_logged(ring, offsetof(struct vring_used, ring) + ring->size * sizeof(struct vring_used_elem),
                sizeof(uint16_t));
}

/* Whoever calls it looks again by himself: there is no looking afterwards here that could see what came too early. A guest
 * without indirect descriptors needs several for each chain: it must not run out of them before. */
bool vring_ask_kick_after(struct vring *ring, unsigned chains)
{
    if (!ring->event_idx || ring->avail_seen != ring->next_avail || chains > ring->size / VRING_CHAIN_USUAL)
        return false;
    write_avail_event(ring, (uint16_t)(ring->next_avail + chains - 1)); /* virtio 1.2, 2.7.10 */
    return true;
}

bool vring_ask_kick(struct vring *ring)
{
    uint16_t seen = ring->avail_seen;

    if (ring->event_idx) {
        write_avail_event(ring, seen);
    } else {
        __atomic_store_n(&ring->used->flags, 0, __ATOMIC_RELAXED);
        used_logged(ring, offsetof(struct vring_used, flags), sizeof(uint16_t));
    }
    /* The wish must be out before we look again, for the same reason as in vring_publish(). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t index = __atomic_load_n(&ring->avail->index, __ATOMIC_ACQUIRE);
    if ((uint16_t)(index - ring->next_avail) > ring->size) {
        ring->fault = VRING_FAULT_avail_index;
        return false;
    }
    ring->avail_seen = index;
    return index != seen;
}

void vring_spare_kick(struct vring *ring)
{
    /* With EVENT_IDX the event that was asked for lies behind us already: the guest is silent by itself. */
    if (!ring->event_idx) {
        __atomic_store_n(&ring->used->flags, USED_NO_NOTIFY, __ATOMIC_RELAXED);
        used_logged(ring, offsetof(struct vring_used, flags), sizeof(uint16_t));
    }
}
