"""The self-test as a section of the report."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.analysis.selftest import LEVELS, Row, measured, value_text
from prefopt.analysis.sentences import counted, listed
from prefopt.report.tables.table import Column, Table


def selftest_text(results: Row) -> tuple[str, ...]:
    """What the self-test is and what it found, or the command that runs it."""
    outcome = results["selftest"]
    if outcome is None:
        return (
            "Not run for these results. It puts questions with a known answer to the code that made this page: how "
            "often it finds a difference where there is none, how often its intervals hold the truth, whether "
            f"training and sampling agree with enumeration. `prefopt selftest --out results/{results['name']}` runs "
            f"it in a few minutes, and `prefopt report results/{results['name']}` then shows its numbers here.",
        )
    levels = listed([f"{level} ({LEVELS[level]})" for level in outcome["levels"] if level in LEVELS])
    total = len(outcome["controls"])
    opening = (
        f"Questions with a known answer, put to the code that made this page (prefopt {outcome['version']}, seed "
        f"{outcome['seed']}, level {levels}): {outcome['passed']} of {counted(total, 'control')} passed."
    )
    return (" ".join([opening, *measured(outcome)]),)


def selftest_table(results: Row) -> Table:
    """Every control with its number and its band, those that fail first."""
    controls: Sequence[Row] = (results["selftest"] or {"controls": []})["controls"]
    rows = [
        {
            **row,
            "found": value_text(row),
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
