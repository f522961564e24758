/* SPDX-License-Identifier: Apache-2.0
 *
 * file_watch.c: inotify(7) for the control plane, since Python's library has nothing for it. Folders are watched, because a
 * file that is replaced by rename(2), as resolvers' files are, takes its own watch away with it; and the file, too: what is
 * written to it under another name, as containers have it whose engine has mounted it, is not told to the folder.
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

int lg_watch_file(int fd, const char *path)
{
    int watch = inotify_add_watch(fd, path, IN_CLOSE_WRITE | IN_DONT_FOLLOW | IN_MASK_ADD);

    return watch < 0 ? -errno : watch;
}

int lg_watch_end(int fd, int watch)
{
    return inotify_rm_watch(fd, watch) < 0 ? -errno : 0;
}
