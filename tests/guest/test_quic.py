# SPDX-License-Identifier: Apache-2.0
"""A download over QUIC, real software on both sides, arrives as it was sent.

Both are of a newer root; without one, the tests are skipped and say so. Adversary: nobody.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import http3
import pytest
from data_server import DataServer
from image import MissingIngredient
from network import GATEWAY, VARIANT, Network, usable

BYTES = 20_000_000
CONTENT = hashlib.shake_128(b"lockgate quic").digest(BYTES)


@pytest.fixture(scope="module", name="quic", params=["uml", "uml-sanitized", "qemu-stream"])
def quic_network(request: pytest.FixtureRequest, server: DataServer) -> Iterator[Network]:
    variant = usable(VARIANT[request.param])
    try:
        files = http3.curl_files()
    except MissingIngredient as missing:
        pytest.skip(str(missing))
    booted = Network(variant, server, families="inet", more_files=files)
    yield booted
    booted.close()


def test_a_download_over_quic_arrives_intact(quic: Network) -> None:
    with tempfile.TemporaryDirectory(prefix="lockgate-") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "file").write_bytes(CONTENT)
        with http3.nginx(Path(folder)) as port:
            result = quic.run(f"{http3.CURL} https://{GATEWAY[4]}:{port}/file | sha256sum")
    assert result.output.split()[0] == hashlib.sha256(CONTENT).hexdigest(), result.output
