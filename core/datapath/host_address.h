/* SPDX-License-Identifier: Apache-2.0
 *
 * host_address.h: where what the guest addresses lies on the host.
 */
#ifndef LOCKGATE_HOST_ADDRESS_H
#define LOCKGATE_HOST_ADDRESS_H

#include <stdbool.h>
#include <sys/socket.h>

#include "datapath.h"
#include "packet.h"

/* The address that a socket connects to for this remote address and port of the guest's: the view's redirections, first
 * that of DNS, then that of the host's loopback, then that of its own address; else the address itself. Returns its length. */
socklen_t host_address(const struct lg_net_view *view, const address *remote, uint16_t port,
                       struct sockaddr_storage *ret_addr);

/* Whether one of these redirections is for it, and where it leads then. */
bool host_address_mapped(const struct lg_net_view *view, const address *remote, uint16_t port, address *ret_real);

/* Every address that leads where this one does, itself among them; how many there are. */
enum {
    HOST_ADDRESS_NAMES = 5
};
unsigned host_address_names(const struct lg_net_view *view, const address *remote, uint16_t port,
                            address ret_name[HOST_ADDRESS_NAMES]);

/* An address and port as a socket's; scope_id is for those that mean nothing without their link. Returns its length. */
socklen_t address_to_host(const address *a, uint16_t port, uint32_t scope_id, struct sockaddr_storage *ret_addr);

/* A socket's address as the guest may see it: IPv4 mapped; unset for other families. */
address address_from_host(const struct sockaddr *addr);
uint16_t port_from_host(const struct sockaddr *addr); /* of IPv4 or IPv6 */

#endif
