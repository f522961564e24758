/* SPDX-License-Identifier: Apache-2.0
 *
 * repair.c: the command passt-repair. It switches TCP sockets to repair mode and back for a helper that may not do so
 * itself, when a guest moves to another host with its connections (TCP_REPAIR needs CAP_NET_ADMIN).
 *
 * Started by whoever migrates a guest, by root or with that capability in its file; PATH is the socket that the helper
 * listens on, or a folder in which a socket whose name ends in ".repair" is waited for. Each message from it is one byte,
 * the mode as in linux/tcp.h, and up to 253 sockets; the byte goes back when all of them are in that mode. Exit status 0
 * when the helper closes the connection.
 *
 * Adversary: the helper, once its guest has broken it. It can have this one socket option set, on sockets that it has
 * already; whatever else it sends ends this program. All other rights are given up before its first word is read.
 */
#include <dirent.h>
#include <errno.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    SOCKETS_MAX = 253, /* SCM_MAX_FD, unix(7) */
    MODE_LEAST = -1,   /* TCP_REPAIR_OFF_NO_WP, TCP_REPAIR_OFF, TCP_REPAIR_ON */
    MODE_MOST = 1,
    LISTEN_TRIES = 100, /* a socket has a name a little earlier than it listens */
    LISTEN_WAIT_US = 10000,
    EXIT_USAGE = 2,
};

static const char suffix[] = ".repair";

static bool ends_in_suffix(const char *name)
{
    size_t length = strlen(name), end = sizeof(suffix) - 1;

    return length > end && !strcmp(name + length - end, suffix);
}

/* A connection, or a negative errno. */
static int connect_to(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(addr.sun_path))
        return -ENAMETOOLONG;
    strcpy(addr.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (!connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
        return fd;
    int err = errno;
    close(fd);
    return -err;
}

/* Of the names in the folder, the first that somebody listens at; or a negative errno. */
static int connect_to_any(const char *folder)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    DIR *names = opendir(folder);
    int fd = -ENOENT;

    if (!names)
        return -errno;
    for (struct dirent *entry; fd < 0 && (entry = readdir(names));) {
        int length = snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        if (ends_in_suffix(entry->d_name) && length > 0 && (size_t)length < sizeof(path))
            fd = connect_to(path);
    }
    closedir(names);
    return fd;
}

/* Waits until one appears. The watch comes before the first look, so that none appears in between. */
static int wait_in(const char *folder)
{
    char events[4096];
    int watch = inotify_init1(IN_CLOEXEC), fd;

    if (watch < 0 || inotify_add_watch(watch, folder, IN_CREATE | IN_MOVED_TO) < 0)
        return -errno;
    while ((fd = connect_to_any(folder)) < 0) {
        if (read(watch, events, sizeof(events)) <= 0)
            return -errno;
        for (int tries = 0; tries < LISTEN_TRIES && (fd = connect_to_any(folder)) == -ECONNREFUSED; tries++)
            usleep(LISTEN_WAIT_US);
        if (fd >= 0)
            break;
    }
    close(watch);
    return fd;
}

/* What is left: the one capability, if it was there, and no way to any other. */
static void give_up_rights(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};

    data[CAP_TO_INDEX(CAP_NET_ADMIN)].effective = CAP_TO_MASK(CAP_NET_ADMIN);
    data[CAP_TO_INDEX(CAP_NET_ADMIN)].permitted = CAP_TO_MASK(CAP_NET_ADMIN);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    syscall(SYS_capset, &header, data); /* refused where it was not there: then the socket option will be */
}

/* Sets the mode of all sockets that came with a message, and closes them. 0 or an errno. */
static int switch_sockets(struct msghdr *message, int mode, unsigned *ret_count)
{
    int err = 0;

    *ret_count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        unsigned there = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (unsigned i = 0; i < there; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (!err && setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &mode, sizeof(mode)))
                err = errno;
            close(fd);
            (*ret_count)++;
        }
    }
    return err;
}

static int serve(int fd)
{
    union {
        char bytes[CMSG_SPACE(SOCKETS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    signed char word;
    struct iovec iov = {.iov_base = &word, .iov_len = 1};

    for (;;) {
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
        ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
        unsigned count;

        if (n <= 0) {
            if (n < 0)
                perror("passt-repair: the helper cannot be heard");
            return n < 0;
        }
        int err = switch_sockets(&message, word, &count);
        if (word < MODE_LEAST || word > MODE_MOST || !count || message.msg_flags & MSG_CTRUNC) {
            fprintf(stderr, "passt-repair: mode %d with %u sockets: -1 to 1 and at least one are expected\n", word,
                    count);
            return 1;
        }
        if (err) {
            fprintf(stderr, "passt-repair: mode %d: %s (CAP_NET_ADMIN is needed, and TCP sockets)\n", word,
                    strerror(err));
            return 1;
        }
        if (send(fd, &word, 1, MSG_NOSIGNAL) != 1) {
            perror("passt-repair: the helper cannot be answered");
            return 1;
        }
    }
}

int main(int argc, char **argv)
{
    struct stat status;

    if (argc != 2) {
        fprintf(stderr, "Usage: passt-repair PATH\n");
        return EXIT_USAGE;
    }
    if (stat(argv[1], &status)) {
        fprintf(stderr, "passt-repair: %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    if (!S_ISSOCK(status.st_mode) && !S_ISDIR(status.st_mode)) {
        fprintf(stderr, "passt-repair: %s is neither a socket nor a folder\n", argv[1]);
        return EXIT_USAGE;
    }
    int fd = S_ISDIR(status.st_mode) ? wait_in(argv[1]) : connect_to(argv[1]);
    if (fd < 0) {
        fprintf(stderr, "passt-repair: %s cannot be connected to: %s\n", argv[1], strerror(-fd));
        return 1;
    }
    give_up_rights();
    return serve(fd);
}
