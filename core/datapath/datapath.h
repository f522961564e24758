/* SPDX-License-Identifier: Apache-2.0
 *
 * datapath.h: all that Python sees of the C core.
 *
 * The lines between "cdef: begin" and "cdef: end" are given to cffi as they stand: plain C declarations, defines of
 * one integer, no conditionals. Records that cross a process boundary are defined here once; Python packs and
 * unpacks them through cffi, so that there is no second description that could differ.
 *
 * Two channels join the worker and the control process:
 *   cmd  SEQPACKET. Control sends one `struct lg_cmd_*`, with descriptors; the worker runs it between two batches and
 *        answers one `struct lg_reply` with the same seq. Never dropped.
 *   up   SEQPACKET. `struct lg_up` and its bytes: punted frames and events upwards, frames for the guest downwards.
 *        Lossy, and counted.
 * All integers in host byte order, all addresses 16 bytes in network order, IPv4 as ::ffff:a.b.c.d, unset as zeros.
 */
#ifndef LOCKGATE_DATAPATH_H
#define LOCKGATE_DATAPATH_H

#include <stdint.h>

/* cdef: begin */

/* ---- What is assigned: one view of the network, replaced as a whole between two batches. ---- */

#define LG_VIEW_IPV4 1
#define LG_VIEW_IPV6 2
#define LG_VIEW_TCP 4
#define LG_VIEW_UDP 8
#define LG_VIEW_ICMP 16
#define LG_VIEW_NDP 32
#define LG_VIEW_DHCP 64
#define LG_VIEW_RA 128
#define LG_VIEW_DHCPV6 256
#define LG_VIEW_MAP_ROUTER 512 /* guest -> our_link_local becomes ::1: it is the router that the guest is told of */
#define LG_VIEW_FIXED4 1024    /* peers reach the guest at guest4, whatever it was seen to use */
#define LG_VIEW_FIXED6 2048    /* and at guest6 once it has used that: one without DHCPv6 never may */
#define LG_VIEW_FREEBIND 4096  /* sockets of datagrams may bind what the host has not (yet) */
#define LG_VIEW_SPLICE 8192    /* what comes from the host's loopback to a port of the host's is joined to a socket in the
                                * guest's namespace; that of a rule with a target goes over the link all the same */
#define LG_VIEW_SPLICE_LOOPBACK 16384 /* and arrives at the loopback address that it was sent to, not at guest4 or guest6 */

#define LG_VIEW_VIRTUAL 32768     /* the network is made up: who cannot be reached resets, and whatever is in its subnet
                                   * is the gateway's, a guest's, or mapped below; of no other address is a guest */
#define LG_VIEW_LINK_LOCAL4 65536 /* of such a network: 169.254.0.0/16 may be reached, and metadata by IPv6 */
#define LG_VIEW_PLACED 262144     /* the guest has guest4 and guest6 as soon as they are told: they are set for it */
#define LG_VIEW_HOST_PORTS 131072 /* and of the host's loopback no more than host_port */

#define LG_SHARED_MAX 16
#define LG_GATEWAY_OTHER_MAX 8
#define LG_NAT_MAX 16
#define LG_SERVICES_MAX 4
#define LG_HOST_PORTS_MAX 32

struct lg_nat {
    uint8_t shown[16]; /* to the guest */
    uint8_t real[16];
};

struct lg_port_range {
    uint16_t first;
    uint16_t last; /* 0: there are no more ranges */
};

