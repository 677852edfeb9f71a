"""Means over (seed, prompt) cells with interval and test: the primary estimate of every comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from prefopt.stats.clusters import Array, Spread, TwoWay, clustered

# Where intervals are made: as the numbers are, of positive numbers in their logarithm, of shares in their log-odds.
Scale = Literal["linear", "log", "logit"]


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: The point estimate, in the unit of the data (win rates are shares, 0 to 1).
        low: Lower end of the two-sided interval at ``confidence``.
        high: Upper end.
        se: Standard error of ``value``, on the scale of ``value``.
        df: Satterthwaite's degrees of freedom of ``se``.
        p: Two-sided p value against ``null``, not adjusted for multiplicity.
        null: The value under no difference.
        confidence: Coverage that the interval aims at.
        seed_share: Share of the variance that is due to the seeds, 0 to 1; the quantiles depend on it.
        n_seeds: Seeds with at least one cell.
        n_prompts: Prompts (clusters) with at least one cell.
        n: Cells with a value.
        conditional: One seed only: interval and p value speak about this one trained policy, not about the loss.
    """

    value: float
    low: float
    high: float
    se: float
    df: float
    p: float
    null: float
    confidence: float
    seed_share: float
    n_seeds: int
    n_prompts: int
    n: int
    conditional: bool

    @property
    def alpha(self) -> float:
        """Error rate that the interval leaves, 1 - confidence."""
        return Spread.level(self.confidence)

    def complement(self) -> Estimate:
        """The same win rate seen from the other side: 1 - value, with ends exchanged."""
        return replace(self, value=1 - self.value, low=1 - self.high, high=1 - self.low, null=1 - self.null)

    def shifted(self, by: float, *, scale: float = 1.0) -> Estimate:
        """The estimate of ``scale * value + by`` (``scale`` > 0), for example in points or against another zero."""
        moved = {name: scale * getattr(self, name) + by for name in ("value", "low", "high", "null")}
        return replace(self, se=scale * self.se, **moved)


class Components(NamedTuple):
    """Variances of a cell's value, by the method of moments; each at least 0.

    Attributes:
        seed: Of the seed's effect: how much a retrained policy differs on average over prompts.
        prompt: Of the prompt's effect: how much the difference depends on the prompt, whatever the seed.
        rest: Of what remains in one cell: sampling noise and the interaction.
    """

    seed: float
    prompt: float
    rest: float

    @classmethod
    def assumed(cls, *, seed_sd: float = 0.025, prompt_sd: float = 0.15, cell_sd: float = 0.5) -> Components:
        """Components of a win rate before there are data.

        Args:
            seed_sd: Standard deviation of the win rate over seeds; 0.025 is 2.5 points.
            prompt_sd: Standard deviation over prompts of a prompt's own win rate.
            cell_sd: Standard deviation of one judgement in all, prompt's effect included; 0.5 for win or loss,
                less with ties or several samples for each prompt.

        Raises:
            ValueError: If one is negative, or ``prompt_sd`` exceeds ``cell_sd``.
        """
        if min(seed_sd, prompt_sd, cell_sd) < 0 or prompt_sd > cell_sd:
            raise ValueError(f"need 0 <= prompt_sd <= cell_sd and seed_sd >= 0; got {prompt_sd}, {cell_sd}, {seed_sd}")
        return cls(seed_sd**2, prompt_sd**2, cell_sd**2 - prompt_sd**2)


def two_way(y: ArrayLike, *, null: float = 0.0, confidence: float = 0.95, scale: Scale = "linear") -> Estimate:
    """The mean of (seed, prompt) cells, clustered by both, with interval and test.

    Args:
        y: (S, N) cell means, for example a difference of rewards, or a win rate with ties as 1/2; NaN where missing.
        null: The value under no difference, which ``p`` is against.
        confidence: Coverage of the interval.
        scale: ``logit`` for cells in [0, 1]: interval and test work on the log-odds of the mean, so that the interval
            stays inside and the two always agree. At .5 this equals the plain interval, and hardly differs from .3 to
            .7. ``log`` for cells of at least 0, such as nats of divergence: they work on the logarithm of the mean.

    Returns:
        The estimate. Equal cells give the interval [value, value] and p = 1 where they equal ``null``; where they do
        not, every prompt agrees, so p is the sign test's 2^(1 - N) and a share's interval Clopper and Pearson's.

    Raises:
        ValueError: If there are fewer than two cells, or one lies outside of what the scale is for.
    """
    return many_two_way(np.asarray(y, dtype=np.float64)[None], null=null, confidence=confidence, scale=scale)[0]


