/* SPDX-License-Identifier: Apache-2.0
 *
 * pcap_ring.h: copies of frames for the control process, through a ring in shared memory. What finds no room is counted
 * and left out; the data path never waits for whoever writes the file.
 */
#ifndef LOCKGATE_PCAP_RING_H
#define LOCKGATE_PCAP_RING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "datapath.h"

struct pcap_ring {
    struct lg_pcap_head *head; /* NULL: there is no ring */
    uint8_t *data;
    uint64_t *counters;
    int event_fd;
    bool on;
    bool filled; /* something was put since the last flush */
};

int pcap_ring_map(struct pcap_ring *ring, int memfd, int event_fd, uint64_t *counters); /* 0 or a negative errno */
void pcap_ring_put(struct pcap_ring *ring, const struct iovec *iov, unsigned iov_count, uint32_t length, bool to_guest);
void pcap_ring_flush(struct pcap_ring *ring); /* once a batch: tells the reader, if it had read all before */

#endif
