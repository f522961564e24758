# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/names/upstream.py and dns_cache.py, with resolvers on a loopback address that do as they are told."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from fake_resolver import Answering, FakeResolver, records

from lockgate.plugin.gateway.names import dns_cache, upstream
from lockgate.plugin.gateway.names.dns_cache import DnsCache
from lockgate.plugin.gateway.names.dns_message import Query, query_parse
from lockgate.plugin.gateway.names.upstream import Upstream

A = records("example.org. 60 A 10.0.0.1")
BRIEF = 0.01  # seconds that a resolver is waited for which is known to be silent
PATIENT = 60.0  # and one that is known to answer


def query_for(name: str = "example.org.", kind: str = "A", **options: Any) -> Query:
    query = query_parse(dns.message.make_query(name, kind, **options).to_wire())
    assert isinstance(query, Query)
    return query


def any_number(_: socket.socket) -> None:
    """Of descriptors can be had."""


def silent(_: FakeResolver, wire: bytes, by_tcp: bool) -> None:
    """Hears all, and says nothing."""


def with_resolvers(
    test: Callable[..., Awaitable[None]], *answering: Answering, seconds: float = PATIENT, tcp: bool = True
) -> None:
    """Runs `test` with an Upstream and the resolvers that it asks."""

    async def run() -> None:
        resolvers = [FakeResolver(one) for one in answering]
        addresses = [await resolver.start(tcp) for resolver in resolvers]
        try:
            await test(Upstream(lambda: addresses, any_number, seconds), *resolvers)
        finally:
            for resolver in resolvers:
                resolver.stop()

    asyncio.run(run())


def closed_port() -> tuple[str, int]:
    """Where nobody is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address: tuple[str, int] = sock.getsockname()
        return address


async def resolved(by: Upstream, query: Query) -> dns.message.Message:
    answer = dns.message.from_wire(await by.resolve(query))
    assert dns.message.from_wire(query.wire).is_response(answer)
    return answer


def texts(answer: dns.message.Message) -> list[str]:
    return [str(record) for rrset in answer.answer for record in rrset]


def test_a_query_goes_on_unchanged_but_for_its_id() -> None:
    """EDNS, flags and the case of the name are as the client has them."""

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        query = query_for("eXample.org.", "MX", use_edns=0, payload=4096, want_dnssec=True, flags=dns.flags.CD)
        answer = await by.resolve(query)
        assert [wire[2:] for wire in resolver.asked] == [query.wire[2:]]
        sent = A(resolver, resolver.asked[0], False)
        assert sent is not None and answer == query.wire[:2] + sent[2:]

    with_resolvers(test, A)


def test_each_query_has_a_port_and_an_id_of_its_own() -> None:
    """Neither is that of the one before, nor the client's."""

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        queries = [query_for(f"{number}.org.", id=7) for number in range(20)]
        await asyncio.gather(*(by.resolve(query) for query in queries))
        assert len(set(resolver.from_ports)) == 20
        assert len({wire[:2] for wire in resolver.asked}) > 15

    with_resolvers(test, A)


def test_what_does_not_fit_the_query_is_not_taken() -> None:
    """Another id, another question, no answer at all: the right one comes last, and counts."""

    def answering(resolver: FakeResolver, wire: bytes, by_tcp: bool) -> bytes:
        right = A(resolver, wire, by_tcp)
        assert right is not None
        forged = records("example.org. 60 A 10.6.6.6")(resolver, wire, by_tcp)
        assert forged is not None
        wrong = [
            bytes((forged[0] ^ 1,)) + forged[1:],
            forged.replace(b"example", b"exbmple"),
            wire,
            b"",
            forged[:11],
        ]
        for one in wrong:
            resolver.reply(one, resolver.from_ports[-1])
        return right

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        assert texts(await resolved(by, query_for())) == ["10.0.0.1"]

    with_resolvers(test, answering)


