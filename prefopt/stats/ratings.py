"""Bradley-Terry ratings of all variants from all their comparisons, with intervals and ranges of ranks.

    P(a beats b) = 1 / (1 + exp(theta_b - theta_a)),     Elo = 400 / ln 10 * theta

Ties count half a win each. A small prior (``alpha``) keeps ratings finite when one variant never loses; plain
maximum likelihood has no answer there, and some tools then print equal ratings.
"""

from __future__ import annotations

from dataclasses import dataclass

import choix
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from prefopt.stats.bootstrap import two_way_bootstrap
from prefopt.stats.clusters import Array

ELO_PER_LOGIT = 400 / np.log(10)
ALPHA = 0.01


@dataclass(frozen=True)
class Ratings:
    """Ratings of K items, in Elo points above the anchor, whose rating is 0, in the order given.

    Attributes:
        names: The items.
        value: (K,) ratings.
        low: (K,) lower interval ends; the anchor's interval is its value.
        high: (K,) upper ends.
        rank_low: (K,) best rank that the intervals of the differences allow, 1 is the top.
        rank_high: (K,) worst such rank.
        predicted: (K, K) win rates of row against column that the ratings imply.
        observed: (K, K) win rates seen, NaN where two never met.
    """

    names: tuple[str, ...]
    value: Array
    low: Array
    high: Array
    rank_low: NDArray[np.int64]
    rank_high: NDArray[np.int64]
    predicted: Array
    observed: Array

    @property
    def misfit(self) -> float:
        """Largest |observed - predicted| win rate: how far the comparisons are from one common scale."""
        gap = np.abs(self.observed - self.predicted)
        return float(np.nanmax(gap)) if np.isfinite(gap).any() else 0.0


def fit_bradley_terry(wins: ArrayLike, *, alpha: float = ALPHA, start: Array | None = None) -> Array:
    """Ratings in log-odds, of mean 0, from a count matrix.

    Args:
        wins: (K, K) how often the row's item beat the column's, ties as 1/2 in both places.
        alpha: Prior strength (transition rate added between all items).
        start: (K,) ratings to start from.

    Returns:
        (K,) ratings.

    Source:
        Iterative Luce spectral ranking, Maystre and Grossglauser 2015, as in choix.
    """
    return np.asarray(choix.ilsr_pairwise_dense(np.asarray(wins, dtype=np.float64), alpha, start, 1000, 1e-8))


def bradley_terry(
    score: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    names: tuple[str, ...],
    *,
    anchor: str,
    confidence: float = 0.95,
    resamples: int = 300,
    seed: int = 0,
) -> Ratings:
    """Ratings from the (seed, prompt) cells of every pair that was compared.

    Args:
        score: (P, S, N) share of wins of ``a`` over ``b`` in the cell, ties as 1/2; NaN where missing.
        a: (P,) index into ``names``.
        b: (P,) index into ``names``.
        names: The K items.
        anchor: The item whose rating is 0.
        confidence: Coverage of the intervals.
        resamples: Refits for each of the three bootstraps (seeds, prompts, cells; shared by all pairs).
        seed: Of the bootstrap.

    Returns:
        The ratings. Ranks: an item is surely below another where the interval of their difference excludes 0, at a
        confidence corrected for the number of pairs, so that all ranks hold together.

    Raises:
        ValueError: If an item was never compared, or the comparisons fall into unconnected groups.
    """
    score = np.asarray(score, dtype=np.float64)
    rows, columns = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    k, there = len(names), ~np.isnan(score)
    filled = np.where(there, score, 0.0)
    flat = (filled.reshape(len(rows), -1), there.reshape(len(rows), -1).astype(np.float64))

    def matrices(weights: Array) -> Array:
        """(R, K, K) counts of wins under each of (R, S, N) weights."""
        won, met = (weights.reshape(len(weights), -1) @ part.T for part in flat)  # (R, P) each
        wins = won @ np.eye(k * k)[rows * k + columns] + (met - won) @ np.eye(k * k)[columns * k + rows]
        return np.asarray(wins.reshape(-1, k, k))

    wins = matrices(np.ones((1, *score.shape[1:])))[0]
    _check_connected(wins, names)
    theta = fit_bradley_terry(wins)
    first, second = np.triu_indices(k, 1)

    def differences(weights: Array) -> Array:
        fitted = np.array([fit_bradley_terry(m, start=theta) for m in matrices(weights)])
        return np.asarray(fitted[:, first] - fitted[:, second])

    spread = two_way_bootstrap(differences, there.any(0), resamples=resamples, seed=seed)
    half, sure = np.zeros((2, k, k))
    half[first, second] = spread.critical(confidence) * np.sqrt(spread.variance)
    # Ranks from simultaneous intervals of differences: Mogstad, Romano, Shaikh and Wilhelm 2024, Review of Economic
    # Studies 91(1), 476-518; here with Bonferroni's correction.
    sure[first, second] = spread.critical(1 - (1 - confidence) / len(first)) * np.sqrt(spread.variance)
    half, sure = half + half.T, sure + sure.T
    lead = theta[:, None] - theta[None, :]  # (K, K) row above column, log-odds
    zero = names.index(anchor)
    value = ELO_PER_LOGIT * lead[:, zero]
    reach = ELO_PER_LOGIT * half[:, zero]
    met = wins + wins.T
    observed = np.divide(wins, met, out=np.full((k, k), np.nan), where=met > 0)
    return Ratings(
        names,
        value,
        value - reach,
        value + reach,
        1 + (lead < -sure).sum(1),
        k - (lead > sure).sum(1),
        special.expit(lead),
        observed,
    )


def _check_connected(wins: Array, names: tuple[str, ...]) -> None:
    """Ratings of items that no chain of comparisons joins have no common scale."""
    reached = np.zeros(len(names), dtype=bool)
    reached[0] = True
    for _ in names:
        reached |= ((wins + wins.T)[reached] > 0).any(0)
    if not reached.all():
        apart = ", ".join(name for name, ok in zip(names, reached, strict=True) if not ok)
        raise ValueError(f"no chain of comparisons joins {names[0]} with {apart}; compare them, or rate them apart")
