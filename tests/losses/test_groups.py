"""Losses of groups: identities that must hold, a ranking by hand, and TRL as oracle in float64."""

from __future__ import annotations

import dataclasses
from itertools import combinations, permutations
from math import exp, log
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefopt import make_loss
from prefopt.contract.groups import GroupLogps, GroupLoss
from prefopt.testing.groups import example_groups, with_tokens


def loss(label: str) -> Any:
    made = make_loss(label)
    assert isinstance(made, GroupLoss)
    return made


def on_policy(k: int, *, beta: float) -> tuple[Any, GroupLogps]:
    """Groups of k responses that the policy drew itself."""
    source = torch.Generator().manual_seed(k)
    draws = [torch.randn(5, k, generator=source, dtype=torch.float64) for _ in range(3)]
    logps = (draws[0] - 9).requires_grad_()
    groups = GroupLogps(
        logps, torch.full_like(logps, 4).detach(), torch.ones(5, k).bool(), draws[1], draws[1], draws[2] - 9
    )
    return loss(f"rloo[beta={beta}]"), groups


@pytest.mark.parametrize("k", [2, 3, 6])
def test_rloo_of_k_is_a_sum_over_pairs(k: int) -> None:
    rloo, groups = on_policy(k, beta=0.3)
    regularised = (groups.scores() - 0.3 * groups.logratios()).detach()
    total = torch.zeros(5, dtype=torch.float64)
    for i, j in combinations(range(k), 2):
        total += (regularised[:, i] - regularised[:, j]) * (groups.logps[:, i] - groups.logps[:, j])
    value = rloo.group(groups)
    assert torch.allclose(value, -total / (k * (k - 1)), rtol=1e-12)
    # and pair by pair through the pair form, which takes scores
    pairs = torch.zeros(5, dtype=torch.float64)
    for i, j in combinations(range(k), 2):
        two = dataclasses.replace(
            groups,
            **{
                n: getattr(groups, n)[:, [i, j]]
                for n in ("logps", "lengths", "mask", "preference", "rewards", "ref_logps")
            },
        )
        pairs += rloo.group(two)
    assert torch.allclose(value, pairs * 2 / (k * (k - 1)), rtol=1e-12)


def test_plackett_luce_sums_to_one_over_all_rankings_and_is_dpo_of_a_pair() -> None:
    pl = loss("dpo_pl[beta=0.5]")
    groups = example_groups(pl)
    one = dataclasses.replace(
        groups, **{n: getattr(groups, n)[:1] for n in ("logps", "lengths", "mask", "rewards", "ref_logps", "behaviour")}
    )
    total = 0.0
    for order in permutations(range(4)):
        total += torch.exp(-pl.group(dataclasses.replace(one, preference=torch.tensor([order]).double()))).item()
    assert total == pytest.approx(1, rel=1e-12)
    h = torch.tensor([[2.0, 0.0, -1.0]]).double()
    ranked = GroupLogps(h, h * 0 + 3, h == h, torch.tensor([[1.0, 3.0, 2.0]]), None, h * 0)
    # Second, then third, then first: e^0 of e^1 + e^0 + e^-0.5; then e^-0.5 of e^1 + e^-0.5.
    wanted = log(exp(1) + 1 + exp(-0.5)) + 0.5 + log(exp(1) + exp(-0.5))
    assert pl.group(ranked).item() == pytest.approx(wanted, rel=1e-12)
    tie = dataclasses.replace(ranked, preference=torch.ones(1, 3))
    assert pl.group(tie).item() == pytest.approx(3 * log(exp(1) + 1 + exp(-0.5)) - 0.5, rel=1e-12)


def test_infonca_by_hand() -> None:
    h = torch.tensor([[2.0, 0.0]]).double()
    groups = GroupLogps(h, h * 0 + 3, h == h, h * 0, torch.tensor([[0.0, log(3.0)]]).double(), h * 0)
    own = [log(exp(1) / (exp(1) + 1)), log(1 / (exp(1) + 1))]
    assert loss("infonca[beta=0.5]").group(groups).item() == pytest.approx(-(own[0] / 4 + own[1] * 3 / 4))


