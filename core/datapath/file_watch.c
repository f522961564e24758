/* SPDX-License-Identifier: Apache-2.0
 *
 * file_watch.c: inotify(7) for the control plane, since Python's library has nothing for it. Folders are watched and not
 * files: a file that is replaced by rename(2), as resolvers' files are, takes its watch away with it.
 */
#include <errno.h>
#include <sys/inotify.h>

#include "datapath.h"

int lg_watch_open(void)
{
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

int lg_watch_folder(int fd, const char *path, int names)
{
    unsigned itself = IN_MOVE_SELF | IN_DELETE_SELF;
    unsigned inside = IN_CLOSE_WRITE | IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE;
    /* MASK_ADD: a folder can be reached twice, and what was asked for first still counts. */
    int watch = inotify_add_watch(fd, path, itself | (names ? inside : 0) | IN_ONLYDIR | IN_DONT_FOLLOW | IN_MASK_ADD);

    return watch < 0 ? -errno : watch;
}

int lg_watch_end(int fd, int watch)
{
    return inotify_rm_watch(fd, watch) < 0 ? -errno : 0;
}
