/* SPDX-License-Identifier: Apache-2.0
 *
 * datagram_port.c: the port of the host that a flow of datagrams goes out from: the guest's own where that is free.
 *
 * The guest may use one port towards many peers, and each of these flows has a socket of its own. Two sockets share a port
 * with SO_REUSEADDR, and the kernel asks no further whose they are: of two that are connected to one peer, one gets the
 * answers to both. So the first flow takes its port alone, which others hinder: another program, or the helper of another
 * guest. From then on it is known here, and the guest's further flows share it, unless the peer would not know them apart.
 * Where a port of the host leads to the guest's, its socket has that port, and flows go out through it.
 *
 * Adversary: the guest, which chooses ports and addresses; and other programs of the host, guests' helpers among them.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "host_address.h"
#include "outbound.h"
#include "pages.h"
#include "splice.h"
#include "sys.h"

enum {
    PORTS = 65536
};

static const int one = 1, zero = 0;

int datagram_ports_init(struct engine *engine)
{
    engine->ports = pages_reserve(2 * PORTS * sizeof(struct datagram_port));
    return engine->ports ? 0 : -ENOMEM;
}

void datagram_ports_free(struct engine *engine)
{
    pages_free(engine->ports, 2 * PORTS * sizeof(struct datagram_port));
    engine->ports = NULL;
}

static struct datagram_port *port_of(const struct engine *engine, const struct flow_key *key)
{
    return &engine->ports[(address_is_ipv4(&key->guest) ? 0 : PORTS) + key->guest_port];
}

/* Another flow of the guest's from this port to the same socket of the same peer, which it knows by two addresses. */
static bool has_twin(struct engine *engine, const struct flow *flow)
{
    address name[HOST_ADDRESS_NAMES];
    unsigned names = host_address_names(&engine->view, &flow->key.remote, flow->key.remote_port, name);

    for (unsigned i = 0; i < names; i++) {
        struct flow_key key = flow->key;
        key.remote = name[i];
        const struct flow *other = flow_find(&engine->flows, &key);
        if (other && other != flow && other->datagram.keeps_port)
            return true;
    }
    return false;
}

static bool may_share(struct engine *engine, const struct flow *flow, const struct datagram_port *port)
{
    return port->flows && !flow->datagram.group && address_equal(&port->guest, &flow->key.guest) &&
           !has_twin(engine, flow);
}

/* Alone, or with those that have it already. */
static int take_port(struct engine *engine, struct flow *flow, const struct sockaddr_storage *to)
{
    struct datagram_port *port = port_of(engine, &flow->key);
    bool shared = may_share(engine, flow, port);

    if (port->flows && !shared)
        return -EADDRINUSE;
    if (shared)
        sys_setsockopt(flow->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    int err = outbound_bind(&engine->view, flow->fd, to, flow->key.guest_port);
    if (err || !shared)
        sys_setsockopt(flow->fd, SOL_SOCKET, SO_REUSEADDR, err ? &zero : &one, sizeof(one));
    if (err)
        return err;
    port->guest = flow->key.guest;
    port->flows++;
    flow->datagram.keeps_port = true;
    return 0;
}

void datagram_port_led_to(struct engine *engine, const struct listener *listener)
{
    if (listener->protocol != IPPROTO_UDP || listener->outward)
        return;
    /* Of several, the one with the guest's own number: by that it would be known without us, too. */
    uint32_t before = engine->ports[listener->port].way_in;
    const struct listener *known = before ? listener_at(&engine->listeners, before - 1) : NULL;
    if (!known || known->own_port != known->port || listener->own_port == listener->port)
        engine->ports[listener->port].way_in = engine->ports[PORTS + listener->port].way_in =
            listener_slot(&engine->listeners, listener) + 1;
}

/* Whose answers will be found to be this flow's. */
static const struct listener *way_in(const struct engine *engine, const struct flow *flow,
                                     const struct sockaddr_storage *to)
{
    const struct datagram_port *port = port_of(engine, &flow->key);
    const struct listener *listener = port->way_in ? listener_at(&engine->listeners, port->way_in - 1) : NULL;
    struct flow_key key;

    if (!listener || listener->protocol != IPPROTO_UDP ||
        !(address_is_ipv4(&flow->key.remote) ? listener->any4 : listener->any6) ||
        outbound_is_chosen(&engine->view, to) || splice_takes(engine, listener, to) ||
        !listener_key(engine, listener, to, &key))
        return NULL;
    return memcmp(&key, &flow->key, sizeof(key)) ? NULL : listener;
}

bool datagram_leave_by_way_in(struct engine *engine, struct flow *flow)
{
    struct datagram_peer *peer = &flow->datagram.peer;
    struct sockaddr_storage to;
    socklen_t length = host_address(&engine->view, &flow->key.remote, flow->key.remote_port, &to);
    const struct listener *listener = way_in(engine, flow, &to);

    if (!listener)
        return false;
    datagram_close_socket(engine, flow);
    peer->fd = listener->fd;
    peer->slot = listener_slot(&engine->listeners, listener);
    peer->addr_length = length;
    memcpy(&peer->addr, &to, length);
    return true;
}

int datagram_bind(struct engine *engine, struct flow *flow, const struct sockaddr_storage *to)
{
    bool udp = flow->key.protocol == IPPROTO_UDP;
    int err = udp && flow->key.guest_port ? take_port(engine, flow, to)
                                          : outbound_bind(&engine->view, flow->fd, to, flow->key.guest_port);

    if (!err || err == -ENETUNREACH)
        return err;
    return outbound_bind(&engine->view, flow->fd, to, 0);
}

void datagram_close_socket(struct engine *engine, struct flow *flow)
{
    if (flow->fd >= 0)
        sys_close(flow->fd);
    flow->fd = -1;
    if (flow->datagram.keeps_port)
        port_of(engine, &flow->key)->flows--;
    flow->datagram.keeps_port = false;
}
