/* SPDX-License-Identifier: Apache-2.0
 *
 * link_vhost_setup.c: the link over virtqueues as the front end attaches it, through control: features, memory, rings.
 *
 * Adversary: the front end, which speaks for the guest. Control has checked the order of its words; sizes, addresses and
 * descriptors are checked here.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "link_vhost.h"
#include "sys.h"

void link_vhost_init(struct link_vhost *vhost, uint64_t *counters, struct pcap_ring *pcap, int epoll_fd,
                     uint64_t kick_source)
{
    memset(vhost, 0, sizeof(*vhost));
    vhost->link.operations = &link_vhost_operations;
    vhost->link.flush_ms = vhost->link.look_ms = UINT64_MAX;
    vhost->counters = counters;
    vhost->pcap = pcap;
    vhost->epoll_fd = epoll_fd;
    vhost->kick_source = kick_source;
    vhost->log.event_fd = -1;
    vring_init(&vhost->ring[RECEIVEQ], &vhost->memory, true);
    vring_init(&vhost->ring[TRANSMITQ], &vhost->memory, false);
}

/* Buffers merge, or each holds 64 KiB (virtio 1.3, 5.1.6.3.1). */
static const uint64_t LARGE_FEATURES = 1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_NET_F_GUEST_TSO4 |
                                       1ull << VIRTIO_NET_F_GUEST_TSO6 | 1ull << VIRTIO_NET_F_GUEST_USO4 |
                                       1ull << VIRTIO_NET_F_GUEST_USO6;

static void ring_apply_features(struct link_vhost *vhost, struct vring *ring)
{
    ring->log = ring->logged && link_vhost_feature(vhost, VHOST_F_LOG_ALL) ? &vhost->log : NULL;
    ring->event_idx = link_vhost_feature(vhost, VIRTIO_RING_F_EVENT_IDX);
    ring->indirect = link_vhost_feature(vhost, VIRTIO_RING_F_INDIRECT_DESC);
}

void link_vhost_features(struct link_vhost *vhost, uint64_t features)
{
    vhost->features = features;
    vhost->link.large = features & LARGE_FEATURES;
    vhost->link.csum = link_vhost_feature(vhost, VIRTIO_NET_F_GUEST_CSUM);
    /* TSO without partial checksums makes no sense to virtio 1.2, 5.1.3.1 either. */
    vhost->link.tso4 = vhost->link.csum && link_vhost_feature(vhost, VIRTIO_NET_F_GUEST_TSO4);
    vhost->link.tso6 = vhost->link.csum && link_vhost_feature(vhost, VIRTIO_NET_F_GUEST_TSO6);
    vhost->link.uso4 = vhost->link.csum && link_vhost_feature(vhost, VIRTIO_NET_F_GUEST_USO4);
    vhost->link.uso6 = vhost->link.csum && link_vhost_feature(vhost, VIRTIO_NET_F_GUEST_USO6);
    for (unsigned queue = 0; queue < VHOST_QUEUES; queue++)
        ring_apply_features(vhost, &vhost->ring[queue]);
}

static void descriptor_take(int *fd, int replacement)
{
    if (replacement < 0)
        return;
    if (*fd >= 0)
        close(*fd);
    *fd = replacement;
}

/* The front end holds the same eventfd: closing ours alone would leave it in epoll (epoll(7), questions 1 and 6). */
static void kick_unwatch(struct link_vhost *vhost, struct vring *ring)
{
    if (ring->kick_fd >= 0)
        sys_epoll_ctl(vhost->epoll_fd, EPOLL_CTL_DEL, ring->kick_fd, 0, 0);
}

/* 0, or what epoll said: a front end may send a file that cannot be watched. */
static int kick_take(struct link_vhost *vhost, unsigned queue, int kick_fd)
{
    struct vring *ring = &vhost->ring[queue];
    int err;

    if (kick_fd < 0)
        return 0;
    err = sys_epoll_ctl(vhost->epoll_fd, EPOLL_CTL_ADD, kick_fd, EPOLLIN | EPOLLET, vhost->kick_source + queue);
    if (err)
        return err;
    kick_unwatch(vhost, ring);
    descriptor_take(&ring->kick_fd, kick_fd);
    return 0;
}