struct lg_net_view {
    uint32_t version;  /* counts up with each change */
    uint32_t flags;    /* LG_VIEW_* */
    uint32_t mtu;      /* of the guest's interface, bytes of IP packet; never 0 */
    uint32_t scope_id; /* the host's interface on which link-local IPv6 addresses lie; 0: none */
    uint8_t our_mac[6];
    uint8_t padding[2];
    uint8_t guest4[16];         /* assigned to the guest */
    uint8_t guest6[16];         /* assigned to the guest */
    uint8_t gateway4[16];       /* ours: ARP, echo; also the source of what has no better address */
    uint8_t gateway6[16];       /* ours: echo (often our_link_local) */
    uint8_t our_link_local[16]; /* source of RA and NA */
    uint8_t map_host4[16];      /* guest -> this address becomes 127.0.0.1 */
    uint8_t map_host6[16];      /* guest -> this address becomes ::1 */
    uint8_t dns_match4[16];     /* guest -> ports 53 and 853 of this address, TCP and UDP ... */
    uint8_t dns_host4[16];      /* ... go to this resolver of the host's */
    uint8_t dns_match6[16];
    uint8_t dns_host6[16];
    uint8_t map_guest4[16]; /* guest -> this address becomes guest4: the host's own address, which the guest has too */
    uint8_t map_guest6[16];
    uint8_t outbound4[16]; /* where the guest's sockets leave from; unset: as the host's routes say */
    uint8_t outbound6[16];
    uint8_t outbound_if4[16]; /* the name of the interface that they leave by, closed by a NUL; empty: as routed */
    uint8_t outbound_if6[16];
    uint8_t shared[LG_SHARED_MAX][16]; /* further addresses of the host's that the guest has, too; unset: no more */
    /* With LG_VIEW_VIRTUAL. */
    uint8_t subnet4[16];
    uint8_t subnet6[16];
    uint8_t subnet4_bits; /* of the 32 of IPv4 */
    uint8_t subnet6_bits;
    uint8_t padding_virtual[2];
    uint16_t service_tcp[LG_SERVICES_MAX]; /* ports of the gateway's that control answers; 0: no more */
    uint16_t service_udp[LG_SERVICES_MAX];
    uint8_t gateway_other[LG_GATEWAY_OTHER_MAX][16]; /* further addresses of the gateway; unset: no more */
    struct lg_nat nat[LG_NAT_MAX];                   /* guest -> shown becomes real; unset: no more */
    struct lg_port_range host_port[LG_HOST_PORTS_MAX];
};

/* ---- Who has which MAC address: the host's neighbours, mirrored, so that the guest sees them as they are. ---- */

#define LG_NEIGHBOURS_MAX 512 /* 12 KiB: a household, an office's floor; the rest of a large network is behind its router */

struct lg_neighbour {
    uint8_t address[16];
    uint8_t mac[6];
    uint8_t padding[2];
};

struct lg_neighbours {
    uint32_t count;
    uint8_t others4[6]; /* of every address that is not listed; zeros: our_mac */
    uint8_t others6[6];
    struct lg_neighbour entry[LG_NEIGHBOURS_MAX]; /* by address, ascending as bytes are compared; none twice */
};

/* ---- cmd: control -> worker ---- */

#define LG_CMD_NET_VIEW 1      /* lg_cmd_net_view */
#define LG_CMD_MEM_TABLE 2     /* lg_cmd_mem, one descriptor a region: replaces all; rings are stopped before */
#define LG_CMD_MEM_ADD 3       /* lg_cmd_mem with one region and its descriptor */
#define LG_CMD_MEM_REMOVE 4    /* lg_cmd_mem with one region, no descriptor */
#define LG_CMD_LINK_FEATURES 5 /* lg_cmd_value: the virtio feature bits that were acknowledged */
#define LG_CMD_LINK_RESET 6    /* lg_cmd_header: stops the rings, unmaps memory, forgets features; flows stay */
#define LG_CMD_VRING_START 7   /* lg_cmd_vring; descriptors kick, call, err, those that its flags name, in order. On a ring
                                * that runs already: takes the descriptors, enabled and log settings, and goes on. */
#define LG_CMD_VRING_STOP 8    /* lg_cmd_value: ring index; reply.value is the next avail index */
#define LG_CMD_VRING_ENABLE 9  /* lg_cmd_value: ring index | enabled << 32 */
#define LG_CMD_VRING_CALL 10   /* lg_cmd_value: ring index; 0 or 1 descriptor */
#define LG_CMD_VRING_ERR 11    /* lg_cmd_value: ring index; 0 or 1 descriptor */
#define LG_CMD_DIRTY_LOG 12    /* lg_cmd_log; descriptors: the table (none: log off), then perhaps the log eventfd */
#define LG_CMD_EVENTS 13       /* lg_cmd_value: 0 none, 1 events, 2 events and one for each frame */
#define LG_CMD_PCAP 14         /* lg_cmd_value: 1 copies frames into the ring, 0 stops */
#define LG_CMD_FLOWS 15        /* lg_cmd_value: cursor; reply is lg_flow_page */
#define LG_CMD_STREAM_ATTACH 16 /* lg_cmd_value: LG_STREAM_*; one descriptor: a connected stream socket becomes the link */

