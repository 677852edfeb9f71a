"""A display for notebooks: one output that is replaced as work goes on, where plain lines would fill the page."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Mapping
from typing import Any

EVERY_S = 0.5
MOST_SAID = 20  # lines that stay


def running() -> bool:
    """Whether a notebook's kernel runs this code, which can show HTML and replace it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class Cell:
    """One output of a cell: a bar, the last metrics of each variant, and lines that stay.

    Args:
        columns: Heading and key of each metric shown.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.said: list[str] = []
        self.bar: tuple[str, float, float] = ("starting", 0.0, 1.0)
        self.values: Mapping[str, Mapping[str, float]] = {}
        self.began = time.monotonic()
        self.shown_at = 0.0
        self._handle: Any = None

    def show(self, text: str, done: float, total: float, values: Mapping[str, Mapping[str, float]]) -> None:
        """What is under way; drawn at once where it is something else than before, else twice a second."""
        changed = text != self.bar[0] or done >= total
        self.bar, self.values = (text, done, total), values or (self.values if not changed else {})
        if changed or time.monotonic() - self.shown_at > EVERY_S:
            self._draw()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.said.append(text)
        self._draw()

    def close(self, failed: bool) -> None:
        """The last state, which the saved notebook keeps: what was said, and how long it took."""
        seconds = time.monotonic() - self.began
        self.bar, self.values = (f"{'stopped' if failed else 'done'} after {seconds:.0f} s", 1.0, 1.0), {}
        self._draw()

    def markup(self) -> str:
        """The whole output as HTML; every text in it is shown as text."""
        text, done, total = self.bar
        share = 100 * done / total if total else 0.0
        count = f" {done:.0f}/{total:.0f}" if total > 1 else ""
        parts = [f"<div>{html.escape(line)}</div>" for line in self.said[-MOST_SAID:]]
        parts.append(
            f'<div><progress value="{share:.1f}" max="100" style="width:16em;vertical-align:middle"></progress> '
            f"{html.escape(text)}{count}</div>"
        )
        return "".join([*parts, self._table()])

    def _table(self) -> str:
        if not self.values:
            return ""
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in ("variant", *self.columns))
        rows = []
        for name, metrics in self.values.items():
            cells = "".join(f"<td>{_number(metrics.get(key))}</td>" for key in self.columns.values())
            rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def _draw(self) -> None:
        from IPython.display import display  # type: ignore[import-not-found]  # there where a kernel runs

        self.shown_at = time.monotonic()
        bundle = {"text/html": self.markup(), "text/plain": "\n".join([*self.said, self.bar[0]])}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
