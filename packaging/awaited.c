/* SPDX-License-Identifier: Apache-2.0
 *
 * awaited.c: what `podman machine` waits for when it starts gvproxy, opened before Python starts: log, port, PID file,
 * and at last the link's socket.
 *
 * Called by launcher.c with the caller's rights. Podman looks for the socket's file at once, and then not for half a
 * second: this takes a millisecond, and is sometimes in time for that first look. Python takes 5 ms to start and as much
 * again to get here; who connects meanwhile waits in the backlog, as he does while the rest is made. Adversary: nobody;
 * other users at worst, who may put something in a file's place.
 *
 * Only the flags of Podman 5 are known here, and only where nothing is in the way: words that need no more than a look.
 * With any other, or if one step fails, what was done is undone, and Python goes through all of it
 * (plugin/contracts/gvproxy.py, plugin/gateway/awaited.py), with the contract's words for what is wrong. So nothing here
 * says anything, and Python checks again what is open.
 * Podman 4 removes the file at the link's path after it has started us: who is too fast loses. It names a PID file and
 * no log file; that is left to Python, too.
 *
 * Invariants: as in awaited.py, the link's socket comes last: its file means that everything else is there. What is
 * removed is what was made here, and nothing that somebody has put in its place.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "awaited.h"

enum {
    SSH_PORT_DEFAULT = 2222, /* the three ranges are contracts/gvproxy.py's */
    SSH_PORT_LEAST = 1024,
    PORT_MAX = 65535,
    MTU_LEAST = 68,
    MTU_MOST = 65535 - 14,
    LINK_BACKLOG = 4096, /* gateway/places.py */
    PORT_BACKLOG = 128,  /* forwards.py */
    SOCKET_PATH_SIZE = sizeof(((struct sockaddr_un *)0)->sun_path),
};

enum flag {
    DEBUG,
    LINK,
    LOG_FILE,
    PID_FILE,
    MTU,
    SSH_PORT,
    SOCK,
    DEST,
    USER,
    IDENTITY,
    FLAGS
};

static const char *const names[FLAGS] = {
    [DEBUG] = "debug",       [LINK] = "listen-qemu",          [LOG_FILE] = "log-file", [PID_FILE] = "pid-file",
    [MTU] = "mtu",           [SSH_PORT] = "ssh-port",         [SOCK] = "forward-sock", [DEST] = "forward-dest",
    [USER] = "forward-user", [IDENTITY] = "forward-identity",
};

struct request {
    const char *link, *log_file, *pid_file; /* paths; without a log file, lines go to standard error */
    unsigned ssh_port;
    unsigned given[FLAGS]; /* how often */
};

/* ---- the words ---- */

/* A decimal number in that range, or 0. Go takes other ways to write one, and reads what begins with 0 as octal. */
static unsigned number(const char *text, unsigned least, unsigned most)
{
    size_t digits = strspn(text, "0123456789");

    if (digits == 0 || digits > 5 || text[digits] || text[0] == '0')
        return 0;
    unsigned value = (unsigned)strtoul(text, NULL, 10);
    return value >= least && value <= most ? value : 0;
}

/* Of a URL that is a socket's with nothing that would have to be decoded; else NULL. */
static const char *plain_path(const char *url)
{
    static const char scheme[] = "unix://";
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@,=~";
    const char *path = url + sizeof(scheme) - 1;

    if (strncmp(url, scheme, sizeof(scheme) - 1) != 0 || path[0] != '/' || path[strspn(path, plain)])
        return NULL;
    return strlen(path) < SOCKET_PATH_SIZE ? path : NULL;
}

static bool is_there(const char *path)
{
    struct stat there;

    return stat(path, &there) == 0;
}

/* False: this value is for Python to look at. */
static bool take(enum flag flag, const char *value, struct request *request)
{
    request->given[flag]++;
    switch (flag) {
    case LINK:
        return (request->link = plain_path(value)) != NULL;
    case LOG_FILE:
        return *(request->log_file = value) != '\0';
    case PID_FILE:
        return *(request->pid_file = value) != '\0' && strlen(value) < PATH_MAX;
    case MTU:
        return number(value, MTU_LEAST, MTU_MOST) != 0;
    case SSH_PORT:
        return (request->ssh_port = number(value, SSH_PORT_LEAST, PORT_MAX)) != 0;
    case SOCK:
        return value[0] == '/' && strlen(value) < SOCKET_PATH_SIZE;
    case IDENTITY:
        return is_there(value);
    default:
        return true;
    }
}