#define LG_CMD_LISTEN 17 /* lg_cmd_listen and that many listening sockets: what connects to them reaches the guest */
#define LG_CMD_LISTEN_CLOSE 18 /* lg_cmd_value: first slot | how many << 32, slots without a socket among them: closes
                                * what is there. Connections go on, flows of their datagrams end. */
#define LG_CMD_SEEN 19 /* lg_cmd_seen: what another worker, elsewhere, has seen of the guest that comes here */
#define LG_CMD_FLOWS_FREEZE 20 /* lg_cmd_value: cursor; reply is lg_frozen_page and the sockets of its flows, in order */
#define LG_CMD_FLOWS_THAW 21   /* lg_cmd_value: id of a frozen flow, 0 all of them: they go on where they stood */
#define LG_CMD_FLOWS_FORGET 22 /* lg_cmd_value: the same; their sockets are closed, and the guest is not told */
#define LG_CMD_FLOW_ADOPT 23   /* lg_cmd_flow and its connected socket */
#define LG_CMD_NEIGHBOURS 24   /* lg_cmd_neighbours: replaces all */
#define LG_CMD_LISTEN_TARGET 25 /* lg_cmd_listen, no descriptor: sockets that are there lead elsewhere from now on */
#define LG_CMD_TAP_ATTACH 26 /* lg_cmd_value: LG_TAP_*; one non-blocking descriptor: a tap device with IFF_VNET_HDR is the link */

#define LG_CMD_SPLICE_AGENT 27 /* lg_cmd_header and one SEQPACKET descriptor: whoever makes sockets in the guest's namespace */

#define LG_CMD_GATEWAY_SERVE 28 /* lg_cmd_serve and a connected TCP socket: of a guest's SYN that was punted, to who answers */
#define LG_CMD_GATEWAY_DIAL 29  /* lg_cmd_dial and a connected TCP socket: whose other end speaks with the guest there */

#define LG_CMD_DGRAM_ATTACH 30 /* lg_cmd_header and one descriptor: a connected socket of messages becomes the link */

#define LG_SWITCH_PORTS 32 /* of a virtual network with several guests: lg_cmd_header.port - 1 */

#define LG_STREAM_LENGTH_16 1  /* before each frame its length in 2 bytes, the lower first; else in 4, the highest first */
#define LG_STREAM_SKIP 2      /* what is too short or too long for a frame is passed over, and not the end of the stream */

#define LG_TAP_USO 1 /* it takes and gives several datagrams in one frame */

#define LG_MEM_SLOTS 64

struct lg_cmd_header {
    uint32_t type; /* LG_CMD_* */
    uint32_t seq;
    uint32_t port;
    uint32_t reserved;
};

struct lg_cmd_value {
    struct lg_cmd_header header;
    uint64_t value;
};

struct lg_cmd_net_view {
    struct lg_cmd_header header;
    struct lg_net_view view;
};

#define LG_FRAME_HEAD 160 /* FRAME_HEAD_MAX */

struct lg_cmd_serve {
    struct lg_cmd_header header;
    uint32_t length;      /* of the frame */
    uint32_t head_length; /* of its start, which is here */
    uint8_t head[LG_FRAME_HEAD];
};

struct lg_cmd_dial {
    struct lg_cmd_header header;
    uint8_t guest[16];
    uint16_t guest_port;
    uint16_t gateway_port; /* that the guest sees it come from */
    uint32_t reserved;
};

struct lg_cmd_neighbours {
    struct lg_cmd_header header;
    struct lg_neighbours table;
};

struct lg_mem_region {
    uint64_t guest_addr;  /* guest physical */
    uint64_t size;        /* bytes */
    uint64_t user_addr;   /* the front end's own mapping; ring addresses are in these terms */
    uint64_t mmap_offset; /* where the region starts in its descriptor */
};

struct lg_cmd_mem {
    struct lg_cmd_header header;
    uint32_t count;
    uint32_t reserved;
    struct lg_mem_region region[LG_MEM_SLOTS];
};

