/* SPDX-License-Identifier: Apache-2.0
 *
 * isolation.c: makes the worker process and takes away what it will not need; the same for control and for a program
 * that is run beside us, and the few calls that the single-threaded keeper cannot make from Python.
 *
 * Called by plugin/launch.py, plugin/start.py, plugin/keeper.py, plugin/gateway/ssh/ssh_spawner.py and, in the child,
 * plugin/control.py and plugin/namespace/agent.py. Off the path of frames, so that it calls the kernel itself and not
 * through sys.h.
 *
 * Adversary: the guest, once it has broken the worker. What is done here is all that then stands between it and the
 * host, so that each layer is put on before the first byte of the guest is read, and a layer that the machine refuses
 * is reported by name and never passed over in silence.
 *
 * Invariants: the child never returns to Python (its interpreter is a copy whose locks and objects nobody repaired);
 * after isolate() it holds the descriptors of its configuration, 0 to 2, and no others.
 */
#include "datapath.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

/* The uid and gid that the worker sees as its own: nobody's, since a mapped 0 would only invite mistakes. */
#define INNER_ID 65534u

static const char *const layer_names[LG_LAYER_COUNT] = {
    [LG_LAYER_USER] = "user namespace",     [LG_LAYER_NAMESPACES] = "mount, PID, IPC and UTS namespaces",
    [LG_LAYER_ROOT] = "empty root",         [LG_LAYER_CAPABILITIES] = "dropping capabilities",
    [LG_LAYER_PRIVILEGES] = "no_new_privs",
};

const char *lg_layer_name(unsigned layer)
{
    return layer < LG_LAYER_COUNT ? layer_names[layer] : NULL;
}

/* ---- what both children lose ---- */

/* All but those in `keep`, a set of bits below 32. Returns 0, or the errno of the step that left a capability behind. */
static int drop_capabilities(uint32_t keep)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{.permitted = keep, .effective = keep}};

    /* The bounding set and the securebits need CAP_SETPCAP. A process that has not got it has nothing to drop either,
     * and no_new_privs keeps it from gaining any: so a refusal here is no layer missing. The list is as long as the
     * kernel can read it; a refused drop does not tell where it ends. */
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    prctl(PR_SET_SECUREBITS,
          SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
              SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED,
          0, 0, 0);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return syscall(SYS_capset, &header, data) < 0 ? errno : 0;
}

/* The parent-death signal is set last: the kernel clears it when credentials change (prctl(2)). */
static int give_up_privileges(void)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return errno;
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    return 0;
}

/* Signals that end a group of processes are the keeper's to act on; a child that obeyed them by itself would look as
 * if it had crashed. It ends at EOF on its channel, and by SIGKILL when the keeper dies. */
static void leave_signals_to_keeper(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGQUIT);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_SETMASK, &set, NULL);
}

/* ---- the worker ---- */

static int compare_fds(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* close_range(2) where it exists; a kernel or a container's filter that does not know it gets one close() at a time. */
static void close_between(unsigned first, unsigned last)
{
    struct rlimit limit;

    if (first > last || syscall(SYS_close_range, first, last, 0) == 0)
        return;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur <= last)
        last = (unsigned)limit.rlim_cur;
    for (unsigned fd = first; fd <= last; fd++)
        close((int)fd);
}

static void close_all_but(int *keep, size_t count)
{
    unsigned next = 3;

    qsort(keep, count, sizeof(*keep), compare_fds);
    for (size_t i = 0; i < count; i++) {
        if (keep[i] < (int)next)
            continue; /* -1: not configured; or one of 0 to 2 */
        close_between(next, (unsigned)keep[i] - 1);
        next = (unsigned)keep[i] + 1;
    }
    close_between(next, ~0u);
}

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t n;
    int error;

    if (fd < 0)
        return errno;
    n = write(fd, text, strlen(text));
    error = n < 0 ? errno : 0;
    close(fd);
    return error;
}

/* user_namespaces(7): without a capability outside, a process may map one id, its own, and its gid only once
 * setgroups() is given up. /proc/self belongs to root while the process is not dumpable, which it is not after the
 * keeper's setuid: hence dumpable for these three writes. */
static int map_ids(uid_t uid, gid_t gid)
{
    char line[64];
    int error;

    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    error = write_file("/proc/self/setgroups", "deny");
    if (error && error != ENOENT)
        return error;
    snprintf(line, sizeof(line), "%u %u 1\n", INNER_ID, (unsigned)uid);
    error = write_file("/proc/self/uid_map", line);
    if (error)
        return error;
    snprintf(line, sizeof(line), "%u %u 1\n", INNER_ID, (unsigned)gid);
    return write_file("/proc/self/gid_map", line);
}

