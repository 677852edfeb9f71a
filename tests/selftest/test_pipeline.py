"""The pipeline's controls: they hold, and each of them catches what it is there for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from prefopt.losses.groups import RLOO
from prefopt.selftest import pipeline, world


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    return world.make_world(tmp_path_factory.mktemp("world"), slots=len(pipeline.ONLINE) + 1)


def test_the_controls_hold(here: world.World) -> None:
    controls = pipeline.pipeline(here, 0)
    assert {c.name: c.value for c in controls if not c.passed} == {}
    assert len(controls) == 4


def test_a_baseline_that_is_wrong_is_seen(here: world.World, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, rewards = pipeline._listed(here)
    right = RLOO.advantages
    # The mean of all in place of the others' shrinks the gradient by (K - 1) / K.
    monkeypatch.setattr(RLOO, "advantages", lambda self, groups: right(self, groups) * 2 / 3)
    assert not pipeline.policy_gradient(reference, rewards)[0].passed


def test_another_beta_is_seen(here: world.World, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, rewards = pipeline._listed(here)
    make = pipeline.make_loss
    monkeypatch.setattr(pipeline, "make_loss", lambda label: make(label.replace("0.4", "0.2")))
    assert not pipeline.rounds_of_dpo(reference, rewards)[0].passed
    assert not pipeline.policy_gradient(reference, rewards)[0].passed
