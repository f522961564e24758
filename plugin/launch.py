# SPDX-License-Identifier: Apache-2.0
"""The beginning: from the command line to the start of what it names. main() is what the launcher runs for each of the
four commands.

Called by packaging/launcher.c through `python -I`, as whatever command the caller typed.
Adversary: nobody; the caller has all the rights that are used here. What it left behind (descriptors, closed standard
streams, ignored signals) is put right before a later stage would trip over it.

Invariants: what is wrong is said in one line, with the contract's exit status, and a start that does not come to READY
takes back the files that it has made, all but the log. What the caller of a virtual network waits for is there before
anything is imported that it does not take: a test fixes the lists.
"""

from __future__ import annotations

import _signal
import posix
import sys

from lockgate.plugin import log, native_text
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.made_files import FileError, MadeFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lockgate.plugin.gateway.awaited import Early
    from lockgate.plugin.spec import NetworkSpec

LOG_FORMAT_VARIABLE = b"LOCKGATE_LOG_FORMAT"  # "json": one JSON object a line on stderr

EARLY_OPTION = "lockgate-awaited"  # of Python's -X, from packaging/awaited.c

_SIGNALS = (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)  # that end us; the `signal` module would import enum

_PLUGIN_COMMANDS = ("create", "setup", "teardown", "info")  # of netavark's, for which `lockgate` is a driver

_LEVELS = {
    vocabulary.QUIET: log.WARNING,
    vocabulary.INFO: log.INFO,
    vocabulary.DEBUG: log.DEBUG,
    vocabulary.TRACE: log.DEBUG,
}

USAGE = """\
usage: lockgate --version

lockgate gives a VM, or a container, a network out of ordinary sockets. It is started by container runtimes and VM
monitors, under the names passt, pasta and gvproxy (see their --help).
"""


def main() -> None:
    """Never returns. Python's own shutdown is skipped: it would take milliseconds to free what exit frees."""
    fill_standard_streams()
    try:
        if _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL:  # the launcher's code: nothing was made until here
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        posix._exit(_command(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:  # nothing has been left behind; now the end that the caller expects of this signal
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))
        posix.kill(posix.getpid(), _signal.SIGINT)


def _command(name: str, arguments: list[str]) -> int:
    if name == "rootlessport":
        from lockgate.plugin.bridge import rootlessport

        _show(name)
        return rootlessport.main()
    if "gvproxy" in name:
        return _serve_gvproxy(name, arguments)
    if "pasta" in name:
        from lockgate.plugin.contracts import pasta

        return _serve(name, lambda: pasta.parse(arguments, name))
    if "passt" in name:
        from lockgate.plugin.contracts import passt

        return _serve(name, lambda: passt.parse(arguments, name))
    if arguments and arguments[0] in _PLUGIN_COMMANDS:
        from lockgate.plugin.bridge import netavark_plugin

        _show(name)
        return netavark_plugin.main(arguments)
    if arguments == ["--version"]:
        from lockgate.plugin.version import VERSION

        return _answer(1, f"lockgate {VERSION}\n", 0)
    return _answer(1, USAGE, 0) if arguments in ([], ["--help"], ["-h"]) else _answer(2, USAGE, 1)


def _show(name: str) -> None:
    """What ps shows of us."""
    from lockgate.core._datapath import lib

    lib.lg_process_name(native_text.encode(name))
    lib.lg_show_command()


def _serve_gvproxy(name: str, arguments: list[str]) -> int:
    from lockgate.plugin.contracts import gvproxy

    opened = sys._xoptions.get(EARLY_OPTION)
    if not isinstance(opened, str):
        return _serve(name, lambda: gvproxy.parse(arguments, name))
    from lockgate.plugin.gateway.awaited import Early

    made = MadeFiles()
    early = Early(opened, made)
    return _serve(name, lambda: gvproxy.parse(arguments, name, early.path), made, early)


def _serve(
    name: str, parse: Callable[[], NetworkSpec], made: MadeFiles | None = None, early: Early | None = None
) -> int:
    """`early`: what the launcher has opened; its files are in `made` and go with us, whatever comes of the words."""
    made = made or MadeFiles()
    try:
        return _start(name, parse(), made, early)
    except vocabulary.Stop as stop:
        return _stop(stop)
    finally:
        made.take_back()


def _start(name: str, spec: NetworkSpec, made: MadeFiles, early: Early | None) -> int:
    form = None
    if spec.virtual is not None:
        from lockgate.plugin import logrus

        form = logrus.line
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _SIGNALS)  # until all that we make can go along
    lines = log.Log(spec.contract, _LEVELS[spec.log_level], posix.environ.get(LOG_FORMAT_VARIABLE) == b"json", form)
    try:
        awaited = None
        if spec.virtual is not None:
            from lockgate.plugin.gateway.awaited import Awaited

            awaited = Awaited(spec, spec.virtual, lines, made, early)
        _show(name)
        from lockgate.plugin.start import Start

        start = Start(name, spec, lines, made, awaited)
        if not spec.foreground:
            start.leave_caller()
        return start.keep()
    except (vocabulary.StartError, FileError) as fault:
        lines.error(f"{spec.failure_prefix}{fault}")
        return spec.failure_status


def _stop(stop: vocabulary.Stop) -> int:
    """How a command ends whose words say so. Where they name a log file, the caller reads there what is wrong with
    them."""
    _answer(1, stop.stdout_text, 0)
    if stop.log_file is None:
        return _answer(2, stop.stderr_text, stop.exit_code)
    try:
        file = log.PlainFile(stop.log_file)
    except OSError:
        from lockgate.plugin.contracts import gvproxy

        return _stop(gvproxy.log_file_fault(stop.log_file))
    return _answer(file.fd, stop.stderr_text, stop.exit_code)


def _answer(stream: int, text: str, exit_code: int) -> int:
    data = native_text.encode(text)
    while data:
        try:
            data = data[posix.write(stream, data) :]
        except OSError:
            break  # the caller does not want to know
    return exit_code


def fill_standard_streams() -> None:
    """A caller that closed 0, 1 or 2 would find our sockets there, and our log lines in them."""
    while True:
        fd = open_null()  # the lowest free number; Python makes it close-on-exec, we never exec
        if fd > 2:
            posix.close(fd)
            return


def open_null() -> int:
    try:
        return posix.open("/dev/null", posix.O_RDWR)
    except OSError:  # a sandbox without /dev: nothing can be read of this one either, and nothing be written
        read_end, write_end = posix.pipe()
        posix.close(write_end)
        return read_end
