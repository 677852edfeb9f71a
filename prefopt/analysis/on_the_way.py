"""Samples during training: reward, KL, win rate and length over steps, and where more training did harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.analysis.load import Comparison
from prefopt.analysis.policies import number
from prefopt.analysis.sentences import listed
from prefopt.storage.schema import REFERENCE

MEASURES = ("reward", "kl", "win_rate", "n_tokens")
ALPHA = 0.05
Row = dict[str, Any]


def over_steps(comparison: Comparison, names: Sequence[str]) -> Row:
    """Curves by variant and measure, from the reference at step 0 to the trained policy, and over-optimisation."""
    curves: dict[str, Any] = {}
    harmed: list[Row] = []
    for name in names:
        table = _table(comparison, name)
        if table is None:
            continue
        curves[name] = _curve(table)
        if (harm := _harm(table)) is not None:
            harmed.append({"variant": name, **harm})
    return {"curves": curves, "harmed": harmed}


def _table(comparison: Comparison, name: str) -> pd.DataFrame | None:
    """(step, seed, prompt_id) means of ``MEASURES``, the reference at 0 and the trained policy at the end."""
    seeds = comparison.complete_seeds(name)
    frame = comparison.sampled
    own = frame[(frame["variant"] == name) & frame["seed"].isin(seeds)]
    if not len(own):
        return None
    scores = comparison.scores[comparison.scores["seed"].isin(seeds)]
    base = scores[scores["variant"] == REFERENCE]
    last = {seed: comparison.runs[name, seed].steps for seed in seeds}
    end = scores[scores["variant"] == name].assign(step=lambda rows: rows["seed"].map(last))
    whole = pd.concat([base.assign(step=0), own, end], ignore_index=True)[
        ["step", "seed", "prompt_id", "reward", "kl", "n_tokens"]
    ]
    keys = ["step", "seed", "prompt_id"]
    means = whole.groupby(keys)[["reward", "kl", "n_tokens"]].mean()
    of_reference = {key: group.to_numpy(float) for key, group in base.groupby(["seed", "prompt_id"])["reward"]}
    means["win_rate"] = [
        _win_rate(group.to_numpy(float), of_reference.get((seed, prompt)))
        for (_, seed, prompt), group in whole.groupby(keys)["reward"]
    ]
    return means


def _win_rate(rewards: np.ndarray, reference: np.ndarray | None) -> float:
    """Share of comparisons with the reference's samples won by the gold reward, ties one half; NaN without one."""
    if reference is None or np.isnan(rewards).any() or np.isnan(reference).any():
        return float("nan")
    gap = rewards[:, None] - reference[None]
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())


def _curve(table: pd.DataFrame) -> Row:
    by_seed = table.groupby(["step", "seed"])[list(MEASURES)].mean()
    steps = by_seed.groupby("step")
    mean, low, high = steps.mean(), steps.min(), steps.max()
    return {
        measure: {
            "step": [int(step) for step in mean.index],
            "mean": [number(value) for value in mean[measure]],
            "low": [number(value) for value in low[measure]],
            "high": [number(value) for value in high[measure]],
        }
        for measure in MEASURES
    }


def _harm(table: pd.DataFrame) -> Row | None:
    """The step after which gold reward fell while the KL rose, where that holds for every step looked at, else None."""
    steps = sorted(int(step) for step in table.index.get_level_values("step").unique())
    cells = {step: table.loc[step]["reward"].unstack("prompt_id").to_numpy(float) for step in steps}
    kl = {step: float(table.loc[step]["kl"].mean()) for step in steps}
    if len(steps) < 3 or any(np.isnan(values).any() for values in cells.values()):
        return None
    last = steps[-1]
    peak = max(steps[:-1], key=lambda step: float(cells[step].mean()))
    if peak == 0 or kl[peak] >= kl[last] or cells[peak].shape != cells[last].shape:
        return None
    fall = stats.two_way(cells[peak] - cells[last], confidence=1 - ALPHA / (len(steps) - 1))
    if not fall.low > 0:
        return None
    drop = {"value": number(fall.value), "low": number(fall.low), "high": number(fall.high)}
    return {"step": peak, "last": last, "fall": drop, "kl_at": kl[peak], "kl_last": kl[last]}


def steps_text(found: Mapping[str, Any]) -> tuple[str, ...]:
    """What the curves say about too much training."""
    if not found["curves"]:
        return ()
    if not found["harmed"]:
        return ("No variant lost gold reward for certain while its KL rose.",)
    shown = [
        f"{row['variant']} (−{row['fall']['value']:.2f} from step {row['step']} to {row['last']}, KL "
        f"{row['kl_at']:.1f} to {row['kl_last']:.1f} nats)"
        for row in found["harmed"]
    ]
    return (
        f"Over-optimisation: gold reward fell while the KL went on rising under {listed(shown, 6)}. Fewer steps or a "
        "stronger pull to the reference would have been better; the fall is settled with all steps looked at counted.",
    )
