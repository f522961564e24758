/* SPDX-License-Identifier: Apache-2.0
 *
 * splice_stream.c: one side's bytes, where they come as a stream at full speed, are heard of in pieces (SO_RCVLOWAT), of as
 * much as comes in a millisecond and half a megabyte at most, instead of with each block that the sender writes. A block of
 * 128 KB is two segments and a tail of 106 bytes, and each of them costs as much on its way out as a full one; half a megabyte
 * is eight segments. Eight streams that were carried block by block cost 0.147 s/GB at 30 Gbit/s, and so 0.084 at 42. (Sleeping
 * between two steps, as for frames (gather.h), gained nothing: the other seven fill the step, not the pipe.)
 *
 * The kernel has no time at which it would tell of less than asked for: whoever pauses may have asked something, and must not
 * wait. So after SPLICE_STREAM_PAUSE_MS without a byte the side is as all others again, by which the kernel tells of what
 * there is, and each such end doubles what must come in one piece before it is tried again: answers of any one size, with a
 * question before each, are kept waiting a few times. Not so one that has brought SPLICE_STREAM_LASTING by then, which has
 * gained as much time as its end waits. A sender that paces itself at this speed is told in such pieces, too.
 *
 * Adversary: either end, which can make its own bytes wait so long, and no more.
 */
#include "splice.h"
#include "sys.h"

static void begin(struct splice_stream *stream, uint64_t now_ns)
{
    stream->bytes = 0;
    stream->since_ns = now_ns;
}

static void tell_from(int fd, uint32_t bytes)
{
    const int low_water = (int)bytes;

    sys_setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof(low_water));
}

/* The kernel makes room for what is asked for, as far as tcp_rmem lets it. False: there is none for two pieces, and the sender
 * would stand still until one has been moved. */
static bool make_room(int fd, uint32_t bytes)
{
    int room = 0;
    socklen_t length = sizeof(room);

    tell_from(fd, 2 * bytes);
    sys_getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &room, &length);
    return (uint32_t)room == 2 * bytes;
}

static void become_stream(struct splice_side *side, uint32_t piece)
{
    bool has_room = make_room(side->fd, piece);

    side->stream.low_water = has_room ? piece : 0;
    side->stream.doubled = has_room ? side->stream.doubled : SPLICE_STREAM_DOUBLED;
    tell_from(side->fd, has_room ? piece : 1);
}

/* In a millisecond. */
static uint64_t rate(const struct splice_stream *stream, uint64_t now_ns)
{
    uint64_t ns = now_ns - stream->since_ns;

    return stream->bytes * 1000000 / (ns ? ns : 1);
}

void splice_stream_moved(struct engine *engine, struct splice_side *side, uint64_t bytes)
{
    struct splice_stream *stream = &side->stream;

    if (engine->now_ms > stream->moved_ms + SPLICE_STREAM_PAUSE_MS)
        begin(stream, engine->now_ns);
    stream->moved_ms = engine->now_ms;
    stream->bytes += bytes;
    if (stream->low_water || stream->bytes < (uint64_t)SPLICE_STREAM_BYTES << stream->doubled)
        return;
    uint64_t piece = rate(stream, engine->now_ns);
    begin(stream, engine->now_ns);
    if (piece < SPLICE_STREAM_LEAST)
        return;
    become_stream(side, piece < SPLICE_STREAM_MOST ? (uint32_t)piece : SPLICE_STREAM_MOST);
    if (stream->low_water)
        count(engine, C_splice_streams);
}

/* When the side is no stream any more unless something comes. One whose bytes cannot move on is not asked for any. */
static uint64_t pause_ms(const struct splice_side *side)
{
    if (!side->stream.low_water || side->readable || side->held || side->ended || side->error)
        return UINT64_MAX;
    return side->stream.moved_ms + SPLICE_STREAM_PAUSE_MS;
}

void splice_stream_timer(struct engine *engine, struct flow *flow)
{
    const struct splice_side *side = flow->splice.side;
    uint64_t near = pause_ms(&side[SPLICE_NEAR]), far = pause_ms(&side[SPLICE_FAR]), due = near < far ? near : far;

    /* It may stand where an earlier pause would have ended: to move it with each piece would cost more. */
    if (due != UINT64_MAX && !timer_armed(&flow->timer))
        wheel_arm(&engine->wheel, &flow->timer, due);
}

static void pauses(struct splice_side *side, uint64_t now_ns)
{
    struct splice_stream *stream = &side->stream;

    if (stream->bytes >= SPLICE_STREAM_LASTING)
        stream->doubled = 0;
    else if (stream->doubled < SPLICE_STREAM_DOUBLED)
        stream->doubled++;
    stream->low_water = 0;
    begin(stream, now_ns);
    tell_from(side->fd, 1);
}

void splice_stream_fired(struct engine *engine, struct flow *flow)
{
    for (unsigned i = 0; i < SPLICE_SIDES; i++) {
        struct splice_side *side = &flow->splice.side[i];
        if (pause_ms(side) > engine->now_ms)
            continue;
        count(engine, C_splice_pauses);
        pauses(side, engine->now_ns);
    }
    splice_stream_timer(engine, flow);
}
