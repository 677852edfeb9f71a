"""From long rows to cells, and means that need more than one table of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.stats.clusters import Array, clustered
from prefopt.stats.estimates import Estimate, estimates_of


def to_cells(
    values: ArrayLike, seeds: ArrayLike, prompts: ArrayLike, *, weights: ArrayLike | None = None
) -> tuple[Array, NDArray[np.generic], NDArray[np.generic]]:
    """Long rows to a table of cell means.

    Args:
        values: (R,) one number for each row; NaN rows are left out.
        seeds: (R,) labels.
        prompts: (R,) labels of prompts, or of whatever the cluster is.
        weights: (R,) how much a row counts in its cell, by default 1.

    Returns:
        (S, N) means with NaN where there is no row, (S,) sorted seed labels, (N,) sorted prompt labels.
    """
    values = np.asarray(values, dtype=np.float64)
    seed_labels, row = np.unique(np.asarray(seeds), return_inverse=True)
    prompt_labels, column = np.unique(np.asarray(prompts), return_inverse=True)
    weight = np.where(np.isnan(values), 0.0, 1.0 if weights is None else np.asarray(weights, dtype=np.float64))
    shape = (len(seed_labels), len(prompt_labels))
    flat = row * shape[1] + column
    total = np.bincount(flat, weight * np.nan_to_num(values), shape[0] * shape[1])
    count = np.bincount(flat, weight, shape[0] * shape[1])
    means = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means.reshape(shape), seed_labels, prompt_labels


def ratio(numerator: ArrayLike, denominator: ArrayLike, *, null: float = 1.0, confidence: float = 0.95) -> Estimate:
    """A ratio of two positive means, such as nats for each token, two-way clustered by linearisation of its logarithm.

    The error of the ratio is, to first order, that of the mean of (numerator - ratio * denominator) over the
    denominator's mean, which is a mean over cells like any other (Cochran 1977, Sampling Techniques, chapter 6).

    Args:
        numerator: (S, N) cells.
        denominator: (S, N) cells, of positive mean; missing where the numerator is.
        null: The value under no difference, above 0.
        confidence: Coverage of the interval, which lies above 0.

    Raises:
        ValueError: If the denominator's mean is not positive.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    there = ~(np.isnan(top) | np.isnan(bottom))
    scale = bottom[there].mean() if there.any() else 0.0
    if scale <= 0:
        raise ValueError(f"the denominator must have a positive mean; got {scale}")
    value = top[there].mean() / scale
    linear = np.where(there, value + (top - value * bottom) / scale, np.nan)
    return estimates_of(clustered(linear[None]), null=null, confidence=confidence, scale="log")[0]


def worst_case(score: ArrayLike, n: ArrayLike, invalid: ArrayLike) -> tuple[Array, Array]:
    """Cell win rates if every unusable verdict had been a loss, and if every one had been a win.

    Args:
        score: Mean over the usable comparisons of a cell, anything where there is none.
        n: Usable comparisons, of the same shape.
        invalid: Unusable ones.

    Returns:
        Two arrays of that shape, NaN where there was no comparison at all.

    Example:
        >>> lost, won = worst_case([0.5], [4], [1])  # four usable verdicts, one that is not
        >>> lost.tolist(), won.tolist()
        ([0.4], [0.6])
    """
    n, invalid = np.asarray(n, dtype=np.float64), np.asarray(invalid, dtype=np.float64)
    wins = np.where(n > 0, np.nan_to_num(np.asarray(score, dtype=np.float64)) * n, 0.0)
    total = n + invalid
    out = np.full(total.shape, np.nan)
    return (
        np.divide(wins, total, out=out.copy(), where=total > 0),
        np.divide(wins + invalid, total, out=out.copy(), where=total > 0),
    )
