"""The report of a comparison: a pure function of its results folder. Needs no torch and no network."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import load
from prefopt.report import html, markdown
from prefopt.report.cards import write_cards
from prefopt.report.figures import render
from prefopt.report.samples import of_broken, side_by_side
from prefopt.report.tables.computed import BUILDERS, build_tables
from prefopt.report.tables.table import to_frame, to_latex, to_markdown
from prefopt.storage import durable, formats

__all__ = ["build"]


def build(folder: Path, *, running: bool = False) -> Path:
    """Write results.json, tables, figures, report.md and report.html into a results folder, and a card by each adapter.

    The same folder gives the same bytes. Text of prompts and samples goes into report.html only, and only where
    samples.parquet is at hand.

    Args:
        folder: A results folder with at least one finished run.
        running: Another process is at work in the folder: what is not there yet is no failure.

    Returns:
        The path of report.html.

    Raises:
        UsageError: If it is no results folder, a file is damaged, or no run has finished.
        UnequalConditions: If two variants of one seed were not trained or evaluated alike.
    """
    comparison = load(folder)
    results = analyse(comparison, running=running)
    tables = build_tables(results)
    figures = render.render(results)
    page = html.render(results, tables, figures, side_by_side(comparison, results), of_broken(comparison, results))

    formats.write_json(folder / "results.json", results)
    for name, table in tables.items():
        formats.write_frame(folder / "tables" / f"{name}.csv", to_frame(table))
        formats.write_text(folder / "tables" / f"{name}.md", to_markdown(table))
        formats.write_text(folder / "tables" / f"{name}.tex", to_latex(table))
    for name, (svg, png) in figures.items():
        durable.write_bytes(folder / "figures" / f"{name}.svg", svg)
        durable.write_bytes(folder / "figures" / f"{name}.png", png)
    _remove_stale(folder, tables, figures)
    formats.write_text(folder / "report.md", markdown.render(results, tables, figures))
    write_cards(folder, results)
    formats.write_text(folder / "report.html", page)
    return folder / "report.html"


def _remove_stale(folder: Path, tables: Collection[str], figures: Collection[str]) -> None:
    """Remove tables and figures of an earlier report that this one does not have."""
    for place, known, kept, kinds in (
        ("tables", BUILDERS, tables, ("csv", "md", "tex")),
        ("figures", render.FIGURES, figures, ("svg", "png")),
    ):
        for name in set(known) - set(kept):
            for kind in kinds:
                (folder / place / f"{name}.{kind}").unlink(missing_ok=True)
