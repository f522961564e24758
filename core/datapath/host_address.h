/* SPDX-License-Identifier: Apache-2.0
 *
 * host_address.h: where what the guest addresses lies on the host.
 */
#ifndef LOCKGATE_HOST_ADDRESS_H
#define LOCKGATE_HOST_ADDRESS_H

#include <sys/socket.h>

#include "datapath.h"
#include "packet.h"

/* The address that a socket connects to for this remote address and port of the guest's: the view's redirections, first
 * that of DNS, then that of the host's loopback; else the address itself. Returns its length. */
socklen_t host_address(const struct lg_net_view *view, const address *remote, uint16_t port,
                       struct sockaddr_storage *ret_addr);

/* The wildcard address of the family of `remote`, with that port. Returns its length. */
socklen_t host_any(const address *remote, uint16_t port, struct sockaddr_storage *ret_addr);

/* A socket's address as the guest may see it: IPv4 mapped; unset for other families. */
address address_from_host(const struct sockaddr *addr);

#endif
