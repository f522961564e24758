/* SPDX-License-Identifier: Apache-2.0
 *
 * memory.c: mapping and looking up the guest's memory; see memory.h for who attacks it.
 */
#include "memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool overlaps(uint64_t a, uint64_t b, uint64_t a_size, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

int memory_add(struct guest_memory *memory, const struct lg_mem_region *at, int fd)
{
    uint64_t end;

    if (memory->count == LG_MEM_SLOTS)
        return -ENOSPC;
    if (!at->size || __builtin_add_overflow(at->guest_addr, at->size, &end) ||
        __builtin_add_overflow(at->user_addr, at->size, &end) ||
        __builtin_add_overflow(at->mmap_offset, at->size, &end) || end > SIZE_MAX / 2)
        return -EINVAL;
    for (unsigned i = 0; i < memory->count; i++) {
        const struct lg_mem_region *other = &memory->region[i].at;
        if (overlaps(at->guest_addr, other->guest_addr, at->size, other->size) ||
            overlaps(at->user_addr, other->user_addr, at->size, other->size))
            return -EEXIST;
    }

    /* The offset need not be a multiple of a page (nor of a huge page), so that the map starts at the page before. */
    uint64_t page_mask = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
    uint64_t map_offset = at->mmap_offset & ~page_mask;
    size_t map_length = (size_t)(end - map_offset);
    void *map = mmap(NULL, map_length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)map_offset);

    if (map == MAP_FAILED)
        return -errno;
    madvise(map, map_length, MADV_DONTDUMP); /* the guest's secrets belong in no core file of ours */
    memory->region[memory->count++] = (struct memory_region){
        .at = *at,
        .host = (uint8_t *)map + (at->mmap_offset - map_offset),
        .map = map,
        .map_length = map_length,
    };
    return 0;
}

int memory_remove(struct guest_memory *memory, const struct lg_mem_region *at)
{
    for (unsigned i = 0; i < memory->count; i++) {
        struct memory_region *region = &memory->region[i];
        /* The specification matches a region by these three; the offset is not part of it. */
        if (region->at.guest_addr != at->guest_addr || region->at.size != at->size ||
            region->at.user_addr != at->user_addr)
            continue;
        munmap(region->map, region->map_length);
        *region = memory->region[--memory->count];
        memory->last = 0;
        return 0;
    }
    return -ENOENT;
}

void memory_clear(struct guest_memory *memory)
{
    for (unsigned i = 0; i < memory->count; i++)
        munmap(memory->region[i].map, memory->region[i].map_length);
    memory->count = 0;
    memory->last = 0;
}

void *memory_from_guest(struct guest_memory *memory, uint64_t addr, size_t *length)
{
    for (unsigned tried = 0, i = memory->last; tried < memory->count; tried++) {
        const struct memory_region *region = &memory->region[i];
        uint64_t offset = addr - region->at.guest_addr; /* wraps to something huge below the region */

        if (offset < region->at.size) {
            memory->last = i;
            if (*length > region->at.size - offset)
                *length = (size_t)(region->at.size - offset);
            return region->host + offset;
        }
        i = i + 1 == memory->count ? 0 : i + 1;
    }
    return NULL;
}

void *memory_from_user(struct guest_memory *memory, uint64_t addr, size_t length)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct memory_region *region = &memory->region[i];
        uint64_t offset = addr - region->at.user_addr;

        if (offset < region->at.size && length <= region->at.size - offset)
            return region->host + offset;
    }
    return NULL;
}

void dirty_log_mark(struct dirty_log *log, uint64_t guest_addr, size_t length)
{
    if (!log->table || !length)
        return;
    for (uint64_t page = guest_addr / DIRTY_LOG_PAGE; page <= (guest_addr + length - 1) / DIRTY_LOG_PAGE; page++) {
        if (page / 8 >= log->size)
            return; /* the table is shorter than the memory: the front end's own mistake, and its own migration */
        /* Release: who sees the mark, and clears it, copies a page that has what was written before. */
        __atomic_fetch_or(&log->table[page / 8], (uint8_t)(1u << (page % 8)), __ATOMIC_RELEASE);
        log->dirtied = true;
    }
}
