"""Mean ranks and probabilities of improvement over comparisons, against definitions worked out another way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from prefopt import stats

RNG = np.random.default_rng(3)
SCORES = [np.round(RNG.normal(0.5 + 0.1 * np.arange(4)[:, None], 0.2, (4, n)), 1) for n in (3, 5, 8)]


def test_the_probability_is_the_mann_whitney_statistic_over_pairs() -> None:
    answer = stats.across_tasks(SCORES)
    for i in range(4):
        for j in range(4):
            each = [mannwhitneyu(task[i], task[j]).statistic / task.shape[1] ** 2 for task in SCORES]
            assert answer.improvement[i, j] == pytest.approx(np.mean(each), abs=1e-12)


def test_the_rank_is_one_more_than_the_losses_that_are_better() -> None:
    answer = stats.across_tasks(SCORES)
    ranks = []
    for task in SCORES:
        means = [round(sum(row) / len(row), 12) for row in task.tolist()]
        ranks.append([1 + sum((b > a) + (b == a) / 2 for b in means) - 0.5 for a in means])
    assert answer.rank == pytest.approx(np.mean(ranks, axis=0))
    assert answer.rank.sum() == pytest.approx(10)


def test_intervals_hold_the_estimate_and_mirror_each_other() -> None:
    answer = stats.across_tasks(SCORES)
    assert (answer.rank_low <= answer.rank).all()
    assert (answer.rank <= answer.rank_high).all()
    assert answer.improvement_low == pytest.approx(1 - answer.improvement_high.T, abs=1e-12)
    assert np.diag(answer.improvement) == pytest.approx(0.5)


def test_a_clear_winner_has_no_spread_and_equal_losses_share_the_rank() -> None:
    answer = stats.across_tasks([np.array([[0.9, 0.8], [0.2, 0.1], [0.2, 0.1]])] * 2)
    assert answer.rank.tolist() == [1, 2.5, 2.5]
    assert (answer.rank_low[0], answer.rank_high[0]) == (1, 1)
    assert (answer.improvement_low[0, 1], answer.improvement_high[0, 1]) == (1, 1)


def test_one_seed_everywhere_has_no_interval() -> None:
    answer = stats.across_tasks([np.array([[0.9], [0.2]]), np.array([[0.1], [0.2]])])
    assert answer.rank.tolist() == [1.5, 1.5]
    assert np.isnan(answer.rank_low).all()
    assert np.isnan(answer.improvement_high).all()


def test_seeds_are_drawn_for_all_losses_together() -> None:
    """A loss that is ahead at every seed by the same amount is ahead in every resample, however seeds vary."""
    seeds = RNG.normal(0.5, 0.3, 6)
    answer = stats.across_tasks([np.stack([seeds + 0.01, seeds])])
    assert (answer.rank_low[0], answer.rank_high[0]) == (1, 1)
    assert answer.improvement[0, 1] < 0.7, "independent runs, as rliable has them, overlap"


@pytest.mark.parametrize("scores", [[], [np.ones((2, 3)), np.ones((3, 3))], [np.array([[np.nan], [1.0]])]])
def test_what_cannot_be_ranked_is_refused(scores: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one comparison, the same losses in each, and finite values"):
        stats.across_tasks(scores)
