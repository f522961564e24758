/* SPDX-License-Identifier: Apache-2.0
 *
 * splice_move.c: bytes of a joined connection, from the receive queue of one socket into the send queue of the other by
 * way of a pipe, as references to memory: nothing is copied (splice(2)).
 *
 * A connection borrows a pipe for the time that something is in it. As a rule that is between two system calls, so that one
 * pipe serves all; where a side does not take what the other has sent, the pipe stays, with what was read by then: as
 * much as one call took. The rest waits in the kernel's queue, and closes its window.
 *
 * Wake-ups are bounded by progress: sockets are edge-triggered, and one whose bytes cannot move is heard of once more at most
 * (splice_tcp.c: interest_of).
 */
#include <errno.h>
#include <fcntl.h>

#include "splice.h"
#include "sys.h"

/* Until a pipe is given back. Nobody has one who could give it back: there will never be one. */
static void await_pipe(struct engine *engine, struct flow *flow)
{
    flow->splice.offered = false;
    if (engine->splice.pipes_lent)
        list_append(&engine->splice.waiting_pipe, &flow->waiting);
    else
        splice_abort(engine, flow, CLOSE_no_descriptor, EMFILE);
}

static void note_error(struct splice_side *side, ssize_t result)
{
    if (result < 0 && result != -EAGAIN && result != -EINTR)
        side->error = (int)-result;
}

/* splice() stops before an urgent byte, and says what it would say if nothing was behind it. A read goes over it. */
static ssize_t read_urgent(struct splice_side *side)
{
    uint8_t byte;
    struct iovec iov = {&byte, sizeof(byte)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n = sys_recvmsg(side->fd, &msg, MSG_DONTWAIT);

    if (n <= 0)
        return n;
    side->urgent = true;
    return sys_write(side->pipe.write_fd, &byte, sizeof(byte));
}

/* What the end is, is asked twice: the event that tells of an urgent byte may be still to come. */
static ssize_t read_some(struct splice_side *side)
{
    ssize_t n = sys_splice(side->fd, side->pipe.write_fd, SPLICE_PIPE_BYTES);

    if (n > 0 || (n == -EAGAIN && !side->urgent))
        return n;
    note_error(side, n);
    return read_urgent(side);
}

/* Into an empty pipe. False: there is nothing. */
static bool fill(struct engine *engine, struct flow *flow, struct splice_side *side)
{
    if (!side->readable || side->ended)
        return false;
    if (!splice_pipe_take(&engine->splice, &side->pipe)) {
        await_pipe(engine, flow);
        return false;
    }
    flow->splice.offered = false;
    ssize_t n = read_some(side);
    if (n > 0) {
        side->held = (uint32_t)n;
        return true;
    }
    splice_pipe_give(engine, &side->pipe);
    if (n == -EINTR)
        return true;
    side->readable = false;
    side->ended = !n;
    note_error(side, n);
    return false;
}

/* Nobody takes what came from this side any more. */
static void give_up(struct engine *engine, struct splice_side *side)
{
    if (side->held)
        splice_pipe_discard(engine, &side->pipe);
    side->held = 0;
}

/* Out of the pipe. False: the other side takes no more. */
static bool drain(struct engine *engine, struct flow *flow, struct splice_side *from, struct splice_side *to)
{
    if (!to->writable)
        return false;
    ssize_t n = sys_splice(from->pipe.read_fd, to->fd, from->held);
    if (n > 0) {
        from->held -= (uint32_t)n;
        if (!from->held)
            splice_pipe_give(engine, &from->pipe);
        return true;
    }
    if (n == -EINTR)
        return true;
    if (n == -EAGAIN) {
        to->writable = false;
        return false;
    }
    /* It was reset. What it had said by then can be read all the same, and is the other's due. */
    note_error(to, n);
    to->readable = true;
    flow_touch(engine, flow);
    return false;
}

bool splice_move(struct engine *engine, struct flow *flow, unsigned from)
{
    struct splice *splice = &flow->splice;
    struct splice_side *in = &splice->side[from], *out = &splice->side[!from];
    bool to_guest = (from == SPLICE_NEAR) == (flow->key.port == PORT_INWARD);
    uint64_t moved = 0;
    bool filled = false;

    while (!flow->done && !out->error && moved < SPLICE_TURN_BYTES) {
        if (!in->held) {
            if (!fill(engine, flow, in))
                break;
            filled |= in->held;
        }
        uint32_t before = in->held;
        if (before && !drain(engine, flow, in, out))
            break;
        moved += before - in->held;
    }
    if (!flow->done && out->error)
        give_up(engine, in);
    *(to_guest ? &flow->bytes_to_guest : &flow->bytes_from_guest) += moved;
    engine->counters[to_guest ? C_splice_bytes_to_guest : C_splice_bytes_from_guest] += moved;
    if (moved) {
        flow->active_ms = engine->now_ms;
        splice_stream_moved(engine, in, moved);
    }
    if (moved >= SPLICE_TURN_BYTES)
        flow_touch(engine, flow);
    return moved || filled;
}
