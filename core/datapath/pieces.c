/* SPDX-License-Identifier: Apache-2.0
 *
 * pieces.c: see pieces.h.
 */
#include "pieces.h"

#include <stdint.h>
#include <string.h>

unsigned pieces_slice(const struct iovec *iov, unsigned count, size_t skip, size_t length, struct iovec *out,
                      unsigned max)
{
    unsigned pieces = 0;

    for (unsigned i = 0; i < count && length; i++) {
        struct iovec piece = iov[i];
        if (skip >= piece.iov_len) {
            skip -= piece.iov_len;
            continue;
        }
        piece.iov_base = (uint8_t *)piece.iov_base + skip;
        piece.iov_len -= skip;
        skip = 0;
        if (piece.iov_len > length)
            piece.iov_len = length;
        if (pieces == max)
            return 0;
        out[pieces++] = piece;
        length -= piece.iov_len;
    }
    return pieces;
}

size_t pieces_read(const struct iovec *iov, unsigned count, size_t skip, void *to, size_t length)
{
    size_t copied = 0;

    for (unsigned i = 0; i < count && copied < length; i++) {
        size_t part = iov[i].iov_len;
        if (skip >= part) {
            skip -= part;
            continue;
        }
        part -= skip;
        if (part > length - copied)
            part = length - copied;
        memcpy((uint8_t *)to + copied, (const uint8_t *)iov[i].iov_base + skip, part);
        copied += part;
        skip = 0;
    }
    return copied;
}

void pieces_write(const struct iovec *iov, size_t skip, const void *from, size_t length)
{
    const uint8_t *bytes = from;

    for (; length; iov++) {
        if (skip >= iov->iov_len) {
            skip -= iov->iov_len;
            continue;
        }
        size_t part = iov->iov_len - skip < length ? iov->iov_len - skip : length;
        memcpy((uint8_t *)iov->iov_base + skip, bytes, part);
        bytes += part;
        length -= part;
        skip = 0;
    }
}

unsigned pieces_skip(struct iovec *iov, unsigned count, size_t skip)
{
    unsigned gone = 0;

    while (gone < count && skip >= iov[gone].iov_len)
        skip -= iov[gone++].iov_len;
    if (gone < count) {
        iov[gone].iov_base = (uint8_t *)iov[gone].iov_base + skip;
        iov[gone].iov_len -= skip;
    }
    return gone;
}
