"""The registry as something to read: rows, a table, one loss in full, a picture of the family.

Everything here is taken from the losses themselves: their docstrings, fields and declarations.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prefopt.contract.examples import derived_values, example_pairs
from prefopt.contract.labels import parse_label
from prefopt.contract.loss import Loss, PairLogps
from prefopt.losses import loss_class, loss_names, make_loss

_SECTION = re.compile(r"^(Args|Raises|Source|Differs):$", re.MULTILINE)
_VALUE, _SLOPE, _FAINT = "#0072B2", "#D55E00", "#d4d7dd"


def catalogue_rows() -> list[dict[str, Any]]:
    """A dict of plain values for each registered loss, the controls last."""
    return [_row(name) for name in _ordered_names()]


def _ordered_names() -> list[str]:
    return sorted(loss_names(), key=lambda name: (loss_class(name).__module__.endswith(".controls"), name))


def _row(name: str) -> dict[str, Any]:
    cls = loss_class(name)
    body, sections = _sections(cls)
    meanings = _entries(sections.get("Args", ""), named=True)
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", cls.source)
    return {
        "name": cls.name,
        "summary": body.partition("\n")[0],
        "explanation": body.partition("\n")[2].strip("\n"),
        "needs_reference": cls.needs_reference,
        "length_normalized": cls.length_normalized,
        "batch_coupled": cls.batch_coupled,
        "token_fields": sorted(cls.token_fields),
        "needs_scores": cls.needs_scores,
        "needs_mismatched": cls.needs_mismatched,
        "raises_margin": cls.raises_margin,
        "lr_scale": cls.lr_scale,
        "arxiv": arxiv[1] if arxiv else "",
        "source": " ".join(sections.get("Source", cls.source).split()),
        "differs": _entries(sections.get("Differs", ""), named=False),
        "defaults": {field.name: field.default for field in dataclasses.fields(cls)},
        "hyperparameters": [
            {
                "name": field.name,
                "default": field.default,
                "within": field.metadata.get("within", "") if not isinstance(field.default, str) else "",
                "paper": list(field.metadata.get("paper") or ()),
                "choices": list(field.metadata.get("choices") or ()),
                "meaning": meanings.get(field.name, ""),
            }
            for field in dataclasses.fields(cls)
        ],
    }


def _sections(cls: type[Loss]) -> tuple[str, dict[str, str]]:
    """What stands before the first section of a docstring, and its sections."""
    parts = _SECTION.split(inspect.cleandoc(cls.__doc__ or ""))
    return parts[0].rstrip(), {
        title: textwrap.dedent(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def _entries(text: str, *, named: bool) -> Any:
    """The entries of a section, each begun by a line that is not indented: ``{name: meaning}`` or a list."""
    joined = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", text.strip("\n")) if entry.strip()]
    return dict(entry.split(": ", 1) for entry in joined) if named else joined


def describe(name: str) -> str:
    """One loss in full for a terminal: formula, hyperparameters, what it needs, source, peers that differ.

    Raises:
        UsageError: If there is no such loss.
    """
    row = _row(parse_label(name)[0])
    blocks = [f"{row['name']}: {row['summary']}", row["explanation"]]
    if row["hyperparameters"]:
        blocks.append("Hyperparameters\n" + "\n".join(_hyperparameter(h) for h in row["hyperparameters"]))
    blocks.append("Properties\n" + textwrap.indent(_properties(row), "  "))
    blocks.append("Source\n" + _wrapped(row["source"]))
    if row["differs"]:
        blocks.append("Peers that differ, or how they call it\n" + "\n".join(map(_wrapped, row["differs"])))
    return "\n\n".join(block for block in blocks if block).replace("``", "")


def _wrapped(text: str, first: str = "  ") -> str:
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent="    ", break_on_hyphens=False)


def _hyperparameter(h: dict[str, Any]) -> str:
    facts = [f"default {h['default']}"]
    if h["choices"]:
        facts.append("one of " + ", ".join(h["choices"]))
    elif h["within"]:
        facts.append(f"in {h['within']}")
    if h["paper"]:
        facts.append(f"in use {h['paper'][0]:g} to {h['paper'][1]:g}")
    return f"  {h['name']}  ({'; '.join(facts)})\n" + _wrapped(h["meaning"], "    ")


def _properties(row: dict[str, Any]) -> str:
    lines = [
        "needs the reference" if row["needs_reference"] else "needs no reference",
        "works on means over tokens" if row["length_normalized"] else "works on sums over tokens",
        "a pair's loss depends on the rest of the batch" if row["batch_coupled"] else "each pair by itself",
    ]
    if row["token_fields"]:
        lines.append(f"reads single tokens: {', '.join(row['token_fields'])}")
    if row["needs_scores"]:
        lines.append("reads chosen_score and rejected_score from the data")
    if row["needs_mismatched"]:
        lines.append("reads log-ratios of mismatched responses (one more forward pass)")
    if row["lr_scale"] != 1:
        lines.append(f"trains at {row['lr_scale']:g} times the comparison's learning rate unless told otherwise")
    if not row["raises_margin"]:
        lines.append("its first step does not both raise the chosen and lower the rejected response")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def mark(flag: bool) -> str:
        return "yes" if flag else "-"

    defaults = ", ".join(f"{k}={v}" for k, v in row["defaults"].items())
    flags = (mark(row["needs_reference"]), mark(row["length_normalized"]), mark(row["batch_coupled"]))
    return (row["name"], row["summary"].rstrip("."), *flags, row["arxiv"] or "-", defaults or "-")


_HEADS = ("loss", "what it is", "reference", "per token", "batch", "arXiv", "defaults")


def text_table() -> str:
    """The registry for a terminal: a line a loss."""
    order = (0, 2, 3, 4, 5, 6, 1)
    rows = [[cells[i] for i in order] for cells in (_HEADS, *(_cells(row) for row in catalogue_rows()))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(order))]
    lines = ("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines).replace("``", "")


def markdown_table() -> str:
    """The registry as a table in Markdown, each arXiv id a link."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + " --- |" * len(_HEADS)]
    for row in catalogue_rows():
        cells = list(_cells(row))
        cells[0] = f"`{cells[0]}`"
        if row["arxiv"]:
            cells[5] = f"[{row['arxiv']}](https://arxiv.org/abs/{row['arxiv']})"
        if row["defaults"]:
            cells[6] = f"`{cells[6]}`"
        lines.append("| " + " | ".join(cells) + " |")
    return ("\n".join(lines) + "\n").replace("``", "`")


