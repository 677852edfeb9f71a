"""What held-out pairs say after training: margins in every coordinate, calibration, likelihood displacement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as distributions

from prefopt import stats
from prefopt.analysis.policies import as_interval, interval, number
from prefopt.storage.schema import REFERENCE

LOGPS = (
    "logps_chosen", "logps_rejected", "ref_logps_chosen", "ref_logps_rejected", "chosen_len", "rejected_len",
)  # fmt: skip
Row = dict[str, Any]


def heldout_tables(pairs: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """``margins``, ``calibration_table``, ``displacement`` rows and ``calibration`` bins by variant."""
    tables: dict[str, Any] = {"margins": [], "calibration_table": [], "displacement": [], "calibration": {}}
    for name in names:
        own = pairs[(pairs["variant"] == name) & np.isfinite(pairs[list(LOGPS)].astype(float)).all(axis=1)]
        if len(own[["seed", "prompt_id"]].drop_duplicates()) < 2:
            continue  # one cell has a mean but no uncertainty
        margins = stats.margins(*(own[column] for column in LOGPS))
        metrics = stats.pair_metrics(margins.logratio, own["seed"], own["prompt_id"])
        tables["margins"].append(_margins(own, margins, metrics, name))
        tables["calibration_table"].append(
            {
                "variant": name,
                "tau": metrics.tau,
                "calibrated": as_interval(metrics.calibrated_margin),
                "nll": as_interval(metrics.nll),
                "brier": as_interval(metrics.brier),
                "ece": metrics.ece,
            }
        )
        if metrics.tau:
            tables["calibration"][name] = [
                {"predicted": one.confidence, "observed": one.accuracy, "n": one.n} for one in metrics.bins
            ]
        tables["displacement"].append(_displacement(own, name))
    if tables["margins"]:
        tables["margins"].append(_reference_row(pairs))
    return tables


def _mean(values: Any, own: pd.DataFrame, *, share: bool = False) -> dict[str, float | None]:
    cells, _, _ = stats.to_cells(values, own["seed"], own["prompt_id"])
    return as_interval(stats.win_rate(cells)) if share and np.isfinite(cells).sum() > 1 else interval(cells)


def _margins(own: pd.DataFrame, margins: stats.Margins, metrics: stats.PairMetrics, name: str) -> Row:
    reward = (own["reward_chosen"] - own["reward_rejected"]).to_numpy(float)
    known = np.isfinite(reward).all()
    return {
        "variant": name,
        "margin": _mean(margins.logratio, own),
        "own_margin": _mean(reward, own) if known else None,
        "accuracy": as_interval(metrics.accuracy),
        "token_accuracy": _mean(stats.accuracies(margins.logratio_per_token), own, share=True),
        "likelihood_accuracy": _mean(stats.accuracies(margins.likelihood), own, share=True),
        "own_accuracy": _mean(stats.accuracies(reward), own, share=True) if known else None,
        "gold_correlation": _gold_correlation(own, margins.logratio),
    }


def _gold_correlation(own: pd.DataFrame, margin: np.ndarray) -> float | None:
    """Spearman's correlation of margin and gold reward difference, mean over seeds; None without either."""
    gap = (own["gold_chosen"] - own["gold_rejected"]).to_numpy(float)
    correlations = []
    for seed in own["seed"].unique():
        at = (own["seed"] == seed).to_numpy() & np.isfinite(gap)
        if at.sum() > 2 and np.ptp(margin[at]) > 0 and np.ptp(gap[at]) > 0:
            correlations.append(float(distributions.spearmanr(margin[at], gap[at]).statistic))
    return number(np.mean(correlations)) if correlations else None


def _reference_row(pairs: pd.DataFrame) -> Row:
    """How the reference itself ranks the pairs, by likelihood per token: where every run starts."""
    one = pairs.drop_duplicates("pair_id")
    likelihood = one["ref_logps_chosen"] / one["chosen_len"] - one["ref_logps_rejected"] / one["rejected_len"]
    cells, _, _ = stats.to_cells(stats.accuracies(likelihood), np.zeros(len(one)), one["prompt_id"])
    return {
        "variant": REFERENCE,
        "likelihood_accuracy": as_interval(stats.win_rate(cells)) if cells.size > 1 else None,
    }


def _displacement(own: pd.DataFrame, name: str) -> Row:
    chosen = (own["logps_chosen"] - own["ref_logps_chosen"]).to_numpy(float)
    rejected = (own["logps_rejected"] - own["ref_logps_rejected"]).to_numpy(float)
    shifts = stats.displacement(chosen, rejected, own["seed"], own["prompt_id"])
    return {
        "variant": name,
        "chosen": as_interval(shifts.chosen),
        "rejected": as_interval(shifts.rejected),
        "fell": float((chosen < 0).mean()),
        "displaced": as_interval(shifts.share),
    }
