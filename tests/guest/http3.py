# SPDX-License-Identifier: Apache-2.0
"""HTTP/3, which is QUIC over UDP: nginx on this machine's loopback, and curl for the guest.

Called by the tests and the benchmark. Adversary: nobody.
Invariants: both are of the newer root that machine.py knows, because Debian 12 has neither with HTTP/3; curl comes with
that root's loader and libraries in a folder of its own, so that they do not meet the guest's others; nginx is unpacked
from its package and not installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine
import servers
from debian_package import unpacked
from image import MissingIngredient, program_path

CURL = "curl-http3"  # the command in the guest
FOLDER = "newer"
CERTIFICATE = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=guest"
# It listens on the same port of TCP too, by which one sees that it is up.
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
    access_log off; quic_gso on;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port} ssl; listen 127.0.0.1:{port} quic; root {content};
        ssl_certificate {folder}/certificate; ssl_certificate_key {folder}/key;
    }}
}}
"""


def curl_files() -> dict[str, bytes]:
    """What the guest's image takes more, for the command CURL; MissingIngredient if there is no newer root."""
    root, run, environment = machine.peer_root()
    asked = [*run, "ldd", "/usr/bin/curl"]
    listed = subprocess.run(asked, capture_output=True, text=True, env={**os.environ, **environment})
    libraries = [Path(found) for found in re.findall(r"(/\S+) \(0x", listed.stdout)]
    loader = next((library.name for library in libraries if library.name.startswith("ld-linux")), None)
    if loader is None or not any("ngtcp2" in library.name for library in libraries):
        raise MissingIngredient(f"the curl of {root} has no HTTP/3: expected one with ngtcp2")
    files = {f"{FOLDER}/{path.name}": (root / str(path).lstrip("/")).read_bytes() for path in libraries}
    files[f"{FOLDER}/curl"] = (root / "usr/bin/curl").read_bytes()
    start = f'#!/bin/sh\nexec /{FOLDER}/{loader} --library-path /{FOLDER} /{FOLDER}/curl -sSk --http3-only "$@"\n'
    return {**files, f"bin/{CURL}": start.encode()}


@contextmanager
def nginx(content: Path) -> Iterator[int]:
    """A server of the files in that folder, below /tmp; the port."""
    _, run, environment = machine.peer_root()
    program = unpacked("nginx", "newer-nginx", run, environment) / "usr/sbin/nginx"
    port = servers.free_port()
    with tempfile.TemporaryDirectory(prefix="lockgate-") as folder:
        files = ["-keyout", f"{folder}/key", "-out", f"{folder}/certificate"]
        subprocess.run(
            [program_path("openssl", "openssl"), *CERTIFICATE.split(), *files], check=True, capture_output=True
        )
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(_NGINX.format(folder=folder, port=port, content=content))
        command = [*run, str(program), "-e", "stderr", "-c", str(configuration)]
        with servers.running(command, port, environment):
            yield port