static enum flag find(const char *name, size_t length)
{
    enum flag flag = 0;

    while (flag < FLAGS && (strlen(names[flag]) != length || memcmp(names[flag], name, length) != 0))
        flag++;
    return flag;
}

/* Of Go's grammar (contracts/goflags.py) what Podman uses, in all of its spellings: one or two dashes, and a value behind
 * = or in the next word. */
static bool read_words(int argc, char **argv, struct request *request)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];

        if (*word++ != '-')
            return false;
        word += *word == '-';
        size_t length = strcspn(word, "=");
        enum flag flag = find(word, length);
        if (flag == FLAGS)
            return false;
        if (flag == DEBUG) {
            if (word[length])
                return false;
            continue;
        }
        const char *value = word[length] ? word + length + 1 : argv[++i]; /* NULL behind the last */
        if (!value || !take(flag, value, request))
            return false;
    }
    const unsigned *given = request->given;
    bool paired = given[SOCK] == given[DEST] && given[DEST] == given[USER] && given[USER] == given[IDENTITY];
    bool podman_4 = request->pid_file && !request->log_file;
    return paired && request->link && !podman_4;
}

/* ---- what they ask for ---- */

struct file {
    const char *path; /* NULL: it was not made */
    dev_t device;
    ino_t inode;
};

struct opened {
    int log, port, link; /* descriptors for the next program, or -1 */
    int pid;             /* not for it: nobody else's file gets this one's number as long as it is open */
    struct file log_file, link_file, pid_file;
};

static void is_this(struct file *file, const char *path, const struct stat *made)
{
    *file = (struct file){path, made->st_dev, made->st_ino};
}

static void remove_file(const struct file *file)
{
    struct stat there;

    if (file->path && lstat(file->path, &there) == 0 && there.st_dev == file->device && there.st_ino == file->inode)
        unlink(file->path);
}

/* A file, and nothing else that can be written to: to open a FIFO is to wait for a reader, who is gone when we close it.
 * Python empties it. */
static bool open_log(const char *path, struct opened *opened)
{
    struct stat there;
    bool is_new = lstat(path, &there) != 0;

    if (!is_new && (stat(path, &there) || !S_ISREG(there.st_mode)))
        return false;
    opened->log = open(path, O_APPEND | O_WRONLY | (is_new ? O_CREAT | O_EXCL : 0), 0666);
    if (opened->log < 0 || fstat(opened->log, &there))
        return false;
    if (is_new)
        is_this(&opened->log_file, path, &there);
    return true;
}

static int bound(int family, const void *where, socklen_t size, int backlog)
{
    static const int on = 1;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    if (!setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) && !bind(fd, where, size) && !listen(fd, backlog))
        return fd;
    close(fd);
    return -1;
}

static bool open_port(unsigned port, struct opened *opened)
{
    struct sockaddr_in where = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    opened->port = bound(AF_INET, &where, sizeof(where), PORT_BACKLOG);
    return opened->port >= 0;
}

/* That listen() fails behind a bind() that has not is unheard of; the file would stay. */
static bool open_link(const char *path, struct opened *opened)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    struct stat made;

    memcpy(where.sun_path, path, strlen(path) + 1); /* fits: plain_path() */
    opened->link = bound(AF_UNIX, &where, sizeof(where), LINK_BACKLOG);
    if (opened->link < 0 || lstat(path, &made))
        return false;
    is_this(&opened->link_file, path, &made);
    return true;
}

