# SPDX-License-Identifier: Apache-2.0
"""What the configuration file and the command line of `gvproxy` add up to, before all of it is checked together.

Made by gvproxy.py, filled by gvproxy_config.py if there is a file, before READY: no imports to speak of. Adversary:
nobody. Invariant: what stands in `virtual` and `rules` has been checked; the texts have not.
"""

from __future__ import annotations

from lockgate.plugin.gateway.virtual_network import VirtualNetwork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockgate.plugin.forward_rule import ForwardRule


class Settings:
    """Empty is what nobody has said."""

    __slots__ = (
        "capture_file",
        "debug",
        "device_ip",
        "gateway_ip",
        "host_ip",
        "links",
        "listen",
        "log_file",
        "log_level",
        "mtu",
        "pid_file",
        "rules",
        "services",
        "subnet",
        "virtual",
        "warnings",
    )

    def __init__(self) -> None:
        self.virtual = VirtualNetwork()
        self.rules: list[ForwardRule] = []  # of virtual.forwards, in the same order
        self.listen: tuple[str, ...] = ()
        self.services = self.pid_file = self.log_file = self.capture_file = ""
        self.log_level = ""
        self.links: dict[str, str] = {}  # by kind, QEMU ... STDIO
        self.debug = False  # whether every frame is to be shown
        self.mtu = 0
        self.subnet = self.gateway_ip = self.device_ip = self.host_ip = ""
        self.warnings: list[str] = []
