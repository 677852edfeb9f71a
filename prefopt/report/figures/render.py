"""The figures of a report, each a function of ``results.json`` and nothing else.

Every one returns None where the results hold nothing for it to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from prefopt.report.figures.curves import learning_curves, logps_curves, over_steps
from prefopt.report.figures.policies import calibration, cost, proxy_gold, reward_kl
from prefopt.report.figures.style import GREY, INK, figure, grid, looks, save, short, styled, variant_looks
from prefopt.report.figures.tuning import score_rate, tuned_forest, tuning_curves, tuning_frontier

Results = Mapping[str, Any]
_DIVERGING = LinearSegmentedColormap.from_list("vermillion-white-blue", ["#D55E00", "#ffffff", "#0072B2"])


def winrate_forest(results: Results) -> Figure | None:
    """Win rate against the reference: interval and estimate, with each seed as a faint dot."""
    rows = [row for row in results["versus_reference"] if row["value"] is not None]
    if not rows:
        return None
    # What did not finish takes no place in the order: it goes to the bottom.
    rows = sorted(rows, key=lambda row: (row["verdict"] != "INCOMPLETE", row["value"]))
    style = variant_looks(results)
    fig = figure(7.6, 1.15 + 0.32 * len(rows))
    axes = fig.add_subplot()
    axes.axvline(50, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    delta = 100 * results["settings"]["delta"]
    axes.axvspan(50 - delta, 50 + delta, color="#eef1f5", zorder=0)
    for y, row in enumerate(rows):
        look = style[row["a"]]
        settled = row["verdict"] in ("BETTER", "WORSE")
        if row["low"] is not None:
            axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=look.colour, linewidth=2.2, zorder=2)
        axes.plot(
            [100 * value for value in row["per_seed"]],
            [y - 0.22] * len(row["per_seed"]),
            linestyle="none", marker="|", markersize=5, color=GREY, alpha=0.9, zorder=1,
        )  # fmt: skip
        axes.plot(
            100 * row["value"], y, marker=look.marker, color=look.colour, zorder=3, markersize=6.5,
            markerfacecolor=look.colour if settled else "white", markeredgewidth=1.6,
        )  # fmt: skip
    settings = {entry["variant"]: entry["setting"] for entry in results["variants"]}
    axes.set_yticks(range(len(rows)), [_named(row, settings[row["a"]]) for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.4)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), [_interval(row) for row in rows])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("win rate against the reference, % (filled: settled; ticks below: single seeds)")
    grid(axes, "x")
    return fig


def _named(row: Mapping[str, Any], setting: str) -> str:
    facts = [fact for fact in (setting, "incomplete" if row["verdict"] == "INCOMPLETE" else "") if fact]
    return short(row["a"]) + (f" ({', '.join(facts)})" if facts else "")


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return f"{100 * row['value']:.1f}"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def head_to_head(results: Results) -> Figure | None:
    """Win rate of the row against the column; a dot where the difference is settled."""
    matrix = results["matrix"]
    if not matrix:
        return None
    labels = [short(name, 24) for name in matrix["names"]]
    values = np.array([[np.nan if v is None else 100 * v for v in row] for row in matrix["win_rate"]])
    size = len(labels)
    cell = 0.62 if size <= 9 else 0.5 if size <= 16 else 0.24
    fig = figure(2.6 + cell * size, 1.7 + cell * size)
    axes = fig.add_subplot()
    spread = max(10.0, float(np.nanmax(np.abs(values - 50))) if np.isfinite(values).any() else 0.0)
    image = axes.imshow(values, cmap=_DIVERGING, vmin=50 - spread, vmax=50 + spread)
    for i in range(size):
        for j in range(size):
            if np.isnan(values[i, j]):
                continue
            settled = matrix["settled"][i][j]
            if size <= 16:
                dark = abs(values[i, j] - 50) > 0.62 * spread
                axes.text(
                    j, i, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=8.5,
                    color="white" if dark else INK, fontweight="bold" if settled else "normal",
                )  # fmt: skip
            elif settled:
                axes.plot(j, i, ".", color=INK, markersize=2.5)
    axes.set_xticks(range(size), labels, rotation=90 if size > 5 else 0, fontsize=8.5 if size <= 16 else 6.5)
    axes.set_yticks(range(size), labels, fontsize=8.5 if size <= 16 else 6.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("opponent")
    axes.set_ylabel("variant")
    bar = fig.colorbar(image, ax=axes, shrink=0.8, aspect=24)
    bar.set_label(f"win rate of the row, % ({'bold' if size <= 16 else 'dot'}: settled)")
    bar.outline.set_visible(False)
    return fig


def length_control(results: Results) -> Figure | None:
    """Raw win rate (hollow) and what is left at equal length (filled, with interval)."""
    rows = [row for row in results["length_control"] if row["controlled"] is not None]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row["controlled"])
    style = variant_looks(results)
    fig = figure(7.6, 1.15 + 0.32 * len(rows))
    axes = fig.add_subplot()
    axes.axvline(50, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    for y, row in enumerate(rows):
        colour = style[row["variant"]].colour
        if row["low"] is not None:
            axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=2.2)
        axes.plot(100 * row["controlled"], y, marker="o", color=colour, markersize=6, linestyle="none")
        axes.plot(
            100 * row["raw"], y + 0.24, marker="v", color=colour, markerfacecolor="white", markersize=5.5,
            linestyle="none", zorder=3,
        )  # fmt: skip
    axes.plot([], [], marker="o", color=GREY, linestyle="none", label="at equal length, 95 % interval")
    axes.plot([], [], marker="v", color=GREY, markerfacecolor="white", linestyle="none", label="raw")
    axes.set_yticks(range(len(rows)), [short(row["variant"]) for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("win rate against the reference, %")
    axes.figure.legend(loc="outside upper right", ncols=2)
    grid(axes, "x")
    return fig


def power(results: Results) -> Figure | None:
    """The smallest difference that would be seen in four of five repetitions, by number of seeds."""
    curves = results["power"]["curves"]
    if not curves:
        return None
    fig = figure(6.4, 3.5)
    axes = fig.add_subplot()
    for curve, look in zip(curves, looks([str(curve["prompts"]) for curve in curves]).values(), strict=True):
        axes.plot(
            curve["seeds"], [100 * value for value in curve["mde"]], color=look.colour, marker=look.marker,
            linestyle=look.dash, label=f"{curve['prompts']} prompts", markersize=4.5,
        )  # fmt: skip
    here = results["power"]["here"]
    if here is not None:
        axes.plot(
            here["seeds"], 100 * here["mde"], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK,
            markeredgewidth=1.4, linestyle="none", label="this comparison",
        )  # fmt: skip
    axes.set_xlabel("seeds")
    axes.set_xticks(curves[0]["seeds"])
    axes.set_ylabel("smallest visible difference,\npercentage points")
    # A win rate cannot differ from one half by more than this.
    axes.set_ylim(0, min(50.0, 115 * max(curve["mde"][0] for curve in curves)))
    axes.legend()
    grid(axes)
    return fig


FIGURES: Mapping[str, Callable[[Results], Figure | None]] = {
    "winrate_forest": winrate_forest,
    "head_to_head": head_to_head,
    "length_control": length_control,
    "learning_curves": learning_curves,
    "logps": logps_curves,
    "calibration": calibration,
    "reward_kl": reward_kl,
    "proxy_gold": proxy_gold,
    "cost": cost,
    "power": power,
    "over_steps": over_steps,
    "tuned_forest": tuned_forest,
    "tuning_curves": tuning_curves,
    "score_rate": score_rate,
    "tuning_frontier": tuning_frontier,
}


def render(results: Results) -> dict[str, tuple[bytes, bytes]]:
    """Every figure that the results can fill, as (SVG, PNG) by name."""
    rendered = {}
    with styled():
        for name, draw in FIGURES.items():
            fig = draw(results)
            if fig is not None:
                rendered[name] = save(fig)
    return rendered
