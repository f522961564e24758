/* SPDX-License-Identifier: Apache-2.0
 *
 * hold_connections: many idle TCP connections out of the guest.
 * Called in the guest:  hold_connections COUNT IPV4-ADDRESS PORT
 * Adversary: nobody. Ends with status 0 once all are open and leaves a child that keeps them until it is killed; with
 * status 1, and nothing left, if one of them cannot be opened.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    DESCRIPTORS_SPARED = 16
};

static _Noreturn void fail(const char *what, int number)
{
    fprintf(stderr, "hold_connections: %s, connection %d: %s\n", what, number, strerror(errno));
    exit(1);
}

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};

    if (argc != 4 || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1) {
        fprintf(stderr, "hold_connections COUNT IPV4-ADDRESS PORT\n");
        return 2;
    }
    int count = atoi(argv[1]);
    rlim_t descriptors = (rlim_t)count + DESCRIPTORS_SPARED;

    to.sin_port = htons((unsigned short)atoi(argv[3]));
    if (setrlimit(RLIMIT_NOFILE, &(struct rlimit){descriptors, descriptors}) < 0)
        fail("setrlimit", 0);
    for (int number = 1; number <= count; number++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        if (fd < 0 || connect(fd, (void *)&to, sizeof(to)) < 0)
            fail("connect", number);
    }
    pid_t keeper = fork();

    if (keeper < 0)
        fail("fork", count);
    if (keeper == 0) {
        setsid();
        pause();
    }
    return 0;
}
