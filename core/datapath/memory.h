/* SPDX-License-Identifier: Apache-2.0
 *
 * memory.h: the guest's memory as the front end shares it (VHOST_USER_SET_MEM_TABLE and its kin), and the dirty log.
 *
 * Adversary: the guest and the VMM. An address or length from either is looked up here before its first use, and never
 * trusted twice. What no check can prevent is memory that shrinks under us: see isolation.c on SIGBUS.
 */
#ifndef LOCKGATE_MEMORY_H
#define LOCKGATE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "datapath.h"

struct memory_region {
    struct lg_mem_region at;
    uint8_t *host; /* our mapping of the region's first byte */
    void *map;     /* what munmap() takes */
    size_t map_length;
};

struct guest_memory {
    unsigned count;
    unsigned last; /* the region of the previous look-up: nearly always that of the next */
    struct memory_region region[LG_MEM_SLOTS];
};

struct dirty_log {
    uint8_t *table; /* NULL: off */
    size_t size;
    int event_fd; /* signalled once a batch that wrote; -1 none */
    bool dirtied;
};

enum dirty_log_limits {
    DIRTY_LOG_PAGE = 4096, /* vhost-user, "Migration": VHOST_LOG_PAGE */
};

/* Maps one more region. The descriptor stays the caller's. 0, or -ENOSPC, -EINVAL (no size, wraps), -EEXIST (overlaps),
 * or what mmap() said. */
int memory_add(struct guest_memory *memory, const struct lg_mem_region *at, int fd);
int memory_remove(struct guest_memory *memory, const struct lg_mem_region *at); /* 0 or -ENOENT */
void memory_clear(struct guest_memory *memory);

/* Our address of guest physical `addr`, or NULL. *length is cut to what is contiguous from there. */
void *memory_from_guest(struct guest_memory *memory, uint64_t addr, size_t *length);

/* Our address of all `length` bytes at the front end's address `addr`, or NULL. */
void *memory_from_user(struct guest_memory *memory, uint64_t addr, size_t length);

/* To be called after the bytes were written: a page marked before could be copied by the migration in between. */
void dirty_log_mark(struct dirty_log *log, uint64_t guest_addr, size_t length);

#endif
