# SPDX-License-Identifier: Apache-2.0
"""The results as one SVG picture: ours beside the peer, in two columns of panels.

Called by the runner. Adversary: nobody.
Invariants: pure; no script, no font and no background of its own, and every colour is readable on white and on black:
it can stand in a page of either kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from bench_statistics import Spread
from measure import MACHINE
from report import Row, aim_met, aim_text, number

OURS_COLOUR, PEER_COLOUR, TEXT_COLOUR, FLOOR_COLOUR = "#2f81f7", "#9aa1a9", "#7a828b", "#b8860b"
GOOD_COLOUR, BAD_COLOUR = "#2c9a48", "#e0524a"
MARGIN, GAP, COLUMN = 24, 32, 620
LABEL, BARS, RATIO = 258, 190, 512  # where labels end, how wide the longest bar is, where ratios start
ROW, BAR, PANEL_HEAD, PANEL_GAP, HEAD = 36, 11, 30, 18, 92
WHISKER, NUMBER = 3, 40


def _text(x: float, y: float, words: str, size: float = 12, colour: str = TEXT_COLOUR, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" {more}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'


def _bar(x: float, y: float, scale: float, spread: Spread, colour: str, floor: float) -> list[str]:
    width = max(spread.median * scale, 1)
    middle = y + BAR / 2
    drawn = [f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" rx="1.5" fill="{colour}"/>']
    end = x + width
    if spread.high > spread.low:
        low, high = x + spread.low * scale, x + spread.high * scale
        drawn.append(_line(low, middle, high, middle, TEXT_COLOUR))
        drawn += [_line(at, middle - WHISKER, at, middle + WHISKER, TEXT_COLOUR) for at in (low, high)]
        end = max(end, high)
    if end < x + floor * scale < end + NUMBER:
        end = x + floor * scale
    return [*drawn, _text(end + 5, y + BAR - 1.5, number(spread.median), 11)]


def _verdict(row: Row, x: float, y: float) -> list[str]:
    """The ratio with its interval, and the aim, in the colour of the verdict."""
    colour = {None: TEXT_COLOUR, True: GOOD_COLOUR, False: BAD_COLOUR}[aim_met(row)]
    ratio, drawn = row.compared.ratio, []
    if ratio is not None:
        drawn.append(_text(x, y + 11, f"× {ratio.median:.2f}", 12.5, colour, 'font-weight="600"'))
        drawn.append(_text(x + 54, y + 11, f"{ratio.low:.2f}–{ratio.high:.2f}", 10.5))
    if aim := aim_text(row):
        drawn.append(_text(x, y + 24, f"aim {aim}", 10.5, colour))
    return drawn


def _row(row: Row, x: float, y: float, scale: float) -> list[str]:
    drawn = [_text(x, y + BAR + 4, row.measure.title)]
    bars = [(row.compared.ours, OURS_COLOUR), (row.compared.peer, PEER_COLOUR)]
    shown = [(spread, colour) for spread, colour in bars if spread is not None]
    for place, (spread, colour) in enumerate(shown):
        drawn += _bar(x + LABEL, y + place * (BAR + 2), scale, spread, colour, row.floor or 0)
    if row.floor is not None:
        at, end = x + LABEL + row.floor * scale, y + len(shown) * (BAR + 2)
        drawn.append(_line(at, y - 3, at, end + 1, FLOOR_COLOUR, 'stroke-width="2" stroke-dasharray="3 2"'))
    return drawn + _verdict(row, x + RATIO, y)


def _panel(title: str, group: Sequence[Row], x: float, y: float) -> list[str]:
    spreads = [spread for row in group for spread in (row.compared.ours, row.compared.peer) if spread is not None]
    top = max([spread.high for spread in spreads] + [row.floor or 0 for row in group]) or 1
    drawn = [_text(x, y + 14, title, 14, TEXT_COLOUR, 'font-weight="600"')]
    drawn.append(_line(x, y + 20, x + COLUMN, y + 20, TEXT_COLOUR, 'stroke-opacity="0.4"'))
    for place, row in enumerate(group):
        drawn += _row(row, x, y + PANEL_HEAD + place * ROW, BARS / top)
    return drawn


def _legend(x: float, y: float, has_peer: bool, has_floor: bool) -> list[str]:
    entries = [(OURS_COLOUR, "ours")]
    entries += [(PEER_COLOUR, "the peer")] if has_peer else []
    entries += [(FLOOR_COLOUR, "what one process without a guest costs")] if has_floor else []
    drawn = []
    for colour, name in entries:
        drawn.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" rx="1.5" fill="{colour}"/>')
        drawn.append(_text(x + 18, y, name))
        x += 100
    return drawn


def draw(title: str, subtitle: str, rows: Sequence[Row]) -> str:
    """The picture; panels go into the column that is shorter so far."""
    bottoms = [HEAD, HEAD]
    drawn: list[str] = []
    of_helpers = [row for row in rows if MACHINE not in row.measure.sides]
    for (panel, unit), found in groupby(of_helpers, key=lambda row: (row.measure.panel, row.measure.unit)):
        group = list(found)
        column = 0 if bottoms[0] <= bottoms[1] else 1
        x = MARGIN + column * (COLUMN + GAP)
        drawn += _panel(f"{panel}, {unit}" if unit else panel, group, x, bottoms[column])
        bottoms[column] += PANEL_HEAD + len(group) * ROW + PANEL_GAP
    width, height = 2 * MARGIN + 2 * COLUMN + GAP, max(bottoms)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, -apple-system, Segoe UI, Liberation Sans, DejaVu Sans, sans-serif">',
        f"<title>{escape(title)}</title>",
        _text(MARGIN, 32, title, 18, TEXT_COLOUR, 'font-weight="600"'),
        _text(MARGIN, 52, subtitle),
        *_legend(MARGIN, 76, any(row.compared.peer for row in rows), any(row.floor is not None for row in rows)),
    ]
    return "\n".join([*head, *drawn, "</svg>\n"])
