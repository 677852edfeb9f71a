"""Comparisons of two policies: estimates, tests, and the verdicts of a family of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from prefopt import stats
from prefopt.analysis.load import Comparison, Scores
from prefopt.analysis.policies import as_interval, number
from prefopt.storage.schema import REFERENCE

ALPHA = 0.05
MOST_UNUSABLE = 0.01  # beyond it a verdict must hold whichever way the unusable comparisons had gone
MOST_SETTLED = 150  # in a larger family nobody reads what each open pair would need, and it takes longest to find
Row = dict[str, Any]


def compare(
    comparison: Comparison, scores: Scores, matches: Sequence[tuple[str, str]], delta: float, *, trusted: bool = True
) -> list[Row]:
    """One family of comparisons, each (variant, opponent), with verdicts after Holm's correction.

    Variants that did not finish at every seed are estimated but take no part in the family: nothing is claimed of them.
    Nothing is claimed at all where the judge is not to be trusted.
    """
    tables = [(a, b, y) for a, b in matches if (y := scores.get(a, b)) is not None and np.isfinite(y).sum() > 1]
    rows = [_measure(scores, a, b, y) for a, b, y in tables]
    eligible = [
        place
        for place, (a, b, _) in enumerate(tables)
        if all(name == REFERENCE or comparison.is_complete(name) for name in (a, b))
    ]
    for place, row in enumerate(rows):
        if place not in eligible:
            row["verdict"] = "INCOMPLETE"
        elif not trusted:
            row["verdict"] = "NO VERDICT"
        elif rows[place]["n_seeds"] == 1:
            row["verdict"] = "ONE SEED"
    tested = [place for place in eligible if "verdict" not in rows[place]]
    if tested:
        _judge([rows[place] for place in tested], [tables[place] for place in tested], scores, delta)
    if len(tested) <= MOST_SETTLED:
        for place in tested:
            _settle(rows[place], tables[place][2], alpha=ALPHA / len(tested))
    return rows


def _measure(scores: Scores, a: str, b: str, y: np.ndarray) -> Row:
    estimate = stats.win_rate(y)
    known = ~np.isnan(y).all(axis=1)
    return {
        "a": a,
        "b": b,
        **as_interval(estimate),
        "se": number(estimate.se),
        "df": number(estimate.df),
        "p": number(estimate.p),
        "p_holm": None,
        "p_sign": None if known.sum() < 2 else stats.sign_flip(np.nanmean(y[known], axis=1) - 0.5),
        "n_seeds": estimate.n_seeds,
        "n_prompts": estimate.n_prompts,
        "ties": number(scores.tie_rate(a, b)),
        "per_seed": [float(np.nanmean(row)) for row in y[known]],
        "per_seed_at": [seed for seed, there in zip(scores.seeds, known, strict=True) if there],
        "mde": None,
        "seeds_needed": None,
        "prompts_needed": None,
        "win_rate": as_interval(estimate),
        "unusable": scores.unusable(a, b),
        "worst_case": None,
    }


def _judge(rows: Sequence[Row], tables: Sequence[tuple[str, str, np.ndarray]], scores: Scores, delta: float) -> None:
    """Add to one family corrected p values, verdicts, and the differences detectable at its strictest level.

    Where more than a hundredth of the comparisons of two is unusable, their verdict is that of the worst case.
    """
    seen = [stats.win_rate(y) for _, _, y in tables]
    judged = [
        _worst_case(estimate, *scores.bounds(a, b)) if row["unusable"] > MOST_UNUSABLE else estimate
        for estimate, row, (a, b, _) in zip(seen, rows, tables, strict=True)
    ]
    left_out, adjusted = (stats.holm([estimate.p for estimate in group]) for group in (seen, judged))
    for k, (row, (_, _, y)) in enumerate(zip(rows, tables, strict=True)):
        row["p_holm"] = float(adjusted[k])
        row["verdict"] = str(stats.verdict(judged[k], row["p_holm"], delta=delta))
        if judged[k] is not seen[k]:
            alone = str(stats.verdict(seen[k], float(left_out[k]), delta=delta))
            row["worst_case"] = {"low": judged[k].low, "high": judged[k].high, "left_out": alone}
        sizes = {"seeds": row["n_seeds"], "prompts": row["n_prompts"], "alpha": ALPHA / len(rows)}
        row["mde"] = stats.minimum_detectable_effect(stats.variance_components(y), **sizes)


def _worst_case(estimate: stats.Estimate, lost: np.ndarray, won: np.ndarray) -> stats.Estimate:
    """``estimate`` with an interval and a p value that hold whichever way the unusable comparisons had gone."""
    ends = [estimate, stats.win_rate(lost), stats.win_rate(won)]
    agree = len({np.sign(end.value - end.null) for end in ends}) == 1
    return replace(
        estimate,
        low=min(end.low for end in ends),
        high=max(end.high for end in ends),
        p=max(end.p for end in ends) if agree else 1.0,
    )


def _settle(row: Row, y: np.ndarray, *, alpha: float) -> None:
    """Add to an open comparison the seeds, or the prompts, that would show a difference as large as the one seen."""
    if row["verdict"] == "INCONCLUSIVE":
        parts, effect = stats.variance_components(y), abs(row["value"] - 0.5)
        row["seeds_needed"] = stats.seeds_needed(effect, parts, prompts=row["n_prompts"], alpha=alpha)
        row["prompts_needed"] = stats.prompts_needed(effect, parts, seeds=row["n_seeds"], alpha=alpha)


def every_pair(
    comparison: Comparison, scores: Scores, order: Sequence[str], delta: float, *, trusted: bool = True
) -> list[Row]:
    """All pairs of variants, the better one named first; settled ones at the top."""
    matches = []
    for a, b in combinations(order, 2):
        y = scores.get(a, b)
        if y is not None:
            matches.append((a, b) if np.nanmean(y) >= 0.5 else (b, a))
    rows = compare(comparison, scores, matches, delta, trusted=trusted)
    weight = {"BETTER": 0, "WORSE": 0, "EQUIVALENT": 1, "INCONCLUSIVE": 2}
    return sorted(rows, key=lambda row: (weight.get(row["verdict"], 3), -row["value"]))


def families(versus_reference: Sequence[Row], pairs: Sequence[Row]) -> list[Row]:
    """The two families of tests, and how many differences each settled."""
    summaries = []
    for name, rows in (("every variant against the reference", versus_reference), ("every pair of variants", pairs)):
        tested = [row for row in rows if row["p_holm"] is not None]
        if tested:
            rejected = sum(row["verdict"] in ("BETTER", "WORSE") for row in tested)
            summaries.append(
                {"family": name, "tests": len(tested), "method": "Holm", "alpha": ALPHA, "rejected": rejected}
            )
    return summaries
