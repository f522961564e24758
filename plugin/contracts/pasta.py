# SPDX-License-Identifier: Apache-2.0
"""The contract `pasta`: what its callers (Podman, Buildah, RootlessKit, people) write on a command line.

Called by the wrapper before READY, hence the light imports. Adversary: whoever made the command line. Invariants and
order: as in passt.py; what follows the options (a process, a command) is looked at before the checks that need all of
them, and the way out of the namespace after the way into it.

On purpose not as pasta, because Podman adds options to what its users wrote, without understanding it:
- An option and its argument may be one word with blanks between ("-T 80"), as lists in containers.conf invite to.
- "none" after ports of the same kind is a note, and changes nothing.
- What is left to us (ports that follow what listens) is left out for a protocol that is switched off.
"""

from __future__ import annotations

import _socket

from lockgate.plugin.address import UNSET
from lockgate.plugin.contracts.getopt import Getopt
from lockgate.plugin.contracts.passt_options import PASTA, TABLE
from lockgate.plugin.contracts.request import Request, mac_of, path_of, refusal
from lockgate.plugin.spec import DEBUG, QUIET, TAP, TRACE, NamespaceSpec, NetworkSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.contracts.request import Forward

# 169.254.1.2, by which Podman's containers know the host, in the prefix for whatever translation one has at home
# (RFC 8215): nobody else's anywhere, and routed like any other.
SHARED_HOST6 = bytes.fromhex("0064ff9b0001") + bytes(6) + bytes((169, 254, 1, 2))

NAMES_FOLDER = "/run/netns/"  # where `ip netns` keeps namespaces by name
PID_MAX = 1 << 22  # PID_MAX_LIMIT of <linux/threads.h>

_TCP, _UDP = _socket.IPPROTO_TCP, _socket.IPPROTO_UDP
_INBOUND = {_TCP: "--tcp-ports", _UDP: "--udp-ports"}
_OUTBOUND = {_TCP: "--tcp-ns", _UDP: "--udp-ns"}


def parse(arguments: Sequence[str], name: str) -> NetworkSpec:
    """What the words after the command's name ask for; name is argv[0], for getopt's own error lines.

    Raises Stop for --help and --version, and for every mistake.
    """
    request = _Request()
    others = request.take_all(Getopt(TABLE, arguments, name, blanks=True))
    request.choose_namespace(others)
    request.finish()
    request.check_loopback()
    request.check_configuration()
    request.name_host()
    request.add_forwards()
    return request.spec


