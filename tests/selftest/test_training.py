from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from prefopt.selftest import as_text, training, world
from prefopt.selftest.control import Control
from prefopt.storage.schema import REFERENCE


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As ``run_level1`` does: handing so small a model to several threads takes ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    return world.make_world(tmp_path_factory.mktemp("world"), slots=len(training.VARIANTS) + 1)


@pytest.fixture(scope="module")
def trained(here: world.World) -> training.Trained:
    return training.train_variants(here, training.VARIANTS, here.train(0.0), here.heldout(), seed=0)


def failed(controls: list[Control]) -> set[str]:
    return {control.name for control in controls if not control.passed}


def altered(trained: training.Trained, name: str, **columns) -> training.Trained:
    """``trained`` with one policy's scores recomputed."""
    old = trained.samples[name]
    scores = old.scores.assign(**{key: change(old.scores[key]) for key, change in columns.items()})
    return dataclasses.replace(trained, samples={**trained.samples, name: dataclasses.replace(old, scores=scores)})


def test_every_control_passes_on_the_real_pipeline(here: world.World, trained: training.Trained) -> None:
    controls = [
        *training.null_loss(trained),
        *training.twins(trained),
        *training.directions(trained),
        *training.estimates(trained),
        *training.ceiling(trained),
        *training.label_noise(here, 0),
    ]
    assert failed(controls) == set()
    assert len({control.name for control in controls}) == len(controls) == 15


def test_a_null_loss_that_moves_is_caught(trained: training.Trained) -> None:
    swapped = dataclasses.replace(trained, samples={**trained.samples, "noop": trained.samples["ipo"]})
    assert failed(training.null_loss(swapped)) == {"noop/kl", "noop/ties", "noop/win-rate"}


def test_twins_that_differ_are_caught(trained: training.Trained) -> None:
    swapped = dataclasses.replace(trained, hashes={**trained.hashes, "dpo again": "other"})
    assert failed(training.twins(swapped)) == {"twins/identical"}


def test_wrong_directions_are_caught(trained: training.Trained) -> None:
    samples = trained.samples
    mixed = {**samples, "sft": samples["dpo_flipped"], "dpo": samples["noop"], "dpo_flipped": samples["dpo"]}
    assert len(failed(training.directions(dataclasses.replace(trained, samples=mixed)))) == 3


@pytest.mark.parametrize(("column", "factor"), [("kl", 0.8), ("kl", 1.25), ("reward", 0.8)])
def test_biased_estimators_are_caught(trained: training.Trained, column: str, factor: float) -> None:
    wrong = altered(trained, "dpo", **{column: lambda values: values * factor})
    assert failed(training.estimates(wrong)) == {f"enumeration/{column}"}


def test_a_point_above_the_frontier_is_caught(trained: training.Trained) -> None:
    assert failed(training.ceiling(altered(trained, "dpo", kl=lambda values: values / 4))) == {"frontier/samples"}
    high = np.log(np.exp(world.REWARDS * 2) / np.exp(world.REWARDS * 2).sum())
    logps = {**trained.logps, REFERENCE: np.broadcast_to(high, trained.logps[REFERENCE].shape)}
    assert "frontier/exact" not in failed(training.ceiling(dataclasses.replace(trained, logps=logps)))


def test_frontier_is_the_best_of_many_policies() -> None:
    """Against random policies and mixtures: none is above, and the tilted ones are on it."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(4, len(world.RESPONSES)))
    reference -= np.logaddexp.reduce(reference, axis=1, keepdims=True)
    for strength in (0.1, 0.7, 3.0):
        tilted = reference + strength * world.REWARDS
        tilted -= np.logaddexp.reduce(tilted, axis=1, keepdims=True)
        kl, reward = world.exact_kl(tilted, reference), world.exact_reward(tilted)
        assert world.frontier(reference, kl) == pytest.approx(reward, abs=1e-6)
        for _ in range(20):
            other = tilted + 0.3 * rng.normal(size=tilted.shape)
            other -= np.logaddexp.reduce(other, axis=1, keepdims=True)
            assert world.exact_reward(other) < world.frontier(reference, world.exact_kl(other, reference))


def test_labels_that_ignore_the_noise_are_caught(here: world.World, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, heldout = here.train(0.0), here.heldout()
    monkeypatch.setattr(world.World, "train", lambda self, noise: clean)
    monkeypatch.setattr(world.World, "heldout", lambda self, noise=0.0: heldout)
    assert failed(training.label_noise(here, 0)) == {"noise/monotone", "noise/random-labels"}


def test_text_says_which_fail() -> None:
    good, bad = Control("good", "?", 0.5, 0.0, 1.0), Control("bad", "?", float("nan"), 0.0, 1.0)
    assert as_text([good, bad]).splitlines() == [
        "ok   good         0.5  in [0, 1]",
        "FAIL bad          nan  in [0, 1]",
        "1 of 2 controls pass",
    ]


def test_world_is_what_it_says(here: world.World) -> None:
    assert len(world.RESPONSES) == len(set(world.RESPONSES)) == 1 + 6 + 36 + 216
    assert np.exp(here.logps(None)).sum(1) == pytest.approx(np.ones(36), abs=1e-5)
    train, heldout = ({p.prompt_ids for p in pair_set.pairs} for pair_set in (here.train(0.0), here.heldout()))
    assert not train & heldout
    assert all(p.chosen_score > p.rejected_score for p in here.train(0.0).pairs if p.chosen_score != p.rejected_score)
    flipped = np.mean([p.chosen_score < p.rejected_score for p in here.train(0.4).pairs])
    assert 0.25 < flipped < 0.5
