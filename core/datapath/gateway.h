/* SPDX-License-Identifier: Apache-2.0
 *
 * gateway.h: what the gateway of a virtual network (LG_VIEW_VIRTUAL) is to its guests: services that control answers, who
 * may not send, and what is not to be reached through it.
 */
#ifndef LOCKGATE_GATEWAY_H
#define LOCKGATE_GATEWAY_H

#include <stdbool.h>
#include <stdint.h>

#include "datapath.h"
#include "packet.h"

struct engine;

/* Whether an address is one that the gateway itself has, so that it answers who asks for its MAC address. */
bool gateway_has(const struct lg_net_view *view, const address *a);

/* Whether control answers there: such a packet is punted. */
bool gateway_serves(const struct lg_net_view *view, uint8_t protocol, const address *to, uint16_t port);

/* Whether no guest can have that address: whatever comes from there is made up. */
bool gateway_is_stranger(const struct lg_net_view *view, const address *a);

/* Whether nobody is to be reached there. */
bool gateway_forbids(const struct lg_net_view *view, const address *to, uint16_t port);

/* What `to` really is, if the view has a mapping for it. */
bool gateway_translates(const struct lg_net_view *view, const address *to, address *ret_real);

/* A connection of the guest's to such a service: `head` is the start of the frame that was punted, its SYN; `fd` leads to
 * the service. 0, or a negative errno: the socket stays the caller's. */
int gateway_serve(struct engine *engine, const uint8_t *head, uint32_t head_length, uint32_t length, int fd);

/* A connection to the guest, which sees it come from that port of the gateway's: `fd` leads to whoever wants it. Likewise. */
int gateway_dial(struct engine *engine, const address *guest, uint16_t guest_port, uint16_t gateway_port, int fd);

#endif
