# SPDX-License-Identifier: Apache-2.0
"""Imports asyncio and dataclasses without modules that they ask for and control has no use for: 8 MB less.

Called by start.py in the child that becomes control, before control.py is imported, and by those modules of control's
that need dataclasses; gateway/names/lean_dnspython.py does the same for another library. A process that has the modules
already keeps them: this changes nothing under a test runner.
Adversary: nobody.

`ssl` (4 MB) is for servers that we are not; asyncio does without it where it is missing. `subprocess` (0.4 MB) is for
children, which a locked-up control cannot have. `inspect` (1 MB: it brings `ast` and `dis`) names the source line of a
callback that raised; the few functions that asyncio calls for that are here, in short. `logging`, `traceback` and
`concurrent.futures` (0.7 MB) are for asyncio's debug mode and for threads; what matters, asyncio tells the loop's
exception handler. `typing` (0.8 MB, with `re`) is for two annotations. These are not simply put off, since a
control that runs should need no file: it has other rights by then, and an upgrade may have put other files there.

To save the same memory, a module that control has in any case imports `typing` for mypy alone, and has no dataclass.
"""

from __future__ import annotations

import sys
from types import FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_OF_OTHER_PYTHONS = ("msvcrt", "org")  # Windows's and Jython's, asked for in vain: launcher.c says what that would cost


def _isfunction(value: object) -> bool:
    return isinstance(value, FunctionType)


def _unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """What functools.wraps() has wrapped."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _iscoroutinefunction(function: object) -> bool:
    return isinstance(function, FunctionType) and bool(function.__code__.co_flags & 0x80)  # CO_COROUTINE


def _signature(made: object) -> str:
    """Of a dataclass without a docstring, as h11 has one: it gets its name and this."""
    return "(...)"


class _Silent:
    """A logger. What somebody has to know, asyncio tells the loop's exception handler."""

    def debug(self, *_: object, **__: object) -> None: ...

    log = info = warning = error = exception = debug


def _get_annotations(cls: type) -> dict[str, Any]:
    """Its own; as dataclasses ask for them since Python 3.12."""
    annotations: dict[str, Any] = cls.__dict__.get("__annotations__", {})
    return annotations


_INSPECT = {
    "get_annotations": _get_annotations,
    "isfunction": _isfunction,
    "unwrap": _unwrap,
    "iscoroutinefunction": _iscoroutinefunction,
    "signature": _signature,
}
_SUBPROCESS = {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3}  # copied by asyncio.subprocess as it is imported
_FUTURES = {name: name for name in ("FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED")}  # and by asyncio.tasks
_OTHERS: dict[str, dict[str, Any]] = {
    "subprocess": _SUBPROCESS,
    "logging": {"getLogger": lambda _: _Silent(), "DEBUG": 10},
    "traceback": {"extract_stack": lambda *_: []},
    "linecache": {},
    "typing": {"final": lambda cls: cls, "Optional": list, "Type": type},  # for a subscript, any generic does
    "asyncio.sslproto": {},
    "asyncio.base_subprocess": {"BaseSubprocessTransport": object},
    "asyncio.staggered": {},
}


def stand_in(name: str, has: dict[str, Any]) -> ModuleType:
    """A module with a few names; whoever asks for another gets the real module's."""
    module = ModuleType(name)

    def others(wanted: str) -> Any:
        if wanted == "__path__":  # `from ... import` looks whether it is a package
            raise AttributeError(wanted)
        if sys.modules.get(name) is module:
            del sys.modules[name]
        __import__(name)
        return getattr(sys.modules[name], wanted)

    module.__dict__.update(has, __getattr__=others)
    return module


def load() -> None:
    """After this, `import asyncio` finds it."""
    futures = stand_in("concurrent.futures", _FUTURES)
    modules: dict[str, ModuleType | None] = {
        "ssl": None,
        "inspect": stand_in("inspect", _INSPECT),
        "concurrent": stand_in("concurrent", {"futures": futures}),
        "concurrent.futures": futures,
        **{name: stand_in(name, has) for name, has in _OTHERS.items()},
        **dict.fromkeys(_OF_OTHER_PYTHONS),
    }
    import_with(modules, "asyncio")


def load_dataclasses() -> None:
    """The same for them."""
    import_with({"inspect": stand_in("inspect", _INSPECT), **dict.fromkeys(_OF_OTHER_PYTHONS)}, "dataclasses")


def import_with(modules: dict[str, ModuleType | None], *names: str) -> None:
    """Imports what is named, with `modules` in the place of others that it would import; an import of None fails."""
    put = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(put)  # type: ignore[arg-type]  # None
    for wanted in names:
        __import__(wanted)
    for name, module in put.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
