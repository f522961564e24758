# SPDX-License-Identifier: Apache-2.0
"""The usage text, made from the table that also parses, so that neither can forget an option of the other.

Called by the contracts passt and pasta, and imported only when the text is wanted. Adversary: nobody. Pure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.contracts.getopt import Option

_COLUMN = 32  # where descriptions start; a longer option has its description on the next line


def usage(synopsis: str, mode: str, groups: Sequence[tuple[str, Sequence[Option]]]) -> str:
    """All options that the contract `mode` takes, group by group, ending with a newline."""
    lines = [f"Usage: {synopsis}"]
    for title, options in groups:
        rows = [row for option in options if option.mode in ("", mode) for row in _rows(option)]
        if rows:
            lines += ["", f"{title}:", *rows]
    return "\n".join(lines) + "\n"


def _rows(option: Option) -> list[str]:
    short = f"-{option.short}, " if option.short else " " * 4
    names = ", ".join(f"--{name}" for name in (option.name, *option.aliases))
    left = f"  {short}{names}{option.argument and ' ' + option.argument}"
    right = option.help if option.built else f"{option.help} (not built yet)"
    if len(left) < _COLUMN:
        return [left.ljust(_COLUMN) + right]
    return [left, " " * _COLUMN + right]
