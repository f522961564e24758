# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/names/lean_dnspython.py: what it brings into memory, in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def run(program: str) -> str:
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert not result.stderr
    return result.stdout


def test_the_name_server_brings_no_more_than_it_needs() -> None:
    """Neither email and zipfile, by way of importlib.metadata, nor tables of Unicode; and what it needs works."""
    program = """
import sys
from lockgate.plugin import lean_asyncio
lean_asyncio.load()
from lockgate.plugin.gateway.names import lean_dnspython
lean_dnspython.load()
from lockgate.plugin.gateway.names import dns_service, name_server, upstream, zones
heavy = "importlib.metadata email zipfile random encodings.idna unicodedata ipaddress ssl hashlib dns.message dns.rdata"
print(sorted(set(sys.modules) & set(heavy.split())))
from lockgate.plugin.gateway.names.dns_message import query_parse
print(query_parse(bytes(5) + b"\\1" + bytes(5) + b"\\1" + b"\\1a\\0\\0\\1\\0\\1" + b"\\1b\\0" + bytes(10)).labels)
"""
    assert run(program) == "[]\n(b'a',)\n"


def test_who_asks_for_what_was_left_out_gets_it() -> None:
    """The stand-ins do not stay."""
    program = """
from lockgate.plugin.gateway.names import lean_dnspython
lean_dnspython.load()
import importlib.metadata
print("grün".encode("idna"), importlib.metadata.version("dnspython") > "2")
"""
    assert run(program) == "b'xn--grn-ioa' True\n"
