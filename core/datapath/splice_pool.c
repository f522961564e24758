/* SPDX-License-Identifier: Apache-2.0
 *
 * splice_pool.c: sockets that were made in the guest's namespace, a few in advance once the first was needed, so that a
 * connection waits for nobody; and pipes.
 *
 * Adversary: who connects as often as it likes. All that it can have here is what the limits say.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "datagram.h"
#include "splice.h"
#include "sys.h"

static void close_pipe(const struct splice_pipe *pipe)
{
    sys_close(pipe->read_fd);
    sys_close(pipe->write_fd);
}

void splice_pool_init(struct splice_pool *pool)
{
    for (unsigned kind = 0; kind < SPLICE_KINDS; kind++)
        list_init(&pool->kind[kind].waiting);
    list_init(&pool->waiting_pipe);
}

void splice_pool_free(struct splice_pool *pool)
{
    for (unsigned kind = 0; kind < SPLICE_KINDS; kind++) {
        struct splice_sockets *sockets = &pool->kind[kind];
        while (sockets->count)
            sys_close(sockets->fd[--sockets->count]);
    }
    while (pool->pipes)
        close_pipe(&pool->pipe[--pool->pipes]);
}

/* ---- sockets ---- */

enum splice_kind splice_kind_of(bool ipv6, uint8_t protocol)
{
    if (protocol == IPPROTO_TCP)
        return ipv6 ? SPLICE_TCP6 : SPLICE_TCP4;
    return ipv6 ? SPLICE_UDP6 : SPLICE_UDP4;
}

static int ask(struct engine *engine, enum splice_kind kind)
{
    struct splice_sockets *sockets = &engine->splice.kind[kind];

    if (sockets->asked)
        return 0;
    int err = engine->ask_sockets(engine, kind);
    sockets->asked = !err;
    if (!err)
        count(engine, C_splice_asked);
    return err;
}

int splice_socket_take(struct engine *engine, enum splice_kind kind)
{
    struct splice_sockets *sockets = &engine->splice.kind[kind];
    int err = sockets->refusal;

    sockets->refusal = 0;
    if (!err && sockets->count <= SPLICE_SOCKETS_LOW)
        err = ask(engine, kind);
    if (sockets->count)
        return sockets->fd[--sockets->count];
    return err ? err : -EAGAIN;
}

void splice_socket_await(struct engine *engine, enum splice_kind kind, struct flow *flow)
{
    list_append(&engine->splice.kind[kind].waiting, &flow->waiting);
}

static void serve_waiting(struct engine *engine, enum splice_kind kind)
{
    struct splice_sockets *sockets = &engine->splice.kind[kind];

    while (sockets->count && !list_empty(&sockets->waiting)) {
        struct flow *flow = container_of(list_pop(&sockets->waiting), struct flow, waiting);
        splice_socket_ready(engine, flow, sockets->fd[--sockets->count]);
    }
    if (!list_empty(&sockets->waiting) && ask(engine, kind))
        splice_sockets_refused(engine, kind, ENOTCONN);
}

void splice_sockets_given(struct engine *engine, const int *fd, const enum splice_kind *kind, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct splice_sockets *sockets = &engine->splice.kind[kind[i]];
        sockets->asked = false;
        if (sockets->count < SPLICE_SOCKETS_MAX)
            sockets->fd[sockets->count++] = fd[i];
        else
            sys_close(fd[i]);
    }
    for (unsigned i = 0; i < SPLICE_KINDS; i++)
        serve_waiting(engine, (enum splice_kind)i);
    datagram_accept_room(engine);
}

void splice_sockets_refused(struct engine *engine, enum splice_kind kind, int error)
{
    struct splice_sockets *sockets = &engine->splice.kind[kind];
    struct list refused;
    struct node *node;

    sockets->asked = false;
    list_move(&sockets->waiting, &refused);
    while ((node = list_pop(&refused)))
        splice_socket_ready(engine, container_of(node, struct flow, waiting), -error);
    sockets->refusal = -error; /* for the datagram that waits, which is not on the list */
    datagram_accept_room(engine);
    sockets->refusal = 0; /* it was not for whoever comes later */
}

/* ---- pipes ---- */

bool splice_pipe_take(struct splice_pool *pool, struct splice_pipe *ret_pipe)
{
    int fd[2];

    if (pool->pipes) {
        *ret_pipe = pool->pipe[--pool->pipes];
    } else {
        if (sys_pipe(fd, SPLICE_PIPE_BYTES))
            return false;
        *ret_pipe = (struct splice_pipe){.read_fd = fd[0], .write_fd = fd[1]};
    }
    pool->pipes_lent++;
    return true;
}

void splice_pipe_offer(struct engine *engine)
{
    struct node *node = list_pop(&engine->splice.waiting_pipe);

    if (!node)
        return;
    struct flow *flow = container_of(node, struct flow, waiting);
    flow->splice.offered = true;
    flow_touch(engine, flow);
}

static void pipe_returned(struct engine *engine)
{
    engine->splice.pipes_lent--;
    splice_pipe_offer(engine);
}

void splice_pipe_give(struct engine *engine, const struct splice_pipe *pipe)
{
    struct splice_pool *pool = &engine->splice;

    if (pool->pipes < SPLICE_PIPES_KEPT)
        pool->pipe[pool->pipes++] = *pipe;
    else
        close_pipe(pipe);
    pipe_returned(engine);
}

void splice_pipe_discard(struct engine *engine, const struct splice_pipe *pipe)
{
    close_pipe(pipe);
    pipe_returned(engine);
}
