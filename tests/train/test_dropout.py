"""LoRA dropout: masks that are the same for every variant, however a batch is cut, and none outside training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import training
from rows import pairs

from prefopt.config.schema import Lora
from prefopt.model.base import Base, plain_path
from prefopt.model.dropout import dropped, with_keys
from prefopt.model.logps import pair_rows
from prefopt.model.packing import pack
from prefopt.train.state import Run

LORA = Lora(rank=4, alpha=8, dropout=0.4)
LoadTiny = Callable[..., Base]


@pytest.fixture(autouse=True)
def _dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LORA", LORA)


def losses(run: Run) -> list[float]:
    return [row.loss for row in run.history]


def test_it_drops_the_share_and_keeps_the_mean() -> None:
    some = pairs(6)
    rows = with_keys(pack(pair_rows(some, shared=True)), some, seed=0, step=3)
    x = torch.ones(len(rows.input_ids), 400)
    seen = dropped(x, rows, 5, 0.4)
    assert seen.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert float((seen == 0).double().mean()) == pytest.approx(0.4, abs=0.02)
    assert torch.equal(seen, dropped(x, rows, 5, 0.4))
    for other in (dropped(x, rows, 6, 0.4), dropped(x, with_keys(rows, some, seed=0, step=4), 5, 0.4)):
        assert float((other == seen).double().mean()) == pytest.approx(0.52, abs=0.03)
    assert len(set(rows.keys.tolist())) == len(rows.input_ids)  # type: ignore[union-attr]


def test_both_layouts_of_a_pair_drop_the_same() -> None:
    some = pairs(5)
    shared, apart = (
        with_keys(pack(pair_rows(some, shared=kind), copies=copies), some, seed=1, step=0)
        for kind, copies in ((True, 1), (False, 2))
    )
    assert shared.keys is not None
    assert apart.keys is not None
    assert set(shared.keys.tolist()) == set(apart.keys.tolist())
    assert torch.equal(*apart.keys.view(2, -1))


@pytest.mark.parametrize("change", [{"micro_batch": 1}, {"micro_batch": 3}, {"stack": 2}, {"checkpointing": True}])
def test_how_a_batch_is_run_changes_nothing(change: dict[str, int], tiny_base: LoadTiny) -> None:
    config = training.CONFIG.model_copy(update={"micro_batch": 4, "stack": 1})
    whole, _ = training.train(tiny_base(), ["dpo", "ipo"], config)
    other, _ = training.train(tiny_base(), ["dpo", "ipo"], config.model_copy(update=change))
    for one, same in zip(whole, other, strict=True):
        np.testing.assert_allclose(losses(one), losses(same), rtol=1e-4, atol=1e-5)


def test_the_plain_path_drops_the_same(tiny_base: LoadTiny) -> None:
    packed, _ = training.train(tiny_base(), ["dpo"])
    plain, _ = training.train(plain_path(tiny_base(), "for the test"), ["dpo"])
    np.testing.assert_allclose(losses(packed[0]), losses(plain[0]), rtol=1e-3, atol=1e-4)


def test_training_differs_and_evaluation_has_none(tiny_base: LoadTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it, model = training.train(tiny_base(), ["dpo"])
    monkeypatch.setattr(training, "LORA", LORA.model_copy(update={"dropout": 0.0}))
    without, _ = training.train(tiny_base(), ["dpo"])
    assert losses(with_it[0]) != losses(without[0])
    heldout = [training.heldout(runs[0])[0].numbers() for runs in (with_it, without)]
    np.testing.assert_equal(heldout[0], heldout[1])  # at step 0, before anything is trained
    assert model.adapters.peft.peft_config["default"].lora_dropout == 0.4
