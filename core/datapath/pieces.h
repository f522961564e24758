/* SPDX-License-Identifier: Apache-2.0
 *
 * pieces.h: bytes that lie scattered over a list of iovecs.
 *
 * Who passes `length` knows that the list holds as much behind `skip`: the parser, or the link, has checked it.
 */
#ifndef LOCKGATE_PIECES_H
#define LOCKGATE_PIECES_H

#include <stddef.h>
#include <sys/uio.h>

/* The pieces of `length` bytes behind `skip`, as a list of their own. How many, or 0 when more than `max` are needed. */
unsigned pieces_slice(const struct iovec *iov, unsigned count, size_t skip, size_t length, struct iovec *out,
                      unsigned max);

/* Copies up to `length` bytes behind `skip`; returns how many were there. */
size_t pieces_read(const struct iovec *iov, unsigned count, size_t skip, void *to, size_t length);

void pieces_write(const struct iovec *iov, size_t skip, const void *from, size_t length);

/* Drops the first `skip` bytes in place; returns how many whole pieces went. */
unsigned pieces_skip(struct iovec *iov, unsigned count, size_t skip);

#endif
