"""Figures of what happens during training, by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prefopt.report.figures.style import COLOURS, FAINT, GREY, figure, grid, panel_labels, panels, short, variant_looks

Results = Mapping[str, Any]
# More lines than this in one panel cannot be told apart; then each variant gets a panel of its own.
MOST_LINES = 8
PANELS = (
    ("logratio/margins", "log-ratio margin, nats", 1),
    ("logratio/accuracies", "pairs ordered rightly, %", 100),
    ("rewards/margins", "reward margin, own units", 1),
)


def learning_curves(results: Results) -> Figure | None:
    """Held-out margin in nats, accuracy, and margin in the loss's own units, by step."""
    curves = {name: curve for name, curve in results["trajectories"].items() if curve}
    if not curves:
        return None
    if len(curves) > MOST_LINES:
        return _many_margins(results, curves)
    style = variant_looks(results)
    fig = figure(10.0, 3.7)
    for axes, (key, label, scale) in zip(fig.subplots(1, len(PANELS)), PANELS, strict=True):
        for name, curve in curves.items():
            line = curve[key]
            look = style[name]
            axes.fill_between(
                line["step"], scale * _array(line["low"]), scale * _array(line["high"]), color=look.colour,
                alpha=0.13, linewidth=0,
            )  # fmt: skip
            axes.plot(
                line["step"], scale * _array(line["mean"]), color=look.colour, linestyle=look.dash,
                marker=look.marker, markevery=max(1, len(line["step"]) // 6), markersize=4.5, label=short(name, 26),
            )  # fmt: skip
        if key == "logratio/accuracies":
            axes.axhline(50, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        axes.set_xlabel("training step")
        axes.set_title(label, fontweight="normal")
        grid(axes)
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))
    return fig


def _many_margins(results: Results, curves: Mapping[str, Any]) -> Figure:
    """The log-ratio margin of each variant in its own panel, over the range of all variants in grey."""
    fig, places = _panels(len(curves))
    everyone = [
        (curve["logratio/margins"]["step"], _array(curve["logratio/margins"]["mean"])) for curve in curves.values()
    ]
    steps = sorted({step for own, _ in everyone for step in own})
    spread = np.array([np.interp(steps, own, values) for own, values in everyone])
    low, high = np.nanmin(spread, axis=0), np.nanmax(spread, axis=0)
    for axes, (name, curve) in zip(places, curves.items(), strict=False):
        axes.fill_between(steps, low, high, color=FAINT, alpha=0.6, linewidth=0)
        line = curve["logratio/margins"]
        axes.fill_between(
            line["step"], _array(line["low"]), _array(line["high"]), color=COLOURS[0], alpha=0.25, linewidth=0
        )
        axes.plot(line["step"], _array(line["mean"]), color=COLOURS[0])
        accuracy = [value for value in curve["logratio/accuracies"]["mean"] if value is not None]
        note = f"{100 * accuracy[-1]:.0f} %" if accuracy else "–"
        axes.text(0.04, 0.94, note, transform=axes.transAxes, va="top", fontsize=8, color=GREY)
        axes.set_title(short(name, 22), fontsize=8)
        grid(axes)
    panel_labels(
        fig,
        "training step (grey: range of all variants; %: final held-out accuracy)",
        "held-out log-ratio margin, nats",
    )
    return fig


def logps_curves(results: Results) -> Figure | None:
    """Change of the chosen and rejected log-probability of held-out pairs since step 0, a panel a variant."""
    curves = {name: curve for name, curve in results["trajectories"].items() if curve}
    if not curves:
        return None
    fig, places = _panels(len(curves), legend=True)
    for axes, (name, curve) in zip(places, curves.items(), strict=False):
        axes.axhline(0, color=GREY, linewidth=0.8)
        for key, label, colour, dash, marker in (
            ("change/chosen", "chosen", COLOURS[0], "solid", "o"),
            ("change/rejected", "rejected", COLOURS[1], (0, (4, 1.5)), "s"),
        ):
            line = curve[key]
            axes.fill_between(
                line["step"], _array(line["low"]), _array(line["high"]), color=colour, alpha=0.15, linewidth=0
            )
            axes.plot(
                line["step"], _array(line["mean"]), color=colour, linestyle=dash, markersize=3.5,
                marker=marker if len(curves) <= MOST_LINES else None,
                markevery=max(1, len(line["step"]) // 5), label=label,
            )  # fmt: skip
        axes.set_title(short(name, 22), fontsize=8.5)
        grid(axes)
    handles, labels = places[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="upper right", ncols=2, borderaxespad=0.2)
    panel_labels(fig, "training step", "change of log-probability, nats")
    return fig


def _panels(count: int, *, legend: bool = False) -> tuple[Figure, Any]:
    """Small panels for ``count`` variants; smaller ones where they are many."""
    columns = min(count, 5 if count <= 5 else 4 if count <= 8 else 6)
    return panels(count, columns, (1.75, 1.45) if count <= 8 else (1.45, 1.1), legend=legend)


def _array(values: list[float | None]) -> np.ndarray:
    """A list of JSON as floats, NaN for null."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def over_steps(results: Results) -> Figure | None:
    """Reward, KL, win rate and length of samples during training."""
    curves = results["over_steps"]["curves"]
    shown = [(key, scale, title) for key, scale, title in _SAMPLED if _is_known(curves, key)]
    if not shown:
        return None
    style = variant_looks(results)
    made = figure(2.6 * len(shown) + 1.6, 3.0)
    for axes, (key, scale, title) in zip(made.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for name, curve in curves.items():
            look, one = style[name], curve[key]
            axes.fill_between(
                one["step"], scale * np.array(one["low"], float), scale * np.array(one["high"], float),
                color=look.colour, alpha=0.12, linewidth=0,
            )  # fmt: skip
            axes.plot(
                one["step"], scale * np.array(one["mean"], float), color=look.colour, linestyle=look.dash,
                marker=look.marker, markersize=3.2, label=short(name, 22),
            )  # fmt: skip
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel("step")
        grid(axes)
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside right upper", fontsize=8)
    return made


_SAMPLED = (
    ("reward", 1, "mean gold reward"),
    ("kl", 1, "KL, nats"),
    ("win_rate", 100, "win rate, %"),
    ("n_tokens", 1, "tokens of a sample"),
)


def _is_known(curves: Mapping[str, Any], key: str) -> bool:
    return any(value is not None for curve in curves.values() for value in curve[key]["mean"])