def test_answers_from_another_address_do_not_arrive() -> None:
    """The socket is connected."""

    async def test(by: Upstream, resolver: FakeResolver, stranger: FakeResolver) -> None:
        asking = asyncio.create_task(by.resolve(query_for()))
        await resolver.came.wait()
        wire, port = resolver.asked[0], resolver.from_ports[0]
        stranger.reply(records("example.org. 60 A 10.6.6.6")(stranger, wire, False), port)
        resolver.reply(A(resolver, wire, False), port)
        assert texts(dns.message.from_wire(await asking)) == ["10.0.0.1"]
        assert stranger.asked == []

    with_resolvers(test, silent, silent)


def test_who_guesses_is_not_listened_to_for_long() -> None:
    """The next resolver is asked."""

    def answering(resolver: FakeResolver, wire: bytes, by_tcp: bool) -> None:
        for _ in range(upstream._STRANGE_MAX):
            resolver.reply(b"guess", resolver.from_ports[-1])

    async def test(by: Upstream, guessing: FakeResolver, resolver: FakeResolver) -> None:
        assert texts(await resolved(by, query_for())) == ["10.0.0.1"]
        assert len(guessing.asked) == 1

    with_resolvers(test, answering, A)


@pytest.mark.parametrize("first", ["refusing", "failing"])
def test_the_next_resolver_is_asked_after_one_that_does_not_help(first: str) -> None:
    """An ICMP error, SERVFAIL."""

    async def test(by: Upstream, one: FakeResolver, other: FakeResolver) -> None:
        if first == "refusing":
            one.stop()
        assert texts(await resolved(by, query_for())) == ["10.0.0.1"]
        assert len(other.asked) == 1

    with_resolvers(test, records(rcode=dns.rcode.SERVFAIL), A)


def test_a_resolver_that_is_silent_is_asked_last_for_a_while() -> None:
    """The next one is asked in its place; else each query would wait for it."""

    async def test(by: Upstream, one: FakeResolver, other: FakeResolver) -> None:
        def silent_this_once(*_: object) -> None:
            by._attempt_seconds = PATIENT  # of the next one

        one.answering = silent_this_once
        for number in range(3):
            assert (await resolved(by, query_for(f"{number}.org."))).rcode() == dns.rcode.NOERROR
        assert (len(one.asked), len(other.asked)) == (1, 3)

    with_resolvers(test, silent, A, seconds=BRIEF)


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP, dns.rcode.FORMERR])
def test_a_failure_stays_what_it_is(rcode: dns.rcode.Rcode) -> None:
    """And is asked for again by the next query."""

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        for times in (1, 2):
            assert (await resolved(by, query_for())).rcode() == rcode
            assert len(resolver.asked) == times

    with_resolvers(test, records(rcode=rcode))


def test_no_resolver_and_none_that_answers_are_a_failure() -> None:
    """SERVFAIL."""

    async def test() -> None:
        for servers in ([], [closed_port(), closed_port()], [("fe80::1%nowhere", 53)]):
            by = Upstream(lambda servers=servers: servers, any_number)  # type: ignore[misc]
            answer = await resolved(by, query_for(use_edns=0))
            assert (answer.rcode(), answer.edns) == (dns.rcode.SERVFAIL, 0)
            assert by.counts["failed"] == 1

    asyncio.run(test())


def test_an_answer_that_was_cut_is_fetched_by_tcp() -> None:
    """All of it, and it is kept."""
    long = records(*(f'example.org. 60 TXT "{number:0100}"' for number in range(20)))

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        for _ in range(2):
            answer = await resolved(by, query_for(kind="TXT"))
            assert (len(texts(answer)), answer.flags & dns.flags.TC) == (20, 0)
        assert (len(resolver.asked), len(resolver.asked_by_tcp)) == (1, 1)

    with_resolvers(test, long)


@pytest.mark.parametrize("fault", ["refused", "closed", "nonsense"])
def test_without_tcp_the_cut_answer_is_passed_on(fault: str) -> None:
    """Some resolvers have none; it is not kept."""

    def answering(resolver: FakeResolver, wire: bytes, by_tcp: bool) -> bytes | None:
        if by_tcp:
            return None if fault == "closed" else b"\1\2nonsense"
        cut = records()(resolver, wire, by_tcp)
        assert cut is not None
        return cut[:2] + bytes((cut[2] | 2,)) + cut[3:]

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        for times in (1, 2):
            assert (await resolved(by, query_for())).flags & dns.flags.TC
            assert len(resolver.asked) == times

    with_resolvers(test, answering, tcp=fault != "refused")


