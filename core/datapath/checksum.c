/* SPDX-License-Identifier: Apache-2.0
 *
 * checksum.c: RFC 1071. Words are added as they lie in memory: the sum is the same up to the byte order of the result.
 */
#include "checksum.h"

#include <arpa/inet.h>
#include <string.h>

uint64_t checksum_add(uint64_t sum, const void *bytes, size_t length)
{
    const uint8_t *at = bytes;

    /* 32-bit words into 64 bits: no carry is lost for 2^32 words, and compilers vectorise it. */
    for (; length >= 4; at += 4, length -= 4) {
        uint32_t word;
        memcpy(&word, at, sizeof(word));
        sum += word;
    }
    if (length) {
        uint32_t word = 0;
        memcpy(&word, at, length);
        sum += word;
    }
    return sum;
}

uint64_t checksum_add_pieces(uint64_t sum, const struct iovec *iov, size_t length)
{
    size_t offset = 0;

    for (; length; iov++) {
        size_t part = iov->iov_len < length ? iov->iov_len : length;
        uint64_t piece = checksum_add(0, iov->iov_base, part);

        /* A piece that starts at an odd offset counts with its bytes exchanged (RFC 1071, 2.B). */
        sum += offset % 2 ? __builtin_bswap16(checksum_fold(piece)) : checksum_fold(piece);
        offset += part;
        length -= part;
    }
    return sum;
}

uint64_t checksum_pseudo(const uint8_t *source, const uint8_t *destination, size_t address_bytes, uint8_t protocol,
                         uint32_t length)
{
    uint64_t sum = checksum_add(checksum_add(0, source, address_bytes), destination, address_bytes);

    return sum + htonl(length) + htonl(protocol);
}
