/* SPDX-License-Identifier: Apache-2.0
 *
 * launcher.c: the commands passt, pasta, gvproxy and lockgate, all four this one program, installed under each name.
 *
 * Called by container runtimes and VM monitors, and replaced by the Python interpreter at once.
 * Adversary: the caller's environment. PYTHONPATH, PYTHONHOME, PYTHONSTARTUP and the like must change nothing, hence -I.
 * Invariants: no descriptor is opened but what awaited.c opens of gvproxy's, and all arguments reach Python as they were
 * typed, behind the name that was typed (Python decides what that name means).
 *
 * Which interpreter: python3 in the folder where this program itself lies (a virtual environment, pip --prefix), else
 * /usr/bin/python3. Where its own folder has the interpreter, the new process gets this program's path as argv[0]: ps
 * then shows the command, and Python, which looks for pyvenv.cfg beside argv[0], still finds the environment. (A script
 * with a #! line would lose to one argument and to `env`; pip's own wrapper does not pass -I and imports `re`.)
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "awaited.h"

#ifndef SYSTEM_PYTHON
#define SYSTEM_PYTHON "/usr/bin/python3"
#endif
#define ARGUMENTS_MAX 65536 /* far above any caller; keeps the list on the stack, within its usual 8 MiB */

/* Our own modules come from one file where there is one for this Python's bytecode (plugin/module_pack.py), which must
 * lie beside the modules themselves: it would lead to another version of them. One that cannot be read is as none. Its
 * beginning has no name here any more when that is over: it would stay in memory for as long as the helper lives.
 *
 * Python's `site` is left out (-S): it costs 1.5 ms of the 16 until we are ready, and 0.7 MB. Where it would have led to,
 * in a virtual environment and in a distribution, is said here; should that be wrong, as with an editable install, it is
 * loaded after all; should it not be enough (a module that pip has put elsewhere), the first import that fails does so.
 * Both go by sys.executable, for which Python takes PYTHONEXECUTABLE or __PYVENV_LAUNCHER__ even with -I.
 *
 * The collector is off from the first import on: nothing here makes cycles worth collecting; control turns it on again.
 * An interrupt (^C) ends us without a word until launch.py can take back what has been made. Python itself would not
 * take one well while it starts: until our code runs, it is held back. Whoever holds it back on our behalf goes on so.
 */
#define HEAR_INTERRUPTS                                                    \
    "import _signal\n"                                                     \
    "if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:\n" \
    "    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)\n"                \
    "_signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))\n"
static const char entry[] = HEAR_INTERRUPTS
    "import gc, marshal, posix, sys\n"
    "from _frozen_importlib_external import MAGIC_NUMBER\n"
    "gc.disable()\n"
    "sys.executable = sys.orig_argv[0]\n"
    "place = sys.executable.rpartition('/bin/')[0] + '/lib/python3'\n"
    "sys.path += [place + '.%d/site-packages' % sys.version_info[1], place + '/dist-packages']\n"
    "for folder in sys.path[-2:]:\n"
    "    path = folder + '/lockgate/modules.' + sys.implementation.cache_tag + '.' + MAGIC_NUMBER.hex()\n"
    "    try:\n"
    "        fd = posix.open(path, posix.O_RDONLY)\n"
    "        head, file = posix.read(fd, 262144), posix.fstat(fd)\n"
    "        posix.close(fd)\n"
    "        code, index, groups = marshal.loads(head)\n"
    "    except (EOFError, OSError, TypeError, ValueError): continue\n"
    "    exec(code)\n"
    "    pack = ModulePack(file, path, folder, index, head)\n"
    "    sys.meta_path = [pack, *sys.meta_path, SiteAfterAll]\n"
    "    del head\n"
    "    pack.bring(groups, sys.argv[1])\n"
    "    break\n"
    "else:\n"
    "    import site\n"
    "    site.main()\n"
    "from lockgate.plugin.launch import main\n"
    "main()\n";

/* What Python gets to run, with interrupts held back from here on. Where awaited.c holds them back, they stay so. */
static const char *hold_interrupts(void)
{
    sigset_t interrupt, before;

    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &before);
    return sigismember(&before, SIGINT) ? entry + strlen(HEAR_INTERRUPTS) : entry;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* The path of python3 in the folder of `self`; false if there is none that we may run. */
static int python_beside(const char *self, char *ret_python, size_t size)
{
    int folder = (int)(base_name(self) - self);
    int length = snprintf(ret_python, size, "%.*spython3", folder, self);

    return folder > 0 && length > 0 && (size_t)length < size && access(ret_python, X_OK) == 0;
}

/* The path of this program, without links; empty if the kernel has not told it. */
static void find_self(char ret_self[PATH_MAX])
{
    ssize_t length = readlink("/proc/self/exe", ret_self, PATH_MAX - 1);
    const char *given = (const char *)getauxval(AT_EXECFN); /* as it was given to execve() */

    if (length <= 0 && given && realpath(given, ret_self)) /* without /proc, as in some sandboxes */
        return;
    ret_self[length > 0 ? length : 0] = '\0';
}

int main(int argc, char **argv)
{
    char self[PATH_MAX], beside[PATH_MAX];
    const char *python = SYSTEM_PYTHON, *argv0 = SYSTEM_PYTHON;

    find_self(self);
    if (python_beside(self, beside, sizeof(beside))) {
        python = beside;
        argv0 = self;
    }
    const char *command = base_name(argc > 0 && argv[0][0] ? argv[0] : self);

    if (argc > ARGUMENTS_MAX) {
        fprintf(stderr, "%s: %d arguments, expected at most %d\n", command, argc - 1, ARGUMENTS_MAX - 1);
        return 1;
    }
    const char *arguments[argc + 9];
    struct awaited awaited;
    bool is_open = strstr(command, "gvproxy") && awaited_open(argc, argv, &awaited);
    int n = 0;

    arguments[n++] = argv0;
    arguments[n++] = "-I";
    arguments[n++] = "-S";
    if (is_open) {
        arguments[n++] = "-X";
        arguments[n++] = awaited.option;
    }
    arguments[n++] = "-c";
    arguments[n++] = hold_interrupts();
    arguments[n++] = command;
    for (int i = 1; i < argc; i++)
        arguments[n++] = argv[i];
    arguments[n] = NULL;
    execv(python, (char *const *)arguments);
    fprintf(stderr, "%s: cannot start %s (%s): lockgate needs Python 3.11 or newer there, or as python3 beside %s\n",
            command, python, strerror(errno), self[0] ? self : "this program");
    if (is_open)
        awaited_take_back(&awaited);
    return 1;
}
