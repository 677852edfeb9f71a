"""The variance of a mean over (seed, prompt) cells, clustered by both.

A policy trained once and asked 256 questions is one draw of a trained policy, not 256. Both the seeds and the
prompts are samples from something larger, so both are clusters. With cell means y of shape (S, N), mean squares
MS_seed, MS_prompt, MS_rest of the two-way layout, and n = S N:

    V_seed = MS_seed / n = var_s(mean_i y) / S        V_prompt = MS_prompt / n        V_rest = MS_rest / n
    V  = V_seed + max(V_prompt - V_rest, 0), and at least a tenth of V_prompt and of V_rest
    df = V^2 / (V_seed^2 / (S - 1) + V_prompt^2 / (N - 1) + V_rest^2 / ((S - 1) (N - 1)))       (Satterthwaite)
    z  = (mean - null) / sqrt(V)

Var(mean) has this expectation under additive random effects of seed and prompt. The quantiles of z are those of
``pivot``: Student's t with S - 1 degrees of freedom where the seeds make up V, with N - 1 where the prompts do. The
Satterthwaite df are reported as the size of the evidence in one number. In simulated A/A comparisons at the 5 % level
(200 prompts; seed deviation 0 to 5 points; prompt deviation 0 to 20 points; 3, 5, 8 seeds) the rate of false positives
is .03 to .05. A pooled z-test over the S N judgements reaches .25.

Source: the variance is the two-way clustering of Cameron, Gelbach and Miller 2011 (doi:10.1198/jbes.2010.07136),
    with the interaction taken from the residual mean square; the degrees of freedom are Satterthwaite 1946.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.stats.pivot import critical_value, two_sided_p

Array = NDArray[np.float64]

# Win rates of few prompts come in steps, so that all seeds can have exactly the same one by chance, which would leave
# no variance at all. Of V_prompt and V_rest.
FLOOR = 0.1


class TwoWay(NamedTuple):
    """Arrays of shape (...,) from data of shape (..., S, N); the letters of the module's formulas."""

    mean: Array
    v_seed: Array
    v_prompt: Array
    v_rest: Array
    n_seeds: NDArray[np.int64]
    n_prompts: NDArray[np.int64]
    n: NDArray[np.int64]

    @property
    def spread(self) -> Spread:
        """(...,) variance of the mean, its degrees of freedom, and the seeds' share."""
        return combine_variance(self.v_seed, self.v_prompt, self.v_rest, self.n_seeds, self.n_prompts)


class Spread(NamedTuple):
    """How uncertain an estimate is.

    Attributes:
        variance: (...,) V.
        df: (...,) Satterthwaite's degrees of freedom.
        seed_share: (...,) share of V due to the seeds.
        n_seeds: (...,) S.
        n_prompts: (...,) N.
    """

    variance: Array
    df: Array
    seed_share: Array
    n_seeds: NDArray[np.int64]
    n_prompts: NDArray[np.int64]

    def critical(self, confidence: float) -> Array:
        """(...,) half-width of the two-sided interval in standard errors."""
        return critical_value(self.level(confidence), self.seed_share, self.n_seeds, self.n_prompts)

    def p(self, z: ArrayLike) -> Array:
        """(...,) two-sided p value of an estimate ``z`` standard errors from the null."""
        return two_sided_p(z, self.seed_share, self.n_seeds, self.n_prompts)

    @staticmethod
    def level(confidence: float) -> float:
        """1 - confidence, without the rounding error that makes 1 - 0.95 a little more than 0.05."""
        return round(1.0 - confidence, 12)


