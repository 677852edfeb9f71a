"""A table as a value that CSV, Markdown and HTML are all written from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from prefopt.analysis.sentences import p_value

Kind = Literal["text", "count", "number", "percent", "points", "p", "verdict", "setting"]
Row = Mapping[str, Any]
DASH = "–"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Where the value is in a row; its name in the CSV, where an interval {value, low, high} takes three columns.
        label: The heading, with the unit.
        kind: How a value is shown; ``percent`` and ``points`` are stored as fractions, and a ``setting`` is a number as
            short as it can be written, or a word.
        digits: Decimals shown.
        help: What it means, in a sentence.
    """

    key: str
    label: str
    kind: Kind = "number"
    digits: int = 2
    help: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its rows as plain dictionaries.

    Attributes:
        name: Its file name.
        title: Its caption.
        columns: In order; the first names the row.
        rows: In order.
        note: How to read it.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Row] = field(default_factory=list)
    note: str = ""


VARIANT = Column("variant", "variant", "text", help="The name in the configuration; it rebuilds the loss.")


def show(value: Any, column: Column) -> str:
    """A cell as people read it."""
    if isinstance(value, Mapping):
        if value["value"] is None:
            return DASH
        centre = _plain(value["value"], column)
        if value.get("low") is None:
            return centre
        return f"{centre} [{_plain(value['low'], column)}, {_plain(value['high'], column)}]"
    return _plain(value, column)


def _plain(value: Any, column: Column) -> str:
    if value is None:
        return DASH
    if column.kind in ("text", "verdict"):
        return str(value)
    if column.kind == "setting":
        return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    if column.kind == "points" and value > 0.5:
        return "> 50"
    if column.kind == "count":
        return f"{int(value):,}".replace(",", " ")
    if column.kind == "p":
        return p_value(value).removeprefix("p = ").removeprefix("p ")
    scaled = 100 * value if column.kind in ("percent", "points") else value
    shown = f"{scaled:.{column.digits}f}"
    return shown.replace("-", "−") if float(shown) else shown.lstrip("-")


def sort_key(value: Any) -> Any:
    """The value that a cell is sorted by: the estimate of an interval, or an empty text where there is nothing."""
    if isinstance(value, Mapping):
        value = value["value"]
    return "" if value is None else value


def to_frame(table: Table) -> pd.DataFrame:
    """The table at full precision, numbers as numbers, text made safe for spreadsheets."""
    columns: dict[str, list[Any]] = {}
    for column in table.columns:
        values = [row.get(column.key) for row in table.rows]
        if any(isinstance(value, Mapping) for value in values):
            for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                columns[column.key + suffix] = [None if value is None else value.get(part) for value in values]
        elif column.kind in ("text", "verdict") or any(isinstance(value, str) for value in values):
            columns[column.key] = [None if value is None else spreadsheet_safe(str(value)) for value in values]
        else:
            columns[column.key] = values
    return pd.DataFrame(columns)


def spreadsheet_safe(text: str) -> str:
    """``text`` that a spreadsheet does not take for a formula: prefixed with an apostrophe where it would."""
    text = text.replace("\0", "")
    return f"'{text}" if text[:1] in tuple("=+-@\t\r\n") and text else text


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!@$])")


def markdown_safe(text: str) -> str:
    """``text`` as Markdown that shows it and does nothing else."""
    text = "".join(ch if ch.isprintable() else " " for ch in text).replace("&", "&amp;")
    return re.sub(r"(https?|ftp):", r"\1\\:", _MARKDOWN.sub(r"\\\1", text))


def to_latex(table: Table) -> str:
    """The table for a paper that loads booktabs, numbers to the right, every mark of LaTeX as a letter."""
    heads = [_latex_text(column.label) for column in table.columns]
    cells = [[_latex_text(show(row.get(column.key), column)) for column in table.columns] for row in table.rows]
    sides = "".join("l" if column.kind in ("text", "verdict") else "r" for column in table.columns)
    lines = [r"\begin{tabular}{" + sides + "}", r"\toprule", _latex_row(heads), r"\midrule"]
    lines += [*map(_latex_row, cells), r"\bottomrule", r"\end{tabular}"]
    note = "".join(ch if ch.isprintable() else " " for ch in f"{table.title}. {table.note}").strip()
    return f"% {note}\n" + "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}", "]": "{]}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "−": "$-$", "–": "--", "±": r"$\pm$", "√": r"$\surd$",
    "θ": r"$\theta$", "φ": r"$\varphi$", "τ": r"$\tau$", "“": "``", "”": "''", '"': "''",
}  # fmt: skip


def _latex_text(text: str) -> str:
    """``text`` that LaTeX prints as it is; a row that begins with a bracket is no option of the one above."""
    return "".join(_LATEX.get(ch, ch if ch.isprintable() else " ") for ch in text)


def to_markdown(table: Table) -> str:
    """The table in Markdown, numbers to the right."""
    rows = [[_markdown_cell(show(row.get(c.key), c), c) for c in table.columns] for row in table.rows]
    head = [c.label.replace("|", r"\|") for c in table.columns]
    rule = [":--" if c.kind in ("text", "verdict") else "--:" for c in table.columns]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows]) + "\n"


def _markdown_cell(text: str, column: Column) -> str:
    if column.kind == "verdict":
        return f"**{text}**" if text in ("BETTER", "WORSE", "EQUIVALENT") else text
    return markdown_safe(text) if column.kind == "text" else text.replace("<", "&lt;")
