/* SPDX-License-Identifier: Apache-2.0
 *
 * outbound.h: by which interface of the host, and from which of its addresses, a socket of the guest's leaves.
 */
#ifndef LOCKGATE_OUTBOUND_H
#define LOCKGATE_OUTBOUND_H

#include <stdbool.h>
#include <sys/socket.h>

#include "datapath.h"
#include "packet.h"

/* To be called between socket() and connect() to `to`, which is what host_address() gave. `port` is the one that the
 * socket should have; 0: any. What concerns the host itself stays there: no interface is chosen for it.
 * 0; -EADDRINUSE or -EACCES: not with that port, all else stands; -ENETUNREACH: the interface or address is not there
 * (any more), and the socket must not leave another way. */
int outbound_bind(const struct lg_net_view *view, int fd, const struct sockaddr_storage *to, uint16_t port);

/* Whether `to` must be reached by a certain interface, or from a certain address. */
bool outbound_is_chosen(const struct lg_net_view *view, const struct sockaddr_storage *to);

/* Whether a peer at `to`, which is what host_address() gave, is this machine, as far as the view tells. */
bool outbound_stays_here(const struct lg_net_view *view, const address *to);

/* BBR spaces out by timers what a socket sends, one for each 64 KB. Over the loopback interface that takes a third of our
 * time and half of the rate, and there is no path that it could spare. So where it is the kernel's default, sockets whose
 * peer is on this machine have Reno. It is to be chosen before connect(), and on what listens, from which an accepted socket
 * has it: where BBR has begun, the spacing stays whatever comes after. */
void outbound_unpace(int fd);

/* Of a socket that was accepted from elsewhere: what the kernel's default is by now, if Reno is all that it has. */
void outbound_repace(int fd);

/* Whether all of this is of use, and allowed (tcp_allowed_congestion_control); asked with a new TCP socket. */
bool outbound_can_unpace(int fresh);

#endif
