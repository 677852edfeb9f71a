"""Metrics of held-out preference pairs that mean the same for every loss.

A loss's own reward margin is in its own units. These are not: the same four log-probabilities for every variant, an
accuracy that counts ties half, and a calibrated margin tau * m, the log-odds that the chosen response is preferred,
whose tau is fitted on other prompts than those it is judged on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from prefopt.stats.cells import to_cells
from prefopt.stats.clusters import Array
from prefopt.stats.estimates import Estimate, Scale, two_way

BINS = 15
FOLDS = 5


class Margins(NamedTuple):
    """Chosen minus rejected in three coordinates, each of the inputs' shape.

    Attributes:
        logratio: Of log pi / pi_ref, nats: the implicit reward up to its scale. All 0 before training.
        logratio_per_token: The same, each side divided by its length, nats per token.
        likelihood: Of log pi per token, without the reference: before training, the reference's own ranking.
    """

    logratio: Array
    logratio_per_token: Array
    likelihood: Array


def margins(
    logps_chosen: ArrayLike,
    logps_rejected: ArrayLike,
    ref_logps_chosen: ArrayLike,
    ref_logps_rejected: ArrayLike,
    chosen_len: ArrayLike,
    rejected_len: ArrayLike,
) -> Margins:
    """The three margins from summed log-probabilities (nats) and lengths (tokens, >= 1), all of one shape."""
    win, lose, ref_win, ref_lose, n_win, n_lose = (
        np.asarray(v, dtype=np.float64)
        for v in (logps_chosen, logps_rejected, ref_logps_chosen, ref_logps_rejected, chosen_len, rejected_len)
    )
    of_win, of_lose = win - ref_win, lose - ref_lose
    return Margins(of_win - of_lose, of_win / n_win - of_lose / n_lose, win / n_win - lose / n_lose)


def accuracies(margin: ArrayLike) -> Array:
    """1 where the margin is positive, 1/2 where it is 0, 0 where it is negative; NaN stays.

    Example:
        >>> accuracies([0.3, 0.0, -0.2]).tolist()
        [1.0, 0.5, 0.0]
    """
    m = np.asarray(margin, dtype=np.float64)
    return 0.5 * (np.sign(m) + 1)


class ReliabilityBin(NamedTuple):
    """One bin of the reliability diagram.

    Attributes:
        confidence: Mean predicted probability of the side that the margin favours, 1/2 to 1.
        accuracy: Share of pairs in which that side is the chosen one.
        n: Pairs in the bin.
    """

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class PairMetrics:
    """How well one margin of one variant predicts held-out preferences.

    Attributes:
        accuracy: Share of pairs ranked rightly, ties 1/2, clustered by seed and prompt.
        tau: Log-odds for each unit of margin, mean over folds; 0 where all margins are.
        calibrated_margin: Mean of tau * margin on pairs that tau was not fitted on, log-odds.
        effect_size: Mean margin over its standard deviation; 0 where all are 0.
        nll: Mean -log P(chosen) under the calibrated margin, nats; log 2 knows nothing.
        brier: Mean (1 - P(chosen))^2; 1/4 knows nothing.
        ece: Expected calibration error over 15 bins of equal width on [1/2, 1].
        bins: The occupied bins.
    """

    accuracy: Estimate
    tau: float
    calibrated_margin: Estimate
    effect_size: float
    nll: Estimate
    brier: Estimate
    ece: float
    bins: tuple[ReliabilityBin, ...]


def pair_metrics(margin: ArrayLike, seeds: ArrayLike, prompts: ArrayLike, *, confidence: float = 0.95) -> PairMetrics:
    """Metrics of one margin over held-out pairs.

    Args:
        margin: (R,) chosen minus rejected, any unit.
        seeds: (R,) seed of the row's run.
        prompts: (R,) prompt of the row's pair: the cluster, and what the folds of the calibration are made of.
        confidence: Coverage of the intervals.

    Raises:
        ValueError: If a margin is not finite.
    """
    m, seed_of, prompt_of = np.asarray(margin, dtype=np.float64), np.asarray(seeds), np.asarray(prompts)
    if m.size == 0 or not np.isfinite(m).all():
        raise ValueError("margins must be finite, and at least one; drop diverged runs first")
    calibrated, tau = calibrate(m, prompt_of)
    lost = np.logaddexp(0.0, -calibrated)
    squared = special.expit(-calibrated) ** 2
    bins = reliability(calibrated)
    n = sum(b.n for b in bins)

    def mean(values: Array, null: float = 0.0, scale: Scale = "linear") -> Estimate:
        cells, _, _ = to_cells(values, seed_of, prompt_of)
        return two_way(cells, null=null, confidence=confidence, scale=scale)

    spread = m.std(ddof=1) if m.size > 1 else 0.0
    return PairMetrics(
        accuracy=mean(accuracies(m), null=0.5, scale="logit"),
        tau=tau,
        calibrated_margin=mean(calibrated),
        effect_size=float(m.mean() / spread) if spread > 0 else 0.0,
        nll=mean(lost, null=float(np.log(2)), scale="log"),
        brier=mean(squared, null=0.25, scale="logit"),
        ece=sum(abs(b.confidence - b.accuracy) * b.n for b in bins) / n,
        bins=bins,
    )


def calibrate(margin: ArrayLike, prompts: ArrayLike, *, folds: int = FOLDS) -> tuple[Array, float]:
    """Margins in log-odds, by logistic regression without intercept on the other folds' prompts.

    Without an intercept, because exchanging the two responses must exchange the prediction. That is temperature
    scaling, tau being 1 / temperature (Guo et al. 2017, arXiv:1706.04599, whose calibration error ``ece`` is).

    Args:
        margin: (R,) chosen minus rejected.
        prompts: (R,) labels; a prompt's rows share a fold.
        folds: Number of folds, at most the number of prompts.

    Returns:
        (R,) tau * margin, each tau from the other folds; the mean tau.
    """
    m = np.asarray(margin, dtype=np.float64)
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    count = min(folds, int(group.max()) + 1)
    if count == 1:
        tau = fit_tau(m)
        return tau * m, tau
    # A fixed shuffle: labels in file order may be sorted by something that matters.
    fold = np.random.default_rng(0).permutation(int(group.max()) + 1)[group] % count
    taus = np.array([fit_tau(m[fold != k]) for k in range(count)])
    return taus[fold] * m, float(taus.mean())


def fit_tau(margin: ArrayLike) -> float:
    """The tau that maximises sum log sigmoid(tau * m), under a wide normal prior that keeps it finite.

    Where no margin is negative the likelihood grows for ever; the prior, of deviation 10 for margins of unit size,
    ends that.
    """
    m = np.asarray(margin, dtype=np.float64)
    scale = float(np.sqrt((m**2).mean()))
    if scale == 0:
        return 0.0
    u, tau = m / scale, 0.0
    for _ in range(100):
        p = special.expit(-tau * u)
        gradient, curve = (p * u).sum() - tau / 100, (p * (1 - p) * u * u).sum() + 1 / 100
        # Far from the optimum the curvature vanishes faster than the slope; a bounded step cannot overshoot.
        step = float(np.clip(gradient / curve, -1.0, 1.0))
        tau += step
        if abs(step) < 1e-10:
            break
    return tau / scale


def reliability(log_odds: ArrayLike) -> tuple[ReliabilityBin, ...]:
    """Occupied bins of the reliability diagram: 15 of equal width over confidences from 1/2 to 1.

    Args:
        log_odds: (R,) predicted log-odds that the chosen response is preferred; at 0 a pair counts as half right.
    """
    z = np.asarray(log_odds, dtype=np.float64)
    confidence = special.expit(np.abs(z))
    right = accuracies(z)
    index = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    total = np.stack([np.bincount(index, v, BINS) for v in (confidence, right)], 1)
    return tuple(
        ReliabilityBin(float(total[k, 0] / count[k]), float(total[k, 1] / count[k]), int(count[k]))
        for k in np.flatnonzero(count)
    )


class Displacement(NamedTuple):
    """Likelihood displacement: the margin grew, and yet the chosen response became less likely.

    Attributes:
        share: Of all pairs, those with a positive log-ratio margin whose chosen log-probability fell.
        chosen: Mean change of the chosen log-probability, nats.
        rejected: Mean change of the rejected one, nats.
    """

    share: Estimate
    chosen: Estimate
    rejected: Estimate


def displacement(
    chosen_change: ArrayLike,
    rejected_change: ArrayLike,
    seeds: ArrayLike,
    prompts: ArrayLike,
    *,
    confidence: float = 0.95,
) -> Displacement:
    """Displacement over all held-out pairs.

    Args:
        chosen_change: (R,) log pi - log pi_ref of the chosen response, nats.
        rejected_change: (R,) of the rejected one.
        seeds: (R,) seed of the row's run.
        prompts: (R,) prompt of the row's pair.
        confidence: Coverage of the intervals.

    Source:
        Razin et al. 2024, arXiv:2410.08847.
    """
    win, lose = np.asarray(chosen_change, dtype=np.float64), np.asarray(rejected_change, dtype=np.float64)
    displaced = ((win < 0) & (win > lose)).astype(np.float64)

    def mean(values: Array, null: float = 0.0, scale: Scale = "linear") -> Estimate:
        cells: NDArray[np.float64] = to_cells(values, seeds, prompts)[0]
        return two_way(cells, null=null, confidence=confidence, scale=scale)

    return Displacement(mean(displaced, null=0.5, scale="logit"), mean(win), mean(lose))
