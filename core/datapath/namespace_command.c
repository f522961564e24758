/* SPDX-License-Identifier: Apache-2.0
 *
 * namespace_command.c: the process that new namespaces are made for, from its birth in them to the command that it
 * becomes.
 *
 * Called by plugin/namespace/new_namespace.py. Off the path of frames, so that it calls the kernel itself and not through sys.h.
 * Adversary: nobody; the command has the rights of whoever started us, as it would have without us.
 *
 * Invariants: the child never returns to Python; it becomes the command only when it is let go, and ends if whoever
 * could do that has ended. What the command inherits is what our caller gave to us, but for the descriptors above 2.
 */
#include "datapath.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), error = 0;

    if (fd < 0)
        return errno;
    if (write(fd, text, strlen(text)) < 0)
        error = errno;
    close(fd);
    return error;
}

/* user_namespaces(7): whoever has no rights outside may map one user, the one that they are, and one group once
 * setgroups() is given up. Then we are root of the namespace, with every right in it. */
static int become_root(uid_t uid, gid_t gid)
{
    char line[64];
    int error;

    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* else the files are root's */
    error = write_text("/proc/self/setgroups", "deny");
    if (error && error != ENOENT)
        return error;
    snprintf(line, sizeof(line), "0 %u 1\n", (unsigned)uid);
    error = write_text("/proc/self/uid_map", line);
    if (error)
        return error;
    snprintf(line, sizeof(line), "0 %u 1\n", (unsigned)gid);
    error = write_text("/proc/self/gid_map", line);
    if (error)
        return error;
    return setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0 ? errno : 0;
}

/* What is mounted here is not seen outside; what is mounted there later is seen here. A /proc that something hides
 * parts of may not be mounted anew: the errno is for a warning. */
static int mount_proc(void)
{
    if (mount("", "/", "", MS_SLAVE | MS_REC, NULL) < 0)
        return errno;
    return mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0 ? errno : 0;
}

static void report(const struct lg_command *command, int32_t step, int32_t error)
{
    struct lg_command_report told = {.step = step, .error = error};

    send(command->channel, &told, sizeof(told), MSG_NOSIGNAL);
}

/* Python ignores two signals, and handles a third. */
static void restore_signals(void)
{
    struct sigaction now, standard = {.sa_handler = SIG_DFL};

    sigaction(SIGPIPE, &standard, NULL);
    sigaction(SIGXFSZ, &standard, NULL);
    if (sigaction(SIGINT, NULL, &now) == 0 && now.sa_handler != SIG_IGN)
        sigaction(SIGINT, &standard, NULL);
}

static void restore_descriptor_limit(uint64_t soft)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && soft < limit.rlim_cur) {
        limit.rlim_cur = soft;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static _Noreturn void command_life(const struct lg_command *command, uid_t uid, gid_t gid)
{
    int error = 0;
    ssize_t n;
    char word;

    lg_close_all_but(&command->channel, 1);
    if (command->flags & LG_COMMAND_USER)
        error = become_root(uid, gid);
    if (error) {
        report(command, LG_COMMAND_MAPPED, error);
        _exit(1);
    }
    if (command->flags & LG_COMMAND_PID)
        error = mount_proc();
    sethostname(command->hostname, strlen(command->hostname));
    write_text("/proc/sys/net/ipv4/ping_group_range", "0 0");
    restore_signals();
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    report(command, LG_COMMAND_BORN, error);
    do
        n = read(command->channel, &word, 1);
    while (n < 0 && errno == EINTR);
    if (n != 1)
        _exit(1); /* whoever wanted a command has ended */
    restore_descriptor_limit(command->descriptors);
    execvp(command->file, command->arguments);
    report(command, LG_COMMAND_BECAME, errno);
    _exit(1);
}

int lg_command_spawn(const struct lg_command *command)
{
    const unsigned long flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD |
                                (command->flags & LG_COMMAND_USER ? CLONE_NEWUSER : 0) |
                                (command->flags & LG_COMMAND_PID ? CLONE_NEWPID : 0);
    uid_t uid = geteuid();
    gid_t gid = getegid();
    pid_t pid = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);

    if (pid == 0)
        command_life(command, uid, gid);
    return pid < 0 ? -errno : pid;
}
