# SPDX-License-Identifier: Apache-2.0
"""Imports asyncio and dataclasses without three modules that they ask for and control has no use for: 6 MB less.

Called by start.py in the child that becomes control, before control.py is imported; gateway/names/lean_dnspython.py
does the same for another library. A process that has the modules already keeps them: this changes nothing under a test
runner.
Adversary: nobody.

`ssl` (4 MB) is for servers that we are not; asyncio does without it where it is missing. `subprocess` (0.4 MB) is for
children, which a locked-up control cannot have. `inspect` (1 MB: it brings `ast` and `dis`) names the source line of a
callback that raised; the few functions that asyncio calls for that are here, in short. Nothing can be imported once
control is locked up, which is why that one is not simply put off.
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


_INSPECT = {
    "isfunction": _isfunction,
    "unwrap": _unwrap,
    "iscoroutinefunction": _iscoroutinefunction,
    "signature": _signature,
}
_SUBPROCESS = {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3}  # copied by asyncio.subprocess as it is imported


def stand_in(name: str, has: dict[str, Any]) -> ModuleType:
    """A module with a few names; whoever asks for another gets the real module's."""
    module = ModuleType(name)

    def others(wanted: str) -> Any:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        __import__(name)
        return getattr(sys.modules[name], wanted)

    module.__dict__.update(has, __getattr__=others)
    return module


def load() -> None:
    """After this, `import asyncio` finds it."""
    modules: dict[str, ModuleType | None] = {
        "ssl": None,
        "inspect": stand_in("inspect", _INSPECT),
        "subprocess": stand_in("subprocess", _SUBPROCESS),
        **dict.fromkeys(_OF_OTHER_PYTHONS),
    }
    import_with(modules, "asyncio", "dataclasses")


def import_with(modules: dict[str, ModuleType | None], *names: str) -> None:
    """Imports what is named, with `modules` in the place of others that it would import; an import of None fails."""
    put = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(put)  # type: ignore[arg-type]  # None
    for wanted in names:
        __import__(wanted)
    for name, module in put.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
