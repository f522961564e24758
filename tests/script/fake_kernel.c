/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_kernel.c: descriptors, epoll, the clock and the patterns of the fake kernel; its TCP is in fake_socket.c.
 *
 * epoll as Linux has it (fs/eventpoll.c): a wake-up puts a watch on the ready list if its mask meets the interest, or
 * if it has none (a change of state); epoll_wait() asks the file again what is there, and reports nothing if that does
 * not meet the interest; EPOLL_CTL_ADD and EPOLL_CTL_MOD ask at once. HUP and ERR belong to every interest.
 *
 * Called by the core through sys.h, and by the tests. Adversary: nobody.
 * Invariants: a watch belongs to an open file, not to a descriptor: it goes when the last descriptor goes.
 */
#include "fake_kernel.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "list.h"
#include "sys.h"

enum file_kind {
    FILE_NONE,
    FILE_SOCKET,
    FILE_EVENT,
    FILE_EPOLL,
    FILE_PIPE_READ,
    FILE_PIPE_WRITE,
};

struct file {
    enum file_kind kind;
    unsigned descriptors;
    uint64_t event_count;
    struct fake_socket socket;
    struct fake_pipe *pipe;
};

struct watch {
    int epoll, fd; /* fd -1: free */
    int file;
    uint32_t interest;
    uint64_t data;
    struct node ready;
};

static struct {
    uint64_t now_ns;
    uint64_t calls[CALL_COUNT];
    int failure[CALL_COUNT];
    char violation[256];
    unsigned files; /* ever made; also the number of descriptors */
    struct file file[FAKE_DESCRIPTORS];
    int descriptor[FAKE_DESCRIPTORS]; /* index of its file, -1 closed */
    unsigned watches;
    struct watch watch[FAKE_DESCRIPTORS];
    struct list ready;
    int last_socket;
} kernel;

static const char *const call_names[] = {
#define CALL_NAME(name) #name,
    FAKE_CALLS(CALL_NAME)
#undef CALL_NAME
};

/* ---- life, calls, violations ---- */

static void patterns_make(void);

void fake_kernel_reset(void)
{
    for (unsigned i = 0; i < kernel.files; i++) {
        fake_datagrams_free(kernel.file[i].socket.datagrams);
        if (kernel.file[i].descriptors && kernel.file[i].pipe)
            fake_pipe_closed(kernel.file[i].pipe);
    }
    memset(kernel.calls, 0, sizeof(kernel.calls));
    memset(kernel.failure, 0, sizeof(kernel.failure));
    memset(kernel.file, 0, kernel.files * sizeof(kernel.file[0]));
    kernel.violation[0] = '\0';
    kernel.files = kernel.watches = 0;
    kernel.last_socket = -1;
    list_init(&kernel.ready);
    patterns_make();
}

void fake_clock_set(uint64_t ns)
{
    kernel.now_ns = ns;
}

uint64_t sys_monotonic_ns(void)
{
    return kernel.now_ns;
}

uint64_t sys_realtime_ns(void)
{
    return kernel.now_ns;
}

unsigned fake_call_kinds(void)
{
    return CALL_COUNT;
}

const char *fake_call_name(unsigned kind)
{
    return call_names[kind];
}

uint64_t fake_call_count(unsigned kind)
{
    return kernel.calls[kind];
}

void fake_fail(unsigned kind, int error)
{
    kernel.failure[kind] = error;
}

int fake_called(enum fake_call call)
{
    int error = kernel.failure[call];

    kernel.calls[call]++;
    kernel.failure[call] = 0;
    return -error;
}

void fake_violate(const char *format, ...)
{
    va_list arguments;

    if (kernel.violation[0])
        return;
    va_start(arguments, format);
    vsnprintf(kernel.violation, sizeof(kernel.violation), format, arguments);
    va_end(arguments);
}

const char *fake_violation(void)
{
    return kernel.violation;
}

/* ---- patterns ---- */

static uint8_t pattern[FAKE_PATTERN_PERIOD];

static void patterns_make(void)
{
    uint32_t state = 1;

    for (unsigned i = 0; i < FAKE_PATTERN_PERIOD; i++) {
        state = state * 1664525 + 1013904223; /* Numerical Recipes' generator; its upper bits are good enough */
        pattern[i] = (uint8_t)(state >> 24);
    }
}

static unsigned pattern_start(uint32_t stream, uint64_t position)
{
    return (unsigned)((position + stream * UINT64_C(7919)) % FAKE_PATTERN_PERIOD);
}