#define LG_VRING_HAS_KICK 1
#define LG_VRING_HAS_CALL 2
#define LG_VRING_HAS_ERR 4
#define LG_VRING_ENABLED 8
#define LG_VRING_LOG 16            /* VHOST_VRING_F_LOG: writes to the used ring are logged at log_addr */
#define LG_VRING_BASE_FROM_USED 32 /* a replaced worker: go on at used->idx, base is not known */

struct lg_cmd_vring {
    struct lg_cmd_header header;
    uint32_t index; /* 0 receiveq (to the guest), 1 transmitq (from the guest) */
    uint32_t size;  /* descriptors */
    uint32_t base;  /* next avail index */
    uint32_t flags; /* LG_VRING_* */
    uint64_t desc;  /* user addresses, as in VHOST_USER_SET_VRING_ADDR */
    uint64_t avail;
    uint64_t used;
    uint64_t log_addr; /* guest physical address of the used ring, for the dirty log */
};

struct lg_cmd_log {
    struct lg_cmd_header header;
    uint64_t size;
    uint64_t offset;
};

#define LG_LISTEN_MAX 64        /* sockets in one command */
#define LG_LISTEN_SLOTS 327680  /* of all sockets: five addresses with every port, as many as a table may ask for */

struct lg_cmd_listen {
    struct lg_cmd_header header;
    uint32_t count;
    uint8_t protocol; /* IPPROTO_TCP or IPPROTO_UDP */
    uint8_t outward;  /* 1: they listen on the loopback interface of the guest's namespace, and lead to the host's */
    uint8_t padding[2];
    uint8_t target[16];                 /* of the guest; unset: as it is seen */
    uint32_t slot[LG_LISTEN_MAX];       /* of each socket, below LG_LISTEN_SLOTS: by which control calls it */
    uint16_t guest_port[LG_LISTEN_MAX]; /* for each socket; the host's, if they lead there */
};

/* ---- worker -> agent, on a channel of their own: sockets that are made in the guest's namespace ---- */

#define LG_AGENT_SOCKETS 83 /* lg_agent_sockets.kind: 'S' */
#define LG_AGENT_ANSWER 65  /* 'A', then a uint16_t for each socket, unaligned: 0 or an errno; the sockets, in order */

struct lg_agent_sockets {
    uint8_t kind;
    uint8_t family;   /* AF_INET or AF_INET6 */
    uint8_t protocol; /* IPPROTO_TCP or IPPROTO_UDP */
    uint8_t flags;    /* 0: neither bound nor listening, which is all that a worker gets */
    uint16_t first;   /* 0 */
    uint16_t count;
    uint8_t address[16]; /* unset */
};

struct lg_reply {
    uint32_t type; /* of the command */
    uint32_t seq;
    int32_t result; /* 0 or a negative errno */
    uint32_t reserved;
    uint64_t value;
};

#define LG_FLOW_PAGE 64

struct lg_flow_info {
    uint64_t id;
    uint32_t port;
    uint8_t protocol;        /* IPPROTO_* */
    uint8_t to_guest;        /* enum half_state, named by lg_half_name() */
    uint8_t to_host;         /* enum half_state */
    uint8_t stall;           /* enum stall, named by lg_stall_name() */
    uint8_t guest_addr[16];  /* what the guest's socket is bound to */
    uint8_t remote_addr[16]; /* as the guest addresses it */
    uint16_t guest_port;
    uint16_t remote_port;
    uint32_t rtt_us;         /* of the guest's side; 0 unknown */
    uint64_t bytes_to_guest; /* acknowledged */
    uint64_t bytes_from_guest;
    uint32_t in_flight; /* bytes to the guest that it has not acknowledged */
    uint32_t guest_window;
};

struct lg_flow_page {
    struct lg_reply reply; /* reply.value: the next cursor, 0 at the end */
    uint32_t count;
    uint32_t reserved;
    struct lg_flow_info flow[LG_FLOW_PAGE];
};

/* ---- a guest that moves to another host, its TCP connections with it ---- */

/* What is known of the guest's end of a connection, whose two directions are both open. The peer's end is in the socket:
 * the first byte of its receive queue has sequence number snd_una, the last of its send queue is the one before rcv_nxt. */
