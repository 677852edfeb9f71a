"""Held-out pair metrics, KL, matched KL, aggregates, judges: numbers that a pencil can check."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special
from scipy import stats as distributions

from prefopt import stats


def test_margins_by_hand() -> None:
    # Chosen: -10 against -12 over 4 tokens, rejected: -20 against -19 over 5.
    m = stats.margins([-10.0], [-20.0], [-12.0], [-19.0], [4], [5])
    assert m.logratio.item() == 2 - (-1)
    assert m.logratio_per_token.item() == pytest.approx(2 / 4 + 1 / 5)
    assert m.likelihood.item() == pytest.approx(-10 / 4 + 20 / 5)


def test_before_training_the_margin_is_zero_and_the_likelihood_is_not() -> None:
    m = stats.margins([-10.0, -8.0], [-20.0, -9.0], [-10.0, -8.0], [-20.0, -9.0], [4, 4], [5, 2])
    assert stats.accuracies(m.logratio).tolist() == [0.5, 0.5]
    assert stats.accuracies(m.likelihood).tolist() == [1.0, 1.0]


def test_accuracy_counts_ties_half() -> None:
    assert stats.accuracies([2.0, 0.0, -1.0]).tolist() == [1.0, 0.5, 0.0]


def test_tau_against_a_general_optimiser() -> None:
    m = np.random.default_rng(0).normal(0.5, 1, 400)
    oracle = optimize.minimize_scalar(lambda tau: np.logaddexp(0, -tau * m).sum()).x
    assert stats.fit_tau(m) == pytest.approx(oracle, rel=1e-3)
    assert stats.fit_tau(10 * m) == pytest.approx(stats.fit_tau(m) / 10)
    assert stats.fit_tau(-m) == pytest.approx(-stats.fit_tau(m))


def test_tau_stays_finite() -> None:
    assert stats.fit_tau(np.zeros(5)) == 0.0
    assert 1 < stats.fit_tau(np.ones(5)) < 50
    assert np.isfinite(stats.fit_tau(np.array([1e6, 2e6, 1e-9])))


def test_calibration_recovers_the_scale_of_a_margin() -> None:
    """Preferences drawn with log-odds z, margins reported as 5 z: tau must be 1 / 5 and the metrics those of z."""
    rng = np.random.default_rng(1)
    z = rng.normal(0, 2, 20_000)
    m = 5 * np.where(rng.random(z.size) < special.expit(z), z, -z)  # chosen is what was drawn as preferred
    found = stats.pair_metrics(m, np.zeros(z.size), np.arange(z.size))
    assert found.tau == pytest.approx(0.2, rel=0.03)
    assert found.ece < 0.02  # its noise is never negative: 15 bins of some 1300 pairs leave .01
    assert found.nll.value == pytest.approx(np.mean(distributions.bernoulli(special.expit(z)).entropy()), abs=0.01)
    assert found.accuracy.value == pytest.approx(special.expit(np.abs(z)).mean(), abs=0.01)


def test_a_margin_is_not_calibrated_on_itself() -> None:
    """Pure noise: a tau from the same rows would look better than chance, one from other rows cannot."""
    rng = np.random.default_rng(2)
    nll = [stats.pair_metrics(rng.normal(0, 1, 20), np.zeros(20), np.arange(20)).nll.value for _ in range(300)]
    assert np.mean(nll) > np.log(2)


def test_rows_of_one_prompt_share_a_fold() -> None:
    m = np.random.default_rng(3).normal(0.3, 1, 60)
    prompts = np.repeat(np.arange(12), 5)
    calibrated, _ = stats.calibrate(m, prompts)
    taus = (calibrated / m).reshape(12, 5)
    np.testing.assert_allclose(taus, taus[:, :1] * np.ones(5))
    assert len(np.unique(taus.round(9))) == 5


def test_metrics_of_an_untrained_policy() -> None:
    found = stats.pair_metrics(np.zeros(30), np.repeat([0, 1, 2], 10), np.tile(np.arange(10), 3))
    assert (found.accuracy.value, found.tau, found.effect_size, found.ece) == (0.5, 0.0, 0.0, 0.0)
    assert found.nll.value == pytest.approx(np.log(2))
    assert found.brier.value == 0.25
    assert found.nll.p == found.brier.p == 1.0


def test_pair_metrics_cluster_by_prompt() -> None:
    """Ten copies of each pair under one prompt say no more than one."""
    m = np.random.default_rng(4).normal(0.2, 1, 40)
    once = stats.pair_metrics(m, np.zeros(40), np.arange(40)).accuracy
    copies = stats.pair_metrics(np.repeat(m, 10), np.zeros(400), np.repeat(np.arange(40), 10)).accuracy
    assert copies.se == pytest.approx(once.se)


def test_pair_metrics_refuse_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        stats.pair_metrics([1.0, np.nan], [0, 0], [0, 1])


def test_reliability_by_hand() -> None:
    # Log-odds +-log 3 are a confidence of 3/4: bin floor(.5 * 15) = 7. Three of four such pairs are right.
    bins = stats.reliability(np.log(3) * np.array([1, 1, 1, -1]))
    assert [(round(b.confidence, 9), b.accuracy, b.n) for b in bins] == [(0.75, 0.75, 4)]
    assert stats.reliability([np.inf])[0].n == 1


def test_displacement_by_hand() -> None:
    # Margins 2, 1, -1, 3: positive in three; the chosen log-probability fell in the first two of these.
    found = stats.displacement([-1.0, -2.0, -3.0, 1.0], [-3.0, -3.0, -2.0, -2.0], np.zeros(4), np.arange(4))
    assert found.share.value == 0.5
    assert (found.chosen.value, found.rejected.value) == (-1.25, -2.5)


def test_rao_blackwell_kl_by_hand() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])
    with np.errstate(divide="ignore"):
        logp, logq = np.log(p), np.log(q)
    table = np.tile(np.stack([logp, logp])[None], (1, 1, 1))
    reference = np.tile(np.stack([logq, logq])[None], (1, 1, 1))
    one = 0.5 * np.log(2)
    assert stats.rao_blackwell_kl(table, reference, [[1, 1]]) == pytest.approx([2 * one])
    assert stats.rao_blackwell_kl(table, reference, [[1, 0]]) == pytest.approx([one])


def test_kl_of_samples() -> None:
    exact, tokens = np.array([[2.0, 4.0], [3.0, 3.0]]), np.array([[10.0, 20.0], [15.0, 15.0]])
    found = stats.kl_of_samples(exact, exact + 1, tokens)
    assert (found.per_sequence.value, found.per_token.value, found.check.value) == (3.0, pytest.approx(0.2), 4.0)


def test_reward_at_kl_by_hand() -> None:
    # From (KL 0, reward 1) to (KL 4, reward 3): at KL 1 half of sqrt(KL) is gone, so reward 2.
    kl, reward = np.array([[0.0], [4.0]]), np.array([[[1.0, 1.0]], [[3.0, 5.0]]])
    np.testing.assert_allclose(stats.reward_at_kl(kl, reward, 1.0), [[2.0, 3.0]])
    np.testing.assert_allclose(stats.reward_at_kl(kl, reward, 4.0), [[3.0, 5.0]])
    assert np.isnan(stats.reward_at_kl(kl, reward, 4.1)).all()


def test_reward_at_matched_kl() -> None:
    kl_a, kl_b = np.array([[0.0, 0.0], [4.0, 9.0]]), np.array([[0.0, 0.0], [16.0, 16.0]])
    rewards = np.zeros((2, 2, 3))
    a, b = rewards.copy(), rewards.copy()
    a[1], b[1] = 1.0, 1.0
    found = stats.reward_at_matched_kl(kl_a, a, kl_b, b)
    assert found is not None
    assert found.at == 4.0  # the least that every seed reaches
    # a at KL 4: 1 and 2/3; b: 1/2 and 1/2.
    assert found.difference.value == pytest.approx((0.5 + 1 / 6) / 2)
    assert stats.reward_at_matched_kl(0 * kl_a, a, kl_b, b) is None


def test_interquartile_mean() -> None:
    values = np.array([100.0, 1, 2, 3, 4, 5, 6, -50])
    assert stats.interquartile_mean(values) == pytest.approx(distributions.trim_mean(values, 0.25))
    # Five values: quarters cut at 1.25 and 3.75, so the second and fourth count three quarters.
    assert stats.interquartile_mean([1, 2, 3, 4, 9]) == pytest.approx((0.75 * 2 + 3 + 0.75 * 4) / 2.5)


def test_iqm_interval() -> None:
    scores = np.random.default_rng(5).normal(1, 0.1, (4, 10)) + np.arange(4)[:, None]
    value, low, high = stats.iqm(scores)
    assert low < value < high
    assert stats.iqm(np.ones((2, 3))) == (1.0, 1.0, 1.0)


def test_mean_differences_are_paired() -> None:
    scores = np.random.default_rng(6).normal(size=(1, 4, 20)) + np.array([0.0, 1.0, 3.0])[:, None, None]
    found = stats.mean_differences(scores)
    assert {k: round(e.value, 9) for k, e in found.items()} == {(0, 1): -1.0, (0, 2): -3.0, (1, 2): -2.0}
    assert found[0, 1].se == pytest.approx(0.0, abs=1e-9)  # common noise is gone


def test_both_orders_by_hand() -> None:
    found = stats.both_orders([1.0, 1.0, 0.5, np.nan, np.nan], [1.0, 0.0, 0.0, 1.0, np.nan])
    np.testing.assert_array_equal(found.score, [1.0, 0.5, 0.25, 1.0, np.nan])
    assert found.invalid.tolist() == [0, 0, 0, 1, 2]
    assert found.consistency == pytest.approx(1 / 3)
    # Preference for the first place: (1 + 0) / 2, (1 + 1) / 2, (.5 + 1) / 2.
    assert found.first_position == pytest.approx((0.5 + 1.0 + 0.75) / 3)


def test_noise_of_a_judge_there_and_back() -> None:
    assert stats.attenuated(0.7, 0.8) == pytest.approx(0.5 + 0.6 * 0.2)
    assert stats.unattenuated(stats.attenuated(0.7, 0.8), 0.8) == pytest.approx(0.7)
    assert stats.unattenuated(0.99, 0.7) == 1.0
    with pytest.raises(ValueError, match="nothing about the truth"):
        stats.unattenuated(0.6, 0.5)
