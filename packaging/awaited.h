/* SPDX-License-Identifier: Apache-2.0
 *
 * awaited.h: between the launcher and what it opens of gvproxy's before Python starts.
 */
#ifndef LOCKGATE_AWAITED_H
#define LOCKGATE_AWAITED_H

#include <limits.h>
#include <stdbool.h>

#define AWAITED_OPTION "lockgate-awaited" /* of Python's -X; plugin/gateway/awaited.py reads it */

struct awaited {
    const char *link, *pid_file; /* paths of what has been made; the second may be NULL */
    char option[PATH_MAX +
                80]; /* AWAITED_OPTION=LOG,PORT,LINK,PID_FILE: three descriptors (no log: -1), and a path or nothing */
};

/* What the words of a command line ask for, if it is one of those that are known here. True: all of it is open, and the
 * signals that would end this process are held back, until whoever reads the option can take the files back. False:
 * nothing is there that was not before, and Python does it, or says what is wrong. */
bool awaited_open(int argc, char **argv, struct awaited *ret);

/* Where there is no Python after all. */
void awaited_take_back(const struct awaited *awaited);

#endif