struct lg_tcp_flow {
    uint64_t id;             /* of a frozen flow */
    uint8_t guest_addr[16];  /* what the guest's socket is bound to */
    uint8_t remote_addr[16]; /* as the guest addresses it */
    uint16_t guest_port;
    uint16_t remote_port;
    uint16_t mss;         /* payload of a segment to the guest */
    uint8_t guest_scale;  /* of the windows that the guest tells */
    uint8_t our_scale;    /* of those that it is told */
    uint8_t inbound;      /* 1: the peer opened it */
    uint8_t sack_allowed; /* 1: both sides offered it */
    uint8_t guest_ended;  /* 1: its FIN is with the kernel, and counted in rcv_nxt */
    uint8_t peer_ended;   /* 1: its FIN follows what is in the socket's queue; 2: the guest has acknowledged that */
    uint32_t snd_una;     /* what the guest has acknowledged */
    uint32_t snd_nxt;     /* what was sent to it */
    uint32_t snd_window;
    uint32_t rcv_nxt;   /* what the socket took */
    uint32_t rcv_acked; /* of that, what the guest was told */
    uint32_t rcv_edge;  /* of the window that it was told */
    uint32_t irs;       /* the guest's initial sequence number */
};

struct lg_cmd_flow {
    struct lg_cmd_header header;
    struct lg_tcp_flow flow;
};

#define LG_FROZEN_PAGE 64 /* with a descriptor each: LG_LISTEN_MAX, which one record carries */

struct lg_frozen_page {
    struct lg_reply reply; /* reply.value: the next cursor, 0 at the end */
    uint32_t count;
    uint32_t reserved;
    struct lg_tcp_flow flow[LG_FROZEN_PAGE];
};

/* ---- up: worker <-> control ---- */

#define LG_UP_PUNT 1  /* worker -> control: an Ethernet frame that control answers (DHCP, RS) */
#define LG_UP_FRAME 2 /* control -> worker: an Ethernet frame for the guest */
#define LG_UP_EVENT 3 /* worker -> control: struct lg_event */
#define LG_UP_SEEN 4  /* worker -> control: struct lg_seen; sent again until it fits */
#define LG_UP_LINK_END 5 /* worker -> control: struct lg_link_end: the link is detached; sent again until it fits */

#define LG_UP_CAM 6      /* worker -> control: struct lg_cam: who is behind a port; sent again until it fits */

#define LG_UP_BYTES_MAX 65600 /* a record with the largest frame */

struct lg_up {
    uint32_t type; /* LG_UP_* */
    uint32_t port;
    uint32_t length; /* bytes that follow */
    uint32_t reserved;
};

struct lg_seen {
    uint8_t mac[6];
    uint8_t padding[2];
    uint8_t addr4[16];
    uint8_t addr6[16];
    uint8_t link_local[16];
};

struct lg_cmd_seen {
    struct lg_cmd_header header;
    struct lg_seen seen;
};

struct lg_cam {
    uint8_t mac[6];
    uint8_t padding[2]; /* the port is the record's */
};

struct lg_link_end {
    int32_t error;   /* 0 the other end closed it; EPROTO a length that no frame has; else the errno of a call */
    uint32_t length; /* with EPROTO: that length */
};

#define LG_EVENT_FLOW_OPEN 1     /* the guest's SYN was taken; reason: none */
#define LG_EVENT_FLOW_CONNECT 2  /* the peer answered, SYN-ACK sent */
#define LG_EVENT_FLOW_STALL 3    /* reason: enum stall */
#define LG_EVENT_FLOW_RESUME 4   /* reason: the enum stall that ended */
#define LG_EVENT_FLOW_CLOSE 5    /* reason: enum close_reason, named by lg_close_name(); error: errno */
#define LG_EVENT_FLOW_REFUSED 6  /* error: errno of connect() */
#define LG_EVENT_RETRANSMIT 7    /* value: bytes that are sent again */
#define LG_EVENT_RING_STOPPED 8  /* value: ring index; reason: enum vring_fault, named by lg_fault_name() */
#define LG_EVENT_FRAME_DROPPED 9 /* reason: index of the counter that counted it */
#define LG_EVENT_NO_PING 10      /* error: why the host gives no ping socket; told once */
#define LG_EVENT_FLOWS_FULL 11   /* value: how many there are; told once a minute */
#define LG_EVENT_FLOW_UNANSWERED 12 /* a guest took no connection of this peer's; error: why; told five times a second */

