/* SPDX-License-Identifier: Apache-2.0
 *
 * awaited.c: what `podman machine` waits for when it starts gvproxy, opened before Python starts: log, port, PID file,
 * and at last the link's socket.
 *
 * Called by launcher.c with the caller's rights. Podman looks for the socket's file at once, and then not for half a
 * second. Python takes 5 ms to start and as much again to get here; who connects meanwhile waits in the backlog, as he
 * does while the rest is made. Adversary: nobody; other users at worst, who may put something in a file's place.
 *
 * Only the flags of Podman 5 are known here, and only where nothing is in the way: words that need no more than a look.
 * With any other, or if one step fails, what was done is undone, and Python goes through all of it
 * (plugin/contracts/gvproxy.py, plugin/gateway/awaited.py), with the contract's words for what is wrong. So nothing here
 * says anything, and Python checks again what is open.
 * Podman 4 removes the file at the link's path after it has started us: who is too fast loses. It names a PID file and
 * no log file; that is left to Python, too.
 *
 * Invariants: as in awaited.py, the link's socket comes last: its file means that everything else is there.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
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

/* Each returns a descriptor for the next program, or -1. */

static int open_log(const char *path)
{
    return open(path, O_CREAT | O_TRUNC | O_APPEND | O_WRONLY, 0666);
}

static int bind_and_listen(int family, const void *where, socklen_t size, int backlog)
{
    static const int on = 1;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);

    if (fd >= 0 && (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) || bind(fd, where, size))) {
        close(fd);
        return -1;
    }
    if (fd >= 0 && listen(fd, backlog)) {
        if (family == AF_UNIX)
            unlink(((const struct sockaddr_un *)where)->sun_path);
        close(fd);
        return -1;
    }
    return fd;
}

static int listen_on_port(unsigned port)
{
    struct sockaddr_in where = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    return bind_and_listen(AF_INET, &where, sizeof(where), PORT_BACKLOG);
}

static int listen_on_path(const char *path)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};

    memcpy(where.sun_path, path, strlen(path) + 1); /* fits: plain_path() */
    return bind_and_listen(AF_UNIX, &where, sizeof(where), LINK_BACKLOG);
}

/* Never there in part, in the place of what is there: Podman cannot stop a machine whose PID file is anything else. */
static bool write_pid_file(const char *path)
{
    char beside[PATH_MAX + 16], digits[16];
    int length = snprintf(digits, sizeof(digits), "%d", (int)getpid());

    snprintf(beside, sizeof(beside), "%s.%s", path, digits);
    int fd = open(beside, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0)
        return false;
    bool written = write(fd, digits, (size_t)length) == length;
    close(fd);
    if (written && rename(beside, path) == 0)
        return true;
    unlink(beside);
    return false;
}

/* A caller that closed one of 0, 1 and 2 would find our sockets there. */
static bool has_standard_streams(void)
{
    return fcntl(0, F_GETFD) >= 0 && fcntl(1, F_GETFD) >= 0 && fcntl(2, F_GETFD) >= 0;
}

static bool open_all(const struct request *request, struct awaited *ret)
{
    int log = request->log_file ? open_log(request->log_file) : -1;
    int port = request->log_file && log < 0 ? -1 : listen_on_port(request->ssh_port);
    bool pid_file = port >= 0 && request->pid_file && write_pid_file(request->pid_file);
    int link = port < 0 || (request->pid_file && !pid_file) ? -1 : listen_on_path(request->link);

    if (link >= 0) {
        ret->link = request->link;
        ret->pid_file = request->pid_file;
        snprintf(ret->option, sizeof(ret->option), "%s=%d,%d,%d,%s", AWAITED_OPTION, log, port, link,
                 request->pid_file ? request->pid_file : "");
        return true;
    }
    if (pid_file)
        unlink(request->pid_file);
    if (port >= 0)
        close(port);
    if (log >= 0)
        close(log);
    return false;
}

bool awaited_open(int argc, char **argv, struct awaited *ret)
{
    struct request request = {.ssh_port = SSH_PORT_DEFAULT};
    sigset_t ends, before;

    if (!has_standard_streams() || !read_words(argc, argv, &request) || is_there(request.link))
        return false;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGQUIT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, &before);
    if (open_all(&request, ret))
        return true;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return false;
}

void awaited_take_back(const struct awaited *awaited)
{
    unlink(awaited->link);
    if (awaited->pid_file)
        unlink(awaited->pid_file);
}