def test_equal_queries_under_way_are_one() -> None:
    """Each client gets the answer with its own id and case."""

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        queries = [query_for(name, id=number) for number, name in enumerate(("a.org.", "A.org.", "a.ORG."))]
        asking = [asyncio.create_task(by.resolve(query)) for query in queries]
        await resolver.came.wait()
        resolver.reply(records("a.org. 60 A 10.0.0.1")(resolver, resolver.asked[0], False), resolver.from_ports[0])
        for query, answer in zip(queries, await asyncio.gather(*asking), strict=True):
            assert answer[: query.question_end][:2] == query.wire[:2]
            assert answer[12 : query.question_end] == query.wire[12 : query.question_end]
        assert len(resolver.asked) == 1
        assert (by.counts["asked"], by.counts["joined"]) == (1, 2)

    with_resolvers(test, silent)


def test_queries_that_differ_are_asked_each() -> None:
    """In their type, in a flag, in what EDNS says."""

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        for query in (query_for(), query_for(kind="AAAA"), query_for(use_edns=0), query_for(want_dnssec=True)):
            await by.resolve(query)
        assert len(resolver.asked) == 4

    with_resolvers(test, A)


def test_there_are_only_so_many_queries_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more fails at once; when there is room again, the next does not."""
    monkeypatch.setattr(upstream, "ASKING_MAX", 3)

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        asking = [asyncio.create_task(by.resolve(query_for(f"{number}.org."))) for number in range(3)]
        while len(resolver.asked) < 3:
            resolver.came.clear()
            await resolver.came.wait()
        assert (await resolved(by, query_for())).rcode() == dns.rcode.SERVFAIL
        for wire, port in zip(resolver.asked, resolver.from_ports, strict=True):
            resolver.reply(A(resolver, wire, False), port)
        await asyncio.gather(*asking)
        resolver.answering = A
        assert texts(await resolved(by, query_for())) == ["10.0.0.1"]
        assert by.counts["refused"] == 1

    with_resolvers(test, silent)


def test_without_a_descriptor_a_query_fails_and_the_resolver_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE is our own fault."""

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        with monkeypatch.context() as patch:

            def none_left(sock: socket.socket) -> None:
                sock.close()
                raise OSError(errno.EMFILE, "Too many open files")

            patch.setattr(by, "_check", none_left)
            assert (await resolved(by, query_for())).rcode() == dns.rcode.SERVFAIL
        assert by._avoided == {}
        assert texts(await resolved(by, query_for())) == ["10.0.0.1"]

    with_resolvers(test, A)


def test_other_resolvers_mean_another_network() -> None:
    """They are asked at once, and what the former ones said is forgotten."""

    async def test() -> None:
        home, office = FakeResolver(A), FakeResolver(records("example.org. 60 A 10.0.0.2"))
        servers = [await home.start()]
        by = Upstream(lambda: tuple(servers), any_number)
        assert texts(await resolved(by, query_for())) == ["10.0.0.1"]
        servers[:] = [await office.start()]
        assert texts(await resolved(by, query_for())) == ["10.0.0.2"]
        home.stop()
        office.stop()

    asyncio.run(test())


def test_an_answer_of_the_former_network_is_not_kept() -> None:
    """One that comes after the change: its client gets it, and nobody else."""

    async def test() -> None:
        home, office = FakeResolver(silent), FakeResolver(records("example.org. 60 A 10.0.0.2"))
        servers = [await home.start()]
        by = Upstream(lambda: tuple(servers), any_number)
        asking = asyncio.create_task(by.resolve(query_for()))
        await home.came.wait()
        servers[:] = [await office.start()]
        await by.resolve(query_for("other.org."))
        home.reply(A(home, home.asked[0], False), home.from_ports[0])
        assert texts(dns.message.from_wire(await asking)) == ["10.0.0.1"]
        assert texts(await resolved(by, query_for())) == ["10.0.0.2"]
        home.stop()
        office.stop()

    asyncio.run(test())


