/* SPDX-License-Identifier: Apache-2.0
 *
 * script_splice.c: the namespace's agent in the world of script.h, played by the test, and what is joined.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "fake_kernel.h"
#include "script.h"
#include "script_parts.h"
#include "splice.h"

static struct {
    unsigned asked[SPLICE_KINDS];
    int failure;
} agent;

static int ask(struct engine *engine, enum splice_kind kind)
{
    (void)engine;
    if (!agent.failure)
        agent.asked[kind]++;
    return -agent.failure;
}

void script_agent_init(struct engine *engine)
{
    memset(&agent, 0, sizeof(agent));
    engine->ask_sockets = ask;
}

unsigned script_asked(unsigned kind)
{
    return agent.asked[kind];
}

void script_agent_fails(int error)
{
    agent.failure = error;
}

int script_agent_gives(unsigned kind, unsigned count)
{
    int fd[SPLICE_SOCKETS_MAX];
    enum splice_kind kinds[SPLICE_SOCKETS_MAX];

    for (unsigned i = 0; i < count; i++) {
        kinds[i] = (enum splice_kind)kind;
        fd[i] = fake_socket_made(kind == SPLICE_TCP4 || kind == SPLICE_UDP4 ? AF_INET : AF_INET6, kind >= SPLICE_UDP4);
    }
    agent.asked[kind] = 0;
    splice_sockets_given(script_engine(), fd, kinds, count);
    return fd[0];
}

void script_agent_refuses(unsigned kind, int error)
{
    agent.asked[kind] = 0;
    splice_sockets_refused(script_engine(), (enum splice_kind)kind, error);
}

unsigned script_pooled(unsigned kind)
{
    return script_engine()->splice.kind[kind].count;
}

int script_listen_outward(uint32_t slot, int fd, uint8_t protocol, uint16_t port)
{
    const struct listener listener = {.fd = fd, .protocol = protocol, .port = port, .outward = true};

    return engine_listen(script_engine(), slot, &listener);
}

bool script_splice(uint32_t *cursor, struct script_splice *ret_splice)
{
    const struct flow *flow;

    do {
        if (!(flow = flow_next(&script_engine()->flows, cursor)))
            return false;
    } while (flow->key.port == PORT_LINK || flow->key.protocol != IPPROTO_TCP);
    *ret_splice = (struct script_splice){
        .state = flow->splice.state,
        .waits = node_listed(&flow->waiting),
        .done = flow->done,
        .guest_port = flow->key.guest_port,
        .remote_port = flow->key.remote_port,
    };
    memcpy(ret_splice->guest, &flow->key.guest, sizeof(ret_splice->guest));
    memcpy(ret_splice->remote, &flow->key.remote, sizeof(ret_splice->remote));
    for (unsigned i = 0; i < SPLICE_SIDES; i++) {
        const struct splice_side *side = &flow->splice.side[i];
        ret_splice->fd[i] = side->fd;
        ret_splice->held[i] = side->held;
        ret_splice->interest[i] = side->interest;
        ret_splice->readable[i] = side->readable;
        ret_splice->muted[i] = side->muted;
    }
    return true;
}
