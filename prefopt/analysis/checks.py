"""Checks of the results for what must hold in any sound comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.analysis.load import Comparison
from prefopt.analysis.policies import number
from prefopt.storage.conditions import NAMES

# Adapters start at zero, so that policy and reference are one model at step 0; rounding leaves less than this, nats.
START_TOLERANCE = 0.01
NULL_LOSS = "noop"
Row = dict[str, Any]


def soundness(comparison: Comparison, results: Mapping[str, Any]) -> list[Row]:
    """What must hold in any sound comparison, and whether it does."""
    agreement = f"{len(NAMES)} hashes agree across the variants of each seed"
    return [
        _check("equal conditions", passed=True, detail=agreement),
        *_starts_at_the_reference(comparison),
        *_null_variants(results),
    ]


def _check(name: str, *, passed: bool, detail: str) -> Row:
    return {"name": name, "passed": passed, "detail": detail}


def _starts_at_the_reference(comparison: Comparison) -> list[Row]:
    """At step 0 policy and reference are the same, so every log-ratio margin is 0."""
    history = comparison.history
    start = history[(history["step"] == 0) & (history["split"] == "heldout")]["logratio/margins"].abs()
    if not len(start):
        return []
    worst = number(start.max())
    size = "not finite" if worst is None else f"{worst:.2g} nats"
    return [
        _check(
            "every run starts at the reference",
            passed=worst is not None and worst <= START_TOLERANCE,
            detail=f"largest log-ratio margin at step 0: {size}",
        )
    ]


def _null_variants(results: Mapping[str, Any]) -> list[Row]:
    """A loss of zero leaves the policy at the reference, which wins half of the comparisons with itself."""
    nulls = [entry["variant"] for entry in results["variants"] if entry["loss"] == NULL_LOSS]
    stays = [
        _check(
            f"{row['variant']} stays at the reference",
            passed=row["exactly_zero"],
            detail=f"its KL is {'exactly 0' if row['exactly_zero'] else row['kl']['value']}",
        )
        for row in results["kl"]
        if row["variant"] in nulls
    ]
    wins_half = [
        _check(
            f"{row['a']} wins half",
            passed=row["low"] <= 0.5 <= row["high"],
            detail=f"{100 * row['value']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]",
        )
        for row in results["versus_reference"]
        if row["a"] in nulls
    ]
    return stays + wins_half
