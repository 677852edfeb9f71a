"""The two-way clustered mean: arithmetic by hand, independent oracles, and the edges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats as distributions

from prefopt import stats
from prefopt.stats import pivot

# Two seeds, three prompts. Row means 2 and 4, column means 2, 3, 4, grand mean 3; additive, but for +-1 in two columns.
Y = np.array([[1.0, 1.0, 4.0], [3.0, 5.0, 4.0]])


def test_variance_by_hand() -> None:
    parts = stats.clustered(Y)
    assert parts.mean == 3.0
    assert parts.v_seed == pytest.approx(((2 - 3) ** 2 + (4 - 3) ** 2) / 1 / 2)  # var_s / S = 1
    assert parts.v_prompt == pytest.approx(((2 - 3) ** 2 + (3 - 3) ** 2 + (4 - 3) ** 2) / 2 / 3)  # var_i / N = 1/3
    # Residuals: y - row mean - column mean + 3 = [[0, -1, 1], [0, 1, -1]]; 4 over (S-1)(N-1) = 2, over n = 6.
    assert parts.v_rest == pytest.approx(4 / 2 / 6)
    assert parts.spread.variance == pytest.approx(1 + 1 / 3 - 1 / 3)


def test_combination_by_hand() -> None:
    spread = stats.combine_variance(2.0, 3.0, 1.0, 5, 10)
    assert spread.variance == 2 + (3 - 1)
    assert spread.seed_share == 2 / 4
    assert spread.df == pytest.approx(4**2 / (2**2 / 4 + 3**2 / 9 + 1**2 / 36))
    # Of Y: 1 / (1 / 1 + 1/9 / 2 + 1/9 / 2) = 0.9, but never fewer than the fewest there are, here of two seeds.
    assert stats.clustered(Y).spread.df == 1.0


def test_seeds_alone_make_it_students_t_over_seeds() -> None:
    estimate = stats.two_way(Y, null=1.0)  # V_prompt = V_rest, so V is V_seed = 1, with one degree of freedom
    assert (estimate.value, estimate.se, estimate.seed_share) == (3.0, pytest.approx(1.0), pytest.approx(1.0))
    reach = distributions.t.ppf(0.975, 1)
    assert (estimate.low, estimate.high) == pytest.approx((3 - reach, 3 + reach), rel=2e-3)
    assert estimate.p == pytest.approx(2 * distributions.t.sf(2.0, 1), rel=1e-3)
    assert (estimate.n_seeds, estimate.n_prompts, estimate.n, estimate.conditional) == (2, 3, 6, False)


@pytest.mark.parametrize("level", [0.05, 0.05 / 15])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_pivot_has_students_tails_at_both_ends(seeds: int, level: float) -> None:
    for share, df in ((1.0, seeds - 1), (0.0, 39)):
        quantile = distributions.t.isf(level / 2, df)
        assert pivot.critical_value(level, share, seeds, 40) == pytest.approx(quantile, rel=1e-3)
        assert pivot.two_sided_p(quantile, share, seeds, 40) == pytest.approx(level, rel=2e-3)


def test_pivot_in_between_against_simulation() -> None:
    rng = np.random.default_rng(0)
    a, b = 4 / rng.chisquare(4, 400_000), 59 / rng.chisquare(59, 400_000)
    for z in (1.0, 2.5, 5.0):
        oracle = 2 * distributions.norm.sf(z / np.sqrt(0.4 * a + 0.6 * b)).mean()
        assert pivot.two_sided_p(z, 0.4, 5, 60) == pytest.approx(oracle, rel=0.03)
    critical = pivot.critical_value(0.05, 0.4, 5, 60)
    assert pivot.two_sided_p(critical, 0.4, 5, 60) == pytest.approx(0.05, rel=1e-3)


def test_no_difference_at_all_has_a_p_value_of_one_and_not_a_rounding_error_more() -> None:
    for seeds in range(2, 12):
        for prompts in (2, 24, 128):
            p = pivot.two_sided_p(np.zeros(15), np.linspace(0, 1, 15), seeds, prompts)
            assert p == pytest.approx(1.0)
            assert stats.holm(p).max() <= 1


def test_seeds_that_agree_by_chance_do_not_prove_anything() -> None:
    y = np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])  # equal seeds, equal prompts: all is residual
    parts = stats.clustered(y)
    assert (parts.v_seed, parts.v_prompt) == (0.0, 0.0)
    assert parts.spread.variance == pytest.approx(0.1 * parts.v_rest)
    assert parts.spread.seed_share == 1.0
    estimate = stats.win_rate(y)
    assert estimate.high - estimate.low > 0.5


def test_one_seed_is_the_ordinary_t_test_over_prompts_and_says_so() -> None:
    y = np.random.default_rng(0).normal(0.3, 1.0, 50)
    ours, oracle = stats.two_way(y[None]), distributions.ttest_1samp(y, 0.0)
    assert ours.p == pytest.approx(oracle.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    assert ours.conditional


def test_one_prompt_is_the_ordinary_t_test_over_seeds() -> None:
    y = np.array([0.1, 0.4, 0.2, 0.6])
    ours, oracle = stats.two_way(y[:, None]), distributions.ttest_1samp(y, 0.0)
    assert ours.p == pytest.approx(oracle.pvalue)
    assert not ours.conditional


def test_expected_variance_is_that_of_random_effects() -> None:
    """The mean of V over many tables equals the variance of the mean over them: the estimator is unbiased."""
    rng = np.random.default_rng(1)
    shape = (20_000, 4, 12)
    y = rng.normal(0, 0.5, (shape[0], 4, 1)) + rng.normal(0, 1.0, (shape[0], 1, 12)) + rng.normal(0, 1.0, shape)
    parts = stats.clustered(y)
    truth = 0.5**2 / 4 + 1 / 12 + 1 / 48
    assert parts.mean.var() == pytest.approx(truth, rel=0.03)
    assert (parts.v_seed + parts.v_prompt - parts.v_rest).mean() == pytest.approx(truth, rel=0.03)


def test_missing_cells_leave_the_rest_as_it_is() -> None:
    y = np.random.default_rng(2).normal(size=(4, 30))
    padded = np.full((6, 33), np.nan)
    padded[:4, :30] = y
    ours, oracle = stats.two_way(padded), stats.two_way(y)
    for field in dataclasses.fields(ours):
        assert getattr(ours, field.name) == pytest.approx(getattr(oracle, field.name)), field.name


def test_missing_cells_by_an_explicit_additive_fit() -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(size=(4, 10))
    y[1, 3] = y[2, 7] = y[2, 8] = np.nan
    there = ~np.isnan(y)
    row, column = np.nonzero(there)
    design = np.concatenate([np.eye(4)[row], np.eye(10)[column]], axis=1)
    rest = y[there] - design @ np.linalg.lstsq(design, y[there], rcond=None)[0]
    n = there.sum()
    assert stats.clustered(y).v_rest == pytest.approx((rest**2).sum() / (n - 4 - 10 + 1) / n, rel=1e-6)
    error = np.where(there, y - np.nanmean(y), 0.0)
    assert stats.clustered(y).v_seed == pytest.approx((error.sum(1) ** 2).sum() / n**2 * 4 / 3)


def test_all_ties() -> None:
    tie = stats.win_rate(np.full((5, 40), 0.5))
    assert (tie.value, tie.low, tie.high, tie.p, tie.se) == (0.5, 0.5, 0.5, 1.0, 0.0)


def test_equal_cells_away_from_the_null() -> None:
    estimate = stats.two_way(np.full((3, 10), 0.1), null=0.0)
    assert (estimate.low, estimate.high) == pytest.approx((0.1, 0.1))
    assert estimate.p == 2.0**-9  # ten prompts all one way: the sign test


def test_every_comparison_won() -> None:
    won = stats.win_rate(np.ones((3, 20)))
    oracle = distributions.binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert (won.value, won.high) == (1.0, 1.0)
    assert won.low == pytest.approx(oracle.low)
    lost = stats.win_rate(np.zeros((3, 20)))
    assert (lost.low, lost.high) == pytest.approx((0.0, 1 - won.low))


def test_intervals_of_shares_stay_inside_and_agree_with_the_test() -> None:
    rng = np.random.default_rng(4)
    for rate in (0.02, 0.3, 0.5, 0.6, 0.97):
        estimate = stats.win_rate((rng.random((3, 60)) < rate).astype(float))
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert (estimate.p < 0.05) == (not estimate.low <= 0.5 <= estimate.high)


def test_seeing_it_from_the_other_side() -> None:
    y = (np.random.default_rng(5).random((4, 50)) < 0.7).astype(float)
    ours, theirs = stats.win_rate(y), stats.win_rate(1 - y).complement()
    for name in ("value", "low", "high", "se", "p", "null"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name)), name


def test_many_tables_equal_one_by_one() -> None:
    y = np.random.default_rng(6).random((7, 3, 20))
    y[2, 1, 4] = np.nan
    for one, together in zip(y, stats.many_two_way(y, null=0.5, scale="logit"), strict=True):
        alone = stats.win_rate(one)
        assert alone.value == pytest.approx(together.value)
        assert alone.p == pytest.approx(together.p, rel=1e-6)


@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.sampled_from([0, 0.5, 1, np.nan])
    )
)
@settings(max_examples=200, deadline=None)
def test_no_table_of_verdicts_breaks_it(y: np.ndarray) -> None:
    if (~np.isnan(y)).sum() < 2:
        with pytest.raises(ValueError):
            stats.win_rate(y)
        return
    estimate = stats.win_rate(y)
    numbers = (estimate.value, estimate.low, estimate.high, estimate.se, estimate.df, estimate.p)
    assert np.isfinite(numbers).all()
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert 0 <= estimate.p <= 1
    assert all(v >= 0 for v in stats.variance_components(y))


@pytest.mark.parametrize("y", [[[np.nan, np.nan]], [[0.5]], [[0.5, 1.5]], [[np.inf, 0.0]]])
def test_what_has_no_estimate_is_refused(y: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        stats.win_rate(np.array(y))


def test_components_are_recovered() -> None:
    rng = np.random.default_rng(7)
    y = rng.normal(0, 0.3, (200, 1)) + rng.normal(0, 0.5, (1, 400)) + rng.normal(0, 1.0, (200, 400))
    found = stats.variance_components(y)
    assert found.seed == pytest.approx(0.09, rel=0.35)
    assert found.prompt == pytest.approx(0.25, rel=0.2)
    assert found.rest == pytest.approx(1.0, rel=0.02)


def test_components_by_hand() -> None:
    found = stats.variance_components(Y)  # MS_rest = 2; V_seed S - MS_rest / N = 2 - 2/3; V_prompt N - MS_rest / S = 0
    assert found == pytest.approx((2 - 2 / 3, 0.0, 2.0))


def test_rows_to_cells() -> None:
    cells, seeds, prompts = stats.to_cells([1, 3, 5, np.nan], [7, 7, 9, 9], ["p", "p", "q", "p"])
    assert seeds.tolist() == [7, 9]
    assert prompts.tolist() == ["p", "q"]
    np.testing.assert_array_equal(cells, [[2.0, np.nan], [np.nan, 5.0]])


def test_weighted_rows_to_cells() -> None:
    cells, _, _ = stats.to_cells([1.0, 4.0], [0, 0], [0, 0], weights=[1, 2])
    assert cells.item() == 3.0


def test_ratio_of_means() -> None:
    top, bottom = np.array([[2.0, 4.0, 6.0], [4.0, 2.0, 6.0]]), np.array([[10.0, 20.0, 30.0], [20.0, 10.0, 30.0]])
    assert stats.ratio(top, bottom).value == pytest.approx(0.2)
    assert stats.ratio(top, bottom).se == pytest.approx(0.0, abs=1e-12)  # proportional: nothing is uncertain
    rng = np.random.default_rng(8)
    top, bottom = rng.normal(3, 1, (2000, 4, 25)), rng.normal(10, 1, (2000, 4, 25))
    ratios = top.mean((1, 2)) / bottom.mean((1, 2))
    mean_se = np.sqrt(np.mean([stats.ratio(a, b).se ** 2 for a, b in zip(top[:300], bottom[:300], strict=True)]))
    assert mean_se == pytest.approx(ratios.std(), rel=0.15)


def test_worst_case_bounds() -> None:
    low, high = stats.worst_case([0.75, 0.0, 0.0], [4, 0, 0], [1, 2, 0])
    np.testing.assert_allclose(low, [3 / 5, 0.0, np.nan])
    np.testing.assert_allclose(high, [4 / 5, 1.0, np.nan])


def test_shifted_keeps_the_test() -> None:
    share = stats.win_rate((np.random.default_rng(9).random((4, 50)) < 0.6).astype(float))
    points = share.shifted(-50.0, scale=100.0)
    assert (points.value, points.se, points.p) == pytest.approx((100 * share.value - 50, 100 * share.se, share.p))
    assert points.null == 0.0
