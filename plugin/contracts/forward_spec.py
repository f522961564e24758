# SPDX-License-Identifier: Apache-2.0
"""Port forwards as people write them (`-t 8080:80`, `-u 127.0.0.1%lo/53`, `-t all,~22`), as rules.

Called by the contracts passt and pasta in their second pass, when families and protocols are known, and imported only
if a forward is asked for; hence few imports. forwards.py binds what the rules say.
Adversary: whoever made the command line. Every mistake is a ForwardSpecError, one sentence for the caller.

Invariants: pure, nothing is read from the host (Scope brings what must be known of it); rules of one protocol that
could want the same socket never come out together; there are at most RULES_MAX of them.

    spec   := "none" | [ listen "/" ] chunk { "," chunk }
    listen := [ address | "*" ] [ "%" interface ]
    chunk  := "auto" | "all" [ ":" address ] | "~" range | range [ ":" target ]
    target := address "/" range | address | range
    range  := port [ "-" port ]

An address is of either family, in brackets or not. What stands before the first slash is the listening part if it can
be one; so 80:10.0.0.1/81 has none, but 80:fd00::1/81 listens on 80:fd00::1, and 80:[fd00::1]/81 says the other thing.
"auto" makes all of its spec follow what listens where the ports lead, and is for pasta only; so is the other direction,
from a namespace to the host, which has no listening part.
"""

from __future__ import annotations