void fake_pattern_fill(uint32_t stream, uint64_t position, void *bytes, size_t length)
{
    uint8_t *to = bytes;

    while (length) {
        unsigned start = pattern_start(stream, position);
        size_t part = FAKE_PATTERN_PERIOD - start < length ? FAKE_PATTERN_PERIOD - start : length;
        memcpy(to, pattern + start, part);
        to += part;
        position += part;
        length -= part;
    }
}

size_t fake_pattern_match(uint32_t stream, uint64_t position, const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    size_t matched = 0;

    while (matched < length) {
        unsigned start = pattern_start(stream, position + matched);
        size_t part = FAKE_PATTERN_PERIOD - start < length - matched ? FAKE_PATTERN_PERIOD - start : length - matched;
        if (memcmp(at + matched, pattern + start, part)) {
            while (at[matched] == pattern[start++])
                matched++;
            return matched;
        }
        matched += part;
    }
    return matched;
}

/* ---- descriptors ---- */

static int descriptor_new(enum file_kind kind)
{
    if (kernel.files + FAKE_DESCRIPTOR_FIRST >= FAKE_DESCRIPTORS)
        return -EMFILE;
    int index = (int)kernel.files++;

    kernel.file[index] = (struct file){.kind = kind, .descriptors = 1};
    kernel.descriptor[index] = index;
    return index + FAKE_DESCRIPTOR_FIRST;
}

/* The file of a descriptor, open or not so any more. */
static struct file *file_ever(int fd)
{
    int index = fd - FAKE_DESCRIPTOR_FIRST;

    return index >= 0 && index < (int)kernel.files ? &kernel.file[index] : NULL;
}

static struct file *file_of(int fd, const char *call)
{
    struct file *file = file_ever(fd);

    if (file && kernel.descriptor[fd - FAKE_DESCRIPTOR_FIRST] >= 0)
        return &kernel.file[kernel.descriptor[fd - FAKE_DESCRIPTOR_FIRST]];
    fake_violate("%s() on descriptor %d, which is not open", call, fd);
    return NULL;
}

int fake_socket_descriptor(void)
{
    int fd = descriptor_new(FILE_SOCKET);

    if (fd >= 0)
        fake_socket_init(&file_ever(fd)->socket, kernel.last_socket = fd);
    return fd;
}

struct fake_socket *fake_socket_of(int fd, const char *call)
{
    struct file *file = file_of(fd, call);

    if (!file || file->kind == FILE_SOCKET)
        return file ? &file->socket : NULL;
    fake_violate("%s() on descriptor %d, which is no socket", call, fd);
    return NULL;
}

int fake_last_socket(void)
{
    return kernel.last_socket;
}

const struct fake_socket *fake_socket_at(int fd)
{
    const struct file *file = file_ever(fd);

    return file && file->kind == FILE_SOCKET ? &file->socket : NULL;
}

static unsigned files_open(enum file_kind kind)
{
    unsigned open = 0;

    for (unsigned i = 0; i < kernel.files; i++)
        open += kernel.file[i].kind == kind && kernel.file[i].descriptors;
    return open;
}

unsigned fake_sockets_open(void)
{
    return files_open(FILE_SOCKET);
}

unsigned fake_pipes_open(void)
{
    unsigned readers = files_open(FILE_PIPE_READ), writers = files_open(FILE_PIPE_WRITE);

    return readers > writers ? readers : writers;
}

int fake_pipe_descriptors(struct fake_pipe *pipe, int fd[2])
{
    fd[0] = descriptor_new(FILE_PIPE_READ);
    fd[1] = descriptor_new(FILE_PIPE_WRITE);
    if (fd[1] < 0)
        return -EMFILE;
    file_ever(fd[0])->pipe = file_ever(fd[1])->pipe = pipe;
    return 0;
}

struct fake_pipe *fake_pipe_of(int fd, bool write_end)
{
    struct file *file = file_of(fd, "pipe");

    return file && file->kind == (write_end ? FILE_PIPE_WRITE : FILE_PIPE_READ) ? file->pipe : NULL;
}

int fake_eventfd(void)
{
    return descriptor_new(FILE_EVENT);
}

int fake_epoll(void)
{
    return descriptor_new(FILE_EPOLL);
}

int fake_dup(int fd)
{
    struct file *file = file_of(fd, "dup");
    int copy = file ? descriptor_new(FILE_NONE) : -EBADF;

    if (copy < 0)
        return copy;
    kernel.descriptor[copy - FAKE_DESCRIPTOR_FIRST] = (int)(file - kernel.file);
    file->descriptors++;
    return copy;
}

static void watches_drop(int file)
{
    for (unsigned i = 0; i < kernel.watches; i++) {
        struct watch *watch = &kernel.watch[i];
        if (watch->fd < 0 || watch->file != file)
            continue;
        node_leave(&watch->ready);
        watch->fd = -1;
    }
}

