/* SPDX-License-Identifier: Apache-2.0
 *
 * vring.h: the device's side of one split virtqueue (virtio 1.2, 2.7).
 *
 * Adversary: the guest, which may write anything into the ring at any moment. Each word of it is read once into a local
 * and checked before its first use. What breaks the rules is a fault: the ring is stopped and stays stopped until the
 * front end sets it up anew; nothing else of the helper is touched.
 *
 * Completion is in order: chains are taken with vring_take(), finished with vring_finish() in the order that the caller
 * likes, and shown to the guest together by vring_publish().
 */
#ifndef LOCKGATE_VRING_H
#define LOCKGATE_VRING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "memory.h"

enum vring_limits {
    VRING_SIZE_MAX = 32768, /* virtio 1.2, 2.7 */
    VRING_CHAIN_USUAL = 8,  /* descriptors of a chain, where they are many */
};

#define VRING_FAULTS(apply)                                                                                            \
    apply(none)                                                                                                        \
    apply(avail_index)      /* more chains offered than the ring has descriptors */                                    \
    apply(head_range)       /* a head beyond the descriptor table */                                                   \
    apply(next_range)       /* a next beyond its table */                                                              \
    apply(loop)             /* more descriptors in a chain than its table holds */                                     \
    apply(direction)        /* a buffer that the device may not use this way */                                        \
    apply(address)          /* a buffer outside the guest's memory */                                                  \
    apply(indirect)         /* a table empty, uneven, too long, nested, followed by a next, or not negotiated */       \
    apply(too_long)         /* a chain of more pieces than any frame has */

enum vring_fault {
#define VRING_FAULT_ENUM(name) VRING_FAULT_##name,
    VRING_FAULTS(VRING_FAULT_ENUM)
#undef VRING_FAULT_ENUM
};

struct vring_desc { /* virtio 1.2, 2.7.5 */
    uint64_t addr;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

struct vring_used_elem {
    uint32_t id;
    uint32_t length;
};

struct vring_avail {
    uint16_t flags;
    uint16_t index;
    uint16_t ring[]; /* then used_event */
};

struct vring_used {
    uint16_t flags;
    uint16_t index;
    struct vring_used_elem ring[]; /* then avail_event */
};

struct vring {
    const struct vring_desc *desc; /* NULL: not started */
    const struct vring_avail *avail;
    struct vring_used *used;
    struct guest_memory *memory;
    bool logged;              /* the front end wants writes to the used ring logged, while LOG_ALL is acknowledged */
    struct dirty_log *log;    /* then where; NULL: not now */
    uint64_t used_guest_addr; /* for the log */
    uint32_t size;
    uint16_t next_avail; /* the next entry of the avail ring that we take */
    uint16_t avail_seen; /* avail->index as last read: no need to read it again below that */
    uint16_t next_used;  /* the next entry of the used ring that we write */
    uint16_t published;  /* used->index as the guest sees it */
    uint16_t called;     /* used->index when the guest was last told, or did not want to be */
    bool called_valid;
    bool enabled;
    bool event_idx;
    bool indirect;
    bool writable; /* the receiveq: the device writes its buffers */
    int kick_fd, call_fd, err_fd;
    bool call_is_socket;
    enum vring_fault fault;
};

/* The pieces of one chain, appended to the caller's arrays. */
struct vring_pieces {
    struct iovec *iov;
    uint64_t *guest_addr; /* of each piece, for the dirty log; NULL when nobody asks */
    unsigned count;       /* pieces there so far */
    unsigned max;
    size_t bytes;
};

void vring_init(struct vring *ring, struct guest_memory *memory, bool writable);
void vring_stop(struct vring *ring); /* closes its descriptors, forgets its addresses */

static inline bool vring_usable(const struct vring *ring)
{
    return ring->desc && ring->enabled && ring->fault == VRING_FAULT_none;
}

/* How many chains wait; 0 also after a fault. */
unsigned vring_waiting(struct vring *ring);

/* Takes the next chain: its pieces into *pieces, its head into *ret_head. Only when vring_waiting() said that there is
 * one. 0; -EAGAIN when the pieces find no room (the chain stays); -EINVAL after a fault. */
int vring_take(struct vring *ring, struct vring_pieces *pieces, uint16_t *ret_head);

/* Gives back the last `count` chains that were taken and not finished. */
static inline void vring_untake(struct vring *ring, unsigned count)
{
    ring->next_avail = (uint16_t)(ring->next_avail - count);
}

void vring_finish(struct vring *ring, uint16_t head, uint32_t written);

/* Shows the guest all that was finished. True: there was something. */
bool vring_publish(struct vring *ring);

/* How many of the elements that were published it has not been called for. */
static inline unsigned vring_uncalled(const struct vring *ring)
{
    return (uint16_t)(ring->published - ring->called);
}

/* Whether the guest wants to be told of those, as it says now. Then vring_call() should follow; else vring_called(),
 * which settles them without a word. */
bool vring_wants_call(const struct vring *ring);
void vring_call(struct vring *ring);
void vring_called(struct vring *ring);
void vring_set_call(struct vring *ring, int fd); /* takes fd over; -1: none */

/* Asks the guest for a kick at the first chain beyond those that vring_waiting() has seen. True: such chains came while
 * we asked, go on instead of sleeping. */
bool vring_ask_kick(struct vring *ring);
bool vring_ask_kick_after(struct vring *ring,
                          unsigned chains); /* not before so many; false: the guest cannot do that */
void vring_spare_kick(struct vring *ring);  /* we look by ourselves until the next vring_ask_kick() */

#endif
