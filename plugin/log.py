# SPDX-License-Identifier: Apache-2.0
"""Lines for people: levels, and the places where they go (stderr, syslog, the log files of the contracts).

Called by the wrapper from the first fault on, by the keeper, and by control; so it imports nothing heavy, and knows no
structured events (events.py renders those, and hands debug lines to this).
Adversary: whoever makes us log much. passt's log file is bounded; callers limit the rate of what a guest can trigger.

Invariants: one call writes one line, with one write() a place; a place that fails is given up without a word, since
there is nobody left to tell. A standard error that nobody reads holds up nothing: what it has no room for is lost, and
counted. The file is shared by two processes and opened with O_APPEND, so lines do not mix.
"""

from __future__ import annotations

import _socket
import posix
import time

from lockgate.plugin import native_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lockgate.plugin.spec import NetworkSpec

    Form = Callable[[str, str, float], str]  # a line out of a level's name, a text and the time

ERROR, WARNING, INFO, DEBUG = range(4)

# The prefixes of the contract's log file, each nine characters long.
_FILE_PREFIX = ("ERROR:   ", "WARNING: ", "info:    ", "         ")
_LEVEL_NAMES = ("error", "warning", "info", "debug")
_SYSLOG_DAEMON = 3 << 3  # facility, RFC 5424 6.2.1; severities below
_SYSLOG_SEVERITY = (3, 4, 6, 7)

_PIPE_BYTES = 4096  # PIPE_BUF, the least that a pipe which can be written to has room for (pipe(7))
_CUT_SHARE = 3, 10  # how much of a full file goes: its oldest three tenths


class LogFile:
    """`S.FFFF: info:    text`, S.FFFF seconds since the start; a full file loses its head, never its newest lines."""

    __slots__ = ("fd", "_limit", "_header")

    def __init__(self, path: str, limit: int, program: str) -> None:
        """Opens with the rights of now, that is the caller's. Raises OSError. `program` is a name and a version."""
        flags = posix.O_CREAT | posix.O_TRUNC | posix.O_APPEND | posix.O_RDWR | posix.O_CLOEXEC
        self.fd = posix.open(path, flags, 0o600)
        self._limit = limit
        self._header = f"{program}: {posix.readlink('/proc/self/exe')} ({posix.getpid()})\n".encode()
        posix.write(self.fd, self._header)

    def write(self, line: bytes) -> None:
        if posix.fstat(self.fd).st_size + len(line) > self._limit:
            self._cut()
        posix.write(self.fd, line)

    def _cut(self) -> None:
        """Drops the oldest part. Who finds the other process at it writes on: a limit a little late beats waiting."""
        import fcntl

        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        size = posix.fstat(self.fd).st_size
        start = size * _CUT_SHARE[0] // _CUT_SHARE[1]
        tail = posix.pread(self.fd, size - start, start)
        posix.ftruncate(self.fd, 0)
        posix.write(self.fd, self._header + tail[tail.find(b"\n") + 1 :])
        fcntl.lockf(self.fd, fcntl.LOCK_UN)


class PlainFile:
    """Lines as they come, in a file that is emptied first: that of gvproxy's contract, without a limit."""

    __slots__ = ("fd",)

    def __init__(self, path: str, fd: int = -1) -> None:
        """Opens with the rights of now, unless that is done: then `fd` is it. Raises OSError."""
        flags = posix.O_CREAT | posix.O_TRUNC | posix.O_APPEND | posix.O_WRONLY | posix.O_CLOEXEC
        if fd >= 0:
            posix.ftruncate(fd, 0)
        self.fd = fd if fd >= 0 else posix.open(path, flags, 0o666)

    def write(self, line: bytes) -> None:
        posix.write(self.fd, line)


class StandardError:
    """The caller's, maybe a pipe that he never reads. O_NONBLOCK would be his, too, so each write asks first."""

    __slots__ = ("_lost",)

    def __init__(self) -> None:
        self._lost = 0

    def write(self, record: bytes) -> None:
        """What has no room is lost. A pipe that has any takes _PIPE_BYTES without waiting."""
        if self._lost and _takes(2):
            posix.write(2, b"%d lines were lost here: nobody read them\n" % self._lost)
            self._lost = 0
        for start in range(0, len(record), _PIPE_BYTES):
            if not _takes(2):
                self._lost += 1
                return
            posix.write(2, record[start : start + _PIPE_BYTES])


