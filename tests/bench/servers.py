# SPDX-License-Identifier: Apache-2.0
"""The servers that the clients talk to: iperf3, pace_datagrams, sockperf, nginx.

Called by the families of measures. Adversary: nobody.
Invariants: each listens before it is used, on a free port of this machine's 127.0.0.1 or in another network; is gone
when its `with` ends, and dies with us even if we are killed (the kernel's parent-death signal, through setpriv).
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from debian_package import unpacked
from guest import DIES_WITH_US
from image import MissingIngredient, compiled, program_path

START_SECONDS = 10
FILE_NAME = "file"
FILE_BYTES = 1 << 30  # a hole: it costs no disk
_LISTEN = "0A"  # TCP_LISTEN in the column st of /proc/net/tcp

# One process without workers; connections that never send a request are kept, which the idle flows need.
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors warn; worker_rlimit_nofile {descriptors};
events {{ worker_connections {connections}; }}
http {{
    access_log off; sendfile on; keepalive_requests 1000000000; keepalive_timeout 1h; client_header_timeout 1h;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{ listen {address}:{port} backlog=4096; root {folder}; location = / {{ return 200 "ok\\n"; }} }}
}}
"""


class ServerFailed(Exception):
    """A server did not come up."""


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    address: str = "127.0.0.1"
    port: int = 0  # 0: any that is free here
    prefix: tuple[str, ...] = ()  # what runs a command there
    pid: int | str = "self"  # a process there

    def chosen_port(self) -> int:
        return self.port or free_port()


HERE = Place()


def free_port() -> int:
    """Of TCP on 127.0.0.1; nothing holds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int, pid: int | str) -> bool:
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTEN and fields[1].endswith(f":{port:04X}"):
            return True
    return False


@contextmanager
def running(
    arguments: list[str], port: int, environment: Mapping[str, str] | None = None, place: Place = HERE
) -> Iterator[int]:
    """The kernel tells nobody when somebody listens, so its table is read again every few milliseconds."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*place.prefix, *DIES_WITH_US, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # a person's Ctrl-C is for us: we end the servers after the guest
        )
        try:
            began = time.monotonic()
            while not _listens(port, place.pid):
                if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    output.seek(0)
                    raise ServerFailed(f"{' '.join(arguments)} does not listen: {output.read().decode()}")
                select.select([], [], [], 0.005)
            yield port
        finally:
            process.kill()
            process.wait()


@contextmanager
def iperf3(place: Place = HERE) -> Iterator[int]:
    """A throughput server; the port."""
    port = place.chosen_port()
    command = [str(program_path("iperf3", "iperf3")), "-s", "-B", place.address, "-p", str(port)]
    with running(command, port, place=place):
        yield port


@contextmanager
def pace_datagrams(place: Place = HERE) -> Iterator[int]:
    """The other end of the client of that name; the port, of TCP and UDP."""
    port = place.chosen_port()
    with running([str(compiled("pace_datagrams")), "-l", place.address, str(port)], port, place=place):
        yield port


@contextmanager
def sockperf(place: Place = HERE) -> Iterator[int]:
    """A server that answers each message over TCP; the port."""
    port = place.chosen_port()
    program = str(program_path("sockperf", "sockperf"))
    with running([program, "server", "--tcp", "-i", place.address, "-p", str(port)], port, place=place):
        yield port


@contextmanager
def nginx(connections: int = 1024, place: Place = HERE) -> Iterator[int]:
    """A web server: `/` is three bytes, /FILE_NAME a large file. The port."""
    port = place.chosen_port()
    with tempfile.TemporaryDirectory(prefix="lockgate-") as folder:
        Path(folder).chmod(0o755)  # started by root, nginx goes on as another user
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(
            _NGINX.format(
                folder=folder,
                address=place.address,
                port=port,
                connections=connections + 64,
                descriptors=connections + 128,
            )
        )
        as_user = ["-g", "user root;"] if place.prefix else []  # where root is the only user
        with open(Path(folder, FILE_NAME), "wb") as file:
            file.truncate(FILE_BYTES)
        with running([str(_nginx_program()), "-c", str(configuration), *as_user], port, place=place):
            yield port


def _nginx_program() -> Path:
    """The installed one; else unpacked from Debian's package, because installing it would start a web server here."""
    try:
        return program_path("nginx", "nginx")
    except MissingIngredient:
        return unpacked("nginx", "nginx") / "usr/sbin/nginx"
