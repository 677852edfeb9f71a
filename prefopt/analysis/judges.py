"""What is known about each judge: verdicts, ties, unusable shares, controls, agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats as distributions

from prefopt import stats
from prefopt.analysis.load import Comparison, Scores
from prefopt.analysis.policies import number
from prefopt.storage.schema import REFERENCE

Row = dict[str, Any]


def judge_quality(comparison: Comparison) -> tuple[list[Row], list[Row]]:
    """Each judge's verdicts, ties, unusable share and agreement with the first; and bounds where some are unusable."""
    rows: list[Row] = []
    bounds: list[Row] = []
    rates: dict[str, dict[str, float]] = {}
    known = comparison.judge_facts()
    for judge in comparison.judges():
        frame = comparison.judgements[comparison.judgements["judge"] == judge]
        scores = Scores(frame)
        usable, unusable = int(frame["n"].sum()), int(frame["invalid"].sum())
        rates[judge] = {
            name: float(np.nanmean(y)) for name in comparison.variants if (y := scores.get(name, REFERENCE)) is not None
        }
        rows.append(
            {
                "judge": judge,
                "comparisons": usable,
                "tie_share": float((frame["ties"] * frame["n"]).sum() / usable) if usable else None,
                "invalid_share": unusable / (usable + unusable) if usable + unusable else None,
                "agreement": _agreement(rates[judge], rates[comparison.judges()[0]]) if len(rows) else None,
                "position_consistency": (facts := known.get(judge, {})).get("position_consistency"),
                "first_position": facts.get("first_position"),
                "controls": (controls := _controls(facts)),
                "controls_passed": _controls_passed(controls),
                "problems": [*facts.get("problems", []), *_more_problems(facts, controls)],
            }
        )
        if unusable:
            for name, rate in rates[judge].items():
                low, high = (float(np.nanmean(cells)) for cells in scores.bounds(name, REFERENCE))
                bounds.append({"judge": judge, "variant": name, "all_lost": low, "win_rate": rate, "all_won": high})
    return rows, bounds


def _controls(facts: Row) -> list[Row]:
    """A judge's controls by today's rule; an earlier one let judges pass that do not read."""
    controls = facts.get("controls", [])
    return [{**row, "passed": bool(row["passed"] and stats.stands_control(**_numbers(row)))} for row in controls]


def _numbers(row: Row) -> Row:
    return {"identical": row["control"] == "identical", "rate": row["win_rate"], "high": row["high"]}


def _more_problems(facts: Row, controls: Sequence[Row]) -> list[str]:
    """What today's rule finds that the record of the judge's run does not say."""
    before = {row["control"] for row in facts.get("controls", []) if not row["passed"]}
    lenient = [row for row in controls if not row["passed"] and row["control"] not in before]
    return [f"its control “{row['control']}” wins {100 * row['win_rate']:.0f} % and should lose" for row in lenient]


def _controls_passed(controls: Sequence[Mapping[str, Any]]) -> str | None:
    """Such as ``3 of 4``, or None where the judge had no controls."""
    return f"{sum(bool(row['passed']) for row in controls)} of {len(controls)}" if controls else None


def _agreement(one: Mapping[str, float], two: Mapping[str, float]) -> float | None:
    """Spearman's correlation of the win rates that two judges give the same variants, None below three."""
    names = sorted(set(one) & set(two))
    if len(names) < 3:
        return None
    first, second = ([rates[name] for name in names] for rates in (one, two))
    return number(distributions.spearmanr(first, second).statistic) if min(map(np.ptp, (first, second))) > 0 else None
