"""What a comparison has come to, for the terminal and for programs: answers, leaderboard, the gravest warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.cli.console import visible

# Of the leaderboard's columns, those that fit a terminal; the page has them all.
SHOWN = ("variant", "verdict", "broken", "win_rate", "reward", "kl", "accuracy", "seeds")


def outcome(page: Path) -> dict[str, Any]:
    """What ``results.json`` beside a report says first, for programs.

    Args:
        page: The report, as ``report.build`` returned it.
    """
    results = _results(page)
    first = {key: results[key] for key in ("answers", "recommendation", "warnings", "leaderboard")}
    return {**first, "judge": results["setup"]["judge"], "report": str(page)}


def as_table(page: Path) -> str:
    """The same for people: sentences, a line for each variant, and what speaks against believing them."""
    from prefopt.report.tables.computed import leaderboard
    from prefopt.report.tables.table import show

    results = _results(page)
    table = leaderboard(results)
    columns = [column for column in table.columns if column.key in SHOWN]
    cells = [[show(row.get(column.key), column) for column in columns] for row in table.rows]
    grave = [f"! {one['title']}. {one['text']}" for one in results["warnings"] if one["level"] == "danger"]
    said = [*results["answers"], *results["recommendation"], *grave]
    lines = ["", *_aligned([[column.label for column in columns], *cells]), "", *said]
    return visible("\n".join([*lines, f"report: {page}"]))


def _results(page: Path) -> Mapping[str, Any]:
    results: Mapping[str, Any] = json.loads(page.with_name("results.json").read_text(encoding="utf-8"))
    return results


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, the first column to the left and the others in columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
