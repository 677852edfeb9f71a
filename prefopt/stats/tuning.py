"""What trials of settings say: best scores against their number, the reward-KL frontier, shares of variance.

Letters: N trials, F losses, R rates, P prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, special

from prefopt.stats.clusters import Array

_CALIBRATION = 20_000  # simulated sets of order statistics behind a band


def expected_best(scores: ArrayLike) -> Array:
    """Expected best score of n of N trials, n = 1 .. N, over all subsets: unbiased for independent trials.

    Args:
        scores: (N,) finite scores, larger is better.

    Returns:
        (N,) sum_i y_(i) C(i - 1, n - 1) / C(N, n) over the ascending order statistics.

    Example:
        >>> expected_best([3.0, 1.0, 2.0]).round(6).tolist()
        [2.0, 2.666667, 3.0]
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(ordered)
    weights = np.array([[comb(i, k - 1) / comb(n, k) for i in range(n)] for k in range(1, n + 1)])
    return np.asarray(weights @ ordered)


def selection_gain(n: int) -> float:
    """How far the best of n equal settings is above their mean by chance alone, in standard deviations of one score.

    Example:
        >>> [round(selection_gain(n), 2) for n in (1, 4, 8, 16)]
        [0.0, 1.03, 1.42, 1.77]
    """

    def integrand(z: float) -> float:
        return float(z * n * special.ndtr(z) ** (n - 1) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi))

    return float(integrate.quad(integrand, -12, 12)[0])


class Band(NamedTuple):
    """A simultaneous band around the median best score of n trials, n = 1 .. N; infinite where nothing bounds it.

    Attributes:
        low: (N,) lower ends.
        high: (N,) upper ends.
    """

    low: Array
    high: Array


