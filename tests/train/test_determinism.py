"""The probe that says whether training repeats itself to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from training import CONFIG, LORA, pair_set, scored

from prefopt import make_loss
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.train import determinism, failures


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_the_probe_says_what_it_saw(
    noise: float, tiny_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    model = AdaptedModel.wrap(base, LORA, size=2)
    with model.off():
        sets = [pair_set(base, scored(8, 1)), pair_set(base, scored(6, 2))]
    original, calls = failures.train_step, [0]

    def step(model: AdaptedModel, chunk: Any, *rest: Any) -> None:
        original(model, chunk, *rest)
        calls[0] += 1
        model.adapters.params[0, 0] += noise * calls[0]  # as a sum in another order would

    monkeypatch.setattr(failures, "train_step", step)
    found = determinism.probe(model, make_loss("dpo"), *sets, CONFIG)
    assert found["outcome"] == ("unverified" if noise else "verified")
    assert calls[0] == 2 * determinism.STEPS
    assert not model.adapters.params.any()  # as it was found
    assert (found["promise"] == determinism.PROMISE["none"]) == bool(noise)
