# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: our own environment variables are not inherited, and hypothesis has no deadline.

Read by pytest. Adversary: nobody. A deadline would be a timed assertion: it fails on a busy machine, not on a fault.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("lockgate", deadline=None, print_blob=True)
settings.load_profile("lockgate")

for variable in ("LOCKGATE_LOG_FORMAT", "LOCKGATE_TCP_PEEK", "LOCKGATE_TCP_REORDER", "LOCKGATE_SANITIZE"):
    os.environ.pop(variable, None)