def test_a_client_that_no_longer_waits_takes_nobody_along() -> None:
    """Its query goes on for who joined it."""

    async def test(by: Upstream, resolver: FakeResolver) -> None:
        first, second = (asyncio.create_task(by.resolve(query_for())) for _ in range(2))
        await resolver.came.wait()
        first.cancel()
        await asyncio.wait([first])
        resolver.reply(A(resolver, resolver.asked[0], False), resolver.from_ports[0])
        assert texts(dns.message.from_wire(await second)) == ["10.0.0.1"]
        assert len(resolver.asked) == 1

    with_resolvers(test, silent)


# ---- what is kept ----


def put(cache: DnsCache, name: str, now: float, *lines: str, **options: Any) -> Query:
    query = query_for(name)
    cache.put(query, made(query, *lines, **options), now)
    return query


def made(query: Query, *lines: str, **options: Any) -> bytes:
    answer = records(*lines, **options)(None, query.wire, True)  # type: ignore[arg-type]
    assert answer is not None
    return answer


def test_an_answer_is_kept_for_its_ttl_and_ages() -> None:
    """All records do, by whole seconds."""
    cache = DnsCache()
    key = put(cache, "a.org.", 100.0, "a.org. 60 A 10.0.0.1", "a.org. 60 A 10.0.0.2", authority=("org. 90 NS b.",)).key
    for now, ttl in ((100.9, 60), (101.0, 59), (159.9, 1)):
        kept = cache.get(key, now)
        assert kept is not None
        answer = dns.message.from_wire(kept)
        assert (answer.answer[0].ttl, answer.authority[0].ttl, len(texts(answer))) == (ttl, ttl + 30, 2)
    assert cache.get(key, 160.0) is None
    assert len(cache) == 0 and cache._size == 0


def test_a_name_that_does_not_exist_is_kept_as_well() -> None:
    """For as long as the SOA record says."""
    cache = DnsCache()
    soa = ("org. 900 SOA ns. root. 1 2 3 4 30",)
    key = put(cache, "a.org.", 0.0, rcode=dns.rcode.NXDOMAIN, authority=soa).key
    assert cache.get(key, 29.0) is not None
    assert cache.get(key, 30.0) is None


def test_nothing_is_kept_longer_than_an_hour() -> None:
    """Whatever it says."""
    cache = DnsCache()
    key = put(cache, "a.org.", 0.0, "a.org. 86400 A 10.0.0.1").key
    kept = cache.get(key, 3599.0)
    assert kept is not None and dns.message.from_wire(kept).answer[0].ttl == 86400 - 3599
    assert cache.get(key, 3600.0) is None


def test_a_new_answer_takes_the_place_of_the_old() -> None:
    """And its time."""
    cache = DnsCache()
    put(cache, "a.org.", 0.0, "a.org. 10 A 10.0.0.1")
    key = put(cache, "a.org.", 5.0, "a.org. 10 A 10.0.0.2").key
    kept = cache.get(key, 12.0)
    assert kept is not None and texts(dns.message.from_wire(kept)) == ["10.0.0.2"]
    assert len(cache) == 1 and cache._size == len(key) + len(kept)


@pytest.mark.parametrize("limit", ["ENTRIES_MAX", "BYTES_MAX"])
def test_what_was_not_asked_for_the_longest_makes_room(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either limit; one answer that is larger than all is not kept."""
    cache = DnsCache()
    first = put(cache, "a.org.", 0.0, "a.org. 60 A 10.0.0.1")
    monkeypatch.setattr(dns_cache, limit, 2 if limit == "ENTRIES_MAX" else 2 * cache._size)
    second = put(cache, "b.org.", 0.0, "b.org. 60 A 10.0.0.1")
    assert cache.get(first.key, 1.0) is not None
    third = put(cache, "c.org.", 0.0, "c.org. 60 A 10.0.0.1")
    assert [cache.get(query.key, 1.0) is not None for query in (first, second, third)] == [True, False, True]
    put(cache, "d.org.", 0.0, *(f"d.org. 60 A 10.0.0.{number}" for number in range(200)))
    assert len(cache) <= 2 and cache._size <= dns_cache.BYTES_MAX
