/* SPDX-License-Identifier: Apache-2.0
 *
 * guest_table.c: the table of guest_table.h. Adversary: each guest, which may claim any address, the others' too, as on
 * any Ethernet; what it claims displaces the oldest, and costs one look through the table.
 */
#include "guest_table.h"

#include <string.h>

static struct guest_entry *place_of(struct guest_table *table, const address *ip)
{
    if (table->count && address_equal(&table->entry[table->last].ip, ip))
        return &table->entry[table->last];
    for (unsigned i = 0; i < table->count; i++)
        if (address_equal(&table->entry[i].ip, ip))
            return &table->entry[i];
    return NULL;
}

void guest_table_learn(struct guest_table *table, const address *ip, const uint8_t mac[ADDRESS_MAC])
{
    struct guest_entry *entry = place_of(table, ip);

    if (!entry) {
        unsigned place = table->count < GUESTS_MAX ? table->count++ : table->next++ % GUESTS_MAX;
        entry = &table->entry[place];
        entry->ip = *ip;
    }
    memcpy(entry->mac, mac, ADDRESS_MAC);
    table->last = (unsigned)(entry - table->entry);
}

const uint8_t *guest_table_find(const struct guest_table *table, const address *ip)
{
    for (unsigned i = 0; i < table->count; i++)
        if (address_equal(&table->entry[i].ip, ip))
            return table->entry[i].mac;
    return NULL;
}
