"""From estimates to words: multiplicity, the assumption-light second test, and the four verdicts."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from prefopt.stats.clusters import Array
from prefopt.stats.estimates import Estimate

EXACT_SEEDS = 20  # 2^20 sign patterns is still quick; beyond it a seeded sample of patterns stands in


class Verdict(StrEnum):
    """What may be said about a difference."""

    BETTER = "BETTER"
    WORSE = "WORSE"
    EQUIVALENT = "EQUIVALENT"
    INCONCLUSIVE = "INCONCLUSIVE"


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjustment: reject where the result is below alpha, and the family-wise rate is at most alpha.

    Args:
        p_values: (m,) raw p values of one family, in any order.

    Returns:
        (m,) adjusted p values in the same order, each at most 1.

    Raises:
        ValueError: If one is missing or outside [0, 1].

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values must lie in [0, 1]; got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def sign_flip(differences: ArrayLike) -> float:
    """Exact two-sided p value of paired seeds: how often random signs give a sum as far from 0.

    Assumes only that, without a difference, each seed's difference is as likely to have either sign. It ignores that
    other prompts could have been drawn, and with S seeds it cannot fall below 2^(1 - S): six seeds for .05.

    Args:
        differences: (S,) per-seed mean difference (or win rate minus 1/2); NaN for seeds not run.

    Returns:
        The p value; 1 with no or one seed.

    Example:
        >>> sign_flip([0.1, 0.2, 0.05])  # all of one sign: 2 of the 8 ways
        0.25
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[~np.isnan(d)]
    if d.size < 2:
        return 1.0
    observed = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # equal sums in another order differ by rounding
    if d.size > EXACT_SEEDS:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(100_000, d.size))
        # The observed signs are one of the patterns, so that p is never 0 (Phipson and Smyth 2010,
        # doi:10.2202/1544-6115.1585).
        return float(((np.abs(signs @ d) >= observed).sum() + 1) / (len(signs) + 1))
    sums = np.zeros(1)
    for value in d[1:]:  # the first sign is fixed: flipping every sign changes nothing
        sums = np.concatenate([sums - value, sums + value])
    return float((np.abs(sums + d[0]) >= observed).mean())


def smallest_sign_flip(n_seeds: int) -> float:
    """The least p value that ``sign_flip`` can reach with that many seeds.

    Example:
        >>> smallest_sign_flip(5)
        0.0625
    """
    return min(1.0, 2.0 ** (1 - n_seeds))


def verdict(estimate: Estimate, p_adjusted: float, *, delta: float) -> Verdict:
    """The word for a difference from ``estimate.null``.

    BETTER or WORSE where the adjusted p value is below alpha; EQUIVALENT where it is not and the whole interval lies
    within ``delta`` of the null; INCONCLUSIVE otherwise, and always with one seed, whose data say nothing about what
    another training run of the same loss would give.

    Equivalence is judged by the interval that also decides whether there is a difference; two one-sided tests at the
    same level (Schuirmann 1987, doi:10.1007/BF01068419) would ask only for the shorter one of 1 - 2 alpha.

    Args:
        estimate: Of the difference or the win rate.
        p_adjusted: Its p value after the family's adjustment.
        delta: Half-width of the zone of no practical difference, in the estimate's unit, > 0.
    """
    if estimate.conditional:
        return Verdict.INCONCLUSIVE
    if p_adjusted < estimate.alpha:
        return Verdict.BETTER if estimate.value > estimate.null else Verdict.WORSE
    if estimate.low >= estimate.null - delta and estimate.high <= estimate.null + delta:
        return Verdict.EQUIVALENT
    return Verdict.INCONCLUSIVE
