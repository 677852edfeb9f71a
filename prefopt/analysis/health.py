"""Whether what a trained policy writes is still text: empty answers, distance from the reference, repetition.

A policy that is broken by training can win, lose or tie like any other, and nothing in a win rate shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.analysis.load import Comparison
from prefopt.analysis.policies import NOTHING, interval, number
from prefopt.storage.schema import REFERENCE

EMPTY_ALARM = 0.10  # of the samples, beyond the reference's share
KL_ALARM = 1.0  # nats a token: about as far as a model lies from itself that always takes its likeliest token
REPEATS_ALARM = 1.5  # how many times better the samples of a run compress than the reference's
VARIETY_ALARM = 0.5  # different pairs of tokens, as a share of the reference's
Row = dict[str, Any]


def health(comparison: Comparison, names: Sequence[str]) -> list[Row]:
    """A row for each variant with samples: what was measured, and ``problems`` in words, empty where it is well.

    A run is broken where any one measure is beyond its alarm; ``seeds`` are those of broken runs, and ``brief`` says it
    in a few words, None where no run is.
    """
    empty = _empty_answers(comparison)
    scores = comparison.scores.assign(empty=empty)
    runs = [
        _run_health(comparison, part, name, int(seed)) for (name, seed), part in scores.groupby(["variant", "seed"])
    ]
    by_run = {(run["variant"], run["seed"]): run for run in runs}
    rows = []
    for name in names:
        own = [by_run[name, seed] for seed in comparison.complete_seeds(name) if (name, seed) in by_run]
        if not own:
            continue
        beside = [by_run[REFERENCE, run["seed"]] for run in own if (REFERENCE, run["seed"]) in by_run]
        rows.append(_row(name, own, beside, scores[scores["variant"] == name]))
    return rows


def _empty_answers(comparison: Comparison) -> np.ndarray:
    """(rows of the scores,) whether a sample holds nothing but white space; by its length where there is no text."""
    scores = comparison.scores
    bare: np.ndarray = (scores["finished"].astype(bool) & (scores["n_tokens"] <= 1)).to_numpy()
    if not len(comparison.samples):
        return bare
    keys = ["variant", "seed", "prompt_id", "sample"]
    text = scores[keys].merge(comparison.samples[[*keys, "response"]], on=keys, how="left")["response"]
    return np.where(text.isna(), bare, text.fillna("").str.strip() == "")


def _run_health(comparison: Comparison, own: pd.DataFrame, name: str, seed: int) -> Row:
    """The measures of one run."""
    record = comparison.reference.get(seed) if name == REFERENCE else comparison.runs.get((name, seed))
    diversity: Mapping[str, float] = (record.diversity if record is not None else None) or {}
    tokens = float(own["n_tokens"].sum())
    return {
        "variant": name,
        "seed": seed,
        "empty": float(own["empty"].mean()),
        "kl": number(own["kl"].sum() / tokens) if tokens else None,
        "compression": number(diversity.get("compression")),
        "distinct2": number(diversity.get("distinct2")),
    }


def _row(name: str, own: Sequence[Row], beside: Sequence[Row], samples: pd.DataFrame) -> Row:
    reference = {row["seed"]: row for row in beside}
    measured = [_against(run, reference.get(run["seed"], {})) for run in own]
    broken = [run for run in measured if run["alarms"]]
    cells, _, _ = stats.to_cells(samples["empty"].astype(float), samples["seed"], samples["prompt_id"])
    alarms = list(dict.fromkeys(kind for run in broken for kind in run["alarms"]))
    worst = {kind: max(run["alarms"][kind] for run in broken if kind in run["alarms"]) for kind in alarms}
    return {
        "variant": name,
        "empty": interval(cells, "logit") if cells.size > 1 else {**NOTHING, "value": number(cells.mean())},
        "reference_empty": _mean([row["empty"] for row in beside]),
        "kl_per_token": _mean([run["kl"] for run in measured]),
        "repeats": _mean([run["repeats"] for run in measured]),
        "variety": _mean([run["variety"] for run in measured]),
        "seeds": [run["seed"] for run in broken],
        "all_seeds": len(broken) == len(measured),
        "problems": [_PROBLEMS[kind].format(worst[kind]) for kind in alarms],
        "brief": ", ".join(_BRIEF[kind].format(worst[kind]) for kind in alarms) or None,
    }


def _against(run: Row, reference: Row) -> Row:
    """A run's measures beside the reference's at its seed, and its ``alarms`` with the size of each."""
    repeats = _quotient(run["compression"], reference.get("compression"))
    variety = _quotient(run["distinct2"], reference.get("distinct2"))
    alarms = {}
    if run["empty"] - reference.get("empty", 0.0) >= EMPTY_ALARM:
        alarms["empty"] = 100 * run["empty"]
    if run["kl"] is not None and run["kl"] >= KL_ALARM:
        alarms["far"] = run["kl"]
    if repeats is not None and repeats >= REPEATS_ALARM:
        alarms["repeats"] = repeats
    if variety is not None and variety <= VARIETY_ALARM:
        alarms["few words"] = 100 * (1 - variety)
    return {**run, "repeats": repeats, "variety": variety, "alarms": alarms}


_PROBLEMS = {
    "empty": "{:.0f} % of its answers are empty",
    "far": "it lies {:.1f} nats a token from the reference",
    "repeats": "it repeats itself: its answers compress {:.1f} times as well as the reference's",
    "few words": "it says little that differs: {:.0f} % fewer different pairs of tokens than the reference",
}
_BRIEF = {
    "empty": "{:.0f} % empty",
    "far": "{:.1f} nats/token",
    "repeats": "repeats ({:.1f}x)",
    "few words": "{:.0f} % less varied",
}


def _quotient(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