/* Never there in part, in the place of what is there: Podman cannot stop a machine whose PID file is anything else. */
static bool write_pid_file(const char *path, struct opened *opened)
{
    char beside[PATH_MAX + 16], digits[16];
    int length = snprintf(digits, sizeof(digits), "%d", (int)getpid());
    struct stat made;

    snprintf(beside, sizeof(beside), "%s.%s", path, digits);
    int fd = open(beside, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0)
        return false;
    opened->pid = fd;
    if (write(fd, digits, (size_t)length) != length || fstat(fd, &made) || rename(beside, path)) {
        unlink(beside);
        return false;
    }
    is_this(&opened->pid_file, path, &made);
    return true;
}

static bool open_all(const struct request *request, struct opened *opened)
{
    return (!request->log_file || open_log(request->log_file, opened)) && open_port(request->ssh_port, opened) &&
           (!request->pid_file || write_pid_file(request->pid_file, opened)) && open_link(request->link, opened);
}

static void close_all(const struct opened *opened)
{
    const int fds[] = {opened->log, opened->port, opened->link, opened->pid};

    for (unsigned i = 0; i < sizeof(fds) / sizeof(*fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static void remove_files(const struct opened *opened)
{
    remove_file(&opened->link_file);
    remove_file(&opened->pid_file);
    remove_file(&opened->log_file);
}

/* ---- who takes it back, should Python not come as far ---- */

/* All but the port stays open until then: so the files' numbers are not given to others. */
static void guard(int helper, const struct opened *opened)
{
    char taken_over;

    close(opened->port);
    if (read(helper, &taken_over, 1) <= 0)
        remove_files(opened);
    _exit(0);
}

/* No child of the helper's, who would have to wait for its end, but of a child's. Nothing ends it before it has heard. */
static bool start_guard(const struct opened *opened, struct awaited *ret)
{
    sigset_t all, before;
    int ends[2], status = 0;

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
        return false;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    pid_t child = fork();
    if (child == 0) {
        close(ends[1]);
        pid_t its = fork();
        if (its == 0)
            guard(ends[0], opened);
        _exit(its < 0);
    }
    if (child > 0 && waitpid(child, &status, 0) < 0)
        status = 0; /* the caller lets the kernel reap our children */
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(ends[0]);
    ret->guard = ends[1];
    if (child > 0 && status == 0)
        return true;
    close(ends[1]);
    return false;
}

void awaited_take_back(const struct awaited *awaited)
{
    char nothing;

    shutdown(awaited->guard, SHUT_WR);
    while (read(awaited->guard, &nothing, 1) < 0) /* until it has ended */
        if (errno != EINTR)
            break;
}

/* ---- all of it ---- */

/* A caller that closed one of 0, 1 and 2 would find our sockets there. */
static bool has_standard_streams(void)
{
    return fcntl(0, F_GETFD) >= 0 && fcntl(1, F_GETFD) >= 0 && fcntl(2, F_GETFD) >= 0;
}

/* The first three end us in order, later. The last would be for a PID file where no file may have a byte: Python ignores
 * it, too. */
static void hold_signals(sigset_t *ret_before)
{
    sigset_t ends;

    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGQUIT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, ret_before);
    signal(SIGXFSZ, SIG_IGN);
}

bool awaited_open(int argc, char **argv, struct awaited *ret)
{
    struct request request = {.ssh_port = SSH_PORT_DEFAULT};
    struct opened opened = {.log = -1, .port = -1, .link = -1, .pid = -1};
    const struct file *link = &opened.link_file, *pid_file = &opened.pid_file;
    sigset_t before;

    if (!has_standard_streams() || !read_words(argc, argv, &request) || is_there(request.link))
        return false;
    hold_signals(&before);
    if (!open_all(&request, &opened) || !start_guard(&opened, ret)) {
        remove_files(&opened);
        close_all(&opened);
        sigprocmask(SIG_SETMASK, &before, NULL);
        return false;
    }
    snprintf(ret->option, sizeof(ret->option), "%s=%d,%d,%d,%d,%llu,%llu,%llu,%llu,%s", AWAITED_OPTION, opened.log,
             opened.port, opened.link, ret->guard, (unsigned long long)link->device, (unsigned long long)link->inode,
             (unsigned long long)pid_file->device, (unsigned long long)pid_file->inode,
             request.pid_file ? request.pid_file : "");
    return true;
}
