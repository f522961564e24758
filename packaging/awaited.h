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
    /* AWAITED_OPTION=LOG,PORT,LINK,GUARD,DEVICE,INODE,DEVICE,INODE,PID_FILE: four descriptors (no log: -1), the files of
     * link and PID file, and the path of the latter, or nothing. */
    char option[PATH_MAX + 160];
    int guard; /* a descriptor: closed before a byte was written to it, all files are taken back */
};

/* What the words of a command line ask for, if it is one of those that are known here. True: all of it is open, the
 * signals that would end this process are held back, and another process waits for a byte from whoever takes over: should this
 * process end before, it takes the files back. False: nothing is there that was not before, and Python does it, or says
 * what is wrong. */
bool awaited_open(int argc, char **argv, struct awaited *ret);

/* Where there is no Python after all. */
void awaited_take_back(const struct awaited *awaited);

#endif