struct lg_event {
    uint32_t kind;   /* LG_EVENT_* */
    uint32_t reason; /* see the kind */
    uint64_t flow;   /* id, 0 none */
    uint64_t value;
    int32_t error; /* errno, 0 none */
    uint32_t reserved;
    uint8_t guest_addr[16];
    uint8_t remote_addr[16];
    uint16_t guest_port;
    uint16_t remote_port;
    uint32_t protocol; /* IPPROTO_*, of a flow */
    uint64_t bytes_to_guest;
    uint64_t bytes_from_guest;
};

/* ---- the pcap ring: a memfd that the worker fills and control drains ---- */

#define LG_PCAP_RING_BYTES 4194304 /* of data, behind the head page; a power of two */
#define LG_PCAP_HEAD_BYTES 4096

struct lg_pcap_head {
    uint64_t written; /* bytes ever written; the worker's, stored with release order */
    uint64_t read;    /* bytes ever read; control's, stored with release order */
    uint64_t dropped; /* frames that found no room */
};

struct lg_pcap_record { /* each record starts at a multiple of 8, and may wrap around the end of the data */
    uint64_t time_ns;   /* CLOCK_REALTIME */
    uint32_t length;    /* bytes of frame that follow */
    uint16_t port;
    uint16_t to_guest; /* 1: sent to the guest, 0: received from it */
};

/* ---- counters: a memfd of uint64_t, one for each name ---- */

#define LG_COUNTER_BYTES 4096

unsigned lg_counter_count(void);
const char *lg_counter_name(unsigned index); /* NULL past the end */
const char *lg_half_name(unsigned half);
const char *lg_stall_name(unsigned stall);
const char *lg_close_name(unsigned reason);
const char *lg_fault_name(unsigned fault);

/* ---- the worker's life ---- */

#define LG_WORKER_NO_PEEK_OFF 1 /* act as on a kernel before 6.9, whose TCP has no SO_PEEK_OFF */
#define LG_WORKER_NO_REORDER 2  /* drop what comes ahead of a gap, for comparison */

struct lg_worker_config {
    int cmd_fd;
    int up_fd;
    int keeper_fd;     /* READY is one byte 'R' sent here; EOF here ends the worker */
    int counters_fd;   /* memfd, LG_COUNTER_BYTES */
    int pcap_fd;       /* memfd, LG_PCAP_HEAD_BYTES + LG_PCAP_RING_BYTES; -1 none */
    int pcap_event_fd; /* eventfd, signalled when the ring was empty; -1 none */
    uint32_t flags;    /* LG_WORKER_* */
    uint32_t flow_limit;
};

/* Runs the data path until keeper_fd or cmd_fd closes (returns 0) or something of ours fails (a negative errno). */
int lg_worker_run(const struct lg_worker_config *config);

/* ---- the other processes: isolation.c ---- */

/* Layers of the worker's isolation, in the order in which they are put on. */
#define LG_LAYER_USER 0         /* a user namespace */
#define LG_LAYER_NAMESPACES 1   /* mount, PID, IPC and UTS namespaces */
#define LG_LAYER_ROOT 2         /* an empty read-only root */
#define LG_LAYER_CAPABILITIES 3 /* none, nor in the bounding set */
#define LG_LAYER_PRIVILEGES 4   /* no_new_privs; not dumpable */
#define LG_LAYER_COUNT 5

#define LG_KEEPER_READY 82     /* 'R', alone in its record */
#define LG_KEEPER_ISOLATION 73 /* 'I', first byte of lg_isolation; sent before READY */

struct lg_isolation {
    uint8_t kind; /* LG_KEEPER_ISOLATION */
    uint8_t padding[3];
    int32_t error[LG_LAYER_COUNT]; /* of each layer: 0 reached, else the errno of its refusal */
};

const char *lg_layer_name(unsigned layer); /* NULL past the end */

