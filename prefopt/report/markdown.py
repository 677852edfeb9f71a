"""``report.md``: the report without samples, for a repository's front page or a terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from prefopt.analysis.sentences import counted
from prefopt.report.glossary import first_terms, glossary
from prefopt.report.methods import SOURCES, methods, reproduce
from prefopt.report.prose import CAPTIONS, Section, sections
from prefopt.report.tables.table import Table, markdown_safe, to_markdown

Row = Mapping[str, Any]
# Longer tables are left to their own files; a page of a thousand rows is not read.
MOST_ROWS = 60
MOST_COLUMNS = 16
_SIGN = {"danger": "⛔", "warn": "⚠️", "note": "ℹ️"}


def render(results: Row, tables: Mapping[str, Table], figures: Collection[str]) -> str:
    """The whole page; figures are linked as SVG."""
    parts = [f"# {markdown_safe(results['name'])}", markdown_safe(" · ".join(subtitle_bits(results)))]
    said = [*results["answers"], *results["recommendation"], *first_terms(results)]
    parts.append("\n".join(f"- {markdown_safe(sentence)}" for sentence in said))
    parts.extend(
        f"> {_SIGN[one['level']]} **{markdown_safe(one['title'])}.** {markdown_safe(one['text'])}"
        for one in results["warnings"]
    )
    parts.append(_table(tables, "leaderboard"))
    parts.append(_figure(figures, "winrate_forest"))
    if results["versus_reference"]:
        parts.append("## Verdicts")
        parts.append(_verdicts(results))
    for section in sections(results, tables, figures):
        parts.extend(_section(section, tables, figures))
    parts.extend(
        ["## Conditions and runs", *(_table(tables, name) for name in ("variants", "seeds", "conditions", "checks"))]
    )
    parts.append("## Glossary")
    parts.append("\n".join(f"- **{markdown_safe(term)}**: {markdown_safe(said)}" for term, said in glossary(results)))
    parts.extend(["## Methods", *(markdown_safe(text) for text in methods(results))])
    parts.append(
        "\n".join(
            f"- {who}: {markdown_safe(title)}. {where.replace(':', chr(92) + ':')}" for who, title, where in SOURCES
        )
    )
    parts.append("## How to reproduce")
    parts.append("\n".join(f"- {markdown_safe(what)}: {code(value)}" for what, value in reproduce(results)))
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


def code(text: str) -> str:
    """``text`` in a code span whose fence is longer than any run of backticks in it."""
    text = "".join(ch if ch.isprintable() else " " for ch in text)
    longest = max((len(run) for run in "".join(ch if ch == "`" else " " for ch in text).split()), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else "–"


def subtitle_bits(results: Row) -> list[str]:
    """What was compared, piece by piece."""
    setup = results["setup"]
    sizes = (
        (len(results["seeds"]), "seed"),
        (setup["evaluation_prompts"], "prompt"),
        (setup["samples_per_prompt"], "sample"),
    )
    bits = [
        setup["model"].get("name"),
        f"task {setup['task']['name']}" if setup["task"].get("name") else None,
        " x ".join(counted(count, noun) for count, noun in sizes),
        f"{seen['seen']} of {seen['train_pairs']} pairs trained on" if (seen := results["exposure"]) else None,
        f"judge {setup['judge']}" if setup["judge"] else "no judge",
    ]
    return [str(bit) for bit in bits if bit]


def _verdicts(results: Row) -> str:
    settled = [row for row in results["pairs"] if row["verdict"] in ("BETTER", "WORSE", "EQUIVALENT")]
    rows = [*results["versus_reference"], *settled[:MOST_ROWS]]
    return "\n".join(f"- **{row['verdict']}** {markdown_safe(row['sentence'])}" for row in rows)


def _section(section: Section, tables: Mapping[str, Table], figures: Collection[str]) -> list[str]:
    return [
        f"## {section.title}",
        *(markdown_safe(one) for one in section.text),
        *(_figure(figures, name) for name in section.figures),
        *(_table(tables, name) for name in (*section.tables, *section.folded)),
    ]


def _figure(figures: Collection[str], name: str) -> str:
    if name not in figures:
        return ""
    return f"![{CAPTIONS[name].split('.')[0]}](figures/{name}.svg)\n\n*{markdown_safe(CAPTIONS[name])}*"


def _table(tables: Mapping[str, Table], name: str) -> str:
    table = tables.get(name)
    if table is None:
        return ""
    files = f"[CSV](tables/{name}.csv)"
    if len(table.columns) > MOST_COLUMNS or len(table.rows) > MOST_ROWS:
        return f"**{table.title}**: {len(table.rows)} rows, in [tables/{name}.md](tables/{name}.md) and {files}."
    note = f"{table.note} " if table.note else ""
    return f"**{table.title}**\n\n{to_markdown(table)}\n{note}({files})"
