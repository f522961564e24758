# SPDX-License-Identifier: Apache-2.0
"""Imports what we need of dnspython without modules that it asks for and has no use for here: 3 MB less.

Called by control.py before it imports the gateway. Adversary: nobody.

`importlib.metadata` (3 MB: it brings email, zipfile and random) says which optional packages there are, none of which
we use. `encodings.idna` and `idna` are for names that are no ASCII; here, names are bytes.
"""

from __future__ import annotations

from lockgate.plugin import lean_asyncio

_MODULES = "dns.wire", "dns.rdatatype", "dns.rdataclass", "dns.rcode", "dns.opcode", "dns.flags"


def load() -> None:
    """After this, `import dns.wire` finds it."""
    lean_asyncio.load_dataclasses()
    unused = {name: lean_asyncio.stand_in(name, {}) for name in ("importlib.metadata", "encodings.idna")}
    lean_asyncio.import_with({**unused, "idna": None}, *_MODULES)