class Log:
    """Where lines go. Made once by the wrapper; control works on its own copy after the fork."""

    __slots__ = ("level", "stderr", "json", "file", "form", "_program", "_standard_error", "_syslog", "_start")

    def __init__(self, program: str, level: int, json: bool, form: Form | None = None) -> None:
        self.level = level
        self.stderr = True
        self.json = json
        self.form = form  # of lines on standard error, unless that is JSON, and in the file; None: as passt has them
        self.file: LogFile | PlainFile | None = None
        self._program = program
        self._standard_error = StandardError()
        self._syslog: _socket.socket | None = None
        self._start = time.monotonic()

    def open_syslog(self) -> None:
        """To be tried unless a log file or debugging was asked for; a machine without a syslog is no fault."""
        syslog = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        try:
            syslog.connect("/dev/log")
        except OSError:
            syslog.close()
        else:
            self._syslog = syslog

    def write_only_to(self, path: str, fd: int = -1) -> None:
        """From now on to this file, which is emptied, and nowhere else. Raises OSError. `fd`: it is open already."""
        self.file = PlainFile(path, fd)
        self.stderr = False

    def descriptors(self) -> list[int]:
        """What a child must keep open to log."""
        fds = [] if self.file is None else [self.file.fd]
        return fds if self._syslog is None else [*fds, self._syslog.fileno()]

    @property
    def heard(self) -> bool:
        """Whether anybody could read a debug line: if not, control asks the worker for no events."""
        return self.level >= DEBUG and (self.stderr or self.file is not None)

    def tell(self, spec: NetworkSpec) -> None:
        """What the contract has to say about the command line."""
        for warning in spec.warnings:
            self.warning(warning)
        for note in spec.notes:
            self.info(note)
        for detail in spec.details:
            self.debug(detail)

    def error(self, text: str) -> None:
        self._line(ERROR, text)

    def warning(self, text: str) -> None:
        self._line(WARNING, text)

    def info(self, text: str) -> None:
        self._line(INFO, text)

    def debug(self, text: str) -> None:
        self._line(DEBUG, text)

    def event_to_stderr(self, line: str) -> None:
        """A structured event, rendered already, but for what the form of this log has around it."""
        whole = f"{line}\n" if self.json or self.form is None else self.form(_LEVEL_NAMES[DEBUG], line, time.time())
        _offer(self._standard_error.write, whole)

    def event_to_file(self, line: str) -> None:
        self._to_file(DEBUG, line)

    def _line(self, level: int, text: str) -> None:
        if level > self.level:
            return
        if self.stderr:
            _offer(self._standard_error.write, self._line_for_stderr(level, text))
        self._to_file(level, text)
        if self._syslog is not None:
            priority = _SYSLOG_DAEMON | _SYSLOG_SEVERITY[level]
            _offer(self._syslog.send, f"<{priority}> {self._program}: {text}")

    def _line_for_stderr(self, level: int, text: str) -> str:
        if self.json:
            return _json_line(level, text)
        return f"{text}\n" if self.form is None else self.form(_LEVEL_NAMES[level], text, time.time())

    def _to_file(self, level: int, text: str) -> None:
        if self.file is None:
            return
        if self.form is not None:
            _offer(self.file.write, self.form(_LEVEL_NAMES[level], text, time.time()))
        else:
            seconds = time.monotonic() - self._start
            _offer(self.file.write, f"{seconds:.4f}: {_FILE_PREFIX[level]}{text}\n")


def _json_line(level: int, text: str) -> str:
    """With the keys and the form of time that structlog gives to events."""
    from _json import encode_basestring_ascii

    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    event = encode_basestring_ascii(text)
    return f'{{"event": {event}, "level": "{_LEVEL_NAMES[level]}", "timestamp": "{when}.{nanoseconds // 1000:06}Z"}}\n'


def _takes(fd: int) -> bool:
    """Whether a write does not wait. One that fails does not wait either."""
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _offer(write: Callable[[bytes], object], text: str) -> None:
    """The text may quote an argument or a path that is no UTF-8."""
    try:
        write(native_text.encode(text))
    except OSError:
        pass