def win_rate(y: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """``two_way`` for win rates: cells in [0, 1], null 1/2, interval on the log-odds scale.

    Example:
        >>> import numpy as np
        >>> wins = np.array([[1.0, 0.5, 1.0], [1.0, 0.0, 1.0]])  # two seeds, three prompts
        >>> round(win_rate(wins).value, 2)
        0.75
    """
    return two_way(y, null=0.5, confidence=confidence, scale="logit")


def many_two_way(
    y: ArrayLike, *, null: float = 0.0, confidence: float = 0.95, scale: Scale = "linear"
) -> tuple[Estimate, ...]:
    """``two_way`` of P tables (P, S, N) in one pass."""
    y = np.asarray(y, dtype=np.float64)
    outside = y[(y < 0) | (y > 1)] if scale == "logit" else y[y < 0]
    if scale != "linear" and outside.size:
        raise ValueError(f"{'shares must lie in [0, 1]' if scale == 'logit' else 'need 0 or more'}; got {outside[0]}")
    return estimates_of(clustered(y), null=null, confidence=confidence, scale=scale)


def estimates_of(parts: TwoWay, *, null: float, confidence: float, scale: Scale) -> tuple[Estimate, ...]:
    """The estimates of P tables from their means and parts of variance, all (P,); arguments as for ``two_way``."""
    if (parts.n < 2).any():
        raise ValueError("one cell has no standard error; evaluate at least two prompts or two seeds")
    spread = parts.spread
    low, high, p = interval_and_p(parts.mean, spread, null=null, confidence=confidence, scale=scale)
    se = np.sqrt(spread.variance)
    return tuple(
        Estimate(
            value=float(parts.mean[k]),
            low=float(low[k]),
            high=float(high[k]),
            se=float(se[k]),
            df=float(spread.df[k]),
            p=float(p[k]),
            null=null,
            confidence=confidence,
            seed_share=float(spread.seed_share[k]),
            n_seeds=int(parts.n_seeds[k]),
            n_prompts=int(parts.n_prompts[k]),
            n=int(parts.n[k]),
            conditional=bool(parts.n_seeds[k] == 1),
        )
        for k in range(len(parts.n))
    )


def interval_and_p(
    mean: ArrayLike, spread: Spread, *, null: float, confidence: float, scale: Scale
) -> tuple[Array, Array, Array]:
    """Ends of the interval and the two-sided p value.

    Args:
        mean: (...,) estimates.
        spread: Of the estimates, of the same shape.
        null: Value under no difference; 0 is never reached on the log scale, where p is then 0.
        confidence: Coverage.
        scale: Where they are made; the ends lie in [0, 1] for ``logit`` and above 0 for ``log``.

    Returns:
        (...,) low, (...,) high, (...,) p.
    """
    mean, units = np.asarray(mean, dtype=np.float64), spread.n_prompts
    certain = spread.variance <= 0
    # On another scale a standard error is that of the mean times the slope there (the delta method).
    onto, back, slope_at = _SCALES[scale]
    inside = np.where(certain | (mean <= 0) | (mean >= (1 if scale == "logit" else np.inf)), 0.5, mean)
    inside = mean if scale == "linear" else inside
    with np.errstate(divide="ignore"):
        zero = onto(np.asarray(null, dtype=np.float64))
    se = np.where(certain, 1.0, np.sqrt(spread.variance)) * slope_at(inside)
    centre, reach = onto(inside), spread.critical(confidence) * se
    low, high = (np.where(certain, mean, back(end)) for end in (centre - reach, centre + reach))
    if scale == "logit":  # all won or all lost: the interval of Clopper and Pearson 1934 (Biometrika 26, 404)
        edge = Spread.level(confidence) / 2
        low = np.where(certain & (mean >= 1), edge ** (1 / units), low)
        high = np.where(certain & (mean <= 0), 1 - edge ** (1 / units), high)
    agree = np.where(np.isclose(mean, null, rtol=0, atol=1e-12), 1.0, np.minimum(1.0, 2.0 ** (1 - units)))
    return low, high, np.where(certain, agree, spread.p((centre - zero) / se))


# The way onto a scale, the way back, and the slope of the first.
_SCALES: Mapping[str, tuple[Callable[[Array], Array], Callable[[Array], Array], Callable[[Array], Array]]] = {
    "linear": (np.asarray, np.asarray, np.ones_like),
    "log": (np.log, np.exp, np.reciprocal),
    "logit": (special.logit, special.expit, lambda share: np.asarray(1 / (share * (1 - share)))),
}


def variance_components(y: ArrayLike) -> Components:
    """Variances of seed, prompt and rest from one table, by the method of moments, cut off at 0.

    With one seed the seed's variance cannot be told and is returned as 0; with missing cells it is approximate.

    Args:
        y: (S, N) cell means, NaN where missing.
    """
    parts = clustered(y)
    s, n, cells = int(parts.n_seeds), int(parts.n_prompts), int(parts.n)
    if s == 1:
        # One row: prompt and rest cannot be told apart, and adding prompts helps against both.
        return Components(0.0, 0.0, float(parts.v_prompt) * cells)
    # S E[V_seed] = seed + rest / N, and N E[V_prompt] = prompt + rest / S: the part of the rest is taken off.
    rest = float(parts.v_rest) * cells if n > 1 else 0.0
    seed = max(float(parts.v_seed) * s - rest * s / cells, 0.0)
    prompt = max(float(parts.v_prompt) * n - rest * n / cells, 0.0) if n > 1 else 0.0
    return Components(seed, prompt, rest)
