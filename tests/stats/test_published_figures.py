"""Our numbers from other people's published records: leaderboards recomputed from their annotations."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import special

from prefopt import stats

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def folder(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there: published figures cannot be recomputed without it")
    return path


def shares(preference: pd.Series) -> np.ndarray:
    """AlpacaEval writes 1 to 2, and both 0 and 1.5 for a draw."""
    return preference.replace({0.0: 1.5}).to_numpy(dtype=np.float64) - 1


@pytest.mark.parametrize(
    ("annotations", "leaderboard", "at_least"),
    [
        ("annotations_weighted_gpt4_turbo.csv.gz", "leaderboard_v2.csv", 40),
        ("annotations_v1_gpt4.csv.gz", "leaderboard_v1_gpt4.csv", 35),
    ],
)
def test_alpacaeval_win_rates_and_standard_errors(annotations: str, leaderboard: str, at_least: int) -> None:
    root = folder("alpaca_eval")
    published = pd.read_csv(root / leaderboard, index_col=0)
    compared = 0
    for model, rows in pd.read_csv(root / annotations).groupby("model"):
        if model not in published.index:
            continue
        ours = stats.win_rate(shares(rows["preference"])[None])
        assert 100 * ours.value == pytest.approx(published.win_rate[model], abs=0.01), model
        assert 100 * ours.se == pytest.approx(published.standard_error[model], abs=0.01), model
        assert ours.conditional  # one set of answers: about these answers, not about a way of training
        compared += 1
    assert compared >= at_least


class AlpacaEval2:
    """The files of version 2, and the published length-controlled figure of each model."""

    def __init__(self) -> None:
        root = folder("alpaca_eval")
        instructions = pd.read_csv(root / "instructions.csv")
        self.difficulty = instructions["instruction_difficulty"].to_numpy()
        self.gamed = pd.read_csv(root / "gamed_reconstructed.csv.gz")
        self.published = pd.read_csv(root / "leaderboard_v2.csv", index_col=0)["length_controlled_winrate"]
        rows = pd.read_csv(root / "annotations_weighted_gpt4_turbo.csv.gz")
        self.models = {str(m): r for m, r in rows.groupby("model") if m in self.published.index}

    def fit(self, rows: pd.DataFrame, *, difficulty: np.ndarray, gamed_weight: float = 0.1) -> stats.AlpacaEvalLC:
        return stats.alpacaeval_lc(
            shares(rows["preference"]),
            rows["len_1"],
            rows["len_2"],
            difficulty,
            gamed=stats.GamedRows(
                self.gamed["preference01_surrogate"],
                self.gamed["tanh_std_delta_len"],
                self.gamed["instruction_difficulty"],
                gamed_weight,
            ),
        )


@pytest.fixture(scope="module")
def alpacaeval() -> AlpacaEval2:
    return AlpacaEval2()


def complete(rows: pd.DataFrame, alpacaeval: AlpacaEval2) -> bool:
    return len(rows) == len(alpacaeval.difficulty)


def test_alpacaeval_length_controlled_win_rates(alpacaeval: AlpacaEval2) -> None:
    compared = 0
    for model, rows in alpacaeval.models.items():
        if not complete(rows, alpacaeval):
            continue
        ours = alpacaeval.fit(rows, difficulty=alpacaeval.difficulty[rows["index"]])
        assert 100 * ours.win_rate == pytest.approx(alpacaeval.published[model], abs=0.1), model
        compared += 1
    assert compared >= 35


def test_alpacaeval_coefficients(alpacaeval: AlpacaEval2) -> None:
    weights = pd.read_csv(folder("alpaca_eval") / "glm_weights_v1.csv", index_col=0)
    gaps = []
    for model in set(alpacaeval.models) & set(weights.index):
        rows = alpacaeval.models[model]
        baseline = model == "gpt4_1106_preview"  # against itself: upstream writes zeros without a fit
        if complete(rows, alpacaeval) and not baseline:
            ours = alpacaeval.fit(rows, difficulty=alpacaeval.difficulty[rows["index"]])
            gaps.append(np.abs(np.array([ours.phi, ours.psi, ours.theta]) - weights.loc[model].to_numpy()))
    assert len(gaps) >= 34
    assert np.max(gaps) < 0.15
    assert np.median(gaps) < 0.03


def test_rows_missing_upstream_shift_the_difficulty(alpacaeval: AlpacaEval2) -> None:
    """Upstream takes difficulty by position in the file; with it their figure returns, by instruction it does not."""
    shifted = []
    for model, rows in alpacaeval.models.items():
        if complete(rows, alpacaeval):
            continue
        rows = rows.sort_values("row")
        theirs = alpacaeval.fit(rows, difficulty=alpacaeval.difficulty[rows["row"]])
        ours = alpacaeval.fit(rows, difficulty=alpacaeval.difficulty[rows["index"]])
        assert 100 * theirs.win_rate == pytest.approx(alpacaeval.published[model], abs=0.1), model
        shifted.append(100 * abs(ours.win_rate - theirs.win_rate))
    assert max(shifted) > 0.2


def test_gamed_rows_and_difficulty_both_matter(alpacaeval: AlpacaEval2) -> None:
    errors: dict[str, list[float]] = {"without gamed": [], "bare length": []}
    for model, rows in alpacaeval.models.items():
        if not complete(rows, alpacaeval):
            continue
        difficulty = alpacaeval.difficulty[rows["index"]]
        for name, column in (("without gamed", difficulty), ("bare length", np.zeros(len(rows)))):
            ours = alpacaeval.fit(rows, difficulty=column, gamed_weight=0.0)
            errors[name].append(abs(100 * ours.win_rate - alpacaeval.published[model]))
    assert 0.5 < np.median(errors["without gamed"]) < 2
    assert 3 < np.median(errors["bare length"]) < 7


def test_published_per_row_predictions(alpacaeval: AlpacaEval2) -> None:
    rows = pd.read_csv(folder("alpaca_eval") / "glm_preference_two_models.csv.gz")
    for model, theirs in rows.groupby("model"):
        table = alpacaeval.models[str(model)]
        difficulty = alpacaeval.difficulty[table["index"]]
        ours = alpacaeval.fit(table, difficulty=difficulty)
        predicted = special.expit(ours.theta + ours.psi * difficulty)
        assert np.abs(predicted - theirs["glm_preference"].to_numpy()).max() < 0.005


def read_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_bootstrap_intervals_of_alpacaeval_as_arena_hard_published_them() -> None:
    """Resampling rows gave their intervals; ours of the same rows, from a formula, have the same ends."""
    root = folder("arena_hard")
    published = {row["model"]: row for row in read_lines(root / "bootstrap_stats_alpaca_LC.jsonl.gz")}
    compared = 0
    for row in read_lines(root / "alpaca_2.0_lc_results.jsonl.gz"):
        theirs = published.get(row["model"])
        if theirs is None:
            continue
        ours = stats.win_rate(np.array(row["length_controlled_winrate"])[None])
        assert 100 * ours.value == pytest.approx(theirs["score"], abs=0.01), row["model"]
        assert 100 * ours.low == pytest.approx(theirs["lower"], abs=0.3), row["model"]
        assert 100 * ours.high == pytest.approx(theirs["upper"], abs=0.3), row["model"]
        compared += 1
    assert compared >= 15


def test_wildbench_rewards() -> None:
    outcomes = {"win_much": 1.0, "win": 0.5, "tie": 0.0, "lose": -0.5, "lose_much": -1.0}
    table = pd.read_csv(folder("wildbench") / "pairwise_counts.csv")
    assert len(table) >= 500
    for row in table.itertuples():
        counts = [getattr(row, name) for name in outcomes]
        counts[2] += row.total - sum(counts)  # they divide by all questions: one without a verdict counts as a tie
        ours = stats.two_way(np.repeat(list(outcomes.values()), counts)[None])
        assert ours.value == pytest.approx(row.published_reward, abs=1e-9)
        assert ours.n_prompts == row.total