def best_band(scores: ArrayLike, *, confidence: float = 0.95) -> Band:
    """A band that holds the median of the best of n trials at every n at once, whatever the distribution of scores.

    The distribution function is bounded at all order statistics at once, by equal-tailed intervals of the uniform
    order statistics whose level is calibrated by simulation; the best of n is below y with probability F(y)^n.

    Args:
        scores: (N,) scores of independent trials. Points of a Sobol sequence lie more evenly than independent ones.
        confidence: Coverage of the whole band.

    Source:
        Lourie, Cho and He 2024, arXiv:2311.09480 (bands by bounds on the distribution function); Learned-Miller and
        DeStefano 2008 (order-statistic intervals).
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(ordered)
    below, above = _uniform_limits(n, confidence)
    padded = np.concatenate([[-np.inf], ordered, [np.inf]])
    # F lies in [below_i, above_(i+1)] between the i-th and the next score.
    lowest, highest = np.concatenate([[0.0], below]), np.concatenate([above, [1.0]])
    quantiles = 0.5 ** (1 / np.arange(1, n + 1))
    low = [padded[int(np.searchsorted(highest, q, side="left"))] for q in quantiles]
    high = [padded[min(int(np.searchsorted(lowest, q, side="left")), n + 1)] for q in quantiles]
    return Band(np.array(low), np.array(high))


@functools.cache
def _uniform_limits(n: int, confidence: float) -> tuple[Array, Array]:
    """(n,) and (n,) limits that n uniform order statistics all keep at once with probability ``confidence``."""
    drawn = np.sort(np.random.default_rng(0).random((_CALIBRATION, n)), axis=1)
    i = np.arange(1, n + 1)
    tails = special.betainc(i, n - i + 1, drawn)
    worst = np.minimum(tails, 1 - tails).min(axis=1)
    level = np.quantile(worst, 1 - confidence)
    return np.asarray(special.betaincinv(i, n - i + 1, level)), np.asarray(special.betaincinv(i, n - i + 1, 1 - level))


def frontier_hull(kl: ArrayLike, reward: ArrayLike, *, start: float) -> tuple[Array, Array]:
    """Corners of the least concave, never falling curve from the reference over all points.

    A mixture of two policies has the mean of their rewards at no more than the mean of their KL, so every point of the
    curve can be had; where a policy with less KL has more reward, it is taken.

    Args:
        kl: (N,) nats, at least 0.
        reward: (N,) mean rewards.
        start: The reference's reward, at a KL of 0.

    Returns:
        KL and reward of the corners, the reference first, both rising.

    Example:
        >>> frontier_hull([1.0, 2.0, 3.0, 4.0], [1.0, 1.2, 2.0, 1.5], start=0.0)
        (array([0., 1., 3.]), array([0., 1., 2.]))
    """
    x = np.concatenate([[0.0], np.asarray(kl, dtype=np.float64)])
    y = np.concatenate([[start], np.asarray(reward, dtype=np.float64)])
    corners: list[tuple[float, float]] = []
    for i in np.lexsort((-y, x)):
        at = (float(x[i]), float(y[i]))
        if corners and at[1] <= max(corner[1] for corner in corners):
            continue
        while corners and (at[0] <= corners[-1][0] or (len(corners) > 1 and _is_under(corners[-2], corners[-1], at))):
            corners.pop()
        corners.append(at)
    found = np.array(corners)
    return found[:, 0], found[:, 1]


def _is_under(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or under the chord from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def mean_gain(kl: ArrayLike, reward: ArrayLike, *, start: float, to: float) -> float:
    """Area between the frontier's hull and the reference's reward from KL 0 to ``to``, over ``to``.

    That is the mean gain in reward over budgets of KL up to ``to``; beyond its last corner the hull is level.

    Example:
        >>> mean_gain([2.0], [1.0], start=0.0, to=4.0)
        0.75
    """
    x, y = frontier_hull(kl, reward, start=start)
    grid = np.unique(np.concatenate([x[x < to], [0.0, to]]))
    heights = np.interp(grid, x, y) - start
    return float(np.sum((heights[1:] + heights[:-1]) / 2 * np.diff(grid)) / to)


class FrontierAreas(NamedTuple):
    """Mean gain of F losses up to one KL, with percentile intervals over prompts.

    Attributes:
        to: The KL, nats: the largest that trials of every loss reach.
        value: (F,) mean gains.
        low: (F,) lower ends.
        high: (F,) upper ends.
        difference: (F, F, 3) row minus column: value, low, high.
    """

    to: float
    value: Array
    low: Array
    high: Array
    difference: Array


def frontier_areas(
    kl: Sequence[Array], reward: Sequence[Array], reference: Array, *, confidence: float = 0.95, resamples: int = 400
) -> FrontierAreas | None:
    """Mean gain of every loss up to the common KL; prompts are resampled for all losses and trials at once.

    Args:
        kl: For each of F losses (N, P): the trials' mean KL on each prompt, nats.
        reward: Likewise, their mean rewards.
        reference: (P,) the reference's.
        confidence: Coverage of the intervals.
        resamples: Of the bootstrap.

    Returns:
        None where some loss has no trial away from the reference.
    """
    to = float(min(np.nanmean(one, axis=1).max() for one in kl))
    if not to > 0:
        return None
    prompts = len(reference)
    draws = np.random.default_rng(0).integers(prompts, size=(resamples, prompts))
    weights = np.stack([np.bincount(draw, minlength=prompts) for draw in draws]) / prompts
    weights = np.concatenate([np.full((1, prompts), 1 / prompts), weights])
    starts = weights @ reference
    gains = np.array(
        [
            [
                mean_gain(x, y, start=float(start), to=to)
                for x, y, start in zip(weights @ k.T, weights @ r.T, starts, strict=True)
            ]
            for k, r in zip(kl, reward, strict=True)
        ]
    )
    ends = [0.5 - confidence / 2, 0.5 + confidence / 2]
    low, high = np.quantile(gains[:, 1:], ends, axis=1)
    apart = gains[:, None] - gains[None]
    between = np.concatenate([apart[..., :1], np.moveaxis(np.quantile(apart[..., 1:], ends, axis=-1), 0, -1)], axis=-1)
    return FrontierAreas(to, gains[:, 0], low, high, between)


class Shares(NamedTuple):
    """Shares of the variance of trial scores: of the loss, of the rate, and of all else."""

    loss: float
    rate: float
    rest: float


def variance_shares(scores: ArrayLike) -> Shares | None:
    """How much of the scores' variance losses and rates explain, each beyond what chance would give it.

    Args:
        scores: (F, R) score of each loss at each rate, NaN where there is none; rates with a gap are left out.

    Returns:
        omega squared of both factors of the additive layout, at least 0, and what is left: other settings, the
        interplay of loss and rate, and noise. None for fewer than two losses or complete rates.

    Example:
        >>> [round(share, 3) for share in variance_shares([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])]
        [0.0, 1.0, 0.0]
    """
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, np.isfinite(table).all(axis=0)]
    losses, rates = table.shape
    if losses < 2 or rates < 2:
        return None
    mean = table.mean()
    total = float(((table - mean) ** 2).sum())
    by_loss = float(rates * ((table.mean(axis=1) - mean) ** 2).sum())
    by_rate = float(losses * ((table.mean(axis=0) - mean) ** 2).sum())
    noise = max(0.0, total - by_loss - by_rate) / ((losses - 1) * (rates - 1))
    if not total > 0:
        return None
    loss, rate = (
        max(0.0, (sum_ - df * noise) / (total + noise)) for sum_, df in ((by_loss, losses - 1), (by_rate, rates - 1))
    )
    return Shares(loss, rate, max(0.0, 1 - loss - rate))