int sys_close(int fd)
{
    int err = fake_called(CALL_close);
    struct file *file = file_of(fd, "close");

    if (err || !file)
        return err ? err : -EBADF;
    kernel.descriptor[fd - FAKE_DESCRIPTOR_FIRST] = -1;
    if (--file->descriptors)
        return 0;
    watches_drop((int)(file - kernel.file));
    if (file->kind == FILE_SOCKET)
        fake_socket_closed(&file->socket);
    if (file->pipe)
        fake_pipe_closed(file->pipe);
    return 0;
}

/* ---- epoll ---- */

static uint32_t file_poll(struct file *file)
{
    if (file->kind == FILE_SOCKET)
        return fake_socket_poll(&file->socket);
    return file->event_count ? EPOLLIN | EPOLLOUT : EPOLLOUT;
}

static void wake(int file, uint32_t mask)
{
    for (unsigned i = 0; i < kernel.watches; i++) {
        struct watch *watch = &kernel.watch[i];
        if (watch->fd >= 0 && watch->file == file && (!mask || mask & watch->interest))
            list_append(&kernel.ready, &watch->ready);
    }
}

void fake_wake(int fd, uint32_t mask)
{
    wake(fd - FAKE_DESCRIPTOR_FIRST, mask); /* a socket's first descriptor has the number of its file */
}

int sys_eventfd_signal(int fd)
{
    int err = fake_called(CALL_eventfd_signal);
    struct file *file = file_of(fd, "eventfd_signal");

    if (err || !file)
        return err ? err : -EBADF;
    file->event_count++;
    wake((int)(file - kernel.file), EPOLLIN);
    return 0;
}

int sys_socket_signal(int fd)
{
    return sys_eventfd_signal(fd);
}

static struct watch *watch_find(int epoll, int fd)
{
    for (unsigned i = 0; i < kernel.watches; i++) {
        if (kernel.watch[i].fd == fd && kernel.watch[i].epoll == epoll)
            return &kernel.watch[i];
    }
    return NULL;
}

static struct watch *watch_new(int epoll, int fd, int file)
{
    for (unsigned i = 0; i < kernel.watches; i++) {
        if (kernel.watch[i].fd < 0) {
            kernel.watch[i] = (struct watch){.epoll = epoll, .fd = fd, .file = file};
            return &kernel.watch[i];
        }
    }
    struct watch *watch = &kernel.watch[kernel.watches++];
    *watch = (struct watch){.epoll = epoll, .fd = fd, .file = file};
    return watch;
}

int sys_epoll_ctl(int epoll_fd, int op, int fd, uint32_t events, uint64_t data)
{
    int err = fake_called(CALL_epoll_ctl);
    struct file *file = file_of(fd, "epoll_ctl");
    struct watch *watch = watch_find(epoll_fd, fd);

    if (err || !file)
        return err ? err : -EBADF;
    if (op == EPOLL_CTL_ADD ? watch != NULL : !watch)
        return op == EPOLL_CTL_ADD ? -EEXIST : -ENOENT;
    if (op == EPOLL_CTL_DEL) {
        node_leave(&watch->ready);
        watch->fd = -1;
        return 0;
    }
    if (!watch)
        watch = watch_new(epoll_fd, fd, (int)(file - kernel.file));
    watch->interest = events | EPOLLHUP | EPOLLERR;
    watch->data = data;
    if (file_poll(file) & watch->interest)
        list_append(&kernel.ready, &watch->ready);
    return 0;
}

int sys_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms)
{
    struct list again;
    struct node *node;
    int n = 0, err = fake_called(CALL_epoll_wait);

    (void)timeout_ms; /* whoever runs the loop moves the clock */
    if (err)
        return err;
    list_init(&again);
    while ((node = list_pop(&kernel.ready))) {
        struct watch *watch = container_of(node, struct watch, ready);
        if (watch->epoll != epoll_fd || n == max) {
            list_append(&again, &watch->ready);
            continue;
        }
        uint32_t mask = file_poll(&kernel.file[watch->file]) & watch->interest;
        if (!mask)
            continue;
        events[n++] = (struct epoll_event){.events = mask, .data.u64 = watch->data};
        if (!(watch->interest & EPOLLET))
            list_append(&again, &watch->ready);
    }
    list_move(&again, &kernel.ready);
    return n;
}

int fake_epoll_wait_one(int epoll_fd, uint32_t *ret_events, uint64_t *ret_data)
{
    struct epoll_event event;
    int n = sys_epoll_wait(epoll_fd, &event, 1, 0);

    if (n == 1) {
        *ret_events = event.events;
        *ret_data = event.data.u64;
    }
    return n;
}
