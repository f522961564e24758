/* SPDX-License-Identifier: Apache-2.0
 *
 * siphash.c: SipHash with one round a word and three at the end, the variant for hash tables.
 */
#include "siphash.h"

#include <string.h>

struct state {
    uint64_t a, b, c, d;
};

static uint64_t rotate(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static void mix(struct state *v)
{
    v->a += v->b;
    v->c += v->d;
    v->b = rotate(v->b, 13) ^ v->a;
    v->d = rotate(v->d, 16) ^ v->c;
    v->a = rotate(v->a, 32);
    v->c += v->b;
    v->a += v->d;
    v->b = rotate(v->b, 17) ^ v->c;
    v->d = rotate(v->d, 21) ^ v->a;
    v->c = rotate(v->c, 32);
}

uint64_t siphash(const struct siphash_key *key, const void *bytes, size_t length)
{
    struct state v = {
        .a = key->word[0] ^ UINT64_C(0x736f6d6570736575),
        .b = key->word[1] ^ UINT64_C(0x646f72616e646f6d),
        .c = key->word[0] ^ UINT64_C(0x6c7967656e657261),
        .d = key->word[1] ^ UINT64_C(0x7465646279746573),
    };
    const uint8_t *at = bytes;
    uint64_t word, last = (uint64_t)length << 56;

    for (size_t left = length; left >= sizeof(word); left -= sizeof(word), at += sizeof(word)) {
        memcpy(&word, at, sizeof(word));
        v.d ^= word;
        mix(&v);
        v.a ^= word;
    }
    for (size_t i = 0; i < length % sizeof(word); i++)
        last |= (uint64_t)at[i] << (8 * i);
    v.d ^= last;
    mix(&v);
    v.a ^= last;
    v.c ^= 0xff;
    for (int i = 0; i < 3; i++)
        mix(&v);
    return v.a ^ v.b ^ v.c ^ v.d;
}
