/* SPDX-License-Identifier: Apache-2.0
 *
 * counters.c: the names of the counters, for whoever reads the shared page.
 */
#include "counters.h"
#include "datapath.h"

static const char *const names[] = {
#define COUNTER_NAME(name) #name,
    COUNTERS(COUNTER_NAME)
#undef COUNTER_NAME
};

_Static_assert(C_COUNT * sizeof(uint64_t) <= LG_COUNTER_BYTES, "the counters fit their page");

unsigned lg_counter_count(void)
{
    return C_COUNT;
}

const char *lg_counter_name(unsigned index)
{
    return index < C_COUNT ? names[index] : (const char *)0;
}
