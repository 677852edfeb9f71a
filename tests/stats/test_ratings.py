"""Bradley-Terry ratings and length-controlled win rates, against scipy's optimiser and planted truths."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import optimize, special

from prefopt import stats

NAMES = ("reference", "dpo", "ipo", "simpo")
FIRST, SECOND = np.triu_indices(4, 1)


def tournament(theta: np.ndarray, *, seeds: int, prompts: int, rng: np.random.Generator) -> np.ndarray:
    a, b = np.triu_indices(len(theta), 1)
    chance = special.expit(theta[a] - theta[b])[:, None, None]
    return (rng.random((len(a), seeds, prompts)) < chance).astype(float)


def test_two_items_by_hand() -> None:
    fitted = stats.fit_bradley_terry([[0, 75], [25, 0]])
    assert fitted[0] - fitted[1] == pytest.approx(np.log(3), abs=0.01)  # 75 % is odds of three to one


def test_maximum_likelihood_oracle() -> None:
    wins = np.random.default_rng(0).integers(5, 60, (6, 6)).astype(float)
    np.fill_diagonal(wins, 0)

    def loss(theta: np.ndarray) -> float:
        return float((wins * np.logaddexp(0, theta[None, :] - theta[:, None])).sum() + theta.sum() ** 2)

    oracle = optimize.minimize(loss, np.zeros(6), options={"gtol": 1e-9}).x
    np.testing.assert_allclose(stats.fit_bradley_terry(wins), oracle - oracle.mean(), atol=2e-3)


def test_a_variant_that_never_loses_has_a_finite_rating() -> None:
    y = np.stack([np.ones((3, 20)), np.ones((3, 20)), np.full((3, 20), 0.5)])
    fitted = stats.bradley_terry(y, [0, 0, 1], [1, 2, 2], ("a", "b", "c"), anchor="b", resamples=20)
    assert np.isfinite([fitted.value, fitted.low, fitted.high]).all()
    assert fitted.value[0] > 500
    assert fitted.value[2] == pytest.approx(0, abs=1e-3)
    assert fitted.rank_low.tolist() == [1, 2, 2]
    assert fitted.rank_high.tolist() == [1, 3, 3]


def test_anchor_order_and_sides_do_not_matter() -> None:
    y = tournament(np.array([0.0, 0.4, 0.1, -0.5]), seeds=3, prompts=60, rng=np.random.default_rng(1))
    ours = stats.bradley_terry(y, FIRST, SECOND, NAMES, anchor="reference", resamples=30)
    turned = stats.bradley_terry(1 - y[::-1], SECOND[::-1], FIRST[::-1], NAMES, anchor="reference", resamples=30)
    np.testing.assert_allclose(ours.value, turned.value, atol=1e-4)
    np.testing.assert_allclose(ours.low, turned.low, atol=1e-3)
    other = stats.bradley_terry(y, FIRST, SECOND, NAMES, anchor="simpo", resamples=30)
    np.testing.assert_allclose(np.diff(ours.value), np.diff(other.value), atol=1e-6)
    assert ours.value[0] == ours.low[0] == ours.high[0] == 0
    assert ours.rank_low.tolist() == other.rank_low.tolist()


def test_interval_of_two_items_is_that_of_their_win_rate() -> None:
    """With one pair the rating is the log-odds of the win rate, so the two intervals must agree."""
    rng = np.random.default_rng(2)
    y = (rng.random((5, 200)) < 0.6 + 0.05 * rng.standard_normal((5, 1))).astype(float)
    rating = stats.bradley_terry(y[None], [0], [1], ("a", "b"), anchor="b", resamples=3000)
    win_rate = stats.win_rate(y)
    theta = np.array([rating.low[0], rating.high[0]]) / stats.ELO_PER_LOGIT
    np.testing.assert_allclose(special.expit(theta), [win_rate.low, win_rate.high], atol=0.006)


def test_predicted_and_observed_matrices() -> None:
    y = tournament(np.array([0.0, 0.4, 0.1, -0.5]), seeds=4, prompts=200, rng=np.random.default_rng(3))
    fitted = stats.bradley_terry(y, FIRST, SECOND, NAMES, anchor="reference", resamples=10)
    assert np.isnan(np.diag(fitted.observed)).all()
    assert fitted.observed[0, 1] == pytest.approx(y[0].mean())
    np.testing.assert_allclose(fitted.predicted + fitted.predicted.T, 1.0)
    assert fitted.misfit < 0.05
    rock_paper_scissors = np.stack([np.full((2, 50), 0.9), np.full((2, 50), 0.1), np.full((2, 50), 0.9)])
    circle = stats.bradley_terry(rock_paper_scissors, [0, 0, 1], [1, 2, 2], ("a", "b", "c"), anchor="a", resamples=5)
    assert circle.misfit == pytest.approx(0.4, abs=0.01)


def test_missing_cells_and_pairs() -> None:
    y = tournament(np.array([0.0, 0.8, 0.0, -0.8]), seeds=4, prompts=100, rng=np.random.default_rng(4))
    y[2] = np.nan  # reference never met simpo
    y[0, 1] = np.nan  # a diverged run
    fitted = stats.bradley_terry(y, FIRST, SECOND, NAMES, anchor="reference", resamples=50)
    assert np.argmax(fitted.value) == 1
    assert np.isnan(fitted.observed[0, 3])
    assert np.isfinite(fitted.high).all()


def test_unconnected_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="no chain of comparisons"):
        stats.bradley_terry(np.full((2, 2, 5), 0.5), [0, 2], [1, 3], NAMES, anchor="reference")


def lengths(rng: np.random.Generator, *, gain: float, taste: float, longer: float) -> tuple[np.ndarray, np.ndarray]:
    delta = rng.normal(longer, 100, (1, 5, 400))
    chance = special.expit(gain + taste * np.tanh(delta / 100))
    return (rng.random(delta.shape) < chance).astype(float), delta


def test_length_control_against_a_general_optimiser() -> None:
    y, delta = lengths(np.random.default_rng(5), gain=0.3, taste=1.2, longer=50)
    ours = stats.length_controlled(y, delta, resamples=20)[0]
    x = np.tanh(delta / delta.std(ddof=1))
    oracle = optimize.minimize(
        lambda b: float((np.logaddexp(0, b[0] + b[1] * x) - y * (b[0] + b[1] * x)).sum()), np.zeros(2)
    ).x
    assert ours.win_rate.value == pytest.approx(special.expit(oracle[0]), abs=1e-4)
    assert ours.phi == pytest.approx(oracle[1], abs=1e-3)
    assert ours.raw == pytest.approx(y.mean())


def test_length_control_repairs_a_biased_judge() -> None:
    y, delta = lengths(np.random.default_rng(6), gain=0.0, taste=1.5, longer=80)
    ours = stats.length_controlled(y, delta)[0]
    assert ours.raw > 0.6
    assert ours.win_rate.low < 0.5 < ours.win_rate.high
    assert ours.phi_low > 0
    assert ours.extreme


def test_length_control_interval_without_a_length_effect_is_the_plain_one() -> None:
    rng = np.random.default_rng(7)
    y = (rng.random((1, 5, 200)) < 0.6 + 0.05 * rng.standard_normal((1, 5, 1))).astype(float)
    ours = stats.length_controlled(y, np.zeros(y.shape), resamples=3000)[0].win_rate
    plain = stats.win_rate(y[0])
    assert (ours.value, ours.low, ours.high) == pytest.approx((plain.value, plain.low, plain.high), abs=0.006)
    assert (ours.n_seeds, ours.n_prompts, ours.n) == (5, 200, 1000)


def test_variants_of_one_length_borrow_the_judges_taste_from_the_others() -> None:
    """A variant that is always 150 tokens longer cannot show its own phi; the shared one tells what length earns."""
    rng = np.random.default_rng(8)
    delta = np.stack([rng.normal(0, 100, (5, 300)), np.full((5, 300), 150.0)])
    y = (rng.random(delta.shape) < special.expit(1.0 * np.tanh(delta / 100))).astype(float)
    ours = stats.length_controlled(y, delta, resamples=50)
    assert ours[1].raw > 0.65
    assert ours[1].win_rate.value == pytest.approx(0.5, abs=0.06)
    assert ours[1].overlap == 0.0
    assert ours[1].extreme


def test_length_control_survives_the_edges() -> None:
    rng = np.random.default_rng(9)
    delta = rng.normal(0, 50, (2, 3, 20))
    y = np.stack([np.ones((3, 20)), np.full((3, 20), 0.5)])
    y[0, 0, :5] = np.nan
    ours = stats.length_controlled(y, delta, resamples=20)
    assert ours[0].win_rate.value > 0.9
    assert np.isfinite([ours[0].win_rate.low, ours[0].win_rate.high, ours[0].phi]).all()
    assert ours[1].win_rate.value == pytest.approx(0.5, abs=0.02)
    alone = stats.length_controlled(y[1:, :1], delta[1:, :1], resamples=20)[0]
    assert alone.win_rate.conditional


def test_length_control_refuses_other_shapes_and_scores() -> None:
    with pytest.raises(ValueError, match="variants, seeds, prompts"):
        stats.length_controlled(np.zeros((1, 2, 3)), np.zeros((1, 2, 4)))
    with pytest.raises(ValueError, match="0, 1"):
        stats.length_controlled(np.full((1, 2, 3), 2.0), np.zeros((1, 2, 3)))


def test_a_full_comparison_takes_seconds() -> None:
    """12 variants and a reference, 5 seeds, 256 prompts: all pairs, ratings, length control."""
    rng = np.random.default_rng(10)
    theta = np.linspace(-0.5, 0.5, 13)
    y, (a, b) = tournament(theta, seeds=5, prompts=256, rng=rng), np.triu_indices(13, 1)
    start = time.process_time()
    stats.many_two_way(y, null=0.5, scale="logit")
    fitted = stats.bradley_terry(y, a, b, tuple(str(k) for k in range(13)), anchor="0")
    stats.length_controlled(y[:12], rng.normal(20, 80, (12, 5, 256)))
    assert time.process_time() - start < 10
    assert np.all(np.diff(fitted.value) > -20)
