"""``report.html``: one file that needs nothing else, and shows untrusted text as text."""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from prefopt.report.glossary import first_terms, glossary
from prefopt.report.markdown import subtitle_bits
from prefopt.report.methods import SOURCES, methods, reproduce
from prefopt.report.prose import CAPTIONS, sections
from prefopt.report.tables.table import Column, Table, show, sort_key, to_frame, to_latex
from prefopt.storage.redact import without_secrets

HERE = Path(__file__).parent
# More rows than this are left to the CSV: the file has to stay small enough to send by mail.
MOST_ROWS = 240
MOST_COLUMNS = 18
MOST_LATEX_ROWS = 60
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
Row = Mapping[str, Any]


def render(
    results: Row,
    tables: Mapping[str, Table],
    figures: Mapping[str, tuple[bytes, bytes]],
    samples: Row | None,
    broken: Mapping[str, Sequence[str]],
) -> str:
    """The whole page; ``broken`` has some samples of each variant that the warnings call broken."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (HERE / "report.css").read_text(encoding="utf-8")
    script = (HERE / "report.js").read_text(encoding="utf-8")
    inline = [Markup(text) for text in (style, script)]  # nosec B704  # our own files
    scale = forest_scale(results)
    shown = {name: table for name, table in tables.items() if len(table.columns) <= MOST_COLUMNS}
    environment.globals.update(show=show, sort_key=sort_key, glyph=glyph)
    return environment.get_template("report.html.j2").render(
        r=results,
        bits=subtitle_bits(results),
        tables=shown,
        most_rows=MOST_ROWS,
        figures={name: data_uri(svg) for name, (svg, _) in figures.items()},
        captions=CAPTIONS,
        terms=first_terms(results),
        glossary=glossary(results),
        downloads={name: _downloads(table) for name, table in shown.items()},
        sections=sections(results, shown, figures),
        samples=samples,
        broken=broken,
        methods=methods(results),
        sources=SOURCES,
        reproduce=reproduce(results),
        scale=scale,
        half=None if scale is None else _at(0.5, scale),
        style=inline[0],
        script=inline[1],
        policy=(
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
    )


def visible(value: object) -> object:
    """Text with invisible characters as escapes, since they could reverse it or hide a part of it."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(_escape(c) if unicodedata.category(c) in _INVISIBLE and c not in "\n\t" else c for c in value)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def data_uri(svg: bytes) -> Markup:
    """An SVG as the address of an image, safe inside double quotes; a quarter smaller than in base64."""
    text = svg.decode("utf-8").replace("'", "&apos;").replace('"', "'")
    for mark in "%#<>&":
        text = text.replace(mark, f"%{ord(mark):02X}")
    return Markup("data:image/svg+xml," + text)  # nosec B704  # no quote and no tag is left in it


def _downloads(table: Table) -> list[tuple[str, str, Markup]]:
    """(label, ending, address) of the files that a page has of a table; a long one is in no paper."""
    both = [("CSV", "csv", csv_uri(table)), ("LaTeX", "tex", latex_uri(table))]
    return both if len(table.rows) <= MOST_LATEX_ROWS else both[:1]


def csv_uri(table: Table) -> Markup:
    """A table as the address of a CSV, which a page that was sent by mail still has."""
    return _file_uri("text/csv", to_frame(table).to_csv(index=False, lineterminator="\n", float_format="%.8g"))


def latex_uri(table: Table) -> Markup:
    """The same for LaTeX."""
    return _file_uri("text/x-tex", to_latex(table))


def _file_uri(kind: str, text: str) -> Markup:
    """Text as the address of a file, safe inside double quotes."""
    text = str(visible(without_secrets(text)))
    for mark in "%#<>&\"'\n":
        text = text.replace(mark, f"%{ord(mark):02X}")
    return Markup(f"data:{kind};charset=utf-8,{text}")  # nosec B704  # no quote and no tag is left in it


def _hash(text: str) -> str:
    """A content security policy's name of an inline element with this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def forest_scale(results: Row) -> tuple[float, float] | None:
    """Lowest and highest win rate that the leaderboard's strip has to show, always with 1/2 in it."""
    ends = [
        value
        for row in results["versus_reference"]
        for value in (row["low"], row["high"], row["value"])
        if value is not None
    ]
    if not ends:
        return None
    return min(0.4, *ends) - 0.02, max(0.6, *ends) + 0.02


def glyph(row: Row, column: Column, scale: tuple[float, float]) -> dict[str, float] | None:
    """Where a row's interval lies on the strip, in units of 0 to 200."""
    value = row.get(column.key)
    if not value or value["value"] is None:
        return None

    low = value["value"] if value["low"] is None else value["low"]
    high = value["value"] if value["high"] is None else value["high"]
    ends = {"low": low, "value": value["value"], "high": high, "half": 0.5}
    return {name: _at(share, scale) for name, share in ends.items()}


def _at(share: float, scale: tuple[float, float]) -> float:
    """The place of a win rate on a strip 200 wide."""
    return round(200 * (share - scale[0]) / (scale[1] - scale[0]), 1)
