"""Tuning by simulation and by hand: selection, its bias, the tuning curve, hulls, areas, shares of variance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from prefopt import stats
from prefopt.analysis.trials import Trial, best

TRIALS, PROMPTS, SEEDS = 8, 32, 3


def trial(index: int, cells: np.ndarray | None, kl: float = 1.0, family: str = "dpo") -> Trial:
    return Trial(f"{family}[{index}]", family, index, {"lr": 1e-3}, "complete", cells, kl)


def noisy(rng: np.random.Generator, truth: np.ndarray, *, seeds: int) -> np.ndarray:
    """(T, S, P) cells around each setting's true score: noise of runs, of prompts and of single samples."""
    runs = rng.normal(0, 0.03, (len(truth), seeds, 1))
    prompts = rng.normal(0, 0.2, (1, 1, PROMPTS))
    return np.asarray(truth[:, None, None] + runs + prompts + rng.normal(0, 0.1, (len(truth), seeds, PROMPTS)))


def test_selection_finds_the_known_best_and_the_reported_score_is_unbiased() -> None:
    """The best setting is .2 above the others, ten standard deviations of a trial's score within one set of prompts."""
    rng = np.random.default_rng(1)
    truth = np.array([0.5, 0.5, 0.5, 0.7, 0.5, 0.5, 0.4, 0.5])
    right, errors = 0, []
    for _ in range(500):
        winner = best([trial(i, cells) for i, cells in enumerate(noisy(rng, truth, seeds=1))], None)
        assert winner is not None
        right += winner.index == 3
        fresh = noisy(rng, truth[[winner.index]], seeds=SEEDS)[0]
        errors.append(stats.two_way(fresh).value - truth[winner.index])
    assert right >= 499
    assert abs(np.mean(errors)) <= 2 * np.std(errors) / np.sqrt(len(errors))


def test_the_validation_score_of_a_winner_is_biased_as_theory_says() -> None:
    """All settings equal: the winner's own score is 1.43 standard deviations too high, and a fresh one is right."""
    rng = np.random.default_rng(2)
    own, fresh, spread = [], [], []
    for _ in range(500):
        cells = rng.normal(0, 0.03, (TRIALS, 1, 1)) + rng.normal(0, 0.1, (TRIALS, 1, PROMPTS))
        tried = [trial(i, table) for i, table in enumerate(cells)]
        winner = best(tried, None)
        assert winner is not None
        assert winner.score is not None
        own.append(winner.score)
        spread.append(np.std([one.score for one in tried], ddof=1))
        fresh.append(stats.two_way(noisy(rng, np.zeros(1), seeds=SEEDS)[0]).value)
    sd = np.sqrt(0.03**2 + 0.1**2 / PROMPTS)
    assert np.sqrt(np.mean(np.square(spread))) == pytest.approx(sd, rel=0.05)
    assert np.mean(own) / sd == pytest.approx(stats.selection_gain(TRIALS), abs=0.1)
    assert abs(np.mean(fresh)) <= 2 * np.std(fresh) / np.sqrt(len(fresh))


def test_eight_copies_of_one_loss_differ_in_at_most_five_of_a_hundred_families() -> None:
    """Each copy is tuned by itself on a level objective, so that every choice is by chance; winners are judged anew."""
    rng = np.random.default_rng(3)
    truth = np.full(TRIALS, 0.5)
    families, differing = 150, 0
    for _ in range(families):
        chosen = []
        for _ in range(8):
            winner = best([trial(i, cells) for i, cells in enumerate(noisy(rng, truth, seeds=1))], None)
            assert winner is not None
            chosen.append(truth[winner.index])
        cells = noisy(rng, np.array(chosen), seeds=5)
        estimates = list(stats.mean_differences(cells).values())
        differing += bool((stats.holm([one.p for one in estimates]) < 0.05).any())
    assert differing / families <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / families)


def test_a_bound_on_the_kl_and_lost_trials() -> None:
    tried = [
        trial(0, np.full((1, 4), 0.5), 0.5),
        trial(1, np.full((1, 4), 0.9), 40.0),
        trial(2, None),
        trial(3, np.full((1, 4), 0.6), 4.0),
    ]
    assert (best(tried, None) or tried[2]).index == 1
    assert (best(tried, 5.0) or tried[2]).index == 3
    assert best(tried, 0.1) is None
    assert best([trial(0, None)], None) is None
    assert (best([trial(0, np.ones((1, 2))), trial(1, np.ones((1, 2)))], None) or tried[2]).index == 0


