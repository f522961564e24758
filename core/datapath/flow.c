/* SPDX-License-Identifier: Apache-2.0
 *
 * flow.c: the flow table of flow.h.
 */
#include "flow.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "pages.h"

static size_t bucket_count(uint32_t limit)
{
    size_t count = 64;
    while (count < 2 * (size_t)limit) /* at most half full: probes stay short */
        count *= 2;
    return count;
}

int flow_table_init(struct flow_table *table, uint32_t limit, struct siphash_key key)
{
    size_t buckets = bucket_count(limit);

    *table = (struct flow_table){.limit = limit, .bucket_mask = (uint32_t)buckets - 1, .key = key};
    list_init(&table->by_age);
    table->slot = pages_reserve(limit * sizeof(struct flow));
    table->bucket = pages_reserve(buckets * sizeof(uint32_t));
    if (table->slot && table->bucket)
        return 0;
    flow_table_free(table);
    return -ENOMEM;
}

void flow_table_free(struct flow_table *table)
{
    pages_free(table->slot, table->limit * sizeof(struct flow));
    pages_free(table->bucket, ((size_t)table->bucket_mask + 1) * sizeof(uint32_t));
    table->slot = NULL;
    table->bucket = NULL;
}

static uint32_t home(const struct flow_table *table, const struct flow_key *key)
{
    return (uint32_t)siphash(&table->key, key, sizeof(*key)) & table->bucket_mask;
}

struct flow *flow_find(struct flow_table *table, const struct flow_key *key)
{
    for (uint32_t at = home(table, key); table->bucket[at]; at = (at + 1) & table->bucket_mask) {
        struct flow *flow = &table->slot[table->bucket[at] - 1];
        if (!memcmp(&flow->key, key, sizeof(*key)))
            return flow;
    }
    return NULL;
}

static uint32_t slot_take(struct flow_table *table)
{
    if (!table->free)
        return table->used++;
    uint32_t index = table->free - 1;
    table->free = table->slot[index].interest; /* of a free slot: the next free one */
    return index;
}

/* A joined connection has two. Of datagrams, all peers of a port of ours share the socket that they came to. */
static unsigned sockets_of(const struct flow_key *key)
{
    return key->port != PORT_LINK && key->protocol == IPPROTO_TCP ? 2 : 1;
}

struct flow *flow_add(struct flow_table *table, const struct flow_key *key)
{
    unsigned sockets = sockets_of(key);

    if (table->sockets + sockets > table->limit)
        return NULL;
    table->sockets += sockets;
    uint32_t index = slot_take(table);
    struct flow *flow = &table->slot[index];
    uint32_t generation = flow->generation + 1 ? flow->generation + 1 : 1;

    *flow = (struct flow){.key = *key, .index = index, .generation = generation, .fd = -1};
    uint32_t at = home(table, key);
    while (table->bucket[at])
        at = (at + 1) & table->bucket_mask;
    table->bucket[at] = index + 1;
    table->count++;
    list_append(&table->by_age, &flow->age);
    return flow;
}

/* Closes the gap that a removed entry leaves (Knuth, volume 3, 6.4, algorithm R), so that no tombstones pile up. */
static void bucket_remove(struct flow_table *table, uint32_t at)
{
    for (uint32_t next = (at + 1) & table->bucket_mask; table->bucket[next]; next = (next + 1) & table->bucket_mask) {
        uint32_t wanted = home(table, &table->slot[table->bucket[next] - 1].key);
        /* The entry may move back to `at` unless its home lies behind it, between `at` and `next`. */
        if (((next - wanted) & table->bucket_mask) >= ((next - at) & table->bucket_mask)) {
            table->bucket[at] = table->bucket[next];
            at = next;
        }
    }
    table->bucket[at] = 0;
}

void flow_remove(struct flow_table *table, struct flow *flow)
{
    uint32_t at = home(table, &flow->key);

    while (table->bucket[at] != flow->index + 1)
        at = (at + 1) & table->bucket_mask;
    bucket_remove(table, at);
    table->sockets -= sockets_of(&flow->key);
    node_leave(&flow->ready);
    node_leave(&flow->waiting);
    node_leave(&flow->surplus);
    node_leave(&flow->age);
    memset(&flow->key, 0, sizeof(flow->key)); /* a protocol of 0: nobody is here */
    flow->interest = table->free;
    table->free = flow->index + 1;
    table->count--;
}

struct flow *flow_from_handle(struct flow_table *table, uint64_t handle)
{
    uint32_t index = (uint32_t)handle;

    if (index >= table->used)
        return NULL;
    struct flow *flow = &table->slot[index];
    return flow->key.protocol && flow->generation == handle >> 32 ? flow : NULL;
}

struct flow *flow_next(struct flow_table *table, uint32_t *cursor)
{
    while (*cursor < table->used) {
        struct flow *flow = &table->slot[(*cursor)++];
        if (flow->key.protocol)
            return flow;
    }
    return NULL;
}
