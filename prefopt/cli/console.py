"""What people see while a comparison runs: a live display on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from prefopt.cli import notebook
from prefopt.cli.diverted import Diverted

Style = Literal["auto", "notebook", "plain", "quiet", "json"]
PLAIN_EVERY_S = 10.0
MOST_SHOWN = 8  # variants in a plain line
# What is shown of each variant while it trains: the heading, and the metric.
METRICS = {
    "step": "step",
    "loss": "loss",
    "margin (own units)": "rewards/margins",
    "margin (nats)": "logratio/margins",
    "accuracy": "logratio/accuracies",
}


def visible(text: str) -> str:
    """``text`` with control characters as escapes, so that no file or model can drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class Console:
    """Shows stages, steps and metrics; use as a context manager.

    Args:
        style: ``auto`` is a live display on a terminal or in a notebook and plain lines elsewhere; ``quiet`` shows
            nothing; ``json`` prints one JSON object a line.
    """

    def __init__(self, style: Style = "auto") -> None:
        self.rich = RichConsole(stderr=True, highlight=False)
        self.cell = notebook.Cell(METRICS) if style == "auto" and notebook.running() else None
        here: Style = "notebook" if self.cell is not None else "auto" if self.rich.is_terminal else "plain"
        self.style: Style = here if style == "auto" else style
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.rich,
        )
        self.task = self.bar.add_task("starting", total=1)
        self.live: Live | None = None
        self.text = ""
        self.began = self.shown_at = time.monotonic()
        self.diverted: Diverted | None = None

    def __enter__(self) -> Console:
        if self.style == "json":
            self.diverted = Diverted()
        if self.style == "auto":
            self.live = Live(self.bar, console=self.rich, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
        if self.cell is not None:
            self.cell.close(failed=kind is not None)
        if self.diverted is not None:
            diverted, self.diverted = self.diverted, None
            for line in diverted.stop():
                self._write({"message": line})

    def stage(self, text: str, done: int, total: int) -> None:
        """What is running now, and how far it is."""
        self._show(text, done, total, {})

    def step(self, text: str, done: int, total: int, values: Mapping[str, Mapping[str, float]]) -> None:
        """The same for a step of training, with the last metrics of each variant."""
        self._show(text, done, total, values)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.style == "json":
            self._emit({"message": text})
        elif self.cell is not None:
            self.cell.say(text)
        elif self.style != "quiet":
            self.rich.print(visible(text), markup=False, soft_wrap=True)

    def at(self, seed: int, variants: Sequence[str], step: int) -> None:
        """Not shown: the title of a stage says it."""

    def _show(self, text: str, done: int, total: int, values: Mapping[str, Mapping[str, float]]) -> None:
        if self.cell is not None:
            self.cell.show(text, done, total, values)
            return
        changed, self.text = text != self.text, text
        if self.live is not None:
            if changed:
                self.bar.reset(self.task, description=visible(text), total=total)
            self.bar.update(self.task, completed=done, total=total)
            self.live.update(Group(self.bar, metrics_table(values)) if values else self.bar)
            return
        if self.style == "json":
            self._emit({"stage": text, "done": done, "total": total, "metrics": values})
            return
        now = time.monotonic()
        if self.style == "plain" and (changed or now - self.shown_at > PLAIN_EVERY_S or (values and done == total)):
            self.shown_at = now
            parts = [f"{name} {_number(m.get('logratio/margins'))}" for name, m in list(values.items())[:MOST_SHOWN]]
            parts += [f"and {len(values) - MOST_SHOWN} more"] if len(values) > MOST_SHOWN else []
            suffix = f"   log-ratio margins: {', '.join(parts)}" if parts else ""
            count = f" {done}/{total}" if total > 1 else ""
            self.rich.print(f"[{now - self.began:6.0f} s] {visible(text)}{count}{suffix}", markup=False, soft_wrap=True)

    def _emit(self, value: Mapping[str, Any]) -> None:
        """A line of JSON, behind what foreign code has written meanwhile, a line of JSON each."""
        for line in self.diverted.lines() if self.diverted is not None else ():
            self._write({"message": line})
        self._write(_finite(value))

    def _write(self, value: Mapping[str, Any]) -> None:
        seconds = round(time.monotonic() - self.began, 3)
        out = self.diverted.display if self.diverted is not None else sys.stderr
        print(json.dumps({"seconds": seconds, **value}), file=out, flush=True)


def metrics_table(values: Mapping[str, Mapping[str, float]]) -> Table:
    """A line for each variant: step, loss, margins and accuracy as last measured."""
    table = Table(box=None, pad_edge=False)
    for heading in ("variant", *METRICS):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, m in values.items():
        keys = [key for key in METRICS.values() if key != "step"]
        table.add_row(visible(name), str(int(m.get("step", 0))), *(_number(m.get(key)) for key in keys))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _finite(value: Any) -> Any:
    """``value`` with NaN and infinities as null, which is what JSON has for them."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
