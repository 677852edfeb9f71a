"""The report of a tuned comparison: winners, what tuning bought, curves, frontier, warnings, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tuned
from synthetic import DEFAULT_VARIANTS, World

from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import load
from prefopt.analysis.trials import read
from prefopt.report import build
from prefopt.report.methods import methods
from prefopt.report.tuning import tuning_text

WINNER = f"dpo[lr={tuned.BEST}]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tuned.write(tmp_path_factory.mktemp("tuned") / "mine")
    build(root)
    return root


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return whole


def test_the_winner_is_the_planted_best_and_stands_beside_the_defaults(results: dict[str, Any]) -> None:
    families = {row["family"]: row for row in results["tuning"]["families"]}
    assert families["dpo"]["tuned"] == WINNER
    assert families["dpo"]["settings"] == "lr=0.0006, beta=0.1"
    assert families["dpo"]["gain"]["low"] > 0  # .7 was planted
    assert families["simpo"]["lost"] == 1
    settings = {row["variant"]: row["setting"] for row in results["leaderboard"]}
    assert settings == {"dpo": "default", WINNER: "tuned", "simpo": "default", f"simpo[lr={tuned.BEST}]": "tuned"}


def test_pages_tables_and_figures(folder: Path, results: dict[str, Any]) -> None:
    for name in ("tuned", "trials", "top_trials", "frontier_area"):
        assert (folder / "tables" / f"{name}.csv").stat().st_size > 40, name
    for name in ("tuned_forest", "tuning_curves", "score_rate", "tuning_frontier"):
        assert (folder / "figures" / f"{name}.svg").stat().st_size > 2000, name
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Every loss at its best" in page
    assert not any(one["title"] == "One setting of each loss" for one in results["warnings"])
    text = " ".join(tuning_text(results))
    assert "Every loss had 5 trials" in text
    assert "1 of them without a result" in text
    assert "the learning rate" in text


def test_the_frontier_reaches_as_far_as_every_loss(results: dict[str, Any]) -> None:
    found = results["tuning"]["frontier"]
    reach = {
        name: max(point["kl"] for point in found["points"] if point["family"] == name) for name in ("dpo", "simpo")
    }
    assert found["to"] == pytest.approx(min(reach.values()))
    assert {row["family"] for row in found["areas"]} == {"dpo", "simpo"}
    assert all(row["gain"]["low"] <= row["gain"]["value"] <= row["gain"]["high"] for row in found["areas"])


def test_an_edge_is_named(tmp_path: Path) -> None:
    ranges = {"dpo": {"lr": [1e-4, 6.5e-4], "beta": [0.01, 1.0]}, "simpo": {"lr": [1e-4, 1e-2]}}
    root = tuned.write(tmp_path / "mine", ranges=ranges)
    rows = {row["family"]: row for row in analyse(load(root))["tuning"]["families"]}
    assert rows["dpo"]["edges"] == ["lr=0.0006 at the upper end of 0.0001 to 0.00065"]
    assert rows["simpo"]["edges"] == []


def test_a_bound_on_the_kl_changes_the_winner(tmp_path: Path) -> None:
    tuning = read(tuned.write(tmp_path / "mine", max_kl=0.8))
    assert tuning is not None
    assert (winner := tuning.best("dpo")) is not None
    assert winner.kl is not None
    assert winner.kl <= 0.8


def test_without_a_reward_the_criterion_is_held_out_accuracy_and_it_says_so(tmp_path: Path) -> None:
    found = analyse(load(tuned.write(tmp_path / "mine", gold=False)))
    assert found["tuning"]["criterion"] == "accuracy"
    assert found["tuning"]["frontier"] is None
    assert "not the quality of what a policy writes" in " ".join(tuning_text(found))


def test_a_winner_of_fewer_trials_is_left_out(tmp_path: Path) -> None:
    root = tuned.write(tmp_path / "mine")
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    named = manifest["config"]["variants"]
    manifest["config"]["variants"] = [facts for facts in named if facts["label"] != WINNER]
    (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert WINNER not in load(root).variants


def test_what_is_not_tuned_says_what_tuning_would_cost(tmp_path: Path) -> None:
    found = analyse(load(World(seeds=1, prompts=16, pairs=12).write(tmp_path / "plain")))
    (note,) = [one for one in found["warnings"] if one["title"] == "One setting of each loss"]
    # Four losses that train: 32 trials and 4 winners at one seed, 42 s each.
    assert "36 more runs, about 26 min" in note["text"]
    sweep = {name: planted for name, planted in DEFAULT_VARIANTS.items() if name == "dpo"}
    sweep |= {"dpo[beta=0.5]": DEFAULT_VARIANTS["ipo"], "dpo[lr=0.001]": DEFAULT_VARIANTS["simpo"]}
    found = analyse(load(World(variants=sweep, seeds=1, prompts=16, pairs=12).write(tmp_path / "sweep")))
    (warning,) = [one for one in found["warnings"] if "several settings" in one["title"]]
    assert "dpo ran at several settings" in warning["text"]
    assert "0.85 standard deviations" in warning["text"]


def test_the_answer_the_methods_and_the_edge(tmp_path: Path, results: dict[str, Any]) -> None:
    assert any(
        sentence.startswith("At its best of 5 trials") and "dpo +0." in sentence for sentence in results["answers"]
    )
    assert "No trial was stopped early" in " ".join(methods(results))
    none = analyse(load(tuned.write(tmp_path / "mine", max_kl=1e-6)))
    assert any(one["title"] == "No setting to choose" for one in none["warnings"])
    assert any("dpo has no setting to choose" in sentence for sentence in none["answers"])
