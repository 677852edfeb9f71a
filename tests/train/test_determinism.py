"""The probe that says whether training repeats itself to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from training import CONFIG, pair_set, scored

from prefopt.model.adapters import AdapterBank
from prefopt.model.base import Base
from prefopt.train import determinism, loop


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_the_probe_says_what_it_saw(
    noise: float, tiny_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    bank = AdapterBank(base.model, size=2, rank=4, alpha=8)
    with bank.off():
        sets = [pair_set(base, scored(8, 1)), pair_set(base, scored(6, 2))]
    original, calls = loop.train_step, [0]

    def step(base: Base, bank: AdapterBank, chunk: Any, *rest: Any) -> None:
        original(base, bank, chunk, *rest)
        calls[0] += 1
        bank.params[0, 0] += noise * calls[0]  # as a sum in another order would

    monkeypatch.setattr(loop, "train_step", step)
    found = determinism.probe(base, bank, *sets, CONFIG)
    assert found["outcome"] == ("unverified" if noise else "verified")
    assert calls[0] == 2 * determinism.STEPS
    assert not bank.params.any()  # as it was found
    assert (found["promise"] == determinism.PROMISE["none"]) == bool(noise)
