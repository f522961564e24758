/* SPDX-License-Identifier: Apache-2.0
 *
 * listener.c: the table of listener.h. Edge-triggered: a host that has no descriptor for what waits is not to spin on it.
 */
#include "listener.h"

#include <errno.h>
#include <sys/mman.h>

#include "sys.h"

int listener_table_init(struct listener_table *table, uint64_t source)
{
    void *at = mmap(NULL, LISTENERS_MAX * sizeof(struct listener), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    *table = (struct listener_table){.listener = at == MAP_FAILED ? NULL : at, .source = source};
    return table->listener ? 0 : -ENOMEM;
}

void listener_table_free(struct listener_table *table)
{
    for (uint32_t i = 0; i < table->count; i++)
        sys_close(table->listener[i].fd);
    table->count = 0;
    if (table->listener)
        munmap(table->listener, LISTENERS_MAX * sizeof(struct listener));
    table->listener = NULL;
}

int listener_add(struct listener_table *table, int epoll_fd, const struct listener *listener)
{
    if (table->count == LISTENERS_MAX)
        return -ENOSPC;
    int err = sys_epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener->fd, EPOLLIN | EPOLLET, table->source + table->count);
    if (!err)
        table->listener[table->count++] = *listener;
    return err;
}

const struct listener *listener_of(const struct listener_table *table, uint64_t data)
{
    return data >= table->source && data - table->source < table->count ? &table->listener[data - table->source] : NULL;
}
