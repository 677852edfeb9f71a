"""Groups in the harness: a group of two is its pair, and passes of any size give one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from rows import pairs
from training import CONFIG, shaken

from prefopt.data import TokenPair
from prefopt.data.types import TokenGroup
from prefopt.losses import make_loss
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.train.feed import FixedGroups, GroupBatch
from prefopt.train.grouped import GroupedBatch
from prefopt.train.state import Run
from prefopt.train.step import Batch


def of_pair(pair: TokenPair, score: float) -> tuple[TokenPair, TokenGroup]:
    scored = dataclasses.replace(pair, chosen_score=score, rejected_score=0.0)
    both = (pair.chosen_ids, pair.rejected_ids)
    return scored, TokenGroup(pair.prompt_ids, both, (True, True), (score, 0.0), (1.0, 0.0), pair.prompt_id)


def gradients(model: AdaptedModel, label: str, batch: Batch | GroupedBatch) -> torch.Tensor:
    bank = model.adapters
    bank.grads.zero_()
    with model.train(slice(0, 2)):
        means, tokens = batch.backward([Run(str(slot), make_loss(label), 1e-3, slot) for slot in (0, 1)])
    assert tokens > 0
    assert all(mean.isfinite().all() for mean in means)
    return bank.grads.clone()


@pytest.mark.parametrize("label", ["dpo_pl", "infonca", "grpo"])
def test_a_group_of_two_is_its_pair(label: str, tiny_base: Callable[..., Base]) -> None:
    model = shaken(tiny_base(), 2)
    both = [of_pair(pair, 0.5 + i) for i, pair in enumerate(pairs(4))]
    reference = np.linspace(-30, -20, 8, dtype=np.float32).reshape(2, 4)
    flat = Batch(model, [pair for pair, _ in both], reference, CONFIG, 0, 0)
    groups = GroupBatch([group for _, group in both], list(reference.T))
    wanted = gradients(model, label, flat)
    got = gradients(model, label, GroupedBatch(model, groups, CONFIG, 0, 0))
    if label == "grpo":  # the pair's policy drew it, the group's reference did: they agree where the two do
        assert got.norm() > 0
        return
    assert torch.allclose(got, wanted, atol=1e-5 * float(wanted.abs().max()))


def ragged(source: np.random.Generator) -> GroupBatch:
    groups, reference = [], []
    for i, k in enumerate((4, 2, 6)):
        responses = tuple(tuple(source.integers(3, 300, int(source.integers(1, 7))).tolist()) for _ in range(k))
        rewards = tuple(source.normal(size=k).tolist())
        groups.append(TokenGroup((1, 5 + i), responses, (True,) * k, rewards, rewards, i))
        reference.append(source.uniform(-30, -20, k).astype(np.float32))
    behaviour = [[np.full(len(r), -4.0, np.float32) for r in group.responses] for group in groups]
    return GroupBatch(groups, reference, behaviour)


@pytest.mark.parametrize("label", ["rloo", "grpo", "dpo_pl", "infonca"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # packed rows, and the plain path
def test_passes_of_any_size_give_one_gradient(label: str, kind: str, tiny_base: Callable[..., Base]) -> None:
    model = shaken(tiny_base(kind), 2)
    batch = ragged(np.random.default_rng(0))
    whole = gradients(model, label, GroupedBatch(model, batch, CONFIG, 0, 0))
    cut = CONFIG.model_copy(update={"micro_batch": 1})
    parts = gradients(model, label, GroupedBatch(model, batch, cut, 0, 0))
    assert whole.norm() > 0
    assert torch.allclose(parts, whole, atol=1e-4 * float(whole.abs().max()))


def test_a_pair_of_weight_0_is_no_pair_and_is_counted(tiny_base: Callable[..., Base]) -> None:
    model = shaken(tiny_base(), 2)
    four = pairs(4)
    reference = np.full((2, 4), -25, dtype=np.float32)
    ties = [dataclasses.replace(pair, weight=float(i % 2)) for i, pair in enumerate(four)]
    weighted = gradients(model, "dpo", Batch(model, ties, reference, CONFIG, 0, 0))
    left = gradients(model, "dpo", Batch(model, four[1::2], reference[:, 1::2], CONFIG, 0, 0))
    assert torch.allclose(weighted, left / 2, atol=1e-6)
    coupled = CONFIG.model_copy(update={"micro_batch": 2})
    for label in ("dr_dpo", "aot"):
        got = gradients(model, label, Batch(model, ties, reference, coupled, 0, 0))
        assert torch.allclose(got, gradients(model, label, Batch(model, ties, reference, CONFIG, 0, 0)), atol=1e-5)


def test_groups_of_a_step_have_as_many_responses_as_its_pairs() -> None:
    batch = ragged(np.random.default_rng(0))
    feed = FixedGroups.of(batch.groups, batch.reference, CONFIG.model_copy(update={"pairs_per_step": 6}), 0)
    assert feed.order.shape == (CONFIG.steps, 2)  # 12 responses, 6 in the largest group
    run = Run("a", make_loss("rloo"), 1e-3, 0)
    assert feed.batch(run, 1) is feed.batch(run, 1)