/* Replaces the root by an empty tmpfs. pivot_root(".", ".") stacks the old root over the new one (pivot_root(2),
 * NOTES), so that one unmount leaves nothing of the host. /proc serves as the place to mount on since it is there in
 * any container. An initramfs root cannot be pivoted: there the new root is moved over it, which a process without
 * capabilities and descriptors outside cannot undo either. */
static int enter_empty_root(void)
{
    if (mount("", "/", "", MS_PRIVATE | MS_REC, NULL) < 0 ||
        mount("tmpfs", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0555,size=4k") < 0 ||
        chdir("/proc") < 0)
        return errno;
    if (syscall(SYS_pivot_root, ".", ".") == 0) {
        if (umount2(".", MNT_DETACH) < 0)
            return errno;
    } else if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0) {
        return errno;
    }
    return chdir("/") < 0 ? errno : 0;
}

struct birth {
    const struct lg_worker_config *config;
    const char *name;
    int stderr_fd;
    uid_t uid;
    gid_t gid;
    struct lg_isolation report;
};

/* A sandbox without /dev has none; nothing can be read of the end of a pipe that nobody writes, nor written to it. */
static int open_null(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC), ends[2];

    if (fd >= 0 || pipe2(ends, O_CLOEXEC) < 0)
        return fd;
    close(ends[1]);
    return ends[0];
}

/* Standard streams are /dev/null, so that no pipe of the caller is held open by us; stderr_fd 2 leaves the third for
 * what a sanitizer has to say. */
static void silence_streams(int stderr_fd)
{
    int fd = open_null();

    if (fd < 0)
        return;
    for (int stream = 0; stream <= 2; stream++)
        if (stream != stderr_fd)
            dup2(fd, stream);
    if (fd > 2)
        close(fd);
}

static void isolate(struct birth *birth)
{
    const struct lg_worker_config *config = birth->config;
    int32_t *error = birth->report.error;
    int keep[] = {config->cmd_fd,      config->up_fd,   config->keeper_fd,
                  config->counters_fd, config->pcap_fd, config->pcap_event_fd};

    prctl(PR_SET_NAME, birth->name, 0, 0, 0);
    leave_signals_to_keeper();
    silence_streams(birth->stderr_fd);
    close_all_but(keep, sizeof(keep) / sizeof(keep[0]));
    if (!error[LG_LAYER_USER])
        error[LG_LAYER_USER] = map_ids(birth->uid, birth->gid);
    error[LG_LAYER_ROOT] = error[LG_LAYER_NAMESPACES] ? error[LG_LAYER_NAMESPACES] : enter_empty_root();
    error[LG_LAYER_CAPABILITIES] = drop_capabilities(0);
    error[LG_LAYER_PRIVILEGES] = give_up_privileges();
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 && !error[LG_LAYER_PRIVILEGES])
        error[LG_LAYER_PRIVILEGES] = errno;
}

static _Noreturn void worker_life(struct birth *birth)
{
    int result;

    isolate(birth);
    birth->report.kind = LG_KEEPER_ISOLATION;
    if (send(birth->config->keeper_fd, &birth->report, sizeof(birth->report), MSG_NOSIGNAL) < 0)
        _exit(errno); /* the keeper is gone */
    result = lg_worker_run(birth->config);
    _exit(result < 0 && result >= -255 ? -result : result != 0);
}

/* A bare clone() with the meaning of fork(). The library's fork() would run at-fork handlers for locks that a single
 * thread does not hold, and knows no flags; unshare() would move the keeper itself, and works once. */
