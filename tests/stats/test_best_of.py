"""Best of n: its KL where the best outcome is likely, and its reward over all subsets of the samples."""

from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pandas as pd
import pytest

from prefopt.analysis.policies import best_of_n
from prefopt.stats import best_of_n_kl


def exact(n: int, p: list[float]) -> float:
    """KL of the best of n from a ranking of outcomes with probabilities p, the best last."""
    at_most = np.cumsum([0, *p])
    q = np.diff(at_most**n)
    return float(sum(b * log(b / a) for a, b in zip(p, q, strict=True) if b))


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_it_lies_between_the_truth_of_a_likely_best_and_the_bound(n: int) -> None:
    bound = log(n) - (n - 1) / n
    for e in (1e-9, 0.05, 0.2, 0.6):
        rest = 100_000  # outcomes below the best, each hardly ever said
        truth = exact(n, [(1 - e) / rest] * rest + [e])
        assert float(best_of_n_kl(n, [log(e)])[0]) == pytest.approx(truth, abs=2e-4)
        assert truth <= bound + 1e-9
    assert float(best_of_n_kl(8, [log(0.2)])[0]) == pytest.approx(1.127, abs=5e-4)
    assert float(best_of_n_kl(n, [-500.0])[0]) == pytest.approx(bound, abs=1e-9)


def test_reward_over_all_subsets() -> None:
    rewards = [0.0, 3.0, 1.0, 2.0, 5.0]
    frame = pd.DataFrame({"prompt_id": 0, "reward": rewards, "ref_logp": [-1.0, -2.0, -3.0, -4.0, log(0.5)]})
    rows = {row["n"]: row for row in best_of_n(frame)}
    for n in (1, 2, 5):
        best = [max(some) for some in combinations(rewards, n)]
        assert rows[n]["reward"] == pytest.approx(sum(best) / len(best))
    assert rows[2]["kl"] == pytest.approx(float(best_of_n_kl(2, [log(0.5)])[0]))
    assert rows[2]["kl"] < rows[2]["kl_bound"]
    assert rows[1]["kl"] == pytest.approx(0)
