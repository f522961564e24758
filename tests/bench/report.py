# SPDX-License-Identifier: Apache-2.0
"""What was measured, as rows: for a terminal, and as JSON with every single value.

Called by the runner. Adversary: nobody.
Invariants: pure; a row is made of the complete pairs of its measure, and says how many those were; a measure that has
none is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby

import bench_statistics
from bench_statistics import Comparison
from measure import MACHINE, OURS, PEER, Measure, Values

PAIRS_FOR_A_CLAIM = 20
TITLE_WIDTH = 44
AIM_WIDTH, VERDICT_WIDTH = 18, 8
DETAIL_SHARE = 0.01  # smaller parts are not shown
PairValues = dict[str, Values]  # by side


@dataclass
class Results:
    """A run, complete or interrupted."""

    about: dict[str, object]  # guest, machine, commands, versions, settings
    measures: list[Measure]
    has_peer: bool
    pairs: list[PairValues] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One measure."""

    measure: Measure
    compared: Comparison
    floor: float | None
    details: dict[str, dict[str, float]]  # by side, the medians of the parts


def _complete(pairs: Sequence[PairValues], key: str, sides: Sequence[str]) -> list[list[float]]:
    """For each side its values, of the pairs that have one of every side."""
    whole = [pair for pair in pairs if all(key in pair.get(side, {}) for side in sides)]
    return [[pair[side][key] for pair in whole] for side in sides]


def rows(results: Results) -> list[Row]:
    """Of every measure that has a complete pair."""
    found = []
    for measure in results.measures:
        sides = [side for side in measure.sides if side != PEER or results.has_peer]
        values = _complete(results.pairs, measure.key, sides)
        if values[0]:
            peer = values[1] if len(values) > 1 else None
            compared = bench_statistics.compare(values[0], peer, measure.has_ratio)
            found.append(Row(measure, compared, _floor(results, measure), _details(results, measure)))
    return found


def _floor(results: Results, measure: Measure) -> float | None:
    values = _complete(results.pairs, measure.floor, [MACHINE])[0] if measure.floor else []
    return bench_statistics.median(values) if values else None


def _details(results: Results, measure: Measure) -> dict[str, dict[str, float]]:
    prefix = measure.key + "/"
    details: dict[str, dict[str, float]] = {}
    for side in (OURS, PEER):
        parts: dict[str, list[float]] = {}
        for pair in results.pairs:
            for key, value in pair.get(side, {}).items():
                if key.startswith(prefix):
                    parts.setdefault(key.removeprefix(prefix), []).append(value)
        medians = {part: bench_statistics.median(values) for part, values in parts.items()}
        if least := DETAIL_SHARE * sum(medians.values()):
            details[side] = {part: value for part, value in medians.items() if value >= least}
    return details


def fewest_pairs(found: Sequence[Row]) -> int:
    """Complete ones behind every row."""
    return min((row.compared.pairs for row in found), default=0)


def aim_met(row: Row) -> bool | None:
    """Whether the medians are what the project set itself; None where it did not, or nothing is compared."""
    verdicts = []
    if row.measure.aim is not None and row.compared.ratio is not None:
        ratio = row.compared.ratio.median
        verdicts.append(ratio >= row.measure.aim if row.measure.more_is_better else ratio <= row.measure.aim)
    if row.measure.limit is not None:
        verdicts.append(row.compared.ours.median <= row.measure.limit)
    if row.measure.added_limit is not None and row.compared.peer is not None:
        verdicts.append(row.compared.ours.median - row.compared.peer.median <= row.measure.added_limit)
    suffice = any if row.measure.one_suffices else all
    return suffice(verdicts) if verdicts else None


