/* SPDX-License-Identifier: Apache-2.0
 *
 * guest_table.h: which of several guests has which IP address: by what each has sent from. A network of one guest does
 * without.
 */
#ifndef LOCKGATE_GUEST_TABLE_H
#define LOCKGATE_GUEST_TABLE_H

#include "packet.h"

enum guest_table_limits {
    GUESTS_MAX = 256, /* addresses; more than the subnet of any machine has guests. The oldest makes room. */
};

struct guest_table {
    struct guest_entry {
        address ip;
        uint8_t mac[ADDRESS_MAC];
    } entry[GUESTS_MAX];
    unsigned count;
    unsigned next; /* whose place the next new one gets once all are taken */
    unsigned last; /* that was learned: the next frame is of the same guest as a rule */
};

void guest_table_learn(struct guest_table *table, const address *ip, const uint8_t mac[ADDRESS_MAC]);
const uint8_t *guest_table_find(const struct guest_table *table, const address *ip); /* NULL: nobody is known */

#endif
