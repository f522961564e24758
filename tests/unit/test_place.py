# SPDX-License-Identifier: Apache-2.0
"""plugin/contracts/place.py: URLs, and what can be listened at."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin.contracts import place
from lockgate.plugin.gateway.virtual_network import UNIX, UNIXGRAM, UNIXPACKET, Place


def where(text: str) -> tuple[str, str, str, int]:
    found = place.place(place.Url(text), (*place.LISTENING, UNIXGRAM))
    assert found.text == text
    return found.scheme, found.path, found.host, found.port


@pytest.mark.parametrize(
    "text, found",
    [
        ("unix:///run/a.sock", ("unix", "/run/a.sock", "", 0)),
        ("UNIX:///run/a", ("unix", "/run/a", "", 0)),
        ("unix:///a%20b%ff", ("unix", os.fsdecode(b"/a b\xff"), "", 0)),
        ("unix:///a?b#c", ("unix", "/a", "", 0)),
        ("unix://a/b/c", ("unix", "/b/c", "", 0)),
        ("unixpacket:///b", ("unixpacket", "/b", "", 0)),
        ("unixgram:///é", ("unixgram", "/é", "", 0)),
        ("tcp://127.0.0.1:80", ("tcp", "", "127.0.0.1", 80)),
        ("tcp://:0", ("tcp", "", "", 0)),
        ("tcp://[::1]:65535/x", ("tcp", "", "::1", 65535)),
        ("tcp://user@host:1", ("tcp", "", "host", 1)),
        ("vsock://:1024", ("vsock", "", "", 1024)),
        ("vsock://4294967295:4294967295", ("vsock", "", "4294967295", 4294967295)),
    ],
)
def test_a_url_says_where_to_listen(text: str, found: tuple[str, str, str, int]) -> None:
    assert where(text) == found


@pytest.mark.parametrize(
    "text, reason",
    [
        (":", "missing protocol scheme"),
        ("%zz", 'invalid URL escape "%zz"'),
        ("unix:///%", 'invalid URL escape "%"'),
        ("unix:///a#%4", 'invalid URL escape "%4"'),
        ("unix:///a\tb", "net/url: invalid control character in URL"),
        ("1tcp:x", "first path segment in URL cannot contain colon"),
        ("tcp://a:b", 'invalid port ":b" after host'),
        ("tcp://[::1", "missing ']' in host"),
        ("tcp://[::1]a:1", 'invalid port "a:1" after host'),
        ("tcp://a b:1", 'invalid character " " in host name'),
        ("tcp://a%41:1", 'invalid URL escape "%41"'),
    ],
)
def test_what_is_no_url_is_told_in_the_words_of_go(text: str, reason: str) -> None:
    with pytest.raises(place.UrlError) as caught:
        place.Url(text)
    shown = text.partition("#")[0].replace("\t", "\\t")
    assert str(caught.value) == f'parse "{shown}": {reason}'


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "unexpected scheme"),
        ("/run/a", "unexpected scheme"),
        ("foo://x", "unexpected scheme"),
        ("unix:", "listen unix: no path is given; expected one, as in unix:///run/gvproxy.sock"),
        ("unix:a", "listen unix: no path is given; expected one, as in unix:///run/gvproxy.sock"),
        ("tcp://", "listen tcp: address : missing port in address"),
        ("tcp://[::1]", "listen tcp: address [::1]: missing port in address"),
        ("tcp://::1:80", "listen tcp: address ::1:80: too many colons in address"),
        ("tcp://:65536", "listen tcp: address 65536: invalid port"),
        ("vsock://a:1", "listen vsock: CID a: expected a decimal number, or nothing for any"),
        ("vsock://4294967296:1", "listen vsock: CID 4294967296: expected a decimal number, or nothing for any"),
        ("vsock://:4294967296", "listen vsock: address 4294967296: invalid port"),
    ],
)
def test_what_cannot_be_listened_at_is_told(text: str, reason: str) -> None:
    with pytest.raises(place.PlaceError) as caught:
        where(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize("path", ["/" + "é" * 54, "/a%00b"])
def test_a_path_that_no_socket_can_have_is_refused(path: str) -> None:
    with pytest.raises(place.PlaceError, match="expected a path of at most 107 bytes, without NUL$"):
        where(f"unix://{path}")
    assert where("unix:///" + "a" * 106)[1] == "/" + "a" * 106


@given(
    st.builds(str.__add__, st.sampled_from(["", "unix://", "tcp://", "vsock://", "unixgram:"]), st.text(max_size=20))
    | st.binary().map(os.fsdecode)
)
def test_every_text_is_a_place_or_one_of_two_faults(text: str) -> None:
    try:
        os.fsencode(text)
        found = place.place(place.Url(text), (*place.LISTENING, UNIXGRAM))
    except (UnicodeEncodeError, place.UrlError, place.PlaceError):
        return
    assert bool(found.path) == (found.scheme in (UNIX, UNIXPACKET, UNIXGRAM))
    assert len(os.fsencode(found.path)) <= 107 and "\0" not in found.path + found.host
    assert 0 <= found.port <= 0xFFFFFFFF
    assert found == Place(found.scheme, text)


def test_a_url_may_have_a_user_and_values() -> None:
    """Of a name the first counts; what cannot be read is left out."""
    url = place.Url("ssh-tunnel://core:secret@192.168.127.2:22/run/a%20b?key=%2Fk&passphrase=two+words&key=x&a=%zz&&b")
    assert (url.scheme, url.user, url.host, url.path) == ("ssh-tunnel", "core", "192.168.127.2:22", "/run/a b")
    assert url.values() == {"key": "/k", "passphrase": "two words", "b": ""}
    assert place.Url("/stats").values() == {}
