/* SPDX-License-Identifier: Apache-2.0
 *
 * counters.h: every counter of the data path, once. The list makes the enum, the names that Python shows, and the layout
 * of the shared page: one uint64_t each, in this order, written by the worker alone.
 */
#ifndef LOCKGATE_COUNTERS_H
#define LOCKGATE_COUNTERS_H

#include <stdint.h>

/* It would pull the headings into the rows. */
/* clang-format off */
#define COUNTERS(apply)                                                                                                \
    /* the loop */                                                                                                     \
    apply(wakeups)                /* returns of epoll_wait */                                                          \
    apply(wakeup_events)          /* events that they carried */                                                       \
    apply(wakeups_idle)           /* flow events that moved no byte and changed no state */                            \
    apply(timers_fired)                                                                                                \
    apply(gathers)                /* sleeps in which a stream of the guest's gathered */                               \
    /* the link */                                                                                                     \
    apply(frames_from_guest)                                                                                           \
    apply(bytes_from_guest)                                                                                            \
    apply(frames_to_guest)                                                                                             \
    apply(bytes_to_guest)                                                                                              \
    apply(frames_between_guests)  /* of a switch, which the engine does not see */                                     \
    apply(kicks)                  /* the guest told us of buffers */                                                   \
    apply(calls)                  /* we told the guest */                                                              \
    apply(link_full)              /* how often a frame of a flow began to wait for room */                             \
    apply(ring_faults)            /* a ring was stopped for what the guest wrote into it */                            \
    /* frames that went nowhere, by reason */                                                                          \
    apply(drop_short)             /* shorter than its headers say */                                                   \
    apply(drop_length)            /* longer than a frame may be, or than its chain can carry */                        \
    apply(drop_ethertype)         /* neither ARP, IPv4 nor IPv6 */                                                     \
    apply(drop_ip_header)                                                                                              \
    apply(drop_fragment)          /* it does not fit the rest of its packet, or came twice */                          \
    apply(drop_protocol)          /* of a protocol that nobody here answers, or that is switched off */                \
    apply(drop_address)           /* loopback, multicast or unspecified where it may not be */                         \
    apply(drop_source)            /* from an address that no guest of this virtual network can have */                 \
    apply(drop_tcp_header)                                                                                             \
    apply(drop_udp_header)                                                                                             \
    apply(drop_no_room)           /* an answer of ours that nobody repeats found the link full */                      \
    apply(drop_disconnected)      /* for the guest, while no link is attached */                                       \
    apply(punts)                  /* frames handed to control */                                                       \
    apply(punts_lost)             /* control did not keep up */                                                        \
    apply(frames_injected)        /* frames that control sent to the guest */                                          \
    apply(frames_injected_lost)                                                                                        \
    apply(events_lost)                                                                                                 \
    /* packets of the guest's that came in pieces */                                                                   \
    apply(fragments)              /* the pieces */                                                                     \
    apply(fragments_joined)       /* packets that they made */                                                         \
    apply(fragments_late)         /* packets whose pieces did not all come in time */                                  \
    apply(fragments_evicted)      /* that had to make room for others */                                               \
    apply(fragments_to_guest)     /* pieces of packets that are too large for it */                                    \
    /* what we answer ourselves */                                                                                     \
    apply(arp_replies)                                                                                                 \
    apply(ns_replies)                                                                                                  \
    apply(echo_replies)                                                                                                \
    /* TCP */                                                                                                          \
    apply(tcp_opened)                                                                                                  \
    apply(tcp_accepted)           /* a peer connected to a port that leads to the guest */                             \
    apply(tcp_turned_away)        /* of them, before the guest was asked: no address, no room */                       \
    apply(tcp_accept_failed)      /* no descriptor was left for one */                                                 \
    apply(tcp_refused)            /* connect() failed, or the guest refused */                                         \
    apply(tcp_closed)                                                                                                  \
    apply(tcp_resets_from_guest)                                                                                       \
    apply(tcp_resets_from_peer)                                                                                        \
    apply(tcp_resets_sent)        /* to the guest, for whatever reason */                                              \
    apply(tcp_retransmits)                                                                                             \
    apply(tcp_timeouts)           /* the retransmission timer fired */                                                 \
    apply(tcp_fast_retransmits)                                                                                        \
    apply(tcp_window_probes)                                                                                           \
    apply(tcp_out_of_order)       /* segments from the guest ahead of what we expect */                                \
    apply(tcp_duplicate)          /* segments from the guest that we had already */                                    \
    apply(tcp_challenge_acks)                                                                                          \
    apply(tcp_short_sends)        /* the peer's queue took less than the guest had sent */                             \
    apply(tcp_hold_full)          /* bytes that the kernel did not take found no place: the guest repeats them */       \
    apply(tcp_bytes_to_guest)     /* payload, sent for the first time */                                               \
    apply(tcp_bytes_from_guest)   /* payload that the peer's queue took */                                             \
    apply(tcp_frozen)             /* to be moved to another host */                                                    \
    apply(tcp_adopted)            /* moved here from another host */                                                   \
    apply(stall_window)                                                                                                \
    apply(stall_link)                                                                                                  \
    apply(interest_changes)       /* EPOLL_CTL_MOD */                                                                  \
    /* UDP and echo requests */                                                                                        \
    apply(datagram_opened)                                                                                             \
    apply(datagram_closed)                                                                                             \
    apply(datagrams_turned_away)  /* from peers: no address to show them by, or no room */                             \
    apply(datagram_refused)       /* no socket, or no way to that address */                                           \
    apply(udp_port_taken)         /* the guest's source port could not be kept on the host */                          \
    apply(datagrams_from_guest)   /* that the host's queue took */                                                     \
    apply(datagrams_to_guest)                                                                                          \
    apply(udp_bytes_to_guest)                                                                                          \
    apply(datagrams_unsent)       /* that it did not take: full, or the path refused them */                           \
    apply(datagram_errors)        /* ICMP errors that the host heard of, told to the guest */                          \
    /* loopback of host and namespace, joined */                                                                       \
    apply(splice_opened)                                                                                               \
    apply(splice_closed)                                                                                               \
    apply(splice_refused)         /* the far end did not accept, or no socket was to be had */                         \
    apply(splice_asked)           /* the namespace's agent, for sockets */                                             \
    apply(splice_streams)         /* what came from a side became one: see splice_stream.c */                          \
    apply(splice_pauses)          /* and ended, or ended for a while */                                                \
    apply(splice_datagrams)       /* that the other side's queue took */                                               \
    apply(splice_bytes_to_guest)                                                                                       \
    apply(splice_bytes_from_guest)                                                                                     \
    apply(flows)                  /* now in the table */                                                               \
    apply(flows_refused)          /* because the table was full */                                                     \
    apply(flows_evicted)          /* idle ones that made room for a new one */                                         \
    apply(pcap_dropped)
/* clang-format on */

enum counter {
#define COUNTER_ENUM(name) C_##name,
    COUNTERS(COUNTER_ENUM)
#undef COUNTER_ENUM
    C_COUNT
};

#endif
