"""What a comparison of given size can see: power, minimum detectable effect, seeds and prompts needed.

The test is ``estimates.two_way``. Under additive normal effects its mean squares are independent scaled chi-squares
and the mean is normal and independent of them, so its power needs no simulated data: a few thousand draws of the
mean squares, and the normal distribution for the rest.

Source: the distribution of mean squares in balanced layouts is textbook matter (Searle, Casella and McCulloch 1992,
    Variance Components, chapter 4).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from prefopt.stats.clusters import Array, combine_variance
from prefopt.stats.estimates import Components

DRAWS = 2000
MOST_SEEDS = 200
MOST_PROMPTS = 100_000


class Thresholds(NamedTuple):
    """Draws of the smallest |mean| that the test would call significant, and the true spread of the mean."""

    needed: Array
    sd: float


@lru_cache(maxsize=1024)
def _mean_squares(df: int, stream: int) -> Array:
    """(DRAWS,) draws of chi-square / df: the same quantiles at every size, so that results are smooth in the size."""
    order = np.random.default_rng(stream).permutation(DRAWS)  # another order for each of the three: independent
    quantiles: Array = distributions.chi2.ppf((np.arange(DRAWS) + 0.5) / DRAWS, df) / df
    return quantiles[order]


def _thresholds(components: Components, seeds: int, prompts: int, alpha: float) -> Thresholds:
    """(DRAWS,) critical half-widths of the two-way test, from a fixed stream of chi-squares."""
    if seeds < 1 or prompts < 2:
        raise ValueError(f"need at least 1 seed and 2 prompts; got {seeds} and {prompts}")
    n = seeds * prompts
    squares = (
        (prompts * components.seed + components.rest) / n * _mean_squares(max(seeds - 1, 1), 0),
        (seeds * components.prompt + components.rest) / n * _mean_squares(prompts - 1, 1),
        components.rest / n * _mean_squares(max((seeds - 1) * (prompts - 1), 1), 2),
    )
    spread = combine_variance(*squares, seeds, prompts)
    sd = np.sqrt(components.seed / seeds + components.prompt / prompts + components.rest / n)
    if seeds == 1:  # conditional on the one run: its seed effect is part of what is tested
        sd = np.sqrt((components.prompt + components.rest) / prompts)
    return Thresholds(spread.critical(1 - alpha) * np.sqrt(spread.variance), float(sd))


def power(effect: ArrayLike, components: Components, *, seeds: int, prompts: int, alpha: float = 0.05) -> float | Array:
    """Chance that the two-way test finds a true difference.

    Args:
        effect: True distance from the null, in the unit of the data (win rate .55 against .5: .05).
        components: Variances, measured (``variance_components``) or assumed (``Components.assumed``).
        seeds: Seeds of the comparison.
        prompts: Evaluation prompts.
        alpha: Two-sided error rate; divide by the number of comparisons for a Bonferroni-safe answer.

    Returns:
        The power, in the shape of ``effect``; a float for a scalar.
    """
    return _power(np.asarray(effect, dtype=np.float64), _thresholds(components, seeds, prompts, alpha))


def _power(effect: Array, at: Thresholds) -> float | Array:
    if at.sd == 0:
        chance = (np.abs(effect) > 0).astype(np.float64)
    else:
        above = distributions.norm.sf((at.needed - effect[..., None]) / at.sd)
        below = distributions.norm.cdf((-at.needed - effect[..., None]) / at.sd)
        chance = (above + below).mean(-1)
    return float(chance) if chance.ndim == 0 else chance


def minimum_detectable_effect(
    components: Components, *, seeds: int, prompts: int, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest true difference that the test finds with the given power, in the unit of the data."""
    at = _thresholds(components, seeds, prompts, alpha)
    if at.sd == 0:
        return 0.0
    low, high = 0.0, float(at.needed.max() + 10 * at.sd)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(np.asarray(middle), at) < power else (low, middle)
    return high


def seeds_needed(
    effect: float, components: Components, *, prompts: int, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Fewest seeds (at least 2) that find ``effect`` with the given power; None beyond 200.

    Example:
        >>> from prefopt.stats.estimates import Components
        >>> few_prompts = Components.assumed(seed_sd=0.02, prompt_sd=0.1, cell_sd=0.4)
        >>> seeds_needed(0.05, few_prompts, prompts=256)
        6
    """

    def enough(seeds: int) -> bool:
        return float(_power(np.asarray(effect), _thresholds(components, seeds, prompts, alpha))) >= power

    return _first(enough, 2, MOST_SEEDS) if effect else None


def prompts_needed(
    effect: float, components: Components, *, seeds: int, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Fewest prompts that find ``effect`` with the given power; None where no number up to 100 000 does."""

    def enough(prompts: int) -> bool:
        return float(_power(np.asarray(effect), _thresholds(components, seeds, prompts, alpha))) >= power

    return _first(enough, 2, MOST_PROMPTS) if effect else None


def _first(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Smallest number in [low, high] for which a monotone predicate holds."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


class PowerRow(NamedTuple):
    """One line of ``power_table``."""

    seeds: int
    prompts: int
    minimum_detectable: float
    power: tuple[float, ...]


def power_table(
    components: Components,
    *,
    seeds: tuple[int, ...] = (3, 5, 8, 12),
    prompts: tuple[int, ...] = (128, 256, 512),
    effects: tuple[float, ...] = (0.02, 0.03, 0.05, 0.10),
    alpha: float = 0.05,
) -> list[PowerRow]:
    """Minimum detectable effect (at 80 % power) and power at ``effects``, for every pair of sizes."""
    rows = []
    for s in seeds:
        for n in prompts:
            at = _thresholds(components, s, n, alpha)
            chances = np.atleast_1d(_power(np.asarray(effects, dtype=np.float64), at))
            least = minimum_detectable_effect(components, seeds=s, prompts=n, alpha=alpha)
            rows.append(PowerRow(s, n, least, tuple(float(v) for v in chances)))
    return rows
