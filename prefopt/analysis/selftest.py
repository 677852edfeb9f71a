"""The self-test's numbers, and the sentences that rest on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def selftest_facts(outcome: Row | None) -> dict[str, Any] | None:
    """What ``results.json`` holds of a self-test, None where there was none."""
    if outcome is None:
        return None
    controls = [dict(row) for row in outcome["controls"]]
    return {
        "controls": controls,
        "passed": sum(bool(row["passed"]) for row in controls),
        "levels": list(outcome.get("levels", [])),
        "seed": outcome.get("seed"),
        "version": str(outcome.get("prefopt_version", "?")),
    }


LEVELS = {0: "statistics", 1: "training"}


def measured(outcome: Row) -> list[str]:
    """The rates that a verdict rests on, as sentences."""
    said = []
    if rates := _range(outcome, "false-positives/"):
        said.append(
            f"Of two equally good policies one was called better in {rates} of simulated comparisons (5 % meant)."
        )
    if rates := _range(outcome, "family-wise/reference/", "family-wise/pairs/"):
        said.append(
            f"After Holm's correction any false difference came up in {rates} of simulated families (at most 5 % "
            "meant, but for the error of the simulation)."
        )
    if rates := _range(outcome, "coverage/"):
        said.append(f"95 % intervals held the true win rate in {rates}.")
    return said


def single_t(results: Row) -> str:
    """Why the quantiles are not those of one t distribution, with the self-test's number where there is one."""
    rate = _range(results["selftest"] or {"controls": []}, "family-wise/single-t")
    return "" if not rate else f" (in {rate} of simulated families of 15 comparisons without a difference)"


def _range(outcome: Row, *prefixes: str) -> str:
    """Lowest to highest value of some controls, in %; empty where there is none."""
    values = [
        100 * row["value"]
        for row in outcome["controls"]
        if row["name"].startswith(prefixes) and row["value"] is not None
    ]
    if not values:
        return ""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def selftest_failures(results: Row) -> list[str]:
    """The controls that failed, each with its number."""
    controls: Sequence[Row] = (results["selftest"] or {"controls": []})["controls"]
    return [
        f"{row['name']}: {value_text(row)}, must lie in {row['low']:.4g} to {row['high']:.4g}"
        for row in controls
        if not row["passed"]
    ]


def value_text(row: Row) -> str:
    """A control's number as it is shown."""
    return "not a number" if row["value"] is None else f"{row['value']:.4g}"