class _Request(Request):
    """And the options that pasta alone takes, nearly all about the namespace."""

    __slots__ = ("_namespace", "_outbound")

    synopsis = (
        "pasta [OPTION]... [COMMAND [ARGUMENT]...]\n"
        "       pasta [OPTION]... PID\n"
        "       pasta [OPTION]... --netns PATH|NAME"
    )
    may_follow = True

    def __init__(self) -> None:
        super().__init__(NetworkSpec(contract=PASTA, link=TAP))
        self._namespace = self.spec.namespace = NamespaceSpec()
        self._outbound: list[Forward] = []  # from the namespace to the host
        self.spec.no_dhcp_dns = self.spec.no_dhcp_search = True

    def choose_namespace(self, words: Sequence[str]) -> None:
        """`words` are those that are no options."""
        namespace = self._namespace
        if words and namespace.path:
            raise refusal(f"--netns {namespace.path}: {words[0]} would choose another; leave out one of the two")
        if len(words) == 1 and words[0].isascii() and words[0].isdecimal():
            self._choose_process(words[0])
        elif namespace.path:
            namespace.netns_only = not namespace.userns
        else:
            self._choose_command(words)
        if namespace.path and not namespace.pidns:
            raise refusal("--no-pidns is for a command only: here no process is started; leave it out")

    def _choose_process(self, digits: str) -> None:
        namespace = self._namespace
        pid = int(digits) if len(digits.lstrip("0")) <= len(str(PID_MAX)) else 0
        if not 0 < pid <= PID_MAX:
            raise refusal(f"Invalid PID {digits}: expected the number of a process")
        namespace.pid = pid
        namespace.path = f"/proc/{pid}/ns/net"
        if not namespace.netns_only and not namespace.userns:
            namespace.userns = f"/proc/{pid}/ns/user"

    def _choose_command(self, words: Sequence[str]) -> None:
        """In the foreground, and without a word of our own unless events are wanted."""
        if self._namespace.userns:
            raise refusal(
                f"--userns {self._namespace.userns}: a command gets a user namespace of its own; leave it out, or name "
                "the network namespace with --netns"
            )
        self._namespace.command = tuple(words)
        self.spec.foreground = True
        if self.spec.log_level not in (DEBUG, TRACE):
            self.spec.log_level = QUIET

    def check_loopback(self) -> None:
        namespace, spec = self._namespace, self.spec
        for given, name in (
            (namespace.splice_only, "--splice-only"),
            (namespace.host_lo_to_ns_lo, "--host-lo-to-ns-lo"),
        ):
            if given and namespace.no_splice:
                raise refusal(f"{name} is incompatible with --no-splice; leave out one of the two")
        if namespace.splice_only:
            namespace.host_lo_to_ns_lo = True
            spec.no_icmp = spec.no_ndp = spec.no_ra = spec.no_dhcp = spec.no_dhcpv6 = True  # on which interface?

    def check_configuration(self) -> None:
        namespace = self._namespace
        if namespace.config_net:
            self.spec.no_ra = True  # a kernel that has its addresses would add those of an advertisement
            return
        for copied, name in ((namespace.copy_routes, "--no-copy-routes"), (namespace.copy_addrs, "--no-copy-addrs")):
            if not copied:
                raise refusal(f"{name} needs --config-net: without it nothing is copied; add it, or leave both out")

    def name_host(self) -> None:
        """Behind a namespace that others share, a link-local address means nothing: the host has a name there that is
        sent on."""
        if self._namespace.is_shared and self.spec.ipv6.map_guest == UNSET:
            self.spec.ipv6.map_guest = SHARED_HOST6

    def add_forwards(self) -> None:
        """Ports of which nothing was said follow what listens."""
        for forwards, options in ((self.forwards, _INBOUND), (self._outbound, _OUTBOUND)):
            for protocol, switched_off in ((_TCP, self.spec.no_tcp), (_UDP, self.spec.no_udp)):
                if not switched_off and all(protocol != mentioned for _, mentioned, _ in forwards):
                    forwards.append((options[protocol], protocol, "auto"))
        super().add_forwards()
        self._namespace.forwards = self.rules(self._outbound, outbound=True)

    def want(self, forwards: list[Forward], option: str, protocol: int, text: str) -> None:
        """Podman writes "-T none" where it does not see that "--tcp-ns=80" was there already, and hands on the blanks
        after its users' commas."""
        text = ",".join(chunk.lstrip(" ") for chunk in text.split(","))
        if text == "none" and any(before != "none" for _, other, before in forwards if other == protocol):
            self.spec.notes.append(f"{option} none: changes nothing, because ports were named before")
        else:
            super().want(forwards, option, protocol, text)

    # One method an option, as in Request.

    def on_netns(self, text: str) -> None:
        path = path_of("--netns", text)
        self._namespace.path = path if "/" in path else f"{NAMES_FOLDER}{path}"

    def on_userns(self, path: str) -> None:
        self._namespace.userns = path_of("--userns", path)
        self._namespace.netns_only = False

    def on_netns_only(self, _: str) -> None:
        self._namespace.netns_only = True
        self._namespace.userns = ""

    def on_no_netns_quit(self, _: str) -> None:
        self._namespace.quit_when_gone = False

    def on_no_pidns(self, _: str) -> None:
        self._namespace.pidns = False

    def on_ns_ifname(self, name: str) -> None:
        from lockgate.plugin.forward_rule import is_interface  # which the start needs anyway

        if not is_interface(name) or ":" in name or name in (".", "..", "lo"):
            raise refusal(
                f"--ns-ifname {name}: expected the name of a new interface, 1 to 15 bytes without blanks, / and :"
            )
        self._namespace.ns_ifname = name

    def on_ns_mac_addr(self, text: str) -> None:
        mac = mac_of("--ns-mac-addr", text)
        if not any(mac):
            raise refusal(f"--ns-mac-addr {text}: expected the address of an interface, not zeros")
        self._namespace.ns_mac = mac

    def on_config_net(self, _: str) -> None:
        self._namespace.config_net = True

    def on_no_copy_routes(self, _: str) -> None:
        self._namespace.copy_routes = False
        self.spec.warnings.append("--no-copy-routes is obsolete; --gateway does the same for its family")

    def on_no_copy_addrs(self, _: str) -> None:
        self._namespace.copy_addrs = False
        self.spec.warnings.append("--no-copy-addrs is obsolete; --address does the same for its family")

    def on_no_splice(self, _: str) -> None:
        self._namespace.no_splice = True

    def on_splice_only(self, _: str) -> None:
        self._namespace.splice_only = True

    def on_host_lo_to_ns_lo(self, _: str) -> None:
        self._namespace.host_lo_to_ns_lo = True

    def on_tcp_ns(self, text: str) -> None:
        self.want(self._outbound, _OUTBOUND[_TCP], _TCP, text)

    def on_udp_ns(self, text: str) -> None:
        self.want(self._outbound, _OUTBOUND[_UDP], _UDP, text)
