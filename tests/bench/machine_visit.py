# SPDX-License-Identifier: Apache-2.0
"""A guest as `podman machine` runs it: QEMU on a stream socket of frames, a known MAC address, an MTU of 1500.

Called by the families of measures for `gvproxy`. Adversary: nobody.
Invariants: each visit starts afresh, see visit.py. A passt may be the other helper: it has no network of its own
making, so that there this machine is at the gateway's address.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import stream_link
import throughput
import visit
from measure import Settings, Side
from visit import Visit

MAC = "5a:94:ef:e4:0c:ee"  # for which gvproxy keeps 192.168.127.2
MTU = "1500"  # a key of throughput.MTUS
GATEWAY, THIS_MACHINE = "192.168.127.1", "192.168.127.254"


@contextmanager
def visiting(side: Side, settings: Settings) -> Iterator[Visit]:
    """One visit."""
    with visit.visiting(side, settings, stream_link.kind(settings.guest), mac=MAC) as found:
        throughput.set_mtu(found, MTU)
        if found.gateway == GATEWAY:
            found.gateway = THIS_MACHINE
        yield found