from lockgate.plugin import address
from lockgate.plugin.address import ANY4, UNSET
from lockgate.plugin.forward_rule import (
    INTERFACE_MAX,
    PORT_MAX,
    PROTOCOL_NAMES,
    TCP,
    UDP,
    ForwardRule,
    is_interface,
    range_text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Range = tuple[int, int]

RULES_MAX = 255  # of both protocols together; this and the next are the limits of passt's table of rules
SOCKETS_MAX = 5 * 65536
LOOPBACK = "lo"  # the interface of a namespace whose ports lead out of it

_PORTS_EXPECTED = f"expected a port from 1 to {PORT_MAX}, or a range like 8000-8010"


class ForwardSpecError(ValueError):
    """What is wrong with a forward: one sentence, which names the option and quotes its words."""


class Scope:
    """What all forwards of one command line have in common; frozen by convention.

    `ephemeral` returns the ports that the host gives to its own connections, and is called only if a spec leaves it to
    us which ports. `auto`: whether there is a namespace to follow. `outbound`: whether the ports are those of the
    namespace's loopback, and lead to the host's.
    """

    __slots__ = ("auto", "ephemeral", "ipv4", "ipv6", "outbound", "protocols")

    def __init__(
        self,
        *,
        ipv4: bool,
        ipv6: bool,
        tcp: bool,
        udp: bool,
        ephemeral: Callable[[], Range],
        auto: bool = False,
        outbound: bool = False,
    ) -> None:
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.protocols = {TCP: tcp, UDP: udp}
        self.ephemeral = ephemeral
        self.auto = auto
        self.outbound = outbound


def add(rules: tuple[ForwardRule, ...], option: str, protocol: int, text: str, scope: Scope) -> tuple[ForwardRule, ...]:
    """`rules`, and those that one more option asks for. `option` is its name, for messages.

    Raises ForwardSpecError.
    """
    words = _Words(option, text)
    name = PROTOCOL_NAMES[protocol]
    if text == "none":
        if any(rule.protocol == protocol for rule in rules):
            raise words.mistake(f"{name} ports are forwarded by what comes before it; put none first, or leave it out")
        return rules
    if not scope.protocols[protocol]:
        raise words.mistake(f"{name} is switched off by --no-{name.lower()}; leave out one of the two")
    result = list(rules)
    sockets = sum(rule.count for rule in rules)
    for rule in _Spec(words, scope).rules(protocol, scope):
        sockets += rule.count
        if len(result) == RULES_MAX:
            raise words.mistake(f"expected at most {RULES_MAX} separate ranges of ports in all; use fewer, longer ones")
        if sockets > SOCKETS_MAX:
            raise words.mistake(f"expected at most {SOCKETS_MAX} sockets in all; forward fewer ports")
        for other in result:
            if rule.conflicts(other):
                ports = range_text(max(rule.first, other.first), min(rule.last, other.last))
                by = f"{other.listen_text}/{range_text(other.first, other.last)}"
                raise words.mistake(
                    f"{name} port {ports} is forwarded already, by {by}; expected each port of an address once, and * "
                    "is every address: leave out one of the two"
                )
        result.append(rule)
    return tuple(result)


class _Words:
    """An option and what was written for it, as the beginning of every message."""

    __slots__ = ("option", "text")

    def __init__(self, option: str, text: str) -> None:
        self.option = option
        self.text = text

    def mistake(self, sentence: str, part: str | None = None) -> ForwardSpecError:
        """`part` is where it is, unless that is obvious."""
        where = "" if part in (None, self.text) else f"{part or 'nothing'}: "
        return ForwardSpecError(f"{self.option} {self.text}: {where}{sentence}")

    def address(self, text: str, expected: str) -> bytes:
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        ip = address.parse(inner)
        if ip is None:
            raise self.mistake(expected, text)
        return ip

    def target(self, text: str, expected: str = "expected an address of the guest, IPv4 or IPv6") -> bytes:
        ip = self.address(text, expected)
        if address.is_unspecified(ip):
            raise self.mistake("expected an address that a guest can have; without one, its own is used", text)
        return ip

    def ports(self, text: str, expected: str = _PORTS_EXPECTED) -> Range:
        """A range as it is written, which may begin at 0."""
        begin, dash, end = text.partition("-")
        first = _port(begin)
        last = _port(end) if dash else first
        if first is None or last is None:
            raise self.mistake(expected, text)
        if last < first:
            raise self.mistake(f"expected the lower port first; write {last}-{first}", text)
        return first, last

    def usable_ports(self, text: str, expected: str = _PORTS_EXPECTED) -> Range:
        first, last = self.ports(text, expected)
        if first == 0:
            raise self.mistake("port 0 cannot be forwarded; ports begin at 1", text)
        return first, last


class _Include:
    """A chunk that names ports."""

    __slots__ = ("first", "last", "target", "to_first")

    def __init__(self, words: _Words, source: str, target: str | None) -> None:
        self.first, self.last = words.usable_ports(source, f"{_PORTS_EXPECTED}, all, or ~ and the ports to leave out")
        self.target, self.to_first = UNSET, self.first
        if target is None:
            return
        host, slash, ports = target.partition("/")
        if not slash and _looks_like_ports(target):
            ports = target
        else:
            self.target = words.target(host, "expected a port, a range, or an address of the guest as the target")
            if not slash:
                return
        to_first, to_last = words.usable_ports(ports)
        if to_last - to_first != self.last - self.first:
            same = range_text(to_first, to_first + self.last - self.first)
            hint = f"expected two ranges of the same length, as in {source}:{same}"
            raise words.mistake(hint, f"{source}:{target}")
        self.to_first = to_first


class _Spec:
    """One option's words, taken apart; nothing is known of the host or of other options yet."""

    __slots__ = ("all_target", "auto", "excluded", "includes", "interface", "listen", "words")

    def __init__(self, words: _Words, scope: Scope) -> None:
        self.words = words
        self.listen: bytes | None = None  # no address, or *
        self.interface = LOOPBACK if scope.outbound else ""
        self.auto = False
        self.includes: list[_Include] = []
        self.excluded = bytearray(PORT_MAX + 1)  # 1 for each port that is left out
        self.all_target: bytes | None = None  # of the last "all"
        listen, slash, ports = words.text.partition("/")
        if slash and self._may_be_listen(listen):
            if scope.outbound:
                raise words.mistake("expected ports only: it is the namespace's loopback that listens", listen)
            self._take_listen(listen)
        else:
            ports = words.text
        for chunk in ports.split(","):
            self._take_chunk(chunk, scope.auto)

    def _may_be_listen(self, text: str) -> bool:
        """Not if the slash is that of a target. What is neither is taken for a listening part that is wrong."""
        if address.parse(text.partition("%")[0]) is not None or not (":" in text or "," in text):
            return True
        word = text.partition(",")[0].partition(":")[0]
        return not (word in ("all", "auto") or word.startswith("~") or _looks_like_ports(word))

    def _take_listen(self, text: str) -> None:
        host, percent, self.interface = text.partition("%")
        if percent and not is_interface(self.interface):
            raise self.words.mistake(
                f"expected the name of an interface after %, 1 to {INTERFACE_MAX} bytes without blanks", text
            )
        if host not in ("", "*"):
            self.listen = self.words.address(
                host, "expected an address to listen on before the slash, IPv4 or IPv6, or * for any"
            )

    def _take_chunk(self, chunk: str, may_follow: bool) -> None:
        words = self.words
        source, colon, target = chunk.partition(":")
        if source == "auto":
            if not may_follow:
                raise words.mistake(
                    "auto follows what listens in a namespace, and is for pasta only; name ports, or all"
                )
            if colon:
                raise words.mistake("expected nothing after auto: ports lead to the same ports then", chunk)
            self.auto = True
            return
        if chunk.startswith("~"):
            first, last = words.ports(chunk[1:])  # from 0 too: leaving out what is not there does no harm
            self.excluded[first : last + 1] = b"\1" * (last + 1 - first)
        elif source == "all":
            all_target = words.target(target) if colon else UNSET
            if self.all_target not in (None, all_target):
                raise words.mistake("expected one target for all; leave out the other", chunk)
            self.all_target = all_target
        elif address.parse(source) is not None:
            raise words.mistake(f"expected a slash after an address to listen on, as in {source}/80", source)
        else:
            self.includes.append(_Include(words, source, target if colon else None))

    def rules(self, protocol: int, scope: Scope) -> Iterator[ForwardRule]:
        """One rule for each run of ports that is left between those that are left out.

        "all" counts for nothing beside ports that are named, and "auto" stands for "all": the contract has it so.
        """
        listen, dual_stack = self._where(scope)
        if self.includes:
            chunks = [(part.first, part.last, part.to_first, part.target) for part in self.includes]
        else:
            low, high = scope.ephemeral()
            self.excluded[low : high + 1] = b"\1" * (high + 1 - low)
            chunks = [(1, PORT_MAX, 1, self.all_target or UNSET)]
        for first, last, to_first, target in chunks:
            self._check_target(target, listen, dual_stack)
            for begin, end in self._runs(first, last):
                yield ForwardRule(
                    protocol=protocol,
                    listen=listen,
                    dual_stack=dual_stack,
                    interface=self.interface,
                    first=begin,
                    last=end,
                    to_first=to_first + begin - first,
                    target=target,
                    best_effort=not self.includes,
                    auto=self.auto,
                    outward=scope.outbound,
                )

    def _where(self, scope: Scope) -> tuple[bytes, bool]:
        """Where to listen, and whether for both families."""
        if self.listen is None:
            if scope.ipv4 and scope.ipv6:
                return UNSET, True
            return (ANY4 if scope.ipv4 else UNSET), False
        name, enabled, other = (
            ("IPv4", scope.ipv4, "--ipv6-only") if address.is_ipv4(self.listen) else ("IPv6", scope.ipv6, "--ipv4-only")
        )
        if not enabled:
            raise self.words.mistake(
                f"{name} is switched off by {other}; leave out one of the two", address.to_text(self.listen)
            )
        return self.listen, False

    def _check_target(self, target: bytes, listen: bytes, dual_stack: bool) -> None:
        """One socket serves one target, so all that arrives there must be of the target's family."""
        if target == UNSET or (not dual_stack and address.is_ipv4(listen) == address.is_ipv4(target)):
            return
        name, example = ("IPv4", "0.0.0.0/") if address.is_ipv4(target) else ("IPv6", "[::]/")
        raise self.words.mistake(
            f"expected to listen on {name} only for this target; begin with an address of the host and a slash, "
            f"{example} for any",
            address.to_text(target),
        )

    def _runs(self, first: int, last: int) -> Iterator[Range]:
        while (begin := self.excluded.find(0, first, last + 1)) >= 0:
            end = self.excluded.find(1, begin, last + 1)
            first = end if end >= 0 else last + 1
            yield begin, first - 1


def _port(text: str) -> int | None:
    """Decimal, and no more: int() would take blanks, signs, underscores and other scripts' digits."""
    digits = text.lstrip("0") or text[-1:]
    if not (text.isascii() and text.isdecimal()) or len(digits) > len(f"{PORT_MAX}"):
        return None
    port = int(digits)
    return port if port <= PORT_MAX else None


def _looks_like_ports(text: str) -> bool:
    return text.replace("-", "0").isdecimal()
