"""A results folder as an object: tidy frames, figures, the report, and how a notebook shows it. Needs no torch."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from prefopt import report
from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import Comparison, load
from prefopt.errors import UsageError, did_you_mean
from prefopt.report.figures.render import FIGURES
from prefopt.report.figures.style import styled
from prefopt.report.tables.computed import build_tables
from prefopt.report.tables.table import Table, show, to_frame

_MOST_COLUMNS = 8  # of the leaderboard in a notebook; all are in the frame


@dataclass(frozen=True)
class Results:
    """One comparison, read when it is first asked for; ``prefopt.load`` it again to see what was added since.

    Frames are tidy: one row for each thing that was measured, with the columns ``variant`` and ``seed`` in front.

    Attributes:
        root: Its folder.
    """

    root: Path

    def check(self) -> None:
        """Read the folder now.

        Raises:
            PrefoptError: If it is no results folder, or a file in it is damaged.
        """
        assert self._comparison

    @cached_property
    def _comparison(self) -> Comparison:
        return load(self.root)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Everything that the report says, as plain values: verdicts, estimates, warnings (``results.json``)."""
        return analyse(self._comparison)

    @property
    def name(self) -> str:
        """The comparison's name."""
        return str(self.summary["name"])

    @property
    def answers(self) -> list[str]:
        """The verdicts in sentences."""
        return list(self.summary["answers"])

    @property
    def runs(self) -> pd.DataFrame:
        """A row for each run: variant, seed, status, why it ended early, loss, learning rate, steps, and its cost."""
        rows = []
        for (variant, seed), run in sorted(self._comparison.runs.items()):
            facts = {"status": run.status, "diverged_at": run.diverged_at, "reason": run.reason or None}
            more = {"learning_rate": run.learning_rate, "steps": run.steps, "adapter": self._adapter(variant, seed)}
            rows.append({"variant": variant, "seed": seed, **facts, "loss": dict(run.loss), **more, **run.cost})
        return pd.DataFrame(rows)

    @property
    def history(self) -> pd.DataFrame:
        """A row for each logged step and split: loss, rewards, log-probabilities and margins."""
        return self._comparison.history.copy()

    @property
    def pairs(self) -> pd.DataFrame:
        """A row for each held-out pair after training: its log-probabilities (nats, summed) and rewards."""
        return self._comparison.pairs.copy()

    @property
    def scores(self) -> pd.DataFrame:
        """A row for each sample on an evaluation prompt, the reference's too: reward, KL, length."""
        return self._comparison.scores.copy()

    @property
    def samples(self) -> pd.DataFrame:
        """The text of those samples; empty where the folder was published without it."""
        return self._comparison.samples.copy()

    @property
    def judgements(self) -> pd.DataFrame:
        """A row for each judge, two policies, seed and prompt: the share that the first of the two wins."""
        return self._comparison.judgements.copy()

    @property
    def leaderboard(self) -> pd.DataFrame:
        """A row for each variant, best first; an interval takes three columns, such as win_rate, _low and _high."""
        return self.table("leaderboard")

    @cached_property
    def _tables(self) -> Mapping[str, Table]:
        return build_tables(self.summary)

    @property
    def tables(self) -> list[str]:
        """The names of the report's tables."""
        return sorted(self._tables)

    def table(self, name: str) -> pd.DataFrame:
        """A table of the report at full precision.

        Raises:
            UsageError: If the report has none of this name.
        """
        if name not in self._tables:
            raise UsageError(f"{self.root}: its report has no table {name!r}{did_you_mean(name, self.tables)}")
        return to_frame(self._tables[name])

    def figure(self, name: str) -> Figure:
        """A figure of the report, as matplotlib has it; a notebook shows it as it is.

        Raises:
            UsageError: If there is none of this name, or the comparison has nothing for it to show.
        """
        if name not in FIGURES:
            raise UsageError(f"there is no figure {name!r}{did_you_mean(name, sorted(FIGURES))}")
        with styled():
            figure = FIGURES[name](self.summary)
        if figure is None:
            raise UsageError(f"{self.root}: holds nothing for the figure {name!r} to show")
        setattr(figure, "_repr_png_", lambda: _png(figure))  # noqa: B010 - matplotlib's own needs pyplot's state
        return figure

    def report(self) -> Path:
        """Build the report again from the files; the path of ``report.html``."""
        return report.build(self.root)

    def adapter(self, variant: str, seed: int) -> Path:
        """The folder of a run's adapter, which ``peft.AutoPeftModelForCausalLM`` loads.

        Raises:
            UsageError: If there is no such run, or its adapter is not at hand.
        """
        if (variant, seed) not in self._comparison.runs:
            known = ", ".join(f"{name} seed {number}" for name, number in sorted(self._comparison.runs))
            raise UsageError(f"{self.root}: has no run of {variant} with seed {seed}; it has {known}")
        place = self._adapter(variant, seed)
        if place is None:
            raise UsageError(f"{self.root}: the adapter of {variant}, seed {seed}, is not there; run it again")
        return Path(place)

    def _adapter(self, variant: str, seed: int) -> str | None:
        place = self.root / "runs" / variant / f"seed-{seed}" / "adapter"
        return str(place) if (place / "adapter_config.json").is_file() else None

    def __repr__(self) -> str:
        runs = self._comparison.runs
        done = sum(run.is_complete for run in runs.values())
        return f"Results({str(self.root)!r}: {', '.join(self._comparison.variants)}; {done} of {len(runs)} runs)"

    def _repr_html_(self) -> str:
        """The verdicts and the leaderboard; every text is shown as text."""
        table = self._tables["leaderboard"]
        columns = table.columns[:_MOST_COLUMNS]
        head = "".join(f'<th title="{html.escape(c.help)}">{html.escape(c.label)}</th>' for c in columns)
        rows = [
            "<tr>" + "".join(f"<td>{html.escape(show(row.get(c.key), c))}</td>" for c in columns) + "</tr>"
            for row in table.rows
        ]
        said = "".join(f"<li>{html.escape(answer)}</li>" for answer in self.answers)
        return (
            f"<div><b>{html.escape(self.name)}</b><ul>{said}</ul><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table><small>{html.escape(str(self.root))}</small></div>"
        )


def _png(figure: Figure) -> bytes:
    with styled():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144)
        return buffer.getvalue()
