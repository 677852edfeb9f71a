"""The leaderboard and the table of runs: what other parts of the results say, a row for each variant or run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from prefopt.analysis.load import Comparison
from prefopt.analysis.policies import number

Row = dict[str, Any]


def leaderboard(comparison: Comparison, results: Mapping[str, Any]) -> list[Row]:
    """One row a variant, by win rate where there is one; variants that did not finish come last."""
    by = {
        key: {row["variant"]: row for row in results[key]}
        for key in ("rewards", "kl", "text", "cost", "margins", "ratings", "length_control", "health")
    }
    wins = {row["a"]: row for row in results["versus_reference"]}
    rows = []
    for entry in results["variants"]:
        name = entry["variant"]
        win = wins.get(name, {})
        rows.append(
            {
                "variant": name,
                "setting": entry["setting"],
                "hyperparameters": entry["hyperparameters"],
                "settings": entry["settings"],
                "learning_rate": entry["learning_rate"],
                "complete": entry["complete"],
                "seeds": _finished(entry["finished"], len(comparison.planned[name])),
                "verdict": win.get("verdict", "INCOMPLETE" if not entry["complete"] else None),
                "broken": by["health"].get(name, {}).get("brief"),
                "win_rate": win.get("win_rate"),
                "mde": win.get("mde"),
                "controlled": by["length_control"].get(name, {}).get("controlled_interval"),
                "rank": by["ratings"].get(name, {}).get("rank"),
                "reward": by["rewards"].get(name, {}).get("gain"),
                "kl": by["kl"].get(name, {}).get("kl"),
                "accuracy": by["margins"].get(name, {}).get("accuracy"),
                "length": by["text"].get(name, {}).get("ratio"),
                "train_s": by["cost"].get(name, {}).get("train_s"),
            }
        )
    return sorted(rows, key=lambda row: (not row["complete"], -(row["win_rate"] or {"value": 0.0})["value"]))


def _finished(count: int, planned: int) -> str:
    return f"{count}/{planned}" if count == planned else f"n = {count}/{planned} INCOMPLETE"


def seed_table(comparison: Comparison, results: Mapping[str, Any]) -> list[Row]:
    """One row a run: what became of it, and its numbers at the end."""
    points = {(point["variant"], point["seed"]): point for point in results["frontier"]["points"]}
    heldout = comparison.history[comparison.history["split"] == "heldout"].sort_values("step")
    last = {key: frame.iloc[-1] for key, frame in heldout.groupby(["variant", "seed"])}
    rows = []
    for run in results["runs"]:
        key = (run["variant"], run["seed"])
        point, end = points.get(key, {}), last.get(key, pd.Series(dtype=float))
        rows.append(
            {
                "variant": run["variant"],
                "seed": str(run["seed"]),
                "status": run["outcome"],
                **{column: point.get(column) for column in ("win_rate", "reward", "kl")},
                "loss": number(end.get("loss")),
                "margin": number(end.get("logratio/margins")),
                "train_s": number(comparison.runs[key].cost.get("train_s")) if key in comparison.runs else None,
            }
        )
    return rows
