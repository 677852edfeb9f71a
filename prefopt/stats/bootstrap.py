"""Two-way clustered standard errors for statistics that are not means, by refitting under resampled weights.

Three bootstraps, each with multinomial weights: of seeds alone, of prompts alone, of single cells. Their variances
stand for V_seed, V_prompt and V_rest of the two-way mean and are combined in the same way, with the same quantiles.
That keeps what a single bootstrap of five seeds would lose: the factor S / (S - 1) and the heavy tails.

Shapes: R resamples, S seeds, N prompts, K statistics.

Source: bootstraps of crossed clusters by weights are Owen and Eckles 2012 (arXiv:1106.2125); the combination is that
    of ``clusters``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from prefopt.stats.clusters import Array, Spread, combine_variance

Statistic = Callable[[Array], Array]


def two_way_bootstrap(
    statistic: Statistic,
    there: NDArray[np.bool_],
    *,
    resamples: int,
    seed: int,
) -> Spread:
    """Variance and its quality, of statistics of one (S, N) layout.

    Args:
        statistic: Maps (R, S, N) weights to (R, K) values.
        there: (S, N) cells that hold data; the others are never drawn by the bootstrap of cells.
        resamples: Refits for each of the three bootstraps.
        seed: Of the draws.

    Returns:
        The spread of the K statistics.
    """
    n_seeds, n_prompts = int(there.any(1).sum()), int(there.any(0).sum())
    parts: list[Array | None] = []
    for weights, units in _schemes(there, resamples, np.random.default_rng(seed)):
        if units < 2:
            parts.append(None)
            continue
        # A resampled mean of n units varies by (n - 1) / n of what their mean does.
        parts.append(statistic(weights).var(axis=0, ddof=1) * units / (units - 1))  # (K,)
    known = next(part for part in parts if part is not None)
    v_seed, v_prompt, v_cell = (np.zeros_like(known) if part is None else part for part in parts)
    # The bootstrap of cells sees the variance of all cells. In sums of squares over n, all of it without the seeds' and
    # the prompts' is the rest's, which has n - S - N + 1 degrees of freedom.
    n = float(there.sum())
    explained = np.zeros_like(known)
    if n_seeds > 1 and n_prompts > 1:
        scale = 1 - n_seeds / n - n_prompts / n + 1 / n
        explained = np.maximum(v_cell * (n - 1) - v_seed * (n_seeds - 1) - v_prompt * (n_prompts - 1), 0) / scale / n
    return combine_variance(v_seed, v_prompt, explained, n_seeds, n_prompts)


def _schemes(there: NDArray[np.bool_], resamples: int, rng: np.random.Generator) -> Iterator[tuple[Array, int]]:
    """(R, S, N) weights and the number of units, for seeds, prompts and cells in turn."""
    seeds, prompts = there.any(1), there.any(0)
    times = rng.multinomial(int(seeds.sum()), seeds / seeds.sum(), size=resamples).astype(np.float64)
    yield times[:, :, None] * there, int(seeds.sum())
    times = rng.multinomial(int(prompts.sum()), prompts / prompts.sum(), size=resamples).astype(np.float64)
    yield times[:, None, :] * there, int(prompts.sum())
    times = rng.multinomial(int(there.sum()), there.ravel() / there.sum(), size=resamples).astype(np.float64)
    yield times.reshape(resamples, *there.shape), int(there.sum())