def aim_text(row: Row) -> str:
    """Of the ratio ("≥ 1.30"), of our own value ("≤ 40 ms"), of what it adds to the peer's ("≤ +40 ms"), or several."""
    texts = []
    if row.measure.aim is not None and row.compared.ratio is not None:
        digits = ".2f" if round(row.measure.aim, 2) == row.measure.aim else "g"
        texts.append(f"{'≥' if row.measure.more_is_better else '≤'} {row.measure.aim:{digits}}")
    if row.measure.limit is not None:
        texts.append(f"≤ {row.measure.limit:g} {row.measure.unit.split(' ')[0]}")
    if row.measure.added_limit is not None and row.compared.peer is not None:
        texts.append(f"≤ +{row.measure.added_limit:g} {row.measure.unit.split(' ')[0]}")
    return (" or " if row.measure.one_suffices else ", ").join(texts)


def number(value: float) -> str:
    """Three digits that say something."""
    size = abs(value)
    decimals = 0 if size >= 100 or size < 0.0005 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}".replace(",", "\u202f")


def _note(row: Row) -> str:
    ours, peer = row.compared.ours, row.compared.peer
    if row.floor:
        beside = f" | {peer.median / row.floor:.1f}" if peer else ""
        return f"× floor {ours.median / row.floor:.1f}{beside}"
    if row.measure.steady and ours.steadiness is not None:
        beside = f" | {peer.steadiness:.2f}" if peer and peer.steadiness is not None else ""
        return f"steady {ours.steadiness:.2f}{beside}"
    return ""


def _cells(row: Row) -> list[str]:
    compared, ratio = row.compared, row.compared.ratio
    verdict = {None: "", True: "met", False: "NOT MET"}[aim_met(row)]
    return [
        f"  {row.measure.title:<{TITLE_WIDTH}}",
        f"{number(compared.ours.median):>9}",
        f"{number(compared.peer.median) if compared.peer else '':>9}",
        f"{f'{ratio.median:.2f}' if ratio else '':>7}",
        f"{f'{ratio.low:.2f} – {ratio.high:.2f}' if ratio else '':>15}",
        f"  {aim_text(row):<{AIM_WIDTH}}{verdict:<{VERDICT_WIDTH}}",
        f"{compared.pairs:>5}",
        f"  {_note(row)}",
    ]


def _detail_lines(row: Row) -> Iterator[str]:
    for side, parts in row.details.items():
        shown = sorted(parts.items(), key=lambda part: -part[1])
        yield f"      {side}: " + ", ".join(f"{name} {number(value)}" for name, value in shown)


def text(results: Results) -> str:
    """For a terminal."""
    found = rows(results)
    lines = [f"{name:<10}{value}" for name, value in results.about.items()]
    ratio_heads = f"{'ratio':>7}{'90 % interval':>15}" if results.has_peer else f"{'':>22}"
    ratio_heads += f"  {'aim':<{AIM_WIDTH + VERDICT_WIDTH}}"
    lines += ["", f"{'':<{TITLE_WIDTH + 2}}{'ours':>9}{'peer' if results.has_peer else '':>9}{ratio_heads}pairs"]
    for panel, group in groupby(found, key=lambda row: (row.measure.panel, row.measure.unit)):
        lines += ["", f"{panel[0]}, {panel[1]}" if panel[1] else panel[0]]
        for row in group:
            lines.append("".join(_cells(row)).rstrip())
            lines += _detail_lines(row)
    lines += ["", *(f"failed: {failure}" for failure in results.failures)]
    if (pairs := fewest_pairs(found)) < PAIRS_FOR_A_CLAIM and results.has_peer:
        lines.append(f"Complete pairs: {pairs}. A claim takes {PAIRS_FOR_A_CLAIM}.")
    return "\n".join(lines) + "\n"


def as_json(results: Results) -> dict[str, object]:
    """Everything, with what was concluded from it."""
    return {
        "about": results.about,
        "rows": [
            {
                **asdict(row.measure),
                **asdict(row.compared),
                "floor": row.floor,
                "details": row.details,
                "aim_met": aim_met(row),
            }
            for row in rows(results)
        ],
        "pairs": results.pairs,
        "failures": results.failures,
    }
