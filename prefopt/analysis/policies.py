"""What each trained policy is like: reward, KL, length, text, cost and curves, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb, log
from typing import Any

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.analysis.load import Comparison
from prefopt.storage.schema import REFERENCE

COSTS = ("train_s", "evaluate_s", "sample_s", "pairs", "tokens", "pairs_per_s", "tokens_per_s", "peak_memory_gib")
DIVERSITY = ("distinct1", "distinct2", "compression")
CURVES = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected", "logratio/margins", "logratio/accuracies",
)  # fmt: skip
BEST_OF = (*range(1, 17), 24, 32, 48, 64, 128, 256, 512, 1024)  # n of best of n


def number(value: Any) -> float | None:
    """``value`` as a float that JSON can hold, or None where it is missing or not finite."""
    return float(value) if value is not None and np.isfinite(value) else None


def as_interval(estimate: stats.Estimate) -> dict[str, float | None]:
    """Value and interval of an estimate as plain values."""
    return {"value": number(estimate.value), "low": number(estimate.low), "high": number(estimate.high)}


def interval(values: np.ndarray, scale: stats.Scale = "linear") -> dict[str, float | None]:
    """Two-way clustered mean and 95 % interval of (S, N) values over seeds and prompts, NaN where missing.

    On the logarithmic scale, which is for numbers of at least 0, what rounding has put below 0 counts as 0.
    """
    values = np.maximum(values, 0.0) if scale == "log" else values
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return {"value": number(known[0]) if len(known) else None, "low": None, "high": None}
    return as_interval(stats.two_way(values, scale=scale))


class Cells:
    """Means of the columns of ``scores.parquet`` for each (variant, seed, prompt)."""

    SCALES: Mapping[str, stats.Scale] = {"reward": "linear", "kl": "log", "n_tokens": "log", "finished": "logit"}

    def __init__(self, scores: pd.DataFrame) -> None:
        self.seeds = sorted(scores["seed"].unique())
        self.prompts = sorted(scores["prompt_id"].unique())
        frame = scores.assign(finished=scores["finished"].astype(float))
        self._means = frame.groupby(["variant", "seed", "prompt_id"])[list(self.SCALES)].mean()
        self._names = set(scores["variant"])

    def get(
        self, variant: str, column: str, seeds: Sequence[int] | None = None, prompts: Sequence[str] | None = None
    ) -> np.ndarray | None:
        """(S, N) over the given seeds and prompts, by default all there are; None if nothing is known."""
        if variant not in self._names:
            return None
        table = self._means.loc[variant, column].unstack("prompt_id")
        table = table.reindex(
            index=self.seeds if seeds is None else seeds, columns=self.prompts if prompts is None else prompts
        )
        values: np.ndarray = table.to_numpy(float)
        return None if np.isnan(values).all() else values

    def difference(
        self,
        variant: str,
        opponent: str,
        column: str,
        seeds: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
    ) -> np.ndarray | None:
        """(S, N) paired differences, NaN where either is missing; None if they share no cell."""
        one, two = self.get(variant, column, seeds, prompts), self.get(opponent, column, seeds, prompts)
        if one is None or two is None or np.isnan(one - two).all():
            return None
        gap: np.ndarray = one - two
        return gap

    def interval(self, variant: str, column: str) -> dict[str, float | None]:
        """Mean and interval of a column, all None where nothing is known."""
        values = self.get(variant, column)
        return dict(NOTHING) if values is None else interval(values, self.SCALES[column])

    def change(self, variant: str, opponent: str, column: str) -> dict[str, float | None]:
        """Mean and interval of the paired difference, all None where nothing is known."""
        values = self.difference(variant, opponent, column)
        return dict(NOTHING) if values is None else interval(values)

    def ratio(self, numerator: np.ndarray | None, denominator: np.ndarray | None) -> dict[str, float | None]:
        """Ratio of two means with its interval, all None where either is unknown."""
        if numerator is None or denominator is None:
            return dict(NOTHING)
        known = np.isfinite(numerator + denominator)
        if known.sum() < 2:
            return {
                **NOTHING,
                "value": number(numerator[known].sum() / denominator[known].sum()) if known.any() else None,
            }
        return as_interval(stats.ratio(numerator, denominator))


NOTHING: Mapping[str, float | None] = {"value": None, "low": None, "high": None}


def rewards(cells: Cells, names: Sequence[str]) -> list[dict[str, Any]]:
    """Mean gold reward of samples, and its paired difference to the reference's."""
    return [
        {
            "variant": name,
            "mean": cells.interval(name, "reward"),
            "gain": cells.change(name, REFERENCE, "reward") if name != REFERENCE else dict(NOTHING),
        }
        for name in [*names, REFERENCE]
        if cells.get(name, "reward") is not None
    ]


