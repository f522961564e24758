# SPDX-License-Identifier: Apache-2.0
"""The flags of the contract gvproxy. Read by gvproxy.py, before READY: data only. Adversary: nobody.

-version is a flag like the others; -h and -help are the grammar's own.
"""

from __future__ import annotations

from lockgate.plugin.contracts.goflags import BOOL, INT, LIST, STRING, Flag
from lockgate.plugin.gateway.virtual_network import SSH_PORT_DEFAULT

GVPROXY = "gvproxy"

FLAGS = (
    Flag("config", STRING, "YAML file to read; the command line wins, except for subnet and IP addresses"),
    Flag("debug", BOOL, "Log what happens, one event a line"),
    Flag("deviceIP", STRING, "IP address of the first guest (default: second usable of the subnet)"),
    Flag("ec2-metadata-access", BOOL, "Let guests reach link-local addresses, where clouds have their metadata"),
    Flag("forward-dest", LIST, "Path of a socket in the guest, one for each -forward-sock"),
    Flag("forward-identity", LIST, "File with the private SSH key, one for each -forward-sock"),
    Flag("forward-sock", LIST, "UNIX socket to make; its clients reach a socket in the guest, by SSH"),
    Flag("forward-user", LIST, "User to log in as in the guest, one for each -forward-sock"),
    Flag("gatewayIP", STRING, "IP address of the gateway (default: first usable of the subnet)"),
    Flag("hostIP", STRING, "IP address that stands for the host's loopback (default: last usable of the subnet)"),
    Flag("listen", LIST, "URL to serve the whole HTTP API at, /connect included"),
    Flag("listen-bess", STRING, "URL (unixpacket://) that one guest connects to, a frame a packet: User-mode Linux"),
    Flag("listen-qemu", STRING, "URL that QEMU connects to with -netdev stream"),
    Flag("listen-stdio", STRING, "Any word: one guest's frames come and go by standard input and output"),
    Flag("listen-vfkit", STRING, "URL (unixgram://) that one guest sends frames to, one a datagram: vfkit, krunkit"),
    Flag("listen-vpnkit", STRING, "URL that guests of HyperKit connect to"),
    Flag("log-file", STRING, "File to log to instead of standard error; it is emptied first"),
    Flag("mtu", INT, "MTU of the virtual network (default 1500)"),
    Flag("notification", STRING, "URL (unix://) of a socket that wants to hear of guests"),
    Flag("pcap", STRING, "File to record the guests' frames in"),
    Flag("pid-file", STRING, "File to write the process number to"),
    Flag("services", STRING, "URL to serve the HTTP API at, all but /connect"),
    Flag("ssh-port", INT, "Port of 127.0.0.1 that leads to the guest's port 22; -1: none", SSH_PORT_DEFAULT),
    Flag("subnet", STRING, "Network of the guests, in CIDR notation (default: 192.168.127.0/24)"),
    Flag("version", BOOL, "Print the version"),
)
