# SPDX-License-Identifier: Apache-2.0
"""Callers that start our `passt` themselves, as their users have them: QEMU's `-netdev passt`, and libvirt.

Called by test_callers.py. They are in the newer root file system (machine.py says where from).
Adversary: nobody.
Invariants: a caller and all that it starts live in a PID namespace that dies with its first process, which the guest's
harness kills; the helper there reads a resolv.conf of the test. The files of libvirt are in the caller's own folder,
where it runs as a user's session, unprivileged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import machine
import resolver
from image import MissingIngredient
from network import ADDRESS, GATEWAY, PREFIX
from peer_command import folder_with_commands

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
ALL_DIE_TOGETHER = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
FIRST_PROCESS = 'mount --bind "$0" /etc/resolv.conf && "$@"; exit $?'  # a shell stays, and reaps who lost a parent
DOMAIN = "guest"


@dataclass(frozen=True)
class Forwards:
    """Ports of this machine's loopback, and of the guest."""

    tcp: tuple[int, int]
    udp: tuple[int, int]


Caller = Callable[[Path, Forwards], machine.Machine]  # from a folder that everybody may use


def _inside(folder: Path, found: machine.Machine, command: Callable[[machine.Boot], list[str]]) -> machine.Machine:
    """The machine that is booted by this command, in the newer root."""
    _, run, _ = machine.peer_root()
    first = ["sh", "-c", FIRST_PROCESS, str(resolver.resolv_conf(folder))]
    return replace(found, arguments=lambda boot: [*run, *ALL_DIE_TOGETHER, *first, *command(boot)])


def qemu(folder: Path, forwards: Forwards, vhost_user: bool = False) -> machine.Machine:
    """`-netdev passt`: QEMU hands the helper one end of a socket pair. It takes one address; IPv6 is in `param`."""
    found = machine.find("qemu-peer")
    _, run, _ = machine.peer_root()
    more = ["-a", ADDRESS[6], "-g", GATEWAY[6]]
    netdev = {
        "type": "passt",
        "id": "net",
        "path": str(folder_with_commands() / "passt"),
        "vhost-user": vhost_user,
        "address": ADDRESS[4],
        "netmask": str(PREFIX[4]),
        "gateway": GATEWAY[4],
        "tcp-ports": [{"str": "{}:{}".format(*forwards.tcp)}],
        "udp-ports": [{"str": "{}:{}".format(*forwards.udp)}],
        "param": [{"str": word} for word in more],
    }

    def command(boot: machine.Boot) -> list[str]:
        boot = replace(boot, netdev=("-netdev", json.dumps(netdev)))
        return ["env", f"TMPDIR={folder}", *found.arguments(boot)[len(run) :]]

    return _inside(folder, found, command)


def qemu_vhost_user(folder: Path, forwards: Forwards) -> machine.Machine:
    return qemu(folder, forwards, vhost_user=True)


INTERFACE = """
    <interface type='{type}'>
      <backend type='passt'/>
      <mac address='52:54:00:12:34:56'/>
      <ip family='ipv4' address='{ipv4}' prefix='{prefix}'/>
      <ip family='ipv6' address='{ipv6}'/>
      <portForward proto='tcp'><range start='{tcp[0]}' to='{tcp[1]}'/></portForward>
      <portForward proto='udp'><range start='{udp[0]}' to='{udp[1]}'/></portForward>
      <model type='virtio'/>
    </interface>"""
DESCRIPTION = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{image}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 rdinit=/init channel=ttyS1</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>{interface}
    <serial type='file'><source path='{log}' append='on'/><target port='0'/></serial>
    <serial type='unix'><source mode='connect' path='{channel}'/><target port='1'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""
# libvirtd says nowhere that it listens; a client that finds nobody ends at once.
SESSION = """
mkdir -p "$XDG_RUNTIME_DIR" "$XDG_CONFIG_HOME/libvirt"
echo 'stdio_handler = "file"' >"$XDG_CONFIG_HOME/libvirt/qemu.conf"
libvirtd >"$HOME/libvirtd.log" 2>&1 &
until virsh -q -c qemu:///session list >/dev/null 2>&1; do kill -0 $! || exit 1; done
virsh -q -c qemu:///session create "$HOME/domain.xml" && wait
"""


def libvirt(folder: Path, forwards: Forwards, kind: str = "user") -> machine.Machine:
    """An `<interface>` with `<backend type='passt'/>`, in a session of an unprivileged user; PATH names our command."""
    root, _, _ = machine.peer_root()
    found = machine.find("qemu-peer")
    if not (root / "usr/sbin/libvirtd").exists():
        raise MissingIngredient(f"{root} has no libvirtd: it comes with Debian's package libvirt-daemon")
    kernel, _ = machine.cloud_kernel()
    addresses = {"ipv4": ADDRESS[4], "prefix": PREFIX[4], "ipv6": ADDRESS[6]}
    interface = INTERFACE.format(type=kind, tcp=forwards.tcp, udp=forwards.udp, **addresses)

    def command(boot: machine.Boot) -> list[str]:
        for path, mode in ((boot.folder, 0o711), (boot.channel_path, 0o777), (boot.log, 0o666)):
            os.chmod(path, mode)  # for an unprivileged QEMU
        places = {"kernel": kernel, "image": boot.image, "log": boot.log, "channel": boot.channel_path}
        text = DESCRIPTION.format(
            name=DOMAIN, memory=boot.memory_mb, emulator=machine.QEMU, interface=interface, **places
        )
        (folder / "domain.xml").write_text(text)
        own: dict[str, object] = {"HOME": folder, "PATH": f"{folder_with_commands()}:/usr/sbin:/usr/bin:/sbin:/bin"}
        own |= {f"XDG_{name}": folder / name for name in ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME")}
        own["LIBVIRT_AUTOSTART"] = "0"  # else virsh, where it is the faster one, starts a libvirtd of its own
        return [*NOBODY, "env", *(f"{name}={value}" for name, value in own.items()), "sh", "-c", SESSION]

    return _inside(folder, found, command)


def libvirt_vhost_user(folder: Path, forwards: Forwards) -> machine.Machine:
    return libvirt(folder, forwards, kind="vhostuser")


CALLERS: dict[str, Caller] = {
    "qemu-netdev-passt": qemu,
    "qemu-netdev-passt-vhost-user": qemu_vhost_user,
    "libvirt-user": libvirt,
    "libvirt-vhostuser": libvirt_vhost_user,
}