def _trl(name: str, groups: GroupLogps, advantages: torch.Tensor, **options: Any) -> torch.Tensor:
    """The loss of TRL's trainer on the groups' own tensors: only the model and the bookkeeping are stand-ins."""
    trl = pytest.importorskip("trl")
    from collections import defaultdict

    cls = getattr(trl, name)
    tokens = groups.tokens
    assert tokens is not None
    flat = {field: getattr(tokens, field).flatten(0, 1) for field in ("mask", "logps", "ref_logps", "behaviour")}
    mask, width = flat["mask"], flat["mask"].shape[1]
    trainer = object.__new__(cls)
    metrics: Any = {"train": defaultdict(list), "eval": defaultdict(list)}
    accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)
    values: dict[str, Any] = {
        "model": SimpleNamespace(training=False), "accelerator": accelerator, "_metrics": metrics, "epsilon_low": 0.2,
        "epsilon_high": 0.2, "aux_loss_enabled": False, "beta": 0.0, "loss_type": "dapo", "top_entropy_quantile": 1.0,
        "importance_sampling_level": "token", "off_policy_mask_threshold": None, "use_vllm": False,
        "args": SimpleNamespace(use_bias_correction_kl=False, delta=None), "_entropy_bonus_enabled": False,
        "vllm_importance_sampling_correction": False, "tools": None, "use_adaptive_entropy": False,
        "current_gradient_accumulation_steps": 1, "max_completion_length": width, **options,
    }  # fmt: skip
    trainer.__dict__.update(values)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        flat["logps"],
        torch.zeros_like(flat["logps"]),
        None,
    )
    ids = torch.zeros(len(mask), width, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask.double(),
        "advantages": advantages.flatten(), "old_per_token_logps": flat["behaviour"],
        "old_logps": (flat["behaviour"] * mask).sum(1), "ref_per_token_logps": flat["ref_logps"],
        "num_items_in_batch": mask.sum().double(),
    }  # fmt: skip
    return trainer._compute_loss(trainer.model, inputs)


def whole(name: str) -> GroupLogps:
    """Example groups with every response there, and per-token values."""
    asked = loss("grpo")
    groups = example_groups(asked)
    return with_tokens(asked, dataclasses.replace(groups, mask=torch.ones_like(groups.mask)))


def test_rloo_agrees_with_trl() -> None:
    groups, rloo = whole("rloo"), loss("rloo[beta=0.1]")
    assert groups.behaviour is not None
    assert groups.ref_logps is not None
    rewards = groups.scores() - 0.1 * (groups.behaviour - groups.ref_logps)
    # RLOOTrainer, as in its _generate_and_score_completions: rewards less beta KL, less the mean of the others.
    baselines = (rewards.nansum(dim=1, keepdim=True) - rewards) / (4 - 1)
    advantages = rewards - baselines
    assert torch.allclose(rloo.advantages(groups), advantages, atol=1e-9, rtol=0)
    theirs = _trl("RLOOTrainer", groups, advantages)
    assert rloo.group(groups).mean().item() == pytest.approx(theirs.item(), abs=1e-9)


@pytest.mark.parametrize("normalizer", ["dapo", "grpo"])
def test_grpo_agrees_with_trl(normalizer: str) -> None:
    groups, grpo = whole("grpo"), loss(f"grpo[normalizer={normalizer}]")
    rewards = groups.scores()
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(grpo.advantages(groups), advantages, atol=1e-9, rtol=0)
    theirs = _trl("GRPOTrainer", groups, advantages, beta=0.04, loss_type=normalizer)
    assert grpo.group(groups).mean().item() == pytest.approx(theirs.item(), abs=1e-9)


def test_a_loss_of_groups_of_somebody_else_s_is_checked_and_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import dataclass

    from prefopt import GroupLoss, register
    from prefopt.contract import registry
    from prefopt.testing import contract_failures
    from prefopt.train.foreign import LossError, guarded

    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))

    @register("mine")
    @dataclass(frozen=True)
    class Mine(GroupLoss):
        """Pulls the mean of each group up.

            loss = -mean of h

        Source:
            A test.
        """

        source = "a test"
        needs_reference, length_normalized, raises_margin = True, False, False

        def implicit(self, groups: GroupLogps) -> torch.Tensor:
            return groups.logratios()

        def group(self, groups: GroupLogps) -> torch.Tensor:
            return -groups.logratios().mean(1)

    lines = contract_failures(Mine())
    assert any("a response that the mask leaves out has a gradient" in line for line in lines)
    assert any("values that the mask leaves out change the loss" in line for line in lines)

    groups = example_groups(Mine())
    assert torch.equal(guarded(Mine()).group(groups), Mine().group(groups))  # type: ignore[attr-defined]
    monkeypatch.setattr(Mine, "group", lambda self, groups: groups.logps)
    with pytest.raises(LossError, match="shape"):
        guarded(Mine()).group(groups)  # type: ignore[attr-defined]