def loss_curve(loss: Loss, *, reach: float = 6.0, points: int = 81) -> tuple[list[float], list[float], list[float]]:
    """Value and slope of a loss along the gap of one pair of 20 tokens each.

    Args:
        loss: Any loss; moving averages are those of two opposite pairs at the ends of the curve, mismatched
            log-ratios are 0, scores are 1 and 0.
        reach: Greatest gap, counted in reward: nats times the slope of the reward margin at 0.
        points: How many.

    Returns:
        Gaps, losses, and slopes of the loss per unit of gap, all counted in reward.
    """
    start = torch.zeros((), dtype=torch.float64, requires_grad=True)
    unit = abs(_at_gap(loss, start, level=-40.0, spread=1.0)[2]) or 1.0
    gaps = torch.linspace(-reach / unit, reach / unit, points, dtype=torch.float64)
    # So low that no response becomes more likely than certain on its way.
    level = -40.0 - reach / unit / 2
    rows = [_at_gap(loss, gap.clone().requires_grad_(), level=level, spread=reach / unit) for gap in gaps]
    return [float(gap) * unit for gap in gaps], [row[0] for row in rows], [row[1] / unit for row in rows]


def _at_gap(loss: Loss, gap: torch.Tensor, *, level: float, spread: float) -> tuple[float, float, float]:
    """Loss, its slope and that of the reward margin, where ``gap`` nats are split evenly about ``level``."""
    pair = _split_pairs(loss, gap.reshape(1), level)
    opposite = torch.tensor([spread, -spread], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    moved = dataclasses.replace(
        pair,
        running=loss.statistic(_split_pairs(loss, opposite, level)),
        mismatched=torch.zeros(1, 2, dtype=torch.float64) if loss.needs_mismatched else None,
        chosen_score=zero + 1 if loss.needs_scores else None,
        rejected_score=zero if loss.needs_scores else None,
    )
    value = loss(moved)[0]
    return float(value.detach()), _slope(value, gap), _slope(loss.rewards(moved).margin[0], gap)


def _split_pairs(loss: Loss, gaps: torch.Tensor, level: float) -> PairLogps:
    """Pairs of 20 tokens each, at ``level`` nats under the reference, whose gaps are split evenly."""
    count = len(gaps)
    pairs = example_pairs(
        loss,
        log_ratios=[(0.0, 0.0)] * count,
        reference=[(level, level)] * count,
        lengths=[(20, 20)] * count,
        dtype=torch.float64,
    )
    return derived_values(loss, dataclasses.replace(pairs, chosen=level + gaps / 2, rejected=level - gaps / 2))


def _slope(value: torch.Tensor, gap: torch.Tensor) -> float:
    (slope,) = torch.autograd.grad(value, gap, retain_graph=True, allow_unused=True)
    return 0.0 if slope is None else float(slope)


def plot_family(path: Path) -> None:
    """A small panel for each loss: value and slope against the gap, each scaled to its panel.

    Args:
        path: The file to write; its suffix says in which format (.png, .svg, .pdf).
    """
    names = _ordered_names()
    columns = 7
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(columns * 1.75, rows * 1.5 + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gaps, values, slopes = loss_curve(make_loss(name))
        axes.set_axis_on()
        axes.axhline(0, color=_FAINT, linewidth=0.8)
        axes.axvline(0, color=_FAINT, linewidth=0.8)
        axes.plot(gaps, _scaled(values, values[len(values) // 2]), color=_VALUE, linewidth=1.5)
        axes.plot(gaps, _scaled(slopes, 0.0), color=_SLOPE, linewidth=1.2, linestyle=(0, (4, 1.5)))
        axes.set_title(name, fontsize=9)
        axes.set_ylim(-1.15, 1.15)
        axes.set_xticks([-6, 0, 6])
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    figure.supxlabel("gap between chosen and rejected, counted in each loss's own reward", fontsize=9)
    figure.suptitle(
        "Value less its value at gap 0 (solid) and slope (dashed), each over its greatest size in the panel",
        fontsize=9,
    )
    metadata = {".svg": {"Date": None}, ".png": {"Software": None}}.get(path.suffix, {})
    figure.savefig(path, dpi=144, metadata=metadata)


def _scaled(values: list[float], origin: float) -> list[float]:
    moved = [value - origin for value in values]
    top = max(map(abs, moved)) or 1.0
    return [value / top for value in moved]
