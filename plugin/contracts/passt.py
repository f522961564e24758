# SPDX-License-Identifier: Apache-2.0
"""The contract `passt`: what its callers (muvm, crun, libvirt, QEMU) write on a command line, as a NetworkSpec.

Called by the wrapper before READY, hence the light imports. Adversary: whoever made the command line. Invariants: the
result is complete and checked, or Stop says how the command ends; nothing is printed here. The machine is asked a few
questions, because only now is there somebody who waits for the answer: whether --fd is open, whether --interface
exists, who the user of --runas is, whether there is IPv6 at all, and, for a forward of all ports, which of them it
gives to the host's own connections.

Order is part of the contract: mistakes are reported in the order of the words, except that --fd is checked first, words
that are no options after the options, and forwards last, since they depend on options that may follow them. Of an
option given twice the last counts; forwards add up.
"""

from __future__ import annotations

import os

from lockgate.plugin.contracts.getopt import Getopt, GetoptError
from lockgate.plugin.contracts.passt_options import PASST, TABLE
from lockgate.plugin.contracts.request import SOCKET_PATH_MAX, Request, path_of, refusal
from lockgate.plugin.contracts.strtoul import strtoul
from lockgate.plugin.spec import VHOST_USER, NetworkSpec, Stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FD_MAX = (1 << 31) - 1
CAPABILITIES = '{\n  "type": "net"\n}\n'  # docs/interop/vhost-user.json of QEMU; goes to standard error, as passt's


def parse(argv: Sequence[str], program_name: str) -> NetworkSpec:
    """What the words after the command's name ask for; program_name is argv[0], for getopt's own error lines.

    Raises Stop for --help, --version and --print-capabilities, and for every mistake.
    """
    _check_descriptor(argv, program_name)
    request = _Request(NetworkSpec(contract=PASST))
    others = request.take_all(Getopt(TABLE, argv, program_name))
    if others:
        raise refusal(f"{others[0]}: extra non-option argument; passt takes options only")
    request.finish()
    request.check_migration()
    request.add_forwards()
    return request.spec


def automatic_socket_paths() -> Iterator[str]:
    """Where to listen without --socket and --fd: the first of these on which nobody accepts."""
    return (f"/tmp/passt_{number}.socket" for number in range(1, 100))


def _check_descriptor(argv: Sequence[str], program_name: str) -> None:
    """Ahead of all else, --help included: whoever hands over a descriptor must hear that it did not arrive."""
    words = Getopt(TABLE, argv, program_name)
    given = None
    while True:
        try:
            for option, argument in words:
                if option.name == "fd":
                    given = argument
        except GetoptError:
            continue
        break
    if given is None:
        return
    fd = _descriptor(given)
    try:
        inherited = os.get_inheritable(fd)
        absent = fd <= 2 and not inherited  # the start has put /dev/null where no standard stream was
    except OSError:
        absent = True
    if absent:
        raise refusal(f"--fd {given}: no such descriptor is open here; it must be inherited without CLOEXEC") from None


def _descriptor(text: str) -> int:
    fd = strtoul(text)
    if fd is None or fd > FD_MAX:
        raise refusal(f"Invalid --fd: {text}: expected the number of an open descriptor")
    return fd


class _Request(Request):
    """And the options that passt alone takes, all about its link."""

    __slots__ = ()

    synopsis = "passt [OPTION]..."

    def check_migration(self) -> None:
        spec = self.spec
        if spec.link == VHOST_USER:
            return
        for given, name in (
            (spec.repair_path, "repair-path"),
            (spec.migrate_exit, "migrate-exit"),
            (not spec.migrate_linger, "migrate-no-linger"),
        ):
            if given:
                raise refusal(f"--{name} is for vhost-user mode only; leave it out, or add --vhost-user")

    def on_print_capabilities(self, _: str) -> None:
        raise Stop(0, "", CAPABILITIES)

    def on_socket(self, path: str) -> None:
        self.spec.socket_path = path_of("--socket", path, SOCKET_PATH_MAX)
        self.spec.socket_fd = None

    def on_fd(self, text: str) -> None:
        self.spec.socket_fd = _descriptor(text)
        self.spec.socket_path = None
        self.spec.one_off = True

    def on_repair_path(self, path: str) -> None:
        self.spec.repair_path = "" if path == "none" else path_of("--repair-path", path, SOCKET_PATH_MAX)
