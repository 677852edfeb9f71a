"""Figures of the trained policies: reward against KL, calibration, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prefopt.report.figures.style import COLOURS, FAINT, GREY, figure, grid, panel_labels, panels, short, variant_looks

Results = Mapping[str, Any]


def reward_kl(results: Results) -> Figure | None:
    """Mean gold reward, or win rate where there is none, against KL and its square root."""
    points = [point for point in results["frontier"]["points"] if point["kl"] is not None]
    if not points:
        return None
    key = "reward" if points[0]["reward"] is not None else "win_rate"
    if points[0][key] is None:
        return None
    style = variant_looks(results)
    fig = figure(9.4, 4.2 if len(style) <= 14 else 5.4)
    pair = fig.subplots(1, 2, sharey=True)
    for axes, root in zip(pair, (False, True), strict=True):
        _frontier_panel(axes, results, points, key, style, root=root)
    ylabel = "mean gold reward" if key == "reward" else "win rate against the reference, %"
    pair[0].set_ylabel(ylabel)
    pair[0].set_xlabel("KL to the reference, nats per sequence")
    pair[1].set_xlabel("√KL to the reference, √nats")
    handles, labels = pair[0].get_legend_handles_labels()
    columns = 1 if len(labels) <= 16 else 2
    fig.legend(handles, labels, loc="outside right upper", ncols=columns, fontsize=8 if columns == 1 else 6.5)
    return fig


def proxy_gold(results: Results) -> Figure | None:
    """The reward that policies were trained by, beside the gold one, each against the square root of the KL."""
    points = [p for p in results["frontier"]["points"] if p.get("proxy") is not None and p["kl"] is not None]
    if not points or points[0]["reward"] is None:
        return None
    style = variant_looks(results)
    fig = figure(9.4, 4.2 if len(style) <= 14 else 5.4)
    for axes, key in zip(fig.subplots(1, 2), ("proxy", "reward"), strict=True):
        for variant, look in style.items():
            own = [point for point in points if point["variant"] == variant]
            if own:
                at = [float(np.sqrt(max(point["kl"], 0.0))) for point in own]
                value = [point[key] for point in own]
                options = {"linestyle": "none", "marker": look.marker, "color": look.colour}
                axes.plot(at, value, markersize=3.2, alpha=0.45, **options)
                axes.plot(np.mean(at), np.mean(value), markersize=7, label=short(variant, 26), **options)
        axes.set_xlabel("√KL to the reference, √nats")
        axes.set_ylabel("reward that labels" if key == "proxy" else "mean gold reward")
        axes.set_xlim(left=0)
        grid(axes)
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right upper", ncols=1 if len(labels) <= 16 else 2, fontsize=7)
    return fig


def _frontier_panel(
    axes: Any, results: Results, points: Sequence[Mapping[str, Any]], key: str, style: Mapping[str, Any], *, root: bool
) -> None:
    scale = 100 if key == "win_rate" else 1

    def x(value: float) -> float:
        return float(np.sqrt(max(value, 0.0))) if root else value

    start = results["frontier"]["reference_reward"] if key == "reward" else 0.5
    if start is not None:
        axes.plot(
            0, scale * start, marker="*", markersize=11, color=GREY, linestyle="none", label="reference", zorder=4
        )
        axes.axhline(scale * start, color=FAINT, linewidth=1, zorder=0)
    best = results["frontier"]["best_of_n"] if key == "reward" else []
    if len(best) > 1:
        axes.plot(
            [x(row["kl"]) for row in best], [row["reward"] for row in best], color=GREY, linewidth=1.2,
            linestyle=(0, (2, 2)), marker=".", markersize=4, label=f"best of n ≤ {best[-1]['n']}", zorder=1,
        )  # fmt: skip
    for variant, look in style.items():
        own = [point for point in points if point["variant"] == variant]
        if not own:
            continue
        kl = np.array([point["kl"] for point in own])
        value = scale * np.array([point[key] for point in own])
        at = [x(v) for v in kl]
        axes.plot(at, value, linestyle="none", marker=look.marker, markersize=3.2, color=look.colour, alpha=0.45)
        centre = x(float(kl.mean()))
        axes.plot(
            [centre] * 2, [value.min(), value.max()], color=look.colour, linewidth=1, alpha=0.7, solid_capstyle="butt"
        )
        axes.plot([min(at), max(at)], [value.mean()] * 2, color=look.colour, linewidth=1, alpha=0.7)
        axes.plot(
            centre, value.mean(), linestyle="none", marker=look.marker, markersize=7, color=look.colour,
            markeredgecolor="white", markeredgewidth=0.8, label=short(variant, 26), zorder=3,
        )  # fmt: skip
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    grid(axes)


def calibration(results: Results) -> Figure | None:
    """How often the pair is ordered rightly, against the confidence that the implicit reward gives."""
    curves = {name: bins for name, bins in results["calibration"].items() if bins}
    if not curves:
        return None
    style = variant_looks(results)
    few = len(curves) <= 8
    fig, places = panels(len(curves), min(4 if few else 6, len(curves)), (1.8, 1.5) if few else (1.4, 1.15))
    for axes, (name, bins) in zip(places, curves.items(), strict=False):
        look = style[name]
        axes.plot([50, 100], [50, 100], color=GREY, linewidth=1, linestyle=(0, (4, 2)))
        at = np.array([100 * one["predicted"] for one in bins])
        ends = 100 * np.array([proportion_interval(one["observed"], one["n"]) for one in bins])
        gap = np.full(len(bins), np.nan)  # breaks one path into a stroke a bin
        axes.plot(
            np.stack([at, at, gap], 1).ravel(), np.column_stack([ends, gap]).ravel(), color=look.colour, linewidth=0.9,
            alpha=0.55,
        )  # fmt: skip
        axes.plot(at, [100 * one["observed"] for one in bins], "o", color=look.colour, markersize=3.4, zorder=3)
        axes.set_title(short(name, 20), fontsize=8.5)
        axes.set_xlim(48, 102)
        grid(axes)
    panel_labels(fig, "confidence of the calibrated margin, %", "pairs ordered rightly, %")
    return fig


def proportion_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in n pairs."""
    z = 1.96
    centre, reach = share + z * z / (2 * n), z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5
    return (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)


def cost(results: Results) -> Figure | None:
    """Where the time of a run goes: mean seconds over its seeds."""
    rows = results["cost"]
    if not rows:
        return None
    fig = figure(7.6, 1.3 + 0.3 * len(rows))
    axes = fig.add_subplot()
    left = np.zeros(len(rows))
    parts = (("train_s", "training", COLOURS[0], ""), ("evaluate_s", "scoring", COLOURS[4], "//"),
             ("sample_s", "sampling", COLOURS[2], ".."))  # fmt: skip
    for key, label, colour, hatch in parts:
        width = np.array([row[key] or 0.0 for row in rows])
        axes.barh(
            range(len(rows)), width, left=left, height=0.62, color=colour, label=label, hatch=hatch,
            edgecolor="white", linewidth=0.6,
        )  # fmt: skip
        left += width
    axes.set_yticks(range(len(rows)), [short(row["variant"]) for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds per run, mean over seeds")
    axes.figure.legend(loc="outside upper right", ncols=3)
    grid(axes, "x")
    return fig
