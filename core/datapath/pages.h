/* SPDX-License-Identifier: Apache-2.0
 *
 * pages.h: memory for tables and buffers of the largest size that they may have. The kernel fills it as it is touched, so
 * that what is never used costs nothing but addresses, and the path of a frame allocates nothing.
 */
#ifndef LOCKGATE_PAGES_H
#define LOCKGATE_PAGES_H

#include <stddef.h>
#include <sys/mman.h>

static inline void *pages_reserve(size_t bytes) /* zeroed; NULL: there are no addresses left */
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static inline void pages_free(void *at, size_t bytes)
{
    if (at)
        munmap(at, bytes);
}

#endif
