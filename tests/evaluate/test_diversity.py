"""How varied samples are, counted by hand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from prefopt.evaluate.diversity import compression_ratio, distinct_n


def test_distinct_n_by_hand() -> None:
    # Bigrams 12 23 | 12 24: three of four distinct; 3|1 across the border does not count.
    assert distinct_n([[1, 2, 3], [1, 2, 4]], 2, budget=100) == 3 / 4
    assert distinct_n([[1, 2, 3], [1, 2, 4]], 1, budget=4) == 3 / 4  # 1 2 3 | 1
    assert distinct_n([[1], [2]], 2, budget=10) == 0.0
    assert distinct_n([], 1, budget=10) == 0.0


def test_distinct_n_compares_on_one_budget() -> None:
    rng = np.random.default_rng(7)
    short, long = rng.integers(0, 50, (20, 10)).tolist(), rng.integers(0, 50, (20, 100)).tolist()
    assert distinct_n(short, 1, budget=200) == pytest.approx(distinct_n(long, 1, budget=200), abs=0.08)
    assert distinct_n(long, 1, budget=2000) < 0.5 * distinct_n(long, 1, budget=200)


def test_compression_ratio() -> None:
    assert compression_ratio(["ab", "c"]) == 4 / len(zlib.compress(b"ab\nc", 9))
    assert compression_ratio(["the same"] * 200) > 20
    assert compression_ratio([]) == 1.0
    assert compression_ratio(["\ud800"]) > 0
