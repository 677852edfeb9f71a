"""The distribution of a two-way clustered mean around the truth, in units of its standard error.

With V = V_seed + V_prompt', where V_prompt' = max(V_prompt - V_rest, 0), the standard error rests on two estimates of
very different quality: S - 1 degrees of freedom for the seeds' part, N - 1 for the prompts'. Given the share
w = V_seed / V, the pivot z = (mean - truth) / sqrt(V) is referred to

    z ~ Normal(0, w (S - 1) / A + (1 - w) (N - 1) / B),     A ~ chi-square(S - 1),  B ~ chi-square(N - 1)

Seeds alone (w = 1) make this Student's t with S - 1 degrees of freedom, prompts alone (w = 0) with N - 1.
Satterthwaite's single t, with degrees of freedom from the estimated shares, agrees at the 5 % level but not in the
tail that a multiplicity adjustment looks at: with three seeds that agree by chance it believes them. In simulated
families of 15 comparisons without a difference, prompts heterogeneous, Holm on its p values called one significant in
10 % (5 seeds) and 20 to 25 % (3 seeds) of families; on these p values in 2 to 5 %.

Source: the mixture is that of Behrens and Fisher, as a generalised p value (Tsui and Weerahandi 1989,
    doi:10.1080/01621459.1989.10478810).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy import stats as distributions

Array = NDArray[np.float64]

# Nodes of the quadrature: a chi-square of few degrees of freedom is far from normal and takes many.
SEED_NODES, PROMPT_NODES, FEW_PROMPTS = 40, 7, 24
SHARES = np.linspace(0.0, 1.0, 65)
EXACT_UNITS = 64  # sizes above this are rounded to a grid of steps of a quarter, which moves no quantile by .3 %
CHUNK = 4096


def two_sided_p(z: ArrayLike, seed_share: ArrayLike, n_seeds: ArrayLike, n_prompts: ArrayLike) -> Array:
    """Chance of a pivot as far from 0 as ``z`` without a difference.

    Args:
        z: (...,) observed pivots.
        seed_share: (...,) w, 0 to 1.
        n_seeds: (...,) S.
        n_prompts: (...,) N; the larger of S and N is at least 2.

    Returns:
        (...,) p values.
    """
    z, share, s, n = np.broadcast_arrays(np.abs(np.asarray(z, dtype=np.float64)), seed_share, n_seeds, n_prompts)
    p = np.empty(z.shape)
    for seeds, prompts in {(int(a), int(b)) for a, b in zip(s.ravel(), n.ravel(), strict=True)}:
        here = (s == seeds) & (n == prompts)
        p[here] = _tail(z[here], share[here], seeds, prompts)
    return p


def critical_value(level: float, seed_share: ArrayLike, n_seeds: ArrayLike, n_prompts: ArrayLike) -> Array:
    """The z at which ``two_sided_p`` is ``level``, of the shape of ``seed_share``."""
    share, s, n = np.broadcast_arrays(np.asarray(seed_share, dtype=np.float64), n_seeds, n_prompts)
    z = np.empty(share.shape)
    for seeds, prompts in {(int(a), int(b)) for a, b in zip(s.ravel(), n.ravel(), strict=True)}:
        here = (s == seeds) & (n == prompts)
        z[here] = np.interp(share[here], SHARES, _critical_table(level, _rounded(seeds), _rounded(prompts)))
    return z


def _rounded(units: int) -> int:
    """The size that stands for ``units``."""
    if units <= EXACT_UNITS:
        return units
    return round(EXACT_UNITS * 1.25 ** round(float(np.log(units / EXACT_UNITS) / np.log(1.25))))


def _tail(z: Array, share: Array, seeds: int, prompts: int) -> Array:
    """(K,) two-sided tails by quadrature over both chi-squares."""
    seeds, prompts = _rounded(seeds), _rounded(prompts)
    if seeds == 1 or prompts == 1:  # one source of variance: Student's t
        return np.asarray(2 * distributions.t.sf(z, max(seeds, prompts) - 1))
    of_seed, of_prompt, weight = _nodes(seeds, prompts)
    p = np.empty(z.shape)
    for start in range(0, len(z), CHUNK):
        part = slice(start, start + CHUNK)
        scale = np.sqrt(share[part, None] * of_seed + (1 - share[part, None]) * of_prompt)  # (K, Q)
        p[part] = 2 * special.ndtr(-z[part, None] / scale) @ weight
    return np.minimum(p, 1.0)  # the weights' sum is 1 but for rounding


@lru_cache(maxsize=1024)
def _nodes(seeds: int, prompts: int) -> tuple[Array, Array, Array]:
    """(Q,) factors (S - 1) / A, (Q,) factors (N - 1) / B, (Q,) weights of the product rule."""
    # E f(A, B) with each chi-square written as a function of a standard normal, which Gauss and Hermite's rule
    # integrates; the weights of one such rule sum to sqrt(2 pi).
    few = prompts < FEW_PROMPTS
    counts = (SEED_NODES, SEED_NODES if few else PROMPT_NODES)
    (x, of_x), (y, of_y) = (np.polynomial.hermite_e.hermegauss(k) for k in counts)
    a, b = (_inverse_chi_square(nodes, units - 1) for nodes, units in ((x, seeds), (y, prompts)))
    weight = np.outer(of_x, of_y).ravel() / (2 * np.pi)
    return np.repeat(a, len(b)), np.tile(b, len(a)), weight


def _inverse_chi_square(x: Array, df: int) -> Array:
    """(K,) df / chi-square at the quantiles that a standard normal has at ``x``, from the nearer tail."""
    quantile = np.where(
        x < 0,
        distributions.chi2.ppf(special.ndtr(np.minimum(x, 0)), df),
        distributions.chi2.isf(special.ndtr(-np.maximum(x, 0)), df),
    )
    return np.asarray(df / quantile)


@lru_cache(maxsize=1024)
def _critical_table(level: float, seeds: int, prompts: int) -> Array:
    """(S,) critical values at SHARES, by bisection in log z between the normal's and the heaviest t's."""
    heaviest = max(1, min(seeds, prompts) - 1) if min(seeds, prompts) > 1 else max(seeds, prompts) - 1
    low = np.full(SHARES.shape, np.log(distributions.norm.isf(level / 2)) - 0.01)
    high = np.full(SHARES.shape, np.log(distributions.t.isf(level / 2, heaviest)) + 0.01)
    for _ in range(26):  # halvings: more digits than the grid of shares is good for
        middle = (low + high) / 2
        above = _tail(np.exp(middle), SHARES, seeds, prompts) > level
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(np.exp(high))
