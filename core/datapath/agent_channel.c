/* SPDX-License-Identifier: Apache-2.0
 *
 * agent_channel.c: the worker's own channel to whoever makes sockets in the guest's namespace
 * (plugin/namespace/agent.py), so that a connection there needs nobody else. One question at a time; the loop does not
 * wait for the answer.
 *
 * Adversary: the agent, should a container have broken it: what comes is as many sockets as were asked for at most, of
 * kinds that the kernel tells. A worker that was replaced may find an answer to the one before; it takes it, too.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>

#include "splice.h"
#include "sys.h"
#include "worker.h"

enum {
    NOBODY = SPLICE_KINDS
};

static void agent_gone(struct worker *worker)
{
    sys_close(worker->agent_fd);
    worker->agent_fd = -1;
    worker->agent_asking = NOBODY;
    worker->agent_wanted = 0;
    for (unsigned kind = 0; kind < SPLICE_KINDS; kind++)
        splice_sockets_refused(&worker->engine, (enum splice_kind)kind, ENOTCONN);
}

static int send_question(struct worker *worker, enum splice_kind kind)
{
    bool tcp = kind == SPLICE_TCP4 || kind == SPLICE_TCP6, ipv4 = kind == SPLICE_TCP4 || kind == SPLICE_UDP4;
    struct lg_agent_sockets question = {.kind = LG_AGENT_SOCKETS,
                                        .family = ipv4 ? AF_INET : AF_INET6,
                                        .protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP,
                                        .count = SPLICE_SOCKETS_ASKED};
    struct iovec iov = {&question, sizeof(question)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n = sys_sendmsg(worker->agent_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n < 0)
        return (int)n;
    worker->agent_asking = kind;
    return 0;
}

static int ask(struct engine *engine, enum splice_kind kind)
{
    struct worker *worker = container_of(engine, struct worker, engine);

    if (worker->agent_fd < 0)
        return -ENOTCONN;
    if (worker->agent_asking == NOBODY)
        return send_question(worker, kind);
    worker->agent_wanted |= 1u << kind;
    return 0;
}

static void ask_next(struct worker *worker)
{
    for (unsigned kind = 0; kind < SPLICE_KINDS && worker->agent_asking == NOBODY; kind++) {
        if (!(worker->agent_wanted & 1u << kind))
            continue;
        worker->agent_wanted &= ~(1u << kind);
        int err = send_question(worker, (enum splice_kind)kind);
        if (err)
            splice_sockets_refused(&worker->engine, (enum splice_kind)kind, -err);
    }
}

/* False: it is none that the pool has a use for. One that would wait in connect() or splice() is none: everybody would. */
static bool kind_of(int fd, enum splice_kind *ret_kind)
{
    int domain, protocol, flags = fcntl(fd, F_GETFL);
    socklen_t domain_length = sizeof(domain), protocol_length = sizeof(protocol);

    if (flags < 0 || !(flags & O_NONBLOCK) || sys_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &domain_length) ||
        sys_getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &protocol_length) ||
        (domain != AF_INET && domain != AF_INET6) || (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP))
        return false;
    *ret_kind = splice_kind_of(domain == AF_INET6, (uint8_t)protocol);
    return true;
}

/* The sockets that came with a record; how many. */
static unsigned take_sockets(struct msghdr *msg, int fd[SPLICE_SOCKETS_MAX], enum splice_kind kind[SPLICE_SOCKETS_MAX])
{
    unsigned count = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t bytes = c->cmsg_len - CMSG_LEN(0);
        for (size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int)) {
            int one;
            memcpy(&one, CMSG_DATA(c) + at, sizeof(one));
            if (count < SPLICE_SOCKETS_MAX && kind_of(one, &kind[count]))
                fd[count++] = one;
            else
                sys_close(one);
        }
    }
    return count;
}

/* Nothing came, or what was asked for; else it is the answer to a worker that was before us, and ours is to come. */
static bool answers(unsigned asked, const enum splice_kind *kind, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (kind[i] == asked)
            return true;
    return !count;
}

/* Why nothing came. */
static int refusal(const uint8_t *record, size_t length)
{
    uint16_t error = 0;

    if (length >= 1 + sizeof(error) && record[0] == LG_AGENT_ANSWER)
        memcpy(&error, record + 1, sizeof(error));
    return error ? error : EINVAL;
}

void agent_receive(struct worker *worker)
{
    union {
        char bytes[CMSG_SPACE(SPLICE_SOCKETS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    uint8_t record[1 + SPLICE_SOCKETS_MAX * sizeof(uint16_t)];
    struct iovec iov = {record, sizeof(record)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    int fd[SPLICE_SOCKETS_MAX];
    enum splice_kind kind[SPLICE_SOCKETS_MAX];
    ssize_t n = sys_recvmsg(worker->agent_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n == -EAGAIN || n == -EINTR)
        return;
    if (n <= 0) {
        agent_gone(worker);
        return;
    }
    unsigned asked = worker->agent_asking, count = take_sockets(&msg, fd, kind);
    if (answers(asked, kind, count))
        worker->agent_asking = NOBODY;
    if (count)
        splice_sockets_given(&worker->engine, fd, kind, count);
    else if (asked != NOBODY)
        splice_sockets_refused(&worker->engine, (enum splice_kind)asked, refusal(record, (size_t)n));
    ask_next(worker);
}

void agent_init(struct worker *worker)
{
    worker->agent_fd = -1;
    worker->agent_asking = NOBODY;
    worker->engine.ask_sockets = ask;
}

int agent_attach(struct worker *worker, int fd)
{
    int domain;
    socklen_t length = sizeof(domain);
    int err = sys_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);

    if (err || domain != AF_UNIX)
        return err ? err : -EINVAL;
    if (worker->agent_fd >= 0)
        agent_gone(worker);
    if ((err = sys_epoll_ctl(worker->engine.epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN, SOURCE_AGENT)))
        return err;
    worker->agent_fd = fd;
    return 0;
}