def divergence(cells: Cells, scores: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """KL to the reference on the policy's own samples, exact per token; the plain sampled estimate as a check."""
    rows = []
    for name in names:
        own = scores[scores["variant"] == name]
        if not len(own):
            continue
        sampled = own["logp"] - own["ref_logp"]
        rows.append(
            {
                "variant": name,
                "kl": cells.interval(name, "kl"),
                "per_token": cells.ratio(cells.get(name, "kl"), cells.get(name, "n_tokens")),
                "sampled": number(sampled.mean()),
                "sampled_error": number(sampled.std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else None,
                "exactly_zero": bool((own["kl"] == 0).all()),
            }
        )
    return rows


def frontier(
    comparison: Comparison, cells: Cells, names: Sequence[str], win_rates: Mapping[str, Mapping[int, float]]
) -> dict[str, Any]:
    """A point for each run: KL against mean gold reward and win rate; and best-of-n of the reference."""
    means = comparison.scores.groupby(["variant", "seed"])[["reward", "kl"]].mean()
    points = [
        {
            "variant": name,
            "seed": seed,
            "kl": number(means.loc[(name, seed), "kl"]),
            "reward": number(means.loc[(name, seed), "reward"]),
            "win_rate": number(win_rates.get(name, {}).get(seed)),
            **({"proxy": comparison.proxies[name, seed]} if (name, seed) in comparison.proxies else {}),
        }
        for name in names
        for seed in comparison.complete_seeds(name)
        if (name, seed) in means.index
    ]
    base = cells.get(REFERENCE, "reward")
    return {
        "points": points,
        "reference_reward": None if base is None else number(np.nanmean(base)),
        "best_of_n": best_of_n(_for_best_of(comparison)),
    }


def _for_best_of(comparison: Comparison) -> pd.DataFrame:
    """The reference's samples of which the best is taken: those drawn for it, else those it is evaluated by."""
    if len(comparison.best_of):
        return comparison.best_of
    return comparison.scores[comparison.scores["variant"] == REFERENCE]


def best_of_n(reference: pd.DataFrame) -> list[dict[str, float]]:
    """Expected gold reward of the best of n reference samples, n = 1, 2, ..., against its KL.

    The KL of best-of-n is at most log n - (n - 1) / n (``kl_bound``), and ``kl`` is what it comes to where the best
    sample of a prompt is likely (arXiv:2401.01879). The expectation is over all subsets of the samples of a prompt, so
    it is exact given them.
    """
    if not len(reference) or reference["reward"].isna().any():
        return []
    groups = [np.sort(group.to_numpy(float)) for _, group in reference.groupby("prompt_id")["reward"]]
    top = [group.loc[group["reward"].idxmax(), "ref_logp"] for _, group in reference.groupby("prompt_id")]
    most = min(len(group) for group in groups)
    rows = []
    for n in [n for n in BEST_OF if n <= most]:
        best = [sum(value * comb(i, n - 1) for i, value in enumerate(group)) / comb(len(group), n) for group in groups]
        kl = float(np.mean(stats.best_of_n_kl(n, top)))
        rows.append({"n": n, "kl_bound": log(n) - (n - 1) / n, "kl": kl, "reward": float(np.mean(best))})
    return rows


def text_quality(comparison: Comparison, cells: Cells, names: Sequence[str]) -> list[dict[str, Any]]:
    """Length, completion and diversity of samples; ratios to the reference are paired by seed and prompt."""
    rows = []
    base = cells.get(REFERENCE, "n_tokens")
    for name in [*names, REFERENCE]:
        own = comparison.scores[comparison.scores["variant"] == name]
        if not len(own):
            continue
        runs = [run.diversity or {} for run in comparison.finished_runs(name)]
        rows.append(
            {
                "variant": name,
                "tokens": cells.interval(name, "n_tokens"),
                "median": number(own["n_tokens"].median()),
                "p95": number(own["n_tokens"].quantile(0.95)),
                "ratio": cells.ratio(cells.get(name, "n_tokens"), base) if name != REFERENCE else dict(NOTHING),
                "finished": cells.interval(name, "finished"),
                **{key: _mean([run.get(key) for run in runs]) for key in DIVERSITY},
            }
        )
    return rows


def cost(comparison: Comparison, names: Sequence[str]) -> list[dict[str, Any]]:
    """Mean cost over complete seeds whose cost is known; the peak memory is the largest."""
    rows = []
    for name in names:
        runs = [run.cost for run in comparison.finished_runs(name)]
        if not any(runs):
            continue
        row: dict[str, Any] = {"variant": name, **{key: _mean([run.get(key) for run in runs]) for key in COSTS}}
        row["unknown"] = sum(not run for run in runs)
        peaks = [run["peak_memory_gib"] for run in runs if run.get("peak_memory_gib") is not None]
        row["peak_memory_gib"] = number(max(peaks)) if peaks else None
        rows.append(row)
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def trajectories(comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Curves on held-out pairs by step: mean over complete seeds, with the smallest and largest seed."""
    heldout = comparison.history[comparison.history["split"] == "heldout"]
    curves: dict[str, Any] = {}
    for name in names:
        own = heldout[(heldout["variant"] == name) & heldout["seed"].isin(comparison.complete_seeds(name))]
        if not len(own):
            curves[name] = {}
            continue
        own = own.sort_values(["seed", "step"]).copy()
        for side in ("chosen", "rejected"):
            start = own.groupby("seed")[f"logps/{side}"].transform("first")
            own[f"change/{side}"] = own[f"logps/{side}"] - start
        columns = [*CURVES, "change/chosen", "change/rejected"]
        steps = own.groupby("step")[columns]
        mean, low, high = steps.mean(), steps.min(), steps.max()
        curves[name] = {
            column: {
                "step": [int(step) for step in mean.index],
                "mean": [number(value) for value in mean[column]],
                "low": [number(value) for value in low[column]],
                "high": [number(value) for value in high[column]],
            }
            for column in columns
        }
    return curves