static pid_t clone_process(unsigned long flags)
{
    return (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
}

int lg_worker_spawn(const struct lg_worker_config *config, const char *name, int stderr_fd)
{
    const unsigned long namespaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS;
    struct birth birth = {.config = config, .name = name, .stderr_fd = stderr_fd, .uid = geteuid(), .gid = getegid()};
    int32_t *error = birth.report.error;
    pid_t pid = clone_process(CLONE_NEWUSER | namespaces);

    if (pid < 0) {
        /* Root in a container that forbids nested user namespaces may still be allowed the others. */
        error[LG_LAYER_USER] = errno;
        pid = clone_process(namespaces);
    }
    if (pid < 0) {
        error[LG_LAYER_NAMESPACES] = errno;
        pid = clone_process(0);
    }
    if (pid == 0)
        worker_life(&birth);
    return pid < 0 ? -errno : pid;
}

/* ---- control and the keeper ---- */

int lg_control_confine(const char *name)
{
    int error;

    prctl(PR_SET_NAME, name, 0, 0, 0);
    leave_signals_to_keeper();
    error = drop_capabilities(0);
    if (!error)
        error = give_up_privileges();
    return -error;
}

/* ---- a program that the keeper runs ---- */

/* What a mask, and Python, would hand on through exec. What the caller wants ignored (nohup) stays so. */
static void restore_signals(void)
{
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigset_t none;

    sigaction(SIGPIPE, &standard, NULL);
    sigaction(SIGXFSZ, &standard, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void program_life(const struct lg_program *program, pid_t parent)
{
    int keep[] = {-1}, error = 0;

    silence_streams(2);
    if (dup2(program->error_fd, 2) < 0)
        _exit(127);
    close_all_but(keep, 1);
    setsid(); /* it has no terminal to ask at */
    restore_signals();
    if (chdir(program->folder) < 0)
        error = errno;
    if (!error)
        error = drop_capabilities(0);
    if (!error)
        error = give_up_privileges();
    if (getppid() != parent)
        _exit(127); /* which died before its death would have been ours */
    if (!error) {
        execve(program->file, program->arguments, program->environment);
        error = errno;
    }
    dprintf(2, "%s: %s\n", program->file, strerror(error));
    _exit(127);
}

int lg_program_spawn(const struct lg_program *program)
{
    pid_t parent = getpid(), pid = clone_process(0);

    if (pid == 0)
        program_life(program, parent);
    return pid < 0 ? -errno : pid;
}

/* ---- pasta's agent ---- */

int lg_namespace_enter(int fd, int network)
{
    return setns(fd, network ? CLONE_NEWNET : CLONE_NEWUSER) < 0 ? -errno : 0;
}

int lg_agent_confine(const char *name)
{
    int error;

    prctl(PR_SET_NAME, name, 0, 0, 0);
    leave_signals_to_keeper();
    /* Where the machine refuses one of these, what is left of the host is its files, as the caller sees them. */
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) == 0)
        enter_empty_root();
    error = chdir("/") < 0 ? errno : drop_capabilities(1u << CAP_NET_ADMIN | 1u << CAP_NET_BIND_SERVICE);
    if (!error)
        error = give_up_privileges();
    if (!error && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        error = errno;
    return -error;
}

int lg_become(unsigned uid, unsigned gid, unsigned keep)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};

    /* Else the kernel drops all of them with the last uid of 0 (capabilities(7)). */
    if (keep && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
        return -errno;
    if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
        return -errno;
    if (!keep)
        return 0;
    data[0].permitted = data[0].effective =
        (keep & LG_KEEP_PORTS ? 1u << CAP_NET_BIND_SERVICE : 0) | (keep & LG_KEEP_KILL ? 1u << CAP_KILL : 0);
    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

int lg_process_name(const char *name)
{
    return prctl(PR_SET_NAME, name, 0, 0, 0) < 0 ? -errno : 0;
}

/* "Ignored" is the caller's wish (nohup) and stays. */
static bool may_take(int number)
{
    struct sigaction now;

    return sigaction(number, NULL, &now) == 0 && now.sa_handler != SIG_IGN;
}

int lg_signals_open(int terminal)
{
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigset_t set;
    int fd;

    if (may_take(SIGINT)) /* Python's handler would raise an exception */
        sigaction(SIGINT, &standard, NULL);
    /* A caller that ignores SIGCHLD hands that on through exec, and the kernel would reap our children for us. */
    sigaction(SIGCHLD, &standard, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGQUIT);
    sigaddset(&set, SIGCHLD);
    if (terminal >= LG_SIGNALS_INTERRUPT && may_take(SIGINT))
        sigaddset(&set, SIGINT);
    if (terminal >= LG_SIGNALS_HANGUP && may_take(SIGHUP))
        sigaddset(&set, SIGHUP);
    fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    return sigprocmask(SIG_SETMASK, &set, NULL) < 0 ? -errno : fd;
}

int lg_close_all_but(const int *keep, unsigned count)
{
    int *sorted = malloc((count ? count : 1) * sizeof(*sorted));

    if (!sorted)
        return -ENOMEM;
    memcpy(sorted, keep, count * sizeof(*keep));
    close_all_but(sorted, count);
    free(sorted);
    return 0;
}

void lg_release_memory(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
