/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_splice.c: pipes of the fake kernel, and splice() between them and its TCP sockets. Names in brackets are Linux's own.
 *
 * No byte is stored: a pipe remembers of which stream, and from which position, its bytes are. What is spliced into a socket
 * must be the bytes of one stream, from its first on, none left out and none twice.
 *
 * Called by the core through sys.h, and by the tests. Adversary: nobody.
 */
#include <errno.h>
#include <stdlib.h>

#include "fake_kernel.h"
#include "sys.h"

enum {
    SLOTS_MAX = 256,
};

/* Bytes of one call, which fill so many slots until the last of them is taken. */
struct piece {
    uint32_t stream;
    uint64_t position, length;
    unsigned slots;
};

struct fake_pipe {
    unsigned ends, slots, used; /* slots */
    unsigned first, count;      /* pieces, in a ring */
    struct piece piece[SLOTS_MAX];
};

static struct {
    unsigned slots, pipes;
} limits;

void fake_pipe_limits(unsigned slots, unsigned pipes)
{
    limits.slots = slots < SLOTS_MAX ? slots : SLOTS_MAX;
    limits.pipes = pipes;
}

void fake_pipe_closed(struct fake_pipe *pipe)
{
    if (!--pipe->ends)
        free(pipe);
}

int sys_pipe(int fd[2], unsigned bytes)
{
    int err = fake_called(CALL_pipe);
    unsigned asked = bytes / FAKE_SLOT_BYTES;

    if (err || fake_pipes_open() >= limits.pipes)
        return err ? err : -EMFILE;
    struct fake_pipe *pipe = calloc(1, sizeof(*pipe));
    pipe->ends = 2;
    pipe->slots = asked < limits.slots ? asked : limits.slots;
    return fake_pipe_descriptors(pipe, fd);
}

int fake_pipe(int *read_fd, int *write_fd, unsigned bytes)
{
    int fd[2], err = sys_pipe(fd, bytes);

    *read_fd = fd[0];
    *write_fd = fd[1];
    return err;
}

static void append(struct fake_pipe *pipe, uint32_t stream, uint64_t position, uint64_t length)
{
    struct piece *piece = &pipe->piece[(pipe->first + pipe->count++) % SLOTS_MAX];

    *piece = (struct piece){stream, position, length, (unsigned)((length + FAKE_SLOT_BYTES - 1) / FAKE_SLOT_BYTES)};
    pipe->used += piece->slots;
}

/* [tcp_splice_read]: stops before an urgent byte, and then says the same as if there was nothing behind it. */
static ssize_t from_socket(struct fake_socket *socket, struct fake_pipe *pipe, size_t length)
{
    uint64_t there = socket->arrived - socket->taken, room = (uint64_t)(pipe->slots - pipe->used) * FAKE_SLOT_BYTES;

    if (!room)
        return -EAGAIN; /* [wait_for_space]: nobody asks the socket */
    if (socket->has_urgent)
        there = socket->urgent - socket->taken;
    if (!there)
        return fake_socket_nothing(socket);
    if (there > room)
        there = room;
    if (there > length)
        there = length;
    append(pipe, socket->stream_in, socket->taken, there);
    fake_socket_take(socket, there);
    return (ssize_t)there;
}

/* A stream goes into one socket, and a socket takes one. */
static void check_order(struct fake_socket *socket, const struct piece *piece)
{
    if (!socket->joined_stream)
        socket->joined_stream = piece->stream;
    if (socket->joined_stream != piece->stream)
        fake_violate("splice() into a socket of stream %u: bytes of stream %u", socket->joined_stream, piece->stream);
    else if (socket->sent != piece->position)
        fake_violate("splice() of byte %llu of stream %u, and byte %llu was due", (unsigned long long)piece->position,
                     piece->stream, (unsigned long long)socket->sent);
}

/* [splice_to_socket] */
static ssize_t to_socket(struct fake_pipe *pipe, struct fake_socket *socket, size_t length)
{
    uint64_t done = 0, room;
    int err;

    if (!pipe->count)
        return -EAGAIN;
    if ((err = fake_socket_send_error(socket)))
        return err;
    while (pipe->count && done < length && (room = fake_socket_room(socket))) {
        struct piece *piece = &pipe->piece[pipe->first];
        uint64_t part = piece->length < length - done ? piece->length : length - done;
        part = part < room ? part : room;
        check_order(socket, piece);
        piece->position += part;
        piece->length -= part;
        socket->sent += part;
        done += part;
        if (piece->length)
            continue;
        pipe->used -= piece->slots;
        pipe->first = (pipe->first + 1) % SLOTS_MAX;
        pipe->count--;
    }
    if (pipe->count && done < length)
        socket->no_space = true;
    return done ? (ssize_t)done : -EAGAIN;
}

ssize_t sys_splice(int from, int to, size_t length)
{
    int err = fake_called(CALL_splice);
    struct fake_pipe *into = fake_pipe_of(to, true), *out_of = fake_pipe_of(from, false);

    if (err)
        return err;
    struct fake_socket *socket = into ? fake_socket_of(from, "splice") : fake_socket_of(to, "splice");
    if (!socket || (!into && !out_of)) {
        fake_violate("splice() from %d to %d: not between a socket and a pipe", from, to);
        return -EINVAL;
    }
    return into ? from_socket(socket, into, length) : to_socket(out_of, socket, length);
}

/* Into a pipe, what recvmsg() has just read. */
ssize_t sys_write(int fd, const void *bytes, size_t length)
{
    int err = fake_called(CALL_write);
    struct fake_pipe *pipe = fake_pipe_of(fd, true);
    uint32_t stream;
    uint64_t position, read;

    if (err || !pipe)
        return err ? err : -EBADF;
    fake_last_read(&stream, &position, &read);
    if (read != length || fake_pattern_match(stream, position, bytes, length) != length)
        fake_violate("write() into a pipe of what was not just read");
    if (pipe->used == pipe->slots)
        return -EAGAIN;
    append(pipe, stream, position, length);
    return (ssize_t)length;
}
