# SPDX-License-Identifier: Apache-2.0
"""What the worker's isolation reached, in words.

The layers are put on in datapath/isolation.c, in the worker itself; the worker reports them in one record before READY.
Called by the keeper, which warns once about what is missing.
Adversary: nobody (the record is sent before the worker reads anything of the guest), but its length is checked anyway.
"""

from __future__ import annotations

import errno
import os

from lockgate.core._datapath import ffi, lib

# Switches by which distributions forbid user namespaces to ordinary processes: the file, the value that forbids, and
# what its administrator would set. They are named only where the file says that it is the cause.
_SWITCHES = (
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
)


class Isolation:
    """The layers in the order in which the worker put them on; frozen by convention."""

    __slots__ = ("refused", "names")

    def __init__(self, errors: list[int]) -> None:
        self.names = [ffi.string(lib.lg_layer_name(layer)).decode() for layer in range(len(errors))]
        self.refused = [(self.names[layer], error) for layer, error in enumerate(errors) if error]

    def warning(self) -> str:
        """One sentence about what the machine refused and what to do; empty if all layers are on."""
        if not self.refused:
            return ""
        layers = "; ".join(f"{name}: {os.strerror(error)}" for name, error in self.refused)
        return f"The worker runs with less isolation than intended ({layers}){_cause()}"


def parse_report(record: bytes) -> Isolation | None:
    """The worker's report, or None if the record is another."""
    if len(record) != ffi.sizeof("struct lg_isolation") or record[0] != lib.LG_KEEPER_ISOLATION:
        return None
    report = ffi.new("struct lg_isolation *")
    ffi.memmove(report, record, len(record))
    return Isolation(list(report.error))


def _cause() -> str:
    if not os.path.exists("/proc/self"):
        return ": /proc is not mounted here, by which a user namespace is set up"
    for path, forbids, remedy in _SWITCHES:
        try:
            with open(path, "rb", buffering=0) as file:
                value = file.read(16).strip().decode()
        except OSError as failure:
            if failure.errno != errno.ENOENT:
                return ""
            continue
        if value == forbids:
            return f": user namespaces are forbidden here, `sysctl {remedy}` allows them"
    return ""
