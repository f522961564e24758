# SPDX-License-Identifier: Apache-2.0
"""The options that passt and pasta share: one table for both names, since each must also recognise the other's.

Read by passt.py and pasta.py for parsing and by request.py for the help text, before READY: data only.
Adversary: nobody.
Invariants: an option of the contract is here even if it is not built yet (`built=False`), because which abbreviations
are unambiguous follows from all names; a switch that does no more than fill fields of the NetworkSpec says so here
(`sets`), every other built option has its method in request.py, passt.py or pasta.py.
"""

from __future__ import annotations

from lockgate.plugin.contracts.getopt import Option, OptionTable
from lockgate.plugin.spec import QUIET, TRACE, VHOST_USER

PASST = "passt"
PASTA = "pasta"

GROUPS: tuple[tuple[str, tuple[Option, ...]], ...] = (
    (
        "Process and log",
        (
            Option("help", "h", help="print this text and exit"),
            Option("version", help="print the version and exit"),
            Option("foreground", "f", help="stay in the foreground", sets={"foreground": True}),
            Option("quiet", "q", help="print warnings and errors only", sets={"log_level": QUIET}),
            Option("debug", "d", help="print one event a line"),
            Option("trace", help="like --debug, and one line for each frame", sets={"log_level": TRACE}),
            Option("stderr", "e", help="obsolete, does nothing"),
            Option("stats", "", "SECONDS", help="print counters every SECONDS; with --foreground before it"),
            Option("log-file", "l", "PATH", help="log to this file"),
            Option("log-size", "", "BYTES", help="let the log file grow to BYTES (default 1048576, at least 40960)"),
            Option("pid", "P", "PATH", help="write the process number to this file"),
            Option("pcap", "p", "PATH", help="record the guest's frames in this file"),
            Option("runas", "", "UID[:GID]", help="run as this user and group, by numbers or names"),
            Option("conf-path", "c", "PATH", help="listen on this UNIX socket for pesto, which changes forwards"),
            Option("chroot-fallback", help="use chroot where pivot_root is refused, as is done anyway"),
        ),
    ),
    (
        "Link to the guest",
        (
            Option(
                "socket",
                "s",
                "PATH",
                aliases=("socket-path",),
                mode=PASST,
                help="listen on this UNIX socket (default the first free of /tmp/passt_1.socket to _99)",
            ),
            Option("fd", "F", "N", mode=PASST, help="use the connected socket that was inherited as descriptor N"),
            Option("one-off", "1", mode=PASST, help="exit when the first guest has gone", sets={"one_off": True}),
            Option(
                "vhost-user",
                mode=PASST,
                help="speak vhost-user there, not a stream of frames",
                sets={"link": VHOST_USER},
            ),
            Option("print-capabilities", mode=PASST, help="print what a vhost-user front end wants to know, and exit"),
            Option(
                "repair-path",
                "",
                "PATH",
                mode=PASST,
                help="socket of the helper that migration needs, or none (default the link's and .repair)",
            ),
            Option(
                "migrate-exit",
                mode=PASST,
                help="exit when the guest has moved to another host",
                sets={"migrate_exit": True},
            ),
            Option(
                "migrate-no-linger",
                mode=PASST,
                help="close the sockets of connections that have moved",
                sets={"migrate_linger": False},
            ),
        ),
    ),
    (
        "Addresses",
        (
            Option("ipv4-only", "4", help="no IPv6 for the guest"),
            Option("ipv6-only", "6", help="no IPv4 for the guest"),
            Option("address", "a", "ADDR[/LEN]", help="address of the guest, one a family (default the host's)"),
            Option("netmask", "n", "MASK", help="IPv4 netmask or prefix length of the guest"),
            Option("gateway", "g", "ADDR", help="router of the guest, one a family (default the host's)"),
            Option("interface", "i", "NAME", help="take addresses and routes from this interface of the host"),
            Option("mtu", "m", "BYTES", help="MTU of the guest (default 65520); 0: leave it alone"),
            Option("mac-addr", "M", "MAC", help="our own MAC address (default 9a:55:9a:55:9a:55)"),
            Option("outbound", "o", "ADDR", help="connect from this address of the host"),
            Option("outbound-if4", "", "NAME", help="send IPv4 through this interface"),
            Option("outbound-if6", "", "NAME", help="send IPv6 through this interface"),
            Option("freebind", help="bind addresses that the host does not have", sets={"freebind": True}),
        ),
    ),
    (
        "What the guest calls the host",
        (
            Option("map-host-loopback", "", "ADDR", help="the host's loopback, or none (default the gateway)"),
            Option("no-map-gw", help="do not let the gateway stand for the host's loopback"),
            Option("map-guest-addr", "", "ADDR", help="the host's own address, or none"),
            Option("host-lo-to-ns-lo", mode=PASTA, help="forward what comes from loopback to loopback"),
        ),
    ),
    (
        "Protocols and services",
        (
            Option("no-tcp", help="no TCP", sets={"no_tcp": True}),
            Option("no-udp", help="no UDP", sets={"no_udp": True}),
            Option("no-icmp", help="no ICMP, and so no NDP either", sets={"no_icmp": True, "no_ndp": True}),
            Option("no-dhcp", help="no DHCP", sets={"no_dhcp": True}),
            Option("no-dhcpv6", help="no DHCPv6", sets={"no_dhcpv6": True}),
            Option("no-ndp", help="no NDP, and so no router advertisements either", sets={"no_ndp": True}),
            Option("no-ra", help="no router advertisements", sets={"no_ra": True}),
        ),
    ),
    (
        "Names",
        (
            Option("hostname", "H", "NAME", help="name of the guest"),
            Option("fqdn", "", "NAME", help="name of the guest with its domain"),
            Option("dns", "D", "ADDR", help="resolver of the guest, or none (default the host's)"),
            Option("dns-forward", "", "ADDR", help="a resolver's address that stands for the host's"),
            Option("dns-host", "", "ADDR", help="the host's resolver that answers for it (default its first)"),
            Option("search", "S", "DOMAIN", help="search domains of the guest, or none (default the host's)"),
            Option("no-dhcp-dns", mode=PASST, help="do not hand out resolvers", sets={"no_dhcp_dns": True}),
            Option("no-dhcp-search", mode=PASST, help="do not hand out search domains", sets={"no_dhcp_search": True}),
            Option("dhcp-dns", mode=PASTA, help="hand out resolvers", sets={"no_dhcp_dns": False}),
            Option("dhcp-search", mode=PASTA, help="hand out search domains", sets={"no_dhcp_search": False}),
        ),
    ),
    (
        "Port forwards",
        (
            Option("tcp-ports", "t", "SPEC", help="TCP ports of the host to forward to the guest"),
            Option("udp-ports", "u", "SPEC", help="UDP ports of the host to forward to the guest"),
            Option("tcp-ns", "T", "SPEC", mode=PASTA, help="TCP ports of its loopback to forward to the host's"),
            Option("udp-ns", "U", "SPEC", mode=PASTA, help="UDP ports of its loopback to forward to the host's"),
            # Accepted under the name passt too, where nothing is ever spliced.
            Option("no-splice", help="no short cut between loopback addresses"),
            Option("splice-only", mode=PASTA, help="nothing but that short cut"),
        ),
    ),
    (
        "Namespace",
        (
            Option("userns", "", "PATH", mode=PASTA, help="user namespace to join"),
            Option("netns", "", "PATH", mode=PASTA, help="network namespace to join, by path or name"),
            Option("netns-only", mode=PASTA, help="neither join nor make a user namespace"),
            Option("no-netns-quit", mode=PASTA, help="stay when the namespace is deleted"),
            Option("no-pidns", mode=PASTA, help="make no process namespace"),
            Option("ns-ifname", "I", "NAME", mode=PASTA, help="name of the interface there"),
            Option("ns-mac-addr", "", "MAC", mode=PASTA, help="MAC address of the interface there"),
            Option("config-net", mode=PASTA, help="configure the interface there"),
            Option("no-copy-routes", mode=PASTA, help="copy no routes but that to the gateway; obsolete"),
            Option("no-copy-addrs", mode=PASTA, help="copy no addresses but the one of --address or DHCP; obsolete"),
        ),
    ),
)

TABLE = OptionTable([option for _, options in GROUPS for option in options])
