/* SPDX-License-Identifier: Apache-2.0
 *
 * outbound.h: by which interface of the host, and from which of its addresses, a socket of the guest's leaves.
 */
#ifndef LOCKGATE_OUTBOUND_H
#define LOCKGATE_OUTBOUND_H

#include <stdbool.h>
#include <sys/socket.h>

#include "datapath.h"

/* To be called between socket() and connect() to `to`, which is what host_address() gave. `port` is the one that the
 * socket should have; 0: any. What concerns the host itself stays there: no interface is chosen for it.
 * 0; -EADDRINUSE or -EACCES: not with that port, all else stands; -ENETUNREACH: the interface or address is not there
 * (any more), and the socket must not leave another way. */
int outbound_bind(const struct lg_net_view *view, int fd, const struct sockaddr_storage *to, uint16_t port);

/* Whether `to` must be reached by a certain interface, or from a certain address. */
bool outbound_is_chosen(const struct lg_net_view *view, const struct sockaddr_storage *to);

#endif
