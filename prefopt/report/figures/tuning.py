"""Figures of a tuned comparison: default beside tuned, best of n trials, score against rate, the reward-KL frontier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefopt.report.figures.style import FAINT, GREY, figure, grid, looks, panel_labels, panels, short

Results = Mapping[str, Any]
COLUMNS = {"reward": ("reward", 1, "reward gain over the reference"),
           "win_rate": ("win_rate", 100, "win rate against the reference, %"),
           "accuracy": ("accuracy", 100, "held-out pairs ordered rightly, %")}  # fmt: skip


def _scale(found: Mapping[str, Any]) -> int:
    return 1 if found["criterion"] == "reward" else 100


def _score_label(found: Mapping[str, Any]) -> str:
    return f"{found['criterion_text']} on validation prompts" + (", %" if _scale(found) == 100 else "")


def tuned_forest(results: Results) -> Figure | None:
    """Every loss at its defaults (hollow) and at its best (filled), on test prompts and fresh seeds."""
    found = results["tuning"]
    if not found:
        return None
    key, scale, label = COLUMNS[found["criterion"]]
    board = {row["variant"]: row[key] for row in results["leaderboard"] if row[key] and row[key]["value"] is not None}
    rows = [row for row in found["families"] if row["default"] in board]
    rows.sort(key=lambda row: board.get(row["tuned"], board[row["default"]])["value"])
    if not rows:
        return None
    style = looks([row["family"] for row in found["families"]])
    made = figure(7.6, 1.3 + 0.44 * len(rows))
    axes = made.add_subplot()
    for y, row in enumerate(rows):
        look = style[row["family"]]
        for name, at, filled in ((row["default"], y - 0.16, False), (row["tuned"], y + 0.16, True)):
            value = board.get(name)
            if value is None or (filled and name == row["default"]):
                continue
            if value["low"] is not None:
                ends = [scale * value["low"], scale * value["high"]]
                axes.plot(ends, [at, at], color=look.colour, linewidth=2.0 if filled else 1.1)
            axes.plot(
                scale * value["value"], at, marker=look.marker, color=look.colour, markersize=6, linestyle="none",
                markerfacecolor=look.colour if filled else "white",
            )  # fmt: skip
    axes.plot([], [], marker="o", color=GREY, markerfacecolor="white", linestyle="none", label="defaults")
    axes.plot([], [], marker="o", color=GREY, linestyle="none", label="tuned")
    axes.set_yticks(range(len(rows)), [short(row["family"], 28) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{label}, test prompts and fresh seeds")
    made.legend(loc="outside upper right", ncols=2)
    grid(axes, "x")
    return made


def tuning_curves(results: Results) -> Figure | None:
    """Expected best validation score after n trials, with its simultaneous band, a panel for each loss."""
    found = results["tuning"]
    curves = {name: curve for name, curve in (found or {"curves": {}})["curves"].items() if curve}
    if not curves:
        return None
    scale, style = _scale(found), looks(list(curves))
    made, places = panels(len(curves), min(4, len(curves)), (1.7, 1.4))
    values = [v for curve in curves.values() for v in (*curve["expected"], curve["default"]) if v is not None]
    reach = max(values) - min(values) or 1.0
    bottom, top = min(values) - 0.35 * reach, max(values) + 0.35 * reach
    for axes, (name, curve) in zip(places, curves.items(), strict=False):
        look, n = style[name], curve["n"]
        low = [bottom if value is None else value for value in curve["low"]]
        high = [top if value is None else value for value in curve["high"]]
        axes.fill_between(n, scale * np.array(low), scale * np.array(high), color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(n, scale * np.array(curve["expected"]), color=look.colour, marker=look.marker, markersize=3.5)
        if curve["default"] is not None:
            axes.axhline(scale * curve["default"], color=GREY, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_title(short(name, 20), fontsize=8.5)
        axes.set_ylim(scale * bottom, scale * top)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        grid(axes)
    panel_labels(made, "trials", _short_label(found))
    return made


def _short_label(found: Mapping[str, Any]) -> str:
    return {"reward": "best mean reward", "win_rate": "best win rate, %", "accuracy": "best accuracy, %"}[
        found["criterion"]
    ]


def score_rate(results: Results) -> Figure | None:
    """Validation score of every trial against its learning rate, all losses on the same axes."""
    found = results["tuning"]
    rows = [row for row in (found or {"trials": []})["trials"] if row["score"] is not None]
    if not rows:
        return None
    names = [row["family"] for row in found["families"]]
    scale, style = _scale(found), looks(names)
    made, places = panels(len(names), min(4, len(names)), (1.7, 1.4))
    every = [(row["learning_rate"], scale * row["score"]["value"]) for row in rows]
    lowest, highest = min(rate for rate, _ in every), max(rate for rate, _ in every)
    ticks = sorted({lowest, (lowest * highest) ** 0.5, highest})
    for axes, name in zip(places, names, strict=False):
        axes.scatter(*zip(*every, strict=True), s=7, color=FAINT, zorder=1)
        own = sorted((row for row in rows if row["family"] == name), key=lambda row: float(row["learning_rate"]))
        look = style[name]
        for row in own:
            filled = row["chosen"] == "chosen"
            axes.plot(
                row["learning_rate"], scale * row["score"]["value"], linestyle="none", color=look.colour, zorder=3,
                marker="*" if row["index"] == 0 else look.marker, markersize=9 if filled else 5,
                markerfacecolor=look.colour if filled else "white",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:.0e}".replace("e-0", "e-") for tick in ticks])
        axes.minorticks_off()
        axes.set_title(short(name, 20), fontsize=8.5)
        grid(axes)
    panel_labels(made, "learning rate", _short_label(found).removeprefix("best "))
    return made


def tuning_frontier(results: Results) -> Figure | None:
    """Reward against KL of all trials, with the hull of each loss."""
    found = (results["tuning"] or {}).get("frontier")
    if not found:
        return None
    style = looks(list(found["hulls"]))
    made = figure(8.2, 4.4)
    axes = made.add_subplot()
    axes.plot(0, found["start"], marker="*", markersize=11, color=GREY, linestyle="none", label="reference", zorder=4)
    axes.axhline(found["start"], color=FAINT, linewidth=1, zorder=0)
    reach = max(point["kl"] for point in found["points"])
    for name, hull in found["hulls"].items():
        look = style[name]
        own = [point for point in found["points"] if point["family"] == name]
        axes.plot(
            [p["kl"] for p in own], [p["reward"] for p in own], linestyle="none", marker=look.marker, markersize=4,
            color=look.colour, alpha=0.5,
        )  # fmt: skip
        axes.plot(
            [*hull["kl"], reach], [*hull["reward"], hull["reward"][-1]], color=look.colour, linestyle=look.dash,
            linewidth=1.4, marker=look.marker, markersize=6, label=short(name, 26),
        )  # fmt: skip
    if found["to"] is not None:
        axes.axvline(found["to"], color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
    straight = max(1.0, found["to"] or 1.0)
    axes.set_xscale("symlog", linthresh=straight)
    ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= max(straight, reach)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"KL to the reference, nats per sequence (logarithmic beyond {straight:.2g})")
    axes.set_ylabel("mean gold reward on validation prompts")
    made.legend(loc="outside right upper", fontsize=8)
    grid(axes)
    return made
