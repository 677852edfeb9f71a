"""Multiplicity, sign flips, verdict words, power."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as distributions

from prefopt import stats
from prefopt.stats import Components, Verdict


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .5, times 4 3 2 1: .04 .06 .06 .5 after the running maximum.
    np.testing.assert_allclose(stats.holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(stats.holm([0.9, 0.8]), [1.0, 1.0])
    assert stats.holm([]).size == 0


@pytest.mark.parametrize("p", [[np.nan], [1.5], [-0.1]])
def test_holm_refuses_what_is_no_p_value(p: list[float]) -> None:
    with pytest.raises(ValueError):
        stats.holm(p)


def test_sign_flip_by_hand() -> None:
    # Signs of (1, 2, 3): sums 6, 4, 2, 0 and their negatives; |sum| >= 6 in 2 of 8, and >= 4 in 4 of 8.
    assert stats.sign_flip([1.0, 2.0, 3.0]) == 2 / 8
    assert stats.sign_flip([-1.0, 2.0, 3.0]) == 4 / 8
    assert stats.sign_flip([0.0, 0.0]) == 1.0
    assert stats.sign_flip([0.3]) == 1.0
    assert stats.sign_flip([0.3, np.nan, 0.2]) == 2 / 4


def test_sign_flip_against_scipy() -> None:
    d = np.random.default_rng(0).normal(0.4, 1, 9)
    oracle = distributions.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert stats.sign_flip(d) == pytest.approx(oracle.pvalue)


def test_sign_flip_of_many_seeds_is_sampled() -> None:
    d = np.random.default_rng(1).normal(0.5, 1, 24)
    t_test = distributions.ttest_1samp(d, 0).pvalue
    assert stats.sign_flip(d) == pytest.approx(t_test, abs=0.02)


def test_smallest_sign_flip() -> None:
    assert [stats.smallest_sign_flip(s) for s in (1, 5, 6)] == [1.0, 2**-4, 2**-5]
    assert stats.sign_flip(np.ones(6)) == stats.smallest_sign_flip(6)


@pytest.fixture
def estimate() -> stats.Estimate:
    return replace(stats.win_rate(np.random.default_rng(2).random((5, 50))), value=0.55, low=0.52, high=0.58, p=0.001)


def test_words(estimate: stats.Estimate) -> None:
    assert stats.verdict(estimate, 0.01, delta=0.02) is Verdict.BETTER
    assert stats.verdict(estimate.complement(), 0.01, delta=0.02) is Verdict.WORSE
    assert stats.verdict(estimate, 0.05, delta=0.02) is Verdict.INCONCLUSIVE  # not below alpha
    assert stats.verdict(estimate, 0.2, delta=0.08) is Verdict.EQUIVALENT
    assert stats.verdict(estimate, 0.2, delta=0.079) is Verdict.INCONCLUSIVE
    assert stats.verdict(estimate, 0.01, delta=0.2) is Verdict.BETTER  # a found difference is not hushed up
    assert str(Verdict.BETTER) == "BETTER"


def test_one_seed_never_gets_a_verdict(estimate: stats.Estimate) -> None:
    alone = replace(estimate, conditional=True)
    assert stats.verdict(alone, 1e-12, delta=0.5) is Verdict.INCONCLUSIVE
    assert stats.verdict(alone, 1.0, delta=0.5) is Verdict.INCONCLUSIVE


COMPONENTS = Components.assumed(seed_sd=0.025, prompt_sd=0.1)


def test_assumed_components() -> None:
    assert tuple(COMPONENTS) == pytest.approx((0.000625, 0.01, 0.24))
    with pytest.raises(ValueError):
        Components.assumed(prompt_sd=0.6)


def test_power_with_one_seed_is_that_of_the_t_test() -> None:
    components = Components(0.0, 0.0, 1.0)
    df, shift = 29, 0.5 * np.sqrt(30)
    limit = distributions.t.ppf(0.975, df)
    exact = distributions.nct.sf(limit, df, shift) + distributions.nct.cdf(-limit, df, shift)
    assert stats.power(0.5, components, seeds=1, prompts=30) == pytest.approx(exact, abs=0.003)


def test_power_with_large_seed_variance_is_that_of_the_t_test_over_seeds() -> None:
    components = Components(1.0, 0.0, 0.0)
    df, shift = 4, 1.5 * np.sqrt(5)
    limit = distributions.t.ppf(0.975, df)
    exact = distributions.nct.sf(limit, df, shift) + distributions.nct.cdf(-limit, df, shift)
    assert stats.power(1.5, components, seeds=5, prompts=100) == pytest.approx(exact, abs=0.005)


def test_power_at_no_effect_is_about_the_level() -> None:
    for seeds in (3, 5, 8):
        assert 0.03 < stats.power(0.0, COMPONENTS, seeds=seeds, prompts=256) < 0.07


def test_power_against_simulated_tables() -> None:
    rng = np.random.default_rng(3)
    found = stats.power(0.07, COMPONENTS, seeds=5, prompts=100)
    sd = np.sqrt(COMPONENTS)
    y = 0.07 + sd[0] * rng.standard_normal((3000, 5, 1)) + sd[1] * rng.standard_normal((3000, 1, 100))
    y = y + sd[2] * rng.standard_normal((3000, 5, 100))
    simulated = np.mean([e.p < 0.05 for e in stats.many_two_way(y)])
    assert found == pytest.approx(simulated, abs=0.03)


def test_minimum_detectable_effect_has_its_power() -> None:
    effect = stats.minimum_detectable_effect(COMPONENTS, seeds=5, prompts=256)
    assert stats.power(effect, COMPONENTS, seeds=5, prompts=256) == pytest.approx(0.8, abs=1e-6)
    assert 0.05 < effect < 0.09
    assert stats.minimum_detectable_effect(Components(0, 0, 0), seeds=5, prompts=256) == 0.0


def test_seeds_and_prompts_needed_are_the_fewest() -> None:
    seeds = stats.seeds_needed(0.05, COMPONENTS, prompts=256)
    assert seeds is not None
    assert stats.power(0.05, COMPONENTS, seeds=seeds, prompts=256) >= 0.8
    assert stats.power(0.05, COMPONENTS, seeds=seeds - 1, prompts=256) < 0.8
    prompts = stats.prompts_needed(0.08, COMPONENTS, seeds=5)
    assert prompts is not None
    assert stats.power(0.08, COMPONENTS, seeds=5, prompts=prompts) >= 0.8
    assert stats.power(0.08, COMPONENTS, seeds=5, prompts=prompts - 1) < 0.8


def test_what_no_number_of_prompts_can_settle() -> None:
    assert stats.prompts_needed(0.02, COMPONENTS, seeds=3) is None  # the seeds' own spread is in the way
    assert stats.seeds_needed(0.0, COMPONENTS, prompts=256) is None


def test_power_table() -> None:
    rows = stats.power_table(COMPONENTS, seeds=(3, 5), prompts=(128, 256), effects=(0.02, 0.1))
    assert [(r.seeds, r.prompts) for r in rows] == [(3, 128), (3, 256), (5, 128), (5, 256)]
    assert rows[3].minimum_detectable < rows[1].minimum_detectable < rows[0].minimum_detectable
    for row in rows:
        assert row.power[0] < row.power[1]
    assert rows[3].power[1] == pytest.approx(stats.power(0.1, COMPONENTS, seeds=5, prompts=256))


def test_power_refuses_a_single_prompt() -> None:
    with pytest.raises(ValueError, match="2 prompts"):
        stats.power(0.1, COMPONENTS, seeds=5, prompts=1)
