"""One report on several comparisons, written where the user says: tables, Markdown and a page that works offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from prefopt.analysis.across import across
from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import load
from prefopt.errors import UsageError
from prefopt.report.html import HERE, visible
from prefopt.report.tables.table import VARIANT, Column, Table, markdown_safe, show, to_frame, to_markdown
from prefopt.storage import formats
from prefopt.storage.results import ResultsFolder

TITLE = "Losses across comparisons"
NOTES = (
    "Win rates are against each comparison's own reference, by its own judge, ties one half; intervals in the table "
    "are 95 %, over seeds and prompts.",
    "The mean rank is over the comparisons, 1 the best, for losses that finished in all of them. The probability of "
    "improvement is the mean over comparisons of the probability that a run of one loss has a higher win rate than a "
    "run of the other (Agarwal et al. 2021, arXiv:2108.13264). Their 95 % intervals draw seeds again within each "
    "comparison: they cover new seeds on these comparisons, not other models, data or prompts.",
)
Row = Mapping[str, Any]


def build(folders: Sequence[Path], out: Path) -> Path:
    """Write the report on several results folders.

    Args:
        folders: At least two, each judged.
        out: The folder to write to; made where it is not there.

    Returns:
        The path of its ``report.html``.

    Raises:
        UsageError: If one is no results folder, is given twice, or was not judged, or ``out`` is one of them.
    """
    if ResultsFolder(out).manifest_path.exists() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: is a comparison's own folder, or a file; name a folder for the report")
    results = across({name: analyse(load(folder)) for name, folder in _named(folders).items()})
    tables = build_tables(results)
    formats.write_json(out / "results.json", results)
    for table in tables:
        formats.write_frame(out / "tables" / f"{table.name}.csv", to_frame(table))
        formats.write_text(out / "tables" / f"{table.name}.md", to_markdown(table))
    formats.write_text(out / "report.md", _markdown(results, tables))
    formats.write_text(out / "report.html", _page(results, tables))
    return out / "report.html"


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their shortest names that differ.

    Raises:
        UsageError: If one is given twice.
    """
    whole = [folder.resolve() for folder in folders]
    twice = [str(folder) for folder, count in Counter(whole).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice; each comparison counts once")
    for depth in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    raise AssertionError("different paths differ at some depth")


def build_tables(results: Row) -> list[Table]:
    """The tables that have rows."""
    places = [entry["comparison"] for entry in results["comparisons"]]
    wins = tuple(Column(f"at_{i}", f"{place}, win rate, %", "percent", 1) for i, place in enumerate(places))
    rows = [
        {
            "variant": row["variant"],
            "rank": row["rank"],
            **{f"at_{i}": row["each"].get(place, {}).get("win_rate") for i, place in enumerate(places)},
        }
        for row in results["losses"]
    ]
    losses = Table("losses", "Losses by comparisons", (VARIANT, Column("rank", "mean rank", "number", 2), *wins), rows)
    improvement = Table(
        "improvement",
        "Probability of improvement",
        (VARIANT_A, VARIANT_B, Column("probability", "probability, %", "percent", 1, "Mean over comparisons.")),
        results["improvement"],
    )
    return [table for table in (losses, improvement, _comparisons(results), _verdicts(results)) if table.rows]


VARIANT_A = Column("a", "variant", "text")
VARIANT_B = Column("b", "beats", "text")


def _comparisons(results: Row) -> Table:
    columns = [Column(key, key, "text") for key in ("comparison", "model", "data", "judge")]
    counts = [Column(key, key, "count") for key in ("seeds", "prompts")]
    return Table("comparisons", "The comparisons", (*columns, *counts), results["comparisons"])


def _verdicts(results: Row) -> Table:
    places = [entry["comparison"] for entry in results["comparisons"]]
    columns = tuple(Column(f"at_{i}", place, "verdict") for i, place in enumerate(places))
    rows = [
        {
            "variant": row["variant"],
            **{f"at_{i}": row["each"].get(place, {}).get("verdict") for i, place in enumerate(places)},
        }
        for row in results["losses"]
    ]
    note = "Each comparison's own, after its own Holm correction."
    return Table("verdicts", "Verdicts against the reference", (VARIANT, *columns), rows, note)


def _markdown(results: Row, tables: Sequence[Table]) -> str:
    parts = [f"# {TITLE}\n"]
    parts += [f"> {markdown_safe(caution)}\n" for caution in results["cautions"]]
    for table in tables:
        parts += [f"## {table.title}\n", to_markdown(table), *([f"{table.note}\n"] if table.note else [])]
    return "\n".join([*parts, *(f"{note}\n" for note in NOTES)])


def _page(results: Row, tables: Sequence[Table]) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, finalize=visible, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style = Markup((HERE / "report.css").read_text(encoding="utf-8"))  # nosec B704  # our own file
    template = environment.get_template("across.html.j2")
    return template.render(
        title=TITLE, cautions=results["cautions"], tables=tables, notes=NOTES, style=style, show=show
    )