def test_the_tuning_curve_is_the_mean_over_all_subsets() -> None:
    scores = np.random.default_rng(4).normal(size=7)
    brute = [np.mean([max(some) for some in combinations(scores, n)]) for n in range(1, 8)]
    assert stats.expected_best(scores) == pytest.approx(brute)


def test_the_band_holds_the_median_best_score_at_every_number_of_trials() -> None:
    rng = np.random.default_rng(5)
    n = 8
    truth = -np.log1p(-(0.5 ** (1 / np.arange(1, n + 1))))  # of the exponential distribution
    held = 0
    for _ in range(400):
        band = stats.best_band(rng.exponential(size=n))
        held += bool(((band.low <= truth) & (truth <= band.high)).all())
    assert 0.93 <= held / 400 <= 1.0
    assert np.isinf(stats.best_band([1.0, 2.0, 3.0]).high[-1])


HULLS = {
    "one point": ([2.0], [1.0], [0, 2], [0, 1]),
    "under the chord": ([1.0, 2.0], [0.2, 1.0], [0, 2], [0, 1]),
    "over the chord": ([1.0, 2.0], [0.8, 1.0], [0, 1, 2], [0, 0.8, 1]),
    "falls at the end": ([1.0, 4.0], [1.0, 0.5], [0, 1], [0, 1]),
    "below the reference": ([1.0, 2.0], [-1.0, -0.5], [0], [0]),
    "on a line": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0, 3], [0, 3]),
    "two at one KL": ([1.0, 1.0], [0.5, 1.0], [0, 1], [0, 1]),
}


@pytest.mark.parametrize("case", HULLS)
def test_hulls_by_hand(case: str) -> None:
    kl, reward, x, y = HULLS[case]
    found = stats.frontier_hull(kl, reward, start=0.0)
    assert found[0].tolist() == x
    assert found[1].tolist() == y


def test_areas_by_hand() -> None:
    assert stats.mean_gain([2.0], [1.0], start=0.0, to=2.0) == pytest.approx(0.5)
    assert stats.mean_gain([2.0], [1.0], start=0.0, to=1.0) == pytest.approx(0.25)
    assert stats.mean_gain([1.0, 3.0], [1.0, 2.0], start=0.0, to=3.0) == pytest.approx((0.5 + 3.0) / 3)
    assert stats.mean_gain([1.0], [2.0], start=1.0, to=2.0) == pytest.approx((0.5 + 1.0) / 2)
    assert stats.mean_gain([1.0], [-1.0], start=0.0, to=1.0) == 0.0


def test_areas_over_prompts() -> None:
    rng = np.random.default_rng(6)
    reference = rng.normal(size=64)
    kl = [np.full((2, 64), 2.0) * np.array([[1.0], [2.0]]), np.full((1, 64), 3.0)]
    reward = [reference + np.array([[1.0], [1.5]]), reference[None] + 1.0]
    areas = stats.frontier_areas(kl, reward, reference)
    assert areas is not None
    assert areas.to == pytest.approx(3.0)
    assert areas.value == pytest.approx([(1.0 + 1.125) / 3, 0.5])
    assert areas.low == pytest.approx(areas.value)  # every prompt gains the same, so resampling changes nothing
    noisy_reward = [one + rng.normal(0, 0.5, one.shape) for one in reward]
    wide = stats.frontier_areas(kl, noisy_reward, reference)
    assert wide is not None
    assert (wide.low < wide.value).all()
    assert (wide.value < wide.high).all()
    assert wide.difference[0, 1, 0] == pytest.approx(wide.value[0] - wide.value[1])
    assert stats.frontier_areas([np.zeros((1, 64))], [reward[1]], reference) is None


def test_shares_of_variance() -> None:
    rate, loss = np.linspace(0, 1, 7), np.array([0.0, 2.0, 0.0, 2.0])[:, None]
    only_loss = stats.variance_shares(loss + 0 * rate)
    assert only_loss is not None
    assert tuple(only_loss) == pytest.approx((1, 0, 0))
    rng = np.random.default_rng(7)
    noise = [stats.variance_shares(rng.normal(size=(4, 7))) for _ in range(200)]
    assert np.mean([one.rest for one in noise if one is not None]) > 0.9
    gap = np.where(np.eye(4, 7, dtype=bool), np.nan, loss + rate)
    both = stats.variance_shares(gap)
    assert both is not None
    assert both.loss > both.rate > 0
    assert stats.variance_shares([[1.0, 2.0]]) is None
    assert stats.variance_shares([[1.0, 1.0], [1.0, 1.0]]) is None
