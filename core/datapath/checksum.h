/* SPDX-License-Identifier: Apache-2.0
 *
 * checksum.h: the Internet checksum (RFC 1071), for what the guest does not compute itself.
 */
#ifndef LOCKGATE_CHECKSUM_H
#define LOCKGATE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* The one's complement sum of `length` bytes added to `sum`, not folded. The bytes start at an even offset. */
uint64_t checksum_add(uint64_t sum, const void *bytes, size_t length);

/* The same over the first `length` bytes of a list of pieces, whose own lengths may be odd. */
uint64_t checksum_add_pieces(uint64_t sum, const struct iovec *iov, size_t length);

/* The pseudo-header's part of a TCP, UDP or ICMPv6 checksum (RFC 9293, 3.1; RFC 8200, 8.1). */
uint64_t checksum_pseudo(const uint8_t *source, const uint8_t *destination, size_t address_bytes, uint8_t protocol,
                         uint32_t length);

/* Folds to 16 bits, in network order as it stands in memory; not complemented. */
static inline uint16_t checksum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

#endif
