"""Losses over several comparisons: mean ranks, and the probability that one beats another on a comparison.

Shapes: T comparisons, M losses that are in all of them, S_t seeds of comparison t, R resamples.

Source: Agarwal et al. 2021 (arXiv:2108.13264) and their library rliable, whose tasks are our comparisons and whose runs
    are our seeds. The probability of improvement of X over Y is the mean over tasks of P(x > y) + P(x = y) / 2 for
    independent runs x and y, the Mann-Whitney statistic over the number of pairs (their section 4.3). Intervals are
    percentiles of a bootstrap stratified by task: tasks stay, runs are drawn again within each (their section 4.1).
    Seeds are drawn for all losses together here, since losses share what a seed decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class AcrossTasks:
    """Point estimates and ends of 95 % intervals, NaN where no comparison has more than one seed.

    Attributes:
        rank, rank_low, rank_high: (M,) mean rank over comparisons; 1 is the best, ties share.
        improvement, improvement_low, improvement_high: (M, M) probability that the row's loss beats the column's.
    """

    rank: Array
    rank_low: Array
    rank_high: Array
    improvement: Array
    improvement_low: Array
    improvement_high: Array


def across_tasks(scores: Sequence[Array], *, seed: int = 0, resamples: int = RESAMPLES) -> AcrossTasks:
    """Mean ranks and probabilities of improvement over comparisons.

    Args:
        scores: For each comparison (M, S_t) scores, the higher the better.
        seed: Of the resampling.
        resamples: R.

    Raises:
        ValueError: If there is no comparison, they differ in M, or a score is not finite.

    Example:
        >>> answer = across_tasks([np.array([[0.9, 0.8], [0.5, 0.6]]), np.array([[0.7, 0.7], [0.7, 0.7]])])
        >>> answer.rank.tolist(), float(answer.improvement[0, 1])
        ([1.25, 1.75], 0.75)
    """
    if not scores or len({len(task) for task in scores}) != 1 or not all(np.isfinite(task).all() for task in scores):
        raise ValueError("scores: at least one comparison, the same losses in each, and finite values")
    rng = np.random.default_rng(seed)
    point = [_of_weights(task, np.full((1, task.shape[1]), 1 / task.shape[1])) for task in scores]
    drawn = [_of_weights(task, _resampled(task.shape[1], resamples, rng)) for task in scores]
    rank, improvement = (np.mean([task[k][0] for task in point], axis=0) for k in range(2))
    ranks, improvements = (np.mean([task[k] for task in drawn], axis=0) for k in range(2))  # (R, M), (R, M, M)
    if all(task.shape[1] == 1 for task in scores):
        ranks, improvements = np.full_like(ranks, np.nan), np.full_like(improvements, np.nan)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    rank_ends, improvement_ends = np.quantile(ranks, ends, axis=0), np.quantile(improvements, ends, axis=0)
    return AcrossTasks(rank, rank_ends[0], rank_ends[1], improvement, improvement_ends[0], improvement_ends[1])


def _resampled(seeds: int, resamples: int, rng: np.random.Generator) -> Array:
    """(R, S) shares of each seed in a resample."""
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds


def _of_weights(task: Array, weights: Array) -> tuple[Array, Array]:
    """(R, M) ranks of the mean scores of one comparison, and (R, M, M) probabilities, under (R, S) weights of seeds."""
    means = np.round(weights @ task.T, 12)  # (R, M); rounding keeps sums in another order from breaking ties
    ranks = rankdata(-means, axis=1)
    wins = np.sign(task[:, None, :, None] - task[None, :, None, :]) / 2 + 0.5  # (M, M, S, S)
    return ranks, np.einsum("ri,mnij,rj->rmn", weights, wins, weights, optimize=True)
