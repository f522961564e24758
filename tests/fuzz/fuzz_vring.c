/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_vring.c: two rings of a guest that writes whatever it likes, at any moment, through the operations of
 * link_vhost.c as the engine uses them.
 *
 * Called by libFuzzer. An input is a few bytes of setup, the memory that both rings lie in, and steps: of the engine, and
 * of the guest between them. Adversary: the input is the guest. What must hold is what the engine relies on: pieces lie
 * in the guest's memory and hold as much as was said, a batch has its limits, a broken ring is told of once and stays
 * broken. The sanitizers see the rest.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "counters.h"
#include "input.h"
#include "link_vhost.h"

enum layout {
    RING_SIZE_BITS = 7,
    RINGS_AT = 0x1000, /* times 0 and 1: the descriptors of each queue, with the avail ring behind them */
    USED_AT = 0x2000,  /* and 0x3000 */
    TABLE_AT = 0x800,  /* the last descriptors of the receiveq serve as an indirect table, too */
    DATA_AT = 0x4800,
    CRUMBS_AT = 0x8000, /* an indirect table of one byte each, more of them than one frame may have */
    CRUMBS = LINK_PIECES + 80,
    FIRST_BYTES = 0x10000, /* two regions, side by side for the guest */
    SECOND_BYTES = 0x2000,
    BIG_BYTES = 0x400000, /* and one that holds large frames; its first page stands for all */
    STEPS_MAX = 200,
};

static const uint64_t user_shift = UINT64_C(0x7f0000000000), big_at = UINT64_C(1) << 32;

static struct {
    struct link_vhost vhost;
    uint64_t now_ms;
    struct guest_memory mapped; /* made once, and put back for each input */
    struct pcap_ring pcap;
    uint64_t counters[C_COUNT];
    struct payload_pieces pieces;
    struct guest_frame frames[LINK_BATCH];
    size_t header[VHOST_RESERVED_MAX], payload[VHOST_RESERVED_MAX];
    unsigned reserved;
    unsigned setups; /* of rings */
} world;

static void map_region(uint64_t guest_addr, uint64_t size)
{
    const struct lg_mem_region at = {.guest_addr = guest_addr, .size = size, .user_addr = guest_addr + user_shift};
    int fd = memfd_create("region", MFD_CLOEXEC);

    REQUIRE(fd >= 0 && !ftruncate(fd, (off_t)size) && !memory_add(&world.mapped, &at, fd), "%d", errno);
    close(fd);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    int fd = memfd_create("pcap", MFD_CLOEXEC);

    (void)argc;
    (void)argv;
    map_region(0, FIRST_BYTES);
    map_region(FIRST_BYTES, SECOND_BYTES);
    map_region(big_at, BIG_BYTES);
    REQUIRE(fd >= 0 && !ftruncate(fd, LG_PCAP_HEAD_BYTES + LG_PCAP_RING_BYTES), "%d", errno);
    REQUIRE(!pcap_ring_map(&world.pcap, fd, -1, world.counters), "%d", errno);
    close(fd);
    return 0;
}

/* ---- what must hold ---- */

static void check_pieces(const struct iovec *iov, unsigned count, size_t bytes)
{
    for (unsigned i = 0; i < count; i++) {
        bool inside = false;
        for (unsigned r = 0; r < world.vhost.memory.count; r++) {
            const struct memory_region *region = &world.vhost.memory.region[r];
            size_t offset = (size_t)((const uint8_t *)iov[i].iov_base - region->host);
            inside |= offset < region->at.size && iov[i].iov_len <= region->at.size - offset;
        }
        REQUIRE(inside && iov[i].iov_len, "piece %u of %zu bytes", i, iov[i].iov_len);
        REQUIRE(iov[i].iov_len <= bytes, "%zu bytes of pieces left", bytes);
        bytes -= iov[i].iov_len;
    }
    REQUIRE(!bytes, "%zu bytes are in no piece", bytes);
}

static void check_faults(void)
{
    unsigned faults = 0;

    for (unsigned queue = 0; queue < VHOST_QUEUES; queue++)
        faults += world.vhost.ring[queue].fault != VRING_FAULT_none;
    REQUIRE(world.counters[C_ring_faults] >= faults && world.counters[C_ring_faults] <= world.setups,
            "%u rings are broken, %llu faults were told", faults, (unsigned long long)world.counters[C_ring_faults]);
}

/* ---- what the guest does ---- */

static uint8_t *guest(uint64_t addr)
{
    size_t length = 1;

    return memory_from_guest(&world.vhost.memory, addr, &length);
}

