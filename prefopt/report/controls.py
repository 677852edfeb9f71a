"""The self-test in the report: its numbers, the sentences that rest on them, or how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.report.tables import Column, Table
from prefopt.report.words import counted, listed

Row = Mapping[str, Any]


def selftest_facts(found: Row | None) -> dict[str, Any] | None:
    """What ``results.json`` holds of a self-test, None where there was none."""
    if found is None:
        return None
    controls = [dict(row) for row in found["controls"]]
    return {
        "controls": controls,
        "passed": sum(bool(row["passed"]) for row in controls),
        "levels": list(found.get("levels", [])),
        "seed": found.get("seed"),
        "version": str(found.get("prefopt_version", "?")),
    }


def selftest_text(results: Row) -> tuple[str, ...]:
    """What the self-test is and what it found, or the command that runs it."""
    found = results["selftest"]
    if found is None:
        return (
            "Not run for these results. It puts questions with a known answer to the code that made this page: how "
            "often it finds a difference where there is none, how often its intervals hold the truth, whether "
            f"training and sampling agree with enumeration. `prefopt selftest --out results/{results['name']}` runs "
            f"it in a few minutes, and `prefopt report results/{results['name']}` then shows its numbers here.",
        )
    levels = listed([f"{level} ({LEVELS[level]})" for level in found["levels"] if level in LEVELS])
    total = len(found["controls"])
    opening = (
        f"Questions with a known answer, put to the code that made this page (prefopt {found['version']}, seed "
        f"{found['seed']}, level {levels}): {found['passed']} of {counted(total, 'control')} passed."
    )
    return (" ".join([opening, *measured(found)]),)


LEVELS = {0: "statistics", 1: "training"}


def measured(found: Row) -> list[str]:
    """The rates that a verdict rests on, as sentences."""
    said = []
    if rates := _range(found, "false-positives/"):
        said.append(
            f"Of two equally good policies one was called better in {rates} of simulated comparisons (5 % meant)."
        )
    if rates := _range(found, "family-wise/reference/", "family-wise/pairs/"):
        said.append(
            f"After Holm's correction any false difference came up in {rates} of simulated families (at most 5 % "
            "meant, but for the error of the simulation)."
        )
    if rates := _range(found, "coverage/"):
        said.append(f"95 % intervals held the true win rate in {rates}.")
    return said


def single_t(results: Row) -> str:
    """Why the quantiles are not those of one t distribution, with the self-test's number where there is one."""
    rate = _range(results["selftest"] or {"controls": []}, "family-wise/single-t")
    return "" if not rate else f" (in {rate} of simulated families of 15 comparisons without a difference)"


def _range(found: Row, *prefixes: str) -> str:
    """Lowest to highest value of some controls, in %; empty where there is none."""
    values = [
        100 * row["value"] for row in found["controls"] if row["name"].startswith(prefixes) and row["value"] is not None
    ]
    if not values:
        return ""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def selftest_table(results: Row) -> Table:
    """Every control with its number and its band, those that fail first."""
    controls: Sequence[Row] = (results["selftest"] or {"controls": []})["controls"]
    rows = [
        {
            **row,
            "found": _value(row),
            "band": f"{row['low']:.4g} to {row['high']:.4g}",
            "outcome": "passed" if row["passed"] else "FAILED",
        }
        for row in sorted(controls, key=lambda row: bool(row["passed"]))
    ]
    columns = (
        Column("name", "control", "text"),
        Column("question", "question", "text"),
        Column("found", "found", "text"),
        Column("band", "must lie in", "text"),
        Column("outcome", "outcome", "text"),
        Column("detail", "sizes", "text"),
    )
    return Table("selftest", "Self-test: every control", columns, rows)


def selftest_failures(results: Row) -> list[str]:
    """The controls that failed, each with its number."""
    controls: Sequence[Row] = (results["selftest"] or {"controls": []})["controls"]
    return [
        f"{row['name']}: {_value(row)}, must lie in {row['low']:.4g} to {row['high']:.4g}"
        for row in controls
        if not row["passed"]
    ]


def _value(row: Row) -> str:
    return "not a number" if row["value"] is None else f"{row['value']:.4g}"
