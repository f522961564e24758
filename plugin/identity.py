# SPDX-License-Identifier: Apache-2.0
"""The user and group that a caller names: by number, which need not be in any database, or by name.

Called by the contracts, before READY, and only if such an option was given: the databases may be far away.
Adversary: nobody; who may become whom is the kernel's to say, and asked in start.py.
"""

from __future__ import annotations

import os

from lockgate.plugin.contracts.strtoul import strtoul

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ID_MAX = (1 << 32) - 2  # the number after it means "unchanged" to setresuid(2)


class UnknownIdentity(ValueError):
    """Who it is not, as the end of a sentence."""


def parse(text: str) -> tuple[int, int]:
    """Of `USER[:GROUP]`. Without a group it is the user's own, or the one of the same number."""
    user, colon, group = text.partition(":")
    uid, primary = _user(user)
    return uid, _group(group) if colon else primary


def _user(text: str) -> tuple[int, int]:
    import pwd

    number = strtoul(text)
    try:
        entry = pwd.getpwnam(text) if number is None else pwd.getpwuid(number)
        return entry.pw_uid, entry.pw_gid
    except (KeyError, OverflowError, ValueError):  # of a number that no user can have, and of a NUL in a name
        if number is None or number > ID_MAX:
            raise UnknownIdentity(f"expected a user, and {text or 'nothing'} is none here") from None
    return number, number


def _group(text: str) -> int:
    import grp

    number = strtoul(text)
    if number is not None and number <= ID_MAX:
        return number
    try:
        if number is None:
            return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        pass
    raise UnknownIdentity(f"expected a group after the colon, and {text or 'nothing'} is none here")


def take_on(identity: tuple[int, int]) -> Callable[[], None]:
    """Takes on the rights of a user and group until the result is called. Other groups are gone for good."""
    uid, gid = os.geteuid(), os.getegid()
    os.setgroups([])
    os.setegid(identity[1])
    try:
        os.seteuid(identity[0])
    except OSError:
        os.setegid(gid)
        raise

    def come_back() -> None:
        os.seteuid(uid)
        os.setegid(gid)

    return come_back