/* What the memory holds at first: zeros, crumbs if the input wants them, and the start of both tables as it says. */
static void write_memory(struct input *input, bool crumbs)
{
    struct vring_desc *table = (struct vring_desc *)(void *)guest(CRUMBS_AT);
    unsigned how = crumbs ? input_byte(input) : 0;

    memset(guest(0), 0, FIRST_BYTES);
    for (unsigned i = 0; crumbs && i < CRUMBS; i++) {
        table[i] = (struct vring_desc){.addr = big_at + i * (1 + (how >> 1 & 1u)),
                                       .length = 1,
                                       .flags = (uint16_t)((i + 1 < CRUMBS) | (how & 1) << 1),
                                       .next = (uint16_t)(i + 1)};
    }
    for (unsigned queue = 0; queue < VHOST_QUEUES; queue++) {
        uint8_t image[4 * UINT8_MAX];
        size_t length = input_bytes(input, image, 4 * input_byte(input));
        memcpy(guest(RINGS_AT * queue), image, length);
    }
}

static uint64_t avail_at(unsigned queue)
{
    return RINGS_AT * queue + 16u * (1u << RING_SIZE_BITS);
}

/* The index moves over one more chain, or over whatever stands there. */
static void offer(unsigned queue, struct input *input)
{
    uint16_t *avail = (uint16_t *)(void *)guest(avail_at(queue));
    unsigned choice = input_byte(input);

    if (choice & 128) {
        avail[1] = (uint16_t)(avail[1] + choice % 64);
        return;
    }
    avail[2 + avail[1] % (1u << RING_SIZE_BITS)] = (uint16_t)(choice + (choice == 127));
    avail[1]++;
}

/* One descriptor, of a ring or of an indirect table behind both. */
static void describe(unsigned queue, struct input *input)
{
    static const uint32_t unit[] = {1, 16, 61, 4096};
    unsigned place = input_byte(input), where = input_byte(input), length = input_byte(input), how = input_byte(input);
    struct vring_desc *desc = (struct vring_desc *)(void *)guest(RINGS_AT * queue);
    const uint64_t bases[] = {DATA_AT, FIRST_BYTES - 40, big_at, how & 128 ? CRUMBS_AT : TABLE_AT - 32 * 16};

    desc[place % (1u << RING_SIZE_BITS)] = (struct vring_desc){
        .addr = bases[where & 3] + (where >> 2) * (where & 3 ? 16u : 64u),
        .length = length * unit[how & 3],
        .flags = how >> 2 & 7,
        .next = (uint16_t)(how >> 5 == 3 ? length : place + 1),
    };
}

static void start(unsigned queue, struct input *input)
{
    unsigned choice = input_byte(input);
    const struct lg_cmd_vring setup = {
        .index = queue,
        .size = 1u << (RING_SIZE_BITS - choice % (RING_SIZE_BITS + 1)),
        .base = choice & 64 ? 65530 : 0,
        .flags = (choice & 8 ? 0 : LG_VRING_ENABLED) | (choice & 16 ? LG_VRING_LOG : 0) |
                 (choice & 32 ? LG_VRING_BASE_FROM_USED : 0),
        .desc = user_shift + RINGS_AT * queue,
        .avail = user_shift + avail_at(queue),
        .used = user_shift + USED_AT + RINGS_AT * queue,
        .log_addr = USED_AT + RINGS_AT * queue,
    };

    world.setups += !world.vhost.ring[queue].desc;
    REQUIRE(!link_vhost_start(&world.vhost, &setup, -1, -1, -1), "ring %u, %u", queue, setup.size);
}

/* ---- what the engine does ---- */

static void take_batch(struct input *input)
{
    struct link *link = &world.vhost.link;
    bool more, usable = vring_usable(&world.vhost.ring[TRANSMITQ]);
    unsigned count = link->operations->from_guest(link, world.frames, &more);

    REQUIRE(count <= LINK_BATCH && (usable || (!count && !more)), "%u frames", count);
    for (unsigned i = 0; i < count; i++) {
        const struct guest_frame *frame = &world.frames[i];
        REQUIRE(frame->length <= FRAME_BYTES_MAX, "%u bytes", frame->length);
        REQUIRE(frame->head_length == (frame->length < FRAME_HEAD_MAX ? frame->length : FRAME_HEAD_MAX), "head");
        check_pieces(frame->iov, frame->iov_count, frame->length);
    }
    if (input_byte(input) & 1) /* the guest goes on writing while its batch is out */
        memset(guest(RINGS_AT), (int)input_byte(input), 512);
    link->operations->release(link);
    REQUIRE(!more || vring_usable(&world.vhost.ring[TRANSMITQ]), "more frames of a ring that is broken");
}

