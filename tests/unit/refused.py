# SPDX-License-Identifier: Apache-2.0
"""What a caller reads when its command line starts nothing.

Called by the tests of the contracts in this folder. Adversary: nobody.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lockgate.plugin.spec import Stop


def stop(parse: Callable[[], object]) -> Stop:
    with pytest.raises(Stop) as caught:
        parse()
    return caught.value


def refusal(parse: Callable[[], object]) -> str:
    """The one line of a refused command line."""
    ended = stop(parse)
    assert (ended.exit_code, ended.stdout_text) == (1, "")
    line, end, rest = ended.stderr_text.partition("\n")
    assert end and not rest
    return line
