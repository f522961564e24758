# SPDX-License-Identifier: Apache-2.0
"""The limit on open files, and how many flows it leaves room for.

Called by start.py and gateway/awaited.py before READY, hence the light imports. Adversary: nobody.
"""

from __future__ import annotations

import resource

FLOWS_MAX = 65536
SPARED = 256  # for rings, memory, listeners and channels, beside one socket a flow


def raise_it() -> int:
    """Raises the soft limit to the hard one; returns it. A flow costs one descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # a container may lower fs.nr_open below the hard limit that we see
    return FLOWS_MAX + SPARED if soft == resource.RLIM_INFINITY else soft


def flows(descriptors: int) -> int:
    """How many fit the limit; where that is small, half of it is spared for all else."""
    return max(1, min(FLOWS_MAX, descriptors - min(SPARED, descriptors // 2)))