def combine_variance(
    v_seed: ArrayLike, v_prompt: ArrayLike, v_rest: ArrayLike, n_seeds: ArrayLike, n_prompts: ArrayLike
) -> Spread:
    """Variance of a two-way clustered mean from its three parts.

    Where there is one seed only the prompts count, where there is one prompt only the seeds do.

    Args:
        v_seed: (...,) variance of the mean from clustering by seed alone.
        v_prompt: (...,) from clustering by prompt alone.
        v_rest: (...,) from the residual mean square.
        n_seeds: (...,) S.
        n_prompts: (...,) N.
    """
    vs, vp, vr, s, n = np.broadcast_arrays(
        *(np.asarray(v, dtype=np.float64) for v in (v_seed, v_prompt, v_rest, n_seeds, n_prompts))
    )
    vs, vp = np.where(s > 1, vs, 0.0), np.where(n > 1, vp, 0.0)
    vr = np.where((s > 1) & (n > 1), vr, 0.0)
    of_prompts = np.maximum(vp - vr, 0.0)
    variance = np.maximum(vs + of_prompts, FLOOR * np.maximum(vp, vr))
    noise = vs**2 / np.maximum(s - 1, 1) + vp**2 / np.maximum(n - 1, 1) + vr**2 / np.maximum((s - 1) * (n - 1), 1)
    # No combination has fewer degrees of freedom than its weakest part; a negative V_prompt - V_rest only looks so.
    weakest = np.where(s > 1, np.where(n > 1, np.minimum(s, n), s), n) - 1
    df = np.divide(variance**2, noise, out=np.array(np.maximum(s, n) - 1), where=noise > 0)
    share = np.divide(variance - of_prompts, variance, out=np.where(s > 1, 1.0, 0.0), where=variance > 0)
    sizes = (s.astype(np.int64), n.astype(np.int64))
    return Spread(variance, np.clip(df, np.maximum(weakest, 1), np.maximum(s * n - 1, 1)), share, *sizes)


def clustered(y: ArrayLike) -> TwoWay:
    """Mean and variance parts of cells, for many tables at once.

    Missing cells are allowed: the mean is over the cells there are, cluster sums take the place of cluster means, and
    the residuals come from an additive fit. With all cells present this is the analysis of variance.

    Args:
        y: (..., S, N) cell means, NaN where missing.

    Raises:
        ValueError: If a table has no cell at all, or an infinite one.
    """
    y = np.asarray(y, dtype=np.float64)
    if y.ndim < 2:
        raise ValueError(f"y must have the shape (..., seeds, prompts); got {y.shape}")
    there = ~np.isnan(y)
    n = there.sum((-2, -1))
    if y.size == 0 or not n.all():
        raise ValueError("a table without a single cell has no mean; drop the pair that was never compared")
    filled = np.where(there, y, 0.0)
    if not np.isfinite(filled).all():
        raise ValueError("cells must be finite or missing (NaN); got an infinity")
    mean = filled.sum((-2, -1)) / n
    error = np.where(there, filled - mean[..., None, None], 0.0)
    # Rounding in the mean of equal numbers must not look like variance.
    error[np.abs(error) <= 1e-14 * np.abs(mean)[..., None, None]] = 0.0
    seeds, prompts = there.any(-1).sum(-1), there.any(-2).sum(-1)
    # Sums of each cluster's deviations, squared, with the correction G / (G - 1) for G clusters.
    v_seed = (error.sum(-1) ** 2).sum(-1) / n**2 * seeds / np.maximum(seeds - 1, 1)
    v_prompt = (error.sum(-2) ** 2).sum(-1) / n**2 * prompts / np.maximum(prompts - 1, 1)
    free = np.maximum(n - seeds - prompts + 1, 1)
    v_rest = (_residuals(error, there) ** 2).sum((-2, -1)) / free / n
    return TwoWay(mean, v_seed, v_prompt, v_rest, seeds, prompts, n)


def _residuals(error: Array, there: NDArray[np.bool_]) -> Array:
    """(..., S, N) what an additive model of seed and prompt leaves; exact in one pass where no cell is missing."""
    in_row = np.maximum(there.sum(-1, keepdims=True), 1)
    in_column = np.maximum(there.sum(-2, keepdims=True), 1)
    rest = error
    for _ in range(1 if there.all() else 30):  # alternating projections: the gaps here are few, so they converge fast
        rest = np.where(there, rest - rest.sum(-1, keepdims=True) / in_row, 0.0)
        rest = np.where(there, rest - rest.sum(-2, keepdims=True) / in_column, 0.0)
    return rest
