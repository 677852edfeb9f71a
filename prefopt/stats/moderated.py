"""Moderated variances: comparisons of one design lend each other certainty about their variances.

No verdict rests on them: they keep the level only as long as no loss varies much more than the others, and a loss near
divergence does (`results/LOG.md`, 2026-11-28).

Letters: G comparisons.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from prefopt.stats.clusters import Array


class Moderated(NamedTuple):
    """Variances after moderation.

    Attributes:
        variance: (G,) (d0 s0^2 + d s^2) / (d0 + d); as they were where there was no variance.
        df: (G,) d0 + d, at most the sum of all degrees of freedom.
        prior_variance: s0^2, fitted.
        prior_df: d0, fitted; infinite where the variances vary no more than chance has them vary.
    """

    variance: Array
    df: Array
    prior_variance: float
    prior_df: float


def moderated(variance: ArrayLike, df: ArrayLike) -> Moderated:
    """Squeeze the variances of G comparisons towards a common one, as far as their own spread says that they agree.

    Args:
        variance: (G,) estimated variances; those that are 0 take no part.
        df: (G,) their degrees of freedom.

    Returns:
        The variances themselves, with a prior of no weight, where fewer than two are above 0.

    Source:
        Smyth 2004, doi:10.2202/1544-6115.1027, section 6.2: moments of log s^2; the cap on the degrees of freedom is
        limma's.

    Example:
        >>> squeezed = moderated([1.0, 1.1, 0.9, 1.0], [4, 4, 4, 4])
        >>> squeezed.prior_df, squeezed.df.tolist()
        (inf, [16.0, 16.0, 16.0, 16.0])
    """
    s2, d = np.asarray(variance, dtype=np.float64), np.asarray(df, dtype=np.float64)
    known = (s2 > 0) & (d > 0)
    if known.sum() < 2:
        return Moderated(s2, d, float("nan"), 0.0)
    half = d[known] / 2
    logs = np.log(s2[known]) - special.digamma(half) + np.log(half)
    excess = float(np.var(logs, ddof=1) - special.polygamma(1, half).mean())
    if excess > 0:
        d0 = 2 * _trigamma_inverse(excess)
        s02 = float(np.exp(logs.mean() + special.digamma(d0 / 2) - np.log(d0 / 2)))
        squeezed = (d0 * s02 + d * s2) / (d0 + d)
    else:
        d0, s02 = float("inf"), float(np.exp(logs.mean()))
        squeezed = np.full_like(s2, s02)
    total = np.minimum(d0 + d, d[known].sum())
    return Moderated(np.where(known, squeezed, s2), np.where(known, total, d), s02, float(d0))


def _trigamma_inverse(value: float) -> float:
    """x with trigamma(x) = value > 0, by Newton's method on 1 / trigamma, which is nearly a line.

    Source:
        Smyth 2004, appendix.

    Example:
        >>> round(_trigamma_inverse(float(special.polygamma(1, 3.0))), 9)
        3.0
    """
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = special.polygamma(1, x)
        step = trigamma * (1 - trigamma / value) / special.polygamma(2, x)
        x += step
        if abs(step) < 1e-12 * x:
            break
    return float(x)
