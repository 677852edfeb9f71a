"""The training loop: companions, micro-batches, step 0, divergence, and every registered loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from training import CONFIG, LORA, heldout, train

from prefopt import loss_names, make_loss
from prefopt.config.schema import Train
from prefopt.contract.loss import ChosenRejected, Loss, PairLogps
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.train.loop import consecutive
from prefopt.train.optimizer import schedule
from prefopt.train.state import Run


def test_a_run_does_not_depend_on_its_companions(tiny_base: Callable[..., Base]) -> None:
    _, group = train(tiny_base(), ["dpo", "simpo", "ipo", "kto", "orpo"])
    for slot, label in enumerate(["dpo", "simpo", "ipo", "kto", "orpo"]):
        _, alone = train(tiny_base(), [label])
        assert torch.equal(alone.adapters.params[0], group.adapters.params[slot]), label


def test_two_runs_of_one_variant_are_equal_to_the_bit(tiny_base: Callable[..., Base]) -> None:
    first_runs, first = train(tiny_base(), ["dpo"])
    again_runs, again = train(tiny_base(), ["dpo"])
    assert torch.equal(first.adapters.params, again.adapters.params)
    assert repr(first_runs[0].history) == repr(again_runs[0].history)
    _, other = train(tiny_base(), ["dpo"], seed=1)
    assert not torch.equal(first.adapters.params, other.adapters.params)


def test_stacked_and_single_training_agree(tiny_base: Callable[..., Base]) -> None:
    labels: list[str | Loss] = ["dpo", "simpo", "ipo"]
    _, single = train(tiny_base(), labels)
    _, stacked = train(tiny_base(), labels, CONFIG.model_copy(update={"stack": 3}))
    moved = (single.adapters.params - single.adapters.params[0]).abs().max()
    assert moved > 1e-3
    torch.testing.assert_close(stacked.adapters.params, single.adapters.params, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "label",
    [
        "dpo",
        "simpo",
        "kto",
        "bco",
        "aot",
        "dr_dpo",
        "beta_dpo",
        "alpha_dpo",
        "mpo",
        "tdpo",
        "wpo",
        "sampo",
        "mix[0.8*dpo+0.2*bco+1.0*sft]",
    ],
)
def test_the_micro_batch_changes_nothing(label: str, tiny_base: Callable[..., Base]) -> None:
    # One step with a plain gradient: AdamW would turn rounding of a vanishing gradient into a whole step.
    config = CONFIG.model_copy(update={"steps": 1, "warmup_steps": 0})
    _, whole = train(tiny_base(), [label], config)
    gradient = whole.adapters.grads.clone()
    for size in (1, 3):
        _, split = train(tiny_base(), [label], config.model_copy(update={"micro_batch": size}))
        torch.testing.assert_close(split.adapters.grads, gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("label", loss_names())
def test_every_loss_trains(label: str, tiny_base: Callable[..., Base]) -> None:
    runs, model = train(tiny_base(), [label])
    run = runs[0]
    assert run.outcome.diverged_at is None
    rows = heldout(run)
    assert [row.step for row in rows] == [0, 2, 4]
    assert rows[0].logratio_margins == 0.0  # policy and reference are the same, to the bit
    assert all(np.isfinite(row.loss) for row in run.history)
    assert len([row for row in run.history if row.split == "train"]) == CONFIG.steps
    base_hash = AdaptedModel.wrap(tiny_base(), LORA, size=1).adapters
    base_hash.initialise(0, 0)
    assert (model.adapters.hash(0) == base_hash.hash(0)) == (label == "noop")


def test_the_plain_path_trains_to_the_same_adapter(tiny_base: Callable[..., Base]) -> None:
    config = CONFIG.model_copy(update={"steps": 1, "warmup_steps": 0})
    _, packed = train(tiny_base(), ["dpo"], config)
    base = dataclasses.replace(tiny_base(), packed=False)
    base.model.set_attn_implementation("sdpa")
    _, plain = train(base, ["dpo"], config)
    torch.testing.assert_close(plain.adapters.grads, packed.adapters.grads, atol=1e-5, rtol=1e-3)


@dataclasses.dataclass(frozen=True)
class Explodes(Loss):
    """A loss that turns into NaN once its margin has moved."""

    name = "explodes"
    source = "test"
    needs_reference = True
    length_normalized = False

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        return logps.logratios()

    def __call__(self, logps: PairLogps) -> torch.Tensor:
        margin = logps.logratios().margin
        return -margin * torch.where(margin.detach().abs() > 1e-3, torch.nan, 1.0)


def test_a_run_that_diverges_leaves_and_harms_nobody(tiny_base: Callable[..., Base]) -> None:
    runs, model = train(tiny_base(), ["dpo", Explodes(), "simpo"])
    assert [run.outcome.diverged_at for run in runs] == [None, 2, None]
    assert model.adapters.params.isfinite().all()  # stopped before the optimizer step
    for slot, label in ((0, "dpo"), (2, "simpo")):
        _, alone = train(tiny_base(), [label])
        assert torch.equal(model.adapters.params[slot], alone.adapters.params[0])


def test_clipping_bounds_each_run_by_itself(tiny_base: Callable[..., Base]) -> None:
    config = CONFIG.model_copy(update={"max_grad_norm": 1e-3, "steps": 1})
    runs, model = train(tiny_base(), ["dpo[beta=5.0]", "noop"], config)
    assert model.adapters.grads[0].norm() == pytest.approx(1e-3, rel=1e-2)
    assert runs[0].history[1].grad_norm > 1e-3
    assert model.adapters.grads[1].norm() == 0


def test_schedule_warms_up_and_decays() -> None:
    config = Train(steps=10, warmup_steps=4)
    assert [round(schedule(config, s), 2) for s in (0, 3, 4, 7, 9)] == [0.2, 0.8, 1.0, 0.5, 0.17]
    assert schedule(config.model_copy(update={"schedule": "constant"}), 9) == 1.0
    assert schedule(config.model_copy(update={"schedule": "cosine"}), 7) == pytest.approx(0.5)


def test_chunks_hold_neighbouring_slots() -> None:
    runs = [Run("x", make_loss("noop"), 1e-3, slot) for slot in (0, 1, 3, 4, 5)]
    assert [[run.slot for run in chunk] for chunk in consecutive(runs, 2)] == [[0, 1], [3, 4], [5]]


def test_training_moves_the_margin_the_right_way(tiny_base: Callable[..., Base]) -> None:
    runs, _ = train(tiny_base(), ["dpo", "dpo_flipped"], CONFIG.model_copy(update={"steps": 8}), n=4)
    up, down = ([row.logratio_margins for row in run.history if row.split == "train"][-1] for run in runs)
    assert up > 0.5
    assert down < -0.5