/* Makes the worker: the child isolates itself as far as the machine allows, sends lg_isolation on keeper_fd, runs
 * lg_worker_run() and exits with 0 or the errno of its failure. It keeps the descriptors of the configuration and, if
 * stderr_fd is 2, the standard error. Returns its pid, or a negative errno. Single-threaded callers only. */
int lg_worker_spawn(const struct lg_worker_config *config, const char *name, int stderr_fd);

/* In the child that becomes control, after any setuid: no capabilities, no_new_privs, dies with its parent. */
int lg_control_confine(const char *name);

/* Of pasta's agent. The first joins the network or user namespace that a descriptor stands for. The second comes once
 * all is open that it needs from outside: an empty root, no capabilities but those to configure a network and to bind
 * any port, no_new_privs, no debuggers, dies with its parent. 0 or a negative errno. */
int lg_namespace_enter(int fd, int network);
int lg_agent_confine(const char *name);

/* Root becomes another, for good: that user and group, without further groups. Of its rights are kept, of LG_KEEP_*,
 * those to bind ports below 1024, and to end the processes of others. 0 or a negative errno. */
#define LG_KEEP_PORTS 1
#define LG_KEEP_KILL 2
int lg_become(unsigned uid, unsigned gid, unsigned keep);

int lg_process_name(const char *name);

/* ps(1) shows the command as it was typed, no more the interpreter's own words. To be called once, by the launcher's
 * Python, before it forks. */
void lg_show_command(void);

/* Blocks SIGTERM, SIGQUIT and SIGCHLD, and of a terminal's what is asked for unless the caller wants it ignored, and
 * returns a signalfd for them; else SIGINT gets its default back. */
#define LG_SIGNALS_INTERRUPT 1 /* SIGINT */
#define LG_SIGNALS_HANGUP 2    /* and SIGHUP */
int lg_signals_open(int terminal);

/* Closes every descriptor from 3 up, but those named (-1 names none). 0 or -ENOMEM. */
int lg_close_all_but(const int *keep, unsigned count);

/* The process that namespaces are made for: namespace_command.c */

#define LG_COMMAND_USER 1 /* also a user namespace, of which the process is root */
#define LG_COMMAND_PID 2  /* also a PID namespace, of which it is the first process */

/* How far it has come. */
#define LG_COMMAND_MAPPED 1 /* it has failed to become root */
#define LG_COMMAND_BORN 2   /* all is there, but for /proc if there is an error */
#define LG_COMMAND_BECAME 3 /* it has failed to become the command */

struct lg_command_report {
    int32_t step;
    int32_t error;
};

struct lg_command {
    const char *file;       /* looked for in PATH */
    char *const *arguments; /* with a NULL behind the last */
    const char *hostname;
    uint64_t descriptors; /* their soft limit for the command */
    int channel;          /* for its reports; a byte lets it go, the end ends it */
    unsigned flags;       /* of LG_COMMAND_USER and the others */
};

/* Makes the process, in new network, mount, IPC and UTS namespaces. Its pid, or a negative errno. Single-threaded callers
 * only. */
int lg_command_spawn(const struct lg_command *command);

/* A program that the keeper runs beside us: ssh. */
struct lg_program {
    const char *file;         /* with its path */
    char *const *arguments;   /* with a NULL behind the last */
    char *const *environment; /* likewise; all that it gets */
    const char *folder;       /* in which it is at home */
    int error_fd;             /* its standard error; the other two streams are /dev/null */
};

/* Starts it in a session of its own, without our descriptors, without capabilities or a way to gain any; it dies with
 * its parent. Its pid, or a negative errno; one that cannot become the program says why on error_fd and exits with 127.
 * Single-threaded callers only. */
int lg_program_spawn(const struct lg_program *program);

int lg_watch_open(void); /* an inotify descriptor that does not block, or a negative errno */

/* Tells there when the folder moves or goes and, with `names`, when a name in it changes. The watch's number or a
 * negative errno: -ENOTDIR also for a link to a folder. */
int lg_watch_folder(int fd, const char *path, int names);

/* Tells there when somebody has written to the file, by whatever name. Likewise. */
int lg_watch_file(int fd, const char *path);
int lg_watch_end(int fd, int watch); /* 0 or -EINVAL: it has ended with its folder, or file */

void lg_release_memory(void); /* gives the free part of the C heap back to the kernel */

/* cdef: end */
#endif
