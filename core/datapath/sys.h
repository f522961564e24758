/* SPDX-License-Identifier: Apache-2.0
 *
 * sys.h: every system call of the data path.
 *
 * In production each function is the call itself, inlined. Built with LG_FAKE_SYS, the functions are only declared, and
 * tests/script/ supplies a kernel of its own, whose behaviour a table of facts holds to the real one. Nothing else in
 * this folder may call the kernel on the path of a frame.
 *
 * Results are the kernel's, with errors as negative errno, so that no caller depends on a thread-local errno.
 */
#ifndef LOCKGATE_SYS_H
#define LOCKGATE_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef LG_FAKE_SYS

uint64_t sys_monotonic_ns(void);
uint64_t sys_realtime_ns(void);
int sys_socket(int family, int type, int protocol);
int sys_bind(int fd, const struct sockaddr *addr, socklen_t length);
int sys_connect(int fd, const struct sockaddr *addr, socklen_t length);
int sys_accept(int fd, struct sockaddr *addr, socklen_t *length); /* non-blocking and close-on-exec */
int sys_setsockopt(int fd, int level, int name, const void *value, socklen_t length);
int sys_getsockopt(int fd, int level, int name, void *value, socklen_t *length);
ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags);
int sys_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
int sys_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
ssize_t sys_discard(int fd, size_t length);
ssize_t sys_read(int fd, void *bytes, size_t length);
ssize_t sys_write(int fd, const void *bytes, size_t length);
int sys_getsockname(int fd, struct sockaddr *addr, socklen_t *length);
int sys_getpeername(int fd, struct sockaddr *addr, socklen_t *length);
int sys_pipe(int fd[2], unsigned bytes); /* non-blocking and close-on-exec; as large as that if it may be */
ssize_t sys_splice(int from, int to, size_t length);
int sys_shutdown(int fd, int how);
int sys_close(int fd);
int sys_epoll_ctl(int epoll_fd, int op, int fd, uint32_t events, uint64_t data);
int sys_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms);
int sys_eventfd_signal(int fd);
int sys_socket_signal(int fd);

#else

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t sys_clock_ns(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts); /* the vDSO: no system call */
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t sys_monotonic_ns(void)
{
    return sys_clock_ns(CLOCK_MONOTONIC);
}

/* Less than a second. It may end earlier, by a signal, or later, by the kernel's timer slack. */
static inline void sys_sleep_ns(uint64_t ns)
{
    struct timespec length = {.tv_nsec = (long)ns};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &length, NULL);
}

static inline uint64_t sys_realtime_ns(void)
{
    return sys_clock_ns(CLOCK_REALTIME);
}

static inline int sys_socket(int family, int type, int protocol)
{
    int fd = socket(family, type, protocol);
    return fd < 0 ? -errno : fd;
}

static inline int sys_bind(int fd, const struct sockaddr *addr, socklen_t length)
{
    return bind(fd, addr, length) < 0 ? -errno : 0;
}

static inline int sys_connect(int fd, const struct sockaddr *addr, socklen_t length)
{
    return connect(fd, addr, length) < 0 ? -errno : 0;
}

static inline int sys_accept(int fd, struct sockaddr *addr, socklen_t *length)
{
    int accepted = accept4(fd, addr, length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return accepted < 0 ? -errno : accepted;
}

static inline int sys_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    return setsockopt(fd, level, name, value, length) < 0 ? -errno : 0;
}

static inline int sys_getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    return getsockopt(fd, level, name, value, length) < 0 ? -errno : 0;
}

static inline ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags)
{
    ssize_t n = recvmsg(fd, msg, flags);
    return n < 0 ? -errno : n;
}

static inline ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    ssize_t n = sendmsg(fd, msg, flags);
    return n < 0 ? -errno : n;
}

/* How many messages; with an error only if there was none. */
static inline int sys_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    int n = recvmmsg(fd, messages, count, flags, NULL);
    return n < 0 ? -errno : n;
}

static inline int sys_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    int n = sendmmsg(fd, messages, count, flags);
    return n < 0 ? -errno : n;
}

/* Drops bytes from the head of a TCP receive queue; MSG_TRUNC makes the kernel skip the copy (tcp(7)). */
static inline ssize_t sys_discard(int fd, size_t length)
{
    ssize_t n = recv(fd, NULL, length, MSG_TRUNC | MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

/* Of a tap device: one frame. */
static inline ssize_t sys_read(int fd, void *bytes, size_t length)
{
    ssize_t n = read(fd, bytes, length);
    return n < 0 ? -errno : n;
}

static inline ssize_t sys_write(int fd, const void *bytes, size_t length)
{
    ssize_t n = write(fd, bytes, length);
    return n < 0 ? -errno : n;
}

static inline int sys_getsockname(int fd, struct sockaddr *addr, socklen_t *length)
{
    return getsockname(fd, addr, length) < 0 ? -errno : 0;
}

static inline int sys_getpeername(int fd, struct sockaddr *addr, socklen_t *length)
{
    return getpeername(fd, addr, length) < 0 ? -errno : 0;
}

static inline int sys_pipe(int fd[2], unsigned bytes)
{
    if (pipe2(fd, O_NONBLOCK | O_CLOEXEC) < 0)
        return -errno;
    fcntl(fd[1], F_SETPIPE_SZ, bytes); /* refused: it has what the kernel gives by itself */
    return 0;
}

/* Bytes between a socket and a pipe, by reference. */
static inline ssize_t sys_splice(int from, int to, size_t length)
{
    ssize_t n = splice(from, NULL, to, NULL, length, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    return n < 0 ? -errno : n;
}

static inline int sys_shutdown(int fd, int how)
{
    return shutdown(fd, how) < 0 ? -errno : 0;
}

static inline int sys_close(int fd)
{
    return close(fd) < 0 ? -errno : 0;
}

static inline int sys_epoll_ctl(int epoll_fd, int op, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(epoll_fd, op, fd, &event) < 0 ? -errno : 0;
}

static inline int sys_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms)
{
    int n = epoll_wait(epoll_fd, events, max, timeout_ms);
    return n < 0 ? -errno : n;
}

static inline int sys_eventfd_signal(int fd)
{
    uint64_t one = 1;
    return write(fd, &one, sizeof(one)) < 0 ? -errno : 0;
}

/* The same for a socket, which User-mode Linux has in an eventfd's place. A full one has been signalled often enough. */
static inline int sys_socket_signal(int fd)
{
    uint64_t one = 1;
    return send(fd, &one, sizeof(one), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

#endif
#endif