static void ring_stop(struct link_vhost *vhost, unsigned queue)
{
    kick_unwatch(vhost, &vhost->ring[queue]);
    vring_stop(&vhost->ring[queue]);
    vhost->faults_reported &= ~(1u << queue);
}

/* Finds the three parts of the ring in the guest's memory; sizes and alignments by virtio 1.2, 2.7. */
static int ring_map(struct link_vhost *vhost, struct vring *ring, const struct lg_cmd_vring *setup)
{
    size_t size = setup->size;

    if (!size || size > VRING_SIZE_MAX || size & (size - 1))
        return -EINVAL;
    void *desc = memory_from_user(&vhost->memory, setup->desc, 16 * size);
    void *avail = memory_from_user(&vhost->memory, setup->avail, 6 + 2 * size);
    void *used = memory_from_user(&vhost->memory, setup->used, 6 + 8 * size);

    if (!desc || !avail || !used)
        return -EFAULT;
    if ((uintptr_t)desc % 16 || (uintptr_t)avail % 2 || (uintptr_t)used % 4)
        return -EINVAL;
    ring->desc = desc;
    ring->avail = avail;
    ring->used = used;
    ring->size = setup->size;
    ring->next_used = ring->published = ring->called = __atomic_load_n(&ring->used->index, __ATOMIC_RELAXED);
    ring->next_avail = setup->flags & LG_VRING_BASE_FROM_USED ? ring->next_used : (uint16_t)setup->base;
    ring->avail_seen = ring->next_avail;
    return 0;
}

int link_vhost_start(struct link_vhost *vhost, const struct lg_cmd_vring *setup, int kick_fd, int call_fd, int err_fd)
{
    struct vring *ring = &vhost->ring[setup->index];
    bool running = ring->desc;
    int err = running ? 0 : ring_map(vhost, ring, setup);

    if (!err)
        err = kick_take(vhost, setup->index, kick_fd);
    if (err) {
        if (!running)
            ring->desc = NULL;
        return err;
    }
    ring->enabled = setup->flags & LG_VRING_ENABLED;
    ring->logged = setup->flags & LG_VRING_LOG;
    ring_apply_features(vhost, ring);
    ring->used_guest_addr = setup->log_addr;
    if (call_fd >= 0)
        vring_set_call(ring, call_fd);
    descriptor_take(&ring->err_fd, err_fd);
    return 0;
}

int link_vhost_stop(struct link_vhost *vhost, unsigned queue, uint16_t *ret_next_avail)
{
    if (!vhost->ring[queue].desc)
        return -EINVAL;
    *ret_next_avail = vhost->ring[queue].next_avail;
    ring_stop(vhost, queue);
    return 0;
}

static bool lies_in(const struct memory_region *region, const void *at)
{
    return (const uint8_t *)at >= region->host && (const uint8_t *)at < region->host + region->at.size;
}

/* A ring must not lose the memory it lies in. -EBUSY, or as memory_remove(). */
int link_vhost_memory_remove(struct link_vhost *vhost, const struct lg_mem_region *at)
{
    for (unsigned i = 0; i < vhost->memory.count; i++) {
        const struct memory_region *region = &vhost->memory.region[i];
        if (region->at.guest_addr != at->guest_addr)
            continue;
        for (unsigned queue = 0; queue < VHOST_QUEUES; queue++) {
            const struct vring *ring = &vhost->ring[queue];
            if (ring->desc &&
                (lies_in(region, ring->desc) || lies_in(region, ring->avail) || lies_in(region, ring->used)))
                return -EBUSY;
        }
    }
    return memory_remove(&vhost->memory, at);
}

void link_vhost_log(struct link_vhost *vhost, uint8_t *table, size_t size, int event_fd)
{
    if (vhost->log.table)
        munmap(vhost->log.table, vhost->log.size);
    if (vhost->log.event_fd >= 0)
        close(vhost->log.event_fd);
    vhost->log = (struct dirty_log){.table = table, .size = size, .event_fd = event_fd};
}

void link_vhost_reset(struct link_vhost *vhost)
{
    for (unsigned queue = 0; queue < VHOST_QUEUES; queue++)
        ring_stop(vhost, queue);
    vhost->reserved_first = vhost->reserved_end = 0;
    link_vhost_log(vhost, NULL, 0, -1);
    memory_clear(&vhost->memory);
    link_vhost_features(vhost, 0);
}
