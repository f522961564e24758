/* SPDX-License-Identifier: Apache-2.0
 *
 * siphash.h: SipHash-1-3 (Aumasson and Bernstein, 2012), keyed, so that neither guest nor peer can aim at one bucket of
 * the flow table or foresee a sequence number (RFC 6528, 3).
 */
#ifndef LOCKGATE_SIPHASH_H
#define LOCKGATE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

struct siphash_key {
    uint64_t word[2];
};

uint64_t siphash(const struct siphash_key *key, const void *bytes, size_t length);

#endif
