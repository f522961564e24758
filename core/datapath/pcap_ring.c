/* SPDX-License-Identifier: Apache-2.0
 *
 * pcap_ring.c: the writer of the ring that datapath.h describes. The reader is our own control process, but its `read`
 * is a word in shared memory: a value that makes no sense counts as "no room".
 */
#include "pcap_ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "counters.h"
#include "sys.h"

int pcap_ring_map(struct pcap_ring *ring, int memfd, int event_fd, uint64_t *counters)
{
    void *map = mmap(NULL, LG_PCAP_HEAD_BYTES + LG_PCAP_RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);

    if (map == MAP_FAILED)
        return -errno;
    *ring = (struct pcap_ring){
        .head = map, .data = (uint8_t *)map + LG_PCAP_HEAD_BYTES, .counters = counters, .event_fd = event_fd};
    return 0;
}

static void ring_copy(struct pcap_ring *ring, uint64_t at, const void *bytes, size_t length)
{
    size_t offset = (size_t)(at % LG_PCAP_RING_BYTES);
    size_t first = LG_PCAP_RING_BYTES - offset < length ? LG_PCAP_RING_BYTES - offset : length;

    memcpy(ring->data + offset, bytes, first);
    memcpy(ring->data, (const uint8_t *)bytes + first, length - first);
}

void pcap_ring_put(struct pcap_ring *ring, const struct iovec *iov, unsigned iov_count, uint32_t length, bool to_guest)
{
    struct lg_pcap_record record = {.length = length, .to_guest = to_guest};
    uint64_t written = ring->head->written;
    uint64_t used = written - __atomic_load_n(&ring->head->read, __ATOMIC_ACQUIRE);
    uint64_t needed = (sizeof(record) + length + 7) & ~UINT64_C(7);

    if (used > LG_PCAP_RING_BYTES || needed > LG_PCAP_RING_BYTES - used) {
        ring->head->dropped++;
        ring->counters[C_pcap_dropped]++;
        return;
    }
    record.time_ns = sys_realtime_ns();
    ring_copy(ring, written, &record, sizeof(record));
    uint64_t at = written + sizeof(record);
    for (unsigned i = 0; i < iov_count && length; i++) {
        size_t piece = iov[i].iov_len < length ? iov[i].iov_len : length;
        ring_copy(ring, at, iov[i].iov_base, piece);
        at += piece;
        length -= (uint32_t)piece;
    }
    __atomic_store_n(&ring->head->written, written + needed, __ATOMIC_RELEASE);
    ring->filled = true;
}

void pcap_ring_flush(struct pcap_ring *ring)
{
    if (!ring->filled)
        return;
    ring->filled = false;
    sys_eventfd_signal(ring->event_fd);
}
