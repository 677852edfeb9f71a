"""Pair builders: what they pick by hand, a fixed number of pairs, and RSO against its Algorithm 1."""

from __future__ import annotations

from itertools import permutations
from math import exp

import numpy as np
import pytest
from scipy.stats import chisquare

from prefopt.data.builders import Labelling, build_pairs, make_builder, preferences, reject
from prefopt.data.types import TokenGroup
from prefopt.errors import UsageError

ARGMAX = Labelling("argmax", 1.0)
REWARDS = (0.2, 1.0, -1.0, 0.5)


def group(rewards: tuple[float, ...] = REWARDS, *, same: bool = False) -> TokenGroup:
    responses = tuple((7, 0 if same else i, 2) for i in range(len(rewards)))
    return TokenGroup((1, 5), responses, (True,) * len(rewards), rewards, rewards, 3)


class Draws:
    """A source whose uniform numbers are written down."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


def test_rso_by_hand() -> None:
    # beta = 1, rewards 2, 1, 0, 1. First pass, top 2: bounds 1, e^-1 = .368, e^-2 = .135, .368. u = .9 accepts 0, .5
    # not 1, .1 accepts 2, .4 not 3. They leave: 1 and 3 are left, top 1, bounds 1 and 1; u = .99 accepts 1: enough.
    draws = Draws(0.9, 0.5, 0.1, 0.4, 0.99)
    assert reject([2, 1, 0, 1], 3, 1.0, draws) == [0, 2, 1]  # type: ignore[arg-type]
    assert not draws.values


def exact(rewards: list[float], count: int, beta: float) -> dict[tuple[int, ...], float]:
    """The distribution of Algorithm 1's accepted indices, in order, by following every branch."""
    out: dict[tuple[int, ...], float] = {}

    def passes(left: tuple[int, ...], accepted: tuple[int, ...], p: float) -> None:
        top = max(rewards[i] for i in left)

        def go(at: int, taken: tuple[int, ...], p: float) -> None:
            if len(accepted) + len(taken) == count:
                out[accepted + taken] = out.get(accepted + taken, 0) + p
            elif at == len(left):
                rest = tuple(i for i in left if i not in taken)
                passes(rest, accepted + taken, p)
            else:
                q = exp((rewards[left[at]] - top) / beta)
                go(at + 1, (*taken, left[at]), p * q)
                if q < 1:
                    go(at + 1, taken, p * (1 - q))

        go(0, (), p)

    passes(tuple(range(len(rewards))), (), 1.0)
    return out


def test_rso_has_the_distribution_of_algorithm_1() -> None:
    rewards, n = [0.3, 1.0, -0.4, 0.3], 20_000
    wanted = exact(rewards, 2, 0.5)
    assert sum(wanted.values()) == pytest.approx(1)
    random = np.random.default_rng(0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(n):
        key = tuple(reject(rewards, 2, 0.5, random))
        counts[key] = counts.get(key, 0) + 1
    assert set(counts) <= {key for key, p in wanted.items() if p > 0} <= set(permutations(range(4), 2))
    keys = list(wanted)
    assert chisquare([counts.get(k, 0) for k in keys], [n * wanted[k] for k in keys]).pvalue > 0.01


@pytest.mark.parametrize(
    ("text", "given", "pairs"),
    [
        ("best-worst", {}, [(1, 2)]), ("best", {}, [(1, 2)]), ("ranked", {"chosen": 1, "rejected": 0.0}, [(1, 2)]),
        ("ranked", {"chosen": 0.67, "rejected": 0.33}, [(3, 0)]), ("ranked", {}, [(1, 0)]),
    ],
)  # fmt: skip
def test_ranks_by_hand(text: str, given: dict[str, object], pairs: list[tuple[int, int]]) -> None:
    assert make_builder(text, given).pick(REWARDS, np.random.default_rng(0)) == pairs


@pytest.mark.parametrize(
    ("text", "count"), [("all", 6), ("best-worst", 1), ("best-random", 1), ("rso", 1), ("ranked", 1)]
)
@pytest.mark.parametrize("kind", ["different", "equal rewards", "equal responses"])
def test_as_many_pairs_whatever_the_rewards(text: str, count: int, kind: str) -> None:
    some = group((0.0,) * 4 if kind == "equal rewards" else REWARDS, same=kind == "equal responses")
    pairs = build_pairs(some, make_builder(text, {}), ARGMAX, np.random.default_rng(1), first_id=9)
    assert [pair.pair_id for pair in pairs] == list(range(9, 9 + count))
    assert {pair.weight for pair in pairs} == {1.0 if kind == "different" else 0.0}
    if kind == "different":
        assert all((p.chosen_score or 0) > (p.rejected_score or 0) for p in pairs)


def test_flips_and_draws_have_their_rates() -> None:
    flipped = drawn = 0
    for i in range(2000):
        (one,) = build_pairs(
            group(), make_builder("best", {}), Labelling("argmax", 1, 0.3), np.random.default_rng(i), first_id=0
        )
        flipped += (one.chosen_score or 0) < (one.rejected_score or 0)
        two = group((0.0, 1.0))
        (one,) = build_pairs(
            two, make_builder("all", {}), Labelling("bradley-terry", 1), np.random.default_rng(i), first_id=0
        )
        drawn += one.chosen_score == 1.0
    assert abs(flipped / 2000 - 0.3) < 4 * (0.21 / 2000) ** 0.5
    assert abs(drawn / 2000 - 1 / (1 + exp(-1))) < 4 * (0.2 / 2000) ** 0.5


def test_every_two_of_a_ranking_are_a_bradley_terry_draw() -> None:
    labelling, random = Labelling("bradley-terry", 2.0), np.random.default_rng(0)
    ranks = np.array([preferences((0.0, 0.4, 1.0), labelling, random) for _ in range(4000)])
    for i, j, gap in ((1, 0, 0.4), (2, 0, 1.0), (2, 1, 0.6)):
        p = 1 / (1 + exp(-2 * gap))
        assert abs((ranks[:, i] > ranks[:, j]).mean() - p) < 4 * (p * (1 - p) / 4000) ** 0.5
    assert preferences((0.0, 0.4), ARGMAX, random) == (0.0, 0.4)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("rsoo", {}, "did you mean rso"), ("rso", {"beta": 0}, "beta must be > 0"), ("rso", {"accept": 3}, "even"),
        ("rso", {"gamma": 1}, "has no setting gamma"), ("ranked", {"chosen": 0.1, "rejected": 0.4}, "< chosen"),
        ("rso", {"accept": 2.5}, "must be a int"), ("best", {"x": 1}, "none"),
    ],
)  # fmt: skip
def test_bad_builders_are_named(name: str, given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_builder(name, given)
    with pytest.raises(UsageError, match="cannot be accepted"):
        make_builder("rso", {"accept": 8}).pick(REWARDS, np.random.default_rng(0))