static void reserve(struct input *input)
{
    struct link *link = &world.vhost.link;
    size_t header = 14 + input_byte(input) % 100, payload = input_word(input) % 65000;
    struct guest_room room;
    unsigned before = world.pieces.count;
    int err = link->operations->reserve(link, header, payload, payload ? &world.pieces : NULL, &room);

    REQUIRE(!err || err == -EAGAIN || err == -ENOBUFS || err == -ENOTCONN, "%d", err);
    REQUIRE(world.pieces.count <= LINK_PIECES && (!err || world.pieces.count == before), "%u", world.pieces.count);
    REQUIRE(err != -ENOBUFS || world.reserved, "a caller that holds nothing cannot make room");
    if (err)
        return;
    REQUIRE(room.payload <= payload && room.header_count <= LINK_HEADER_PIECES && !!room.payload == !!payload, "room");
    check_pieces(room.header, room.header_count, header);
    check_pieces(world.pieces.iov + before, world.pieces.count - before, room.payload);
    for (unsigned i = 0; i < room.header_count; i++)
        memset(room.header[i].iov_base, 0xa5, room.header[i].iov_len);
    world.header[world.reserved] = header;
    world.payload[world.reserved++] = room.payload;
}

static void forget_reservations(void)
{
    world.reserved = world.pieces.count = 0;
}

static void commit(struct input *input)
{
    struct link *link = &world.vhost.link;
    const struct offload offload = {.needs_csum = true, .gso_type = GSO_TCPV4};
    unsigned less = input_word(input);

    if (!world.reserved)
        return;
    size_t payload = world.payload[0] > less ? world.payload[0] - less : 0;
    link->operations->commit(link, world.header[0] + payload, &offload);
    world.reserved--;
    memmove(world.header, world.header + 1, world.reserved * sizeof(world.header[0]));
    memmove(world.payload, world.payload + 1, world.reserved * sizeof(world.payload[0]));
    if (world.vhost.reserved_first == world.vhost.reserved_end) /* a short one gave back the rest */
        forget_reservations();
    REQUIRE(world.vhost.reserved_end - world.vhost.reserved_first == world.reserved, "%u", world.reserved);
}

static void rollback(void)
{
    world.vhost.link.operations->rollback(&world.vhost.link);
    forget_reservations();
}

static void restart(unsigned queue, struct input *input)
{
    uint16_t next_avail;

    rollback(); /* commands run between two batches */
    if (world.vhost.ring[queue].desc && input_byte(input) & 1)
        REQUIRE(!link_vhost_stop(&world.vhost, queue, &next_avail), "%u", queue);
    start(queue, input);
}

static void step(struct input *input)
{
    struct link *link = &world.vhost.link;
    unsigned choice = input_byte(input), queue = choice >> 7;

    switch (choice % 10) {
    case 0:
        take_batch(input);
        break;
    case 1:
    case 2:
        reserve(input);
        break;
    case 3:
        commit(input);
        break;
    case 4:
        rollback();
        break;
    case 5:
        link->operations->flush(link, world.now_ms += input_byte(input) & 3);
        break;
    case 6:
        link->operations->wait_room(link);
        break;
    case 7:
        offer(queue, input);
        break;
    case 8:
        describe(queue, input);
        break;
    default:
        if (choice & 64)
            restart(queue, input);
        else
            *guest(input_word(input) % (FIRST_BYTES + SECOND_BYTES)) = (uint8_t)input_byte(input);
    }
    check_faults();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t bits[] = {VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX,
                                   VHOST_F_LOG_ALL, VIRTIO_NET_F_GUEST_CSUM};
    static uint8_t log_table[64]; /* shorter than the memory: a front end may do that, too */
    struct input input = {.at = data, .left = size};
    unsigned choice = input_byte(&input);
    uint64_t features = 0;

    memset(world.counters, 0, sizeof(world.counters));
    forget_reservations();
    world.setups = 0;
    link_vhost_init(&world.vhost, world.counters, &world.pcap, -1, 4);
    world.vhost.memory = world.mapped;
    for (unsigned i = 0; i < sizeof(bits); i++)
        features |= (uint64_t)(choice >> i & 1) << bits[i];
    link_vhost_features(&world.vhost, features);
    world.vhost.log = (struct dirty_log){.table = choice & 32 ? log_table : NULL, .size = 64, .event_fd = -1};
    world.pcap.on = choice & 64;
    world.pcap.head->read = world.pcap.head->written;
    start(RECEIVEQ, &input);
    start(TRANSMITQ, &input);
    write_memory(&input, choice & 128);
    for (unsigned steps = 0; input.left && steps < STEPS_MAX; steps++)
        step(&input);
    return 0;
}
