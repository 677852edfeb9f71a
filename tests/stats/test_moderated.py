"""Moderated variances: moments by hand, and why no verdict rests on them: a loss that varies more is called wrongly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as distributions

from prefopt.stats.moderated import moderated


def rejections(sds: tuple[float, ...], *, seeds: int, repetitions: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """(G,) false positives at 5 % of each comparison, by Student's t and by the moderated t, without a difference."""
    y = np.random.default_rng(0).normal(0, 1, (repetitions, len(sds), seeds)) * np.array(sds)[:, None]
    mean, variance = y.mean(-1), y.var(-1, ddof=1) / seeds
    plain = np.abs(mean / np.sqrt(variance)) > distributions.t.ppf(0.975, seeds - 1)
    squeezed = [moderated(row, np.full(len(sds), seeds - 1.0)) for row in variance]
    limits = [distributions.t.ppf(0.975, one.df) for one in squeezed]
    other = [np.abs(m) / np.sqrt(one.variance) > limit for m, one, limit in zip(mean, squeezed, limits, strict=True)]
    return plain.mean(0), np.mean(other, axis=0)


def test_with_equal_variances_the_level_is_kept() -> None:
    plain, squeezed = rejections((0.03,) * 8, seeds=3)
    assert plain.max() < 0.07
    assert squeezed.max() < 0.075


def test_a_loss_that_varies_more_is_called_different_four_times_as_often() -> None:
    plain, squeezed = rejections((0.02,) * 7 + (0.12,), seeds=3)
    assert plain[-1] < 0.07
    assert squeezed[-1] > 0.15


def test_the_fit_by_hand() -> None:
    """Variances of s0^2 d0 / chi-square(d0) times chi-square(d) / d give their prior back."""
    rng = np.random.default_rng(1)
    prior = 2.0 * 4 / rng.chisquare(4, 4000)
    fitted = moderated(prior * rng.chisquare(10, 4000) / 10, np.full(4000, 10.0))
    assert fitted.prior_df == pytest.approx(4, rel=0.1)
    assert fitted.prior_variance == pytest.approx(2, rel=0.1)


def test_what_has_no_variance_stays_out() -> None:
    fitted = moderated([0.0, 1.0, 2.0], [4, 4, 4])
    assert fitted.variance[0] == 0
    assert fitted.df[0] == 4
    alone = moderated([0.0, 1.0], [4, 4])
    assert alone.variance.tolist() == [0.0, 1.0]
    assert alone.prior_df == 0
