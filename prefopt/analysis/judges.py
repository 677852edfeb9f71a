"""What is known about each judge: verdicts, ties, unusable shares, controls, agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats as distributions

from prefopt.analysis.leading import controls_of, problems_of
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
                "controls": (controls := controls_of(facts)),
                "controls_passed": _controls_passed(controls),
                "problems": problems_of(facts),
            }
        )
        if unusable:
            for name, rate in rates[judge].items():
                low, high = (float(np.nanmean(cells)) for cells in scores.bounds(name, REFERENCE))
                bounds.append({"judge": judge, "variant": name, "all_lost": low, "win_rate": rate, "all_won": high})
    return rows, bounds


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
