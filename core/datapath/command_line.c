/* SPDX-License-Identifier: Apache-2.0
 *
 * command_line.c: what ps(1) shows of us: the command as it was typed, and not how the interpreter was started for it.
 *
 * The kernel shows the memory where execve() has put our arguments, from arg_start to arg_end of proc(5)'s stat. The
 * caller's words lie at its end, behind those of packaging/launcher.c; they move up, and zeros, which nobody shows, take
 * their place. (An end that lies further up would need rights or a hundred lines: PR_SET_MM_MAP.)
 *
 * Adversary: nobody. Without /proc all stays as it is.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "datapath.h"

enum {
    COMM = 2, /* fields of stat, from 1 */
    ARG_START = 48,
};

struct area {
    char *start, *end; /* words, each with its NUL */
};

static struct area find_arguments(void)
{
    char text[2048], *at = NULL, *end;
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

    if (fd >= 0)
        close(fd);
    if (n > 0) {
        text[n] = '\0';
        at = strrchr(text, ')'); /* the end of a name, which may hold anything */
    }
    for (unsigned field = COMM; at && field < ARG_START; field++)
        at = strchr(at + 1, ' ');
    if (!at)
        return (struct area){NULL, NULL};
    char *start = (char *)strtoul(at, &end, 10); // NOLINT: an address of ours, by the kernel's word
    return (struct area){start, (char *)strtoul(end, NULL, 10)};
}

static char *word_behind(char *word)
{
    return word + strlen(word) + 1;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

void lg_show_command(void)
{
    struct area all = find_arguments();
    char *word = all.start;

    while (word < all.end && strcmp(word, "-c") != 0)
        word = word_behind(word);
    for (unsigned i = 0; i < 2 && word < all.end; i++)
        word = word_behind(word); /* over "-c" and its code, to the name that was typed */
    if (word >= all.end)
        return;
    char *to = all.start;
    if (strcmp(base_name(to), word) == 0) { /* by its path, where the launcher has given that */
        to = word_behind(to);
        word = word_behind(word);
    }
    size_t length = (size_t)(all.end - word);
    memmove(to, word, length);
    memset(to + length, 0, (size_t)(word - to));
}
