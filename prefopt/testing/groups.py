"""What a group loss promises beyond what any loss does, checked: ``check_loss`` runs this for losses of groups.

Shapes: B groups, K responses, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefopt.contract.examples import Declared, ordinary_pairs, same
from prefopt.contract.groups import GroupLogps, GroupLoss, GroupTokens, as_groups
from prefopt.contract.loss import Loss


def example_groups(loss: Declared, *, dtype: torch.dtype = torch.float64, device: str = "cpu") -> GroupLogps:
    """Three groups of four responses, of which the last group lacks one; ``logps`` is a leaf."""
    source = torch.Generator().manual_seed(3)

    def draw(low: float, high: float) -> Tensor:
        value = torch.rand(3, 4, generator=source, dtype=torch.float64) * (high - low) + low
        return value.to(device=device, dtype=dtype)

    reference, lengths = draw(-14, -8), draw(2, 7).round()
    logps = (reference + draw(-1.0, 1.0)).requires_grad_()
    behaviour = reference + draw(-0.5, 0.5)
    mask = torch.ones(3, 4, dtype=torch.bool, device=device)
    mask[2, 3] = False
    rewards = draw(-1, 2)
    groups = GroupLogps(logps, lengths, mask, rewards, rewards, reference, behaviour)
    return with_tokens(loss, groups)


def with_tokens(loss: Declared, groups: GroupLogps) -> GroupLogps:
    """The same groups with per-token values that follow from their sums, if the loss asks for them."""
    if not loss.token_fields:
        return groups
    width = int(groups.lengths.max())
    mask = torch.arange(width, device=groups.logps.device) < groups.lengths[:, :, None]
    share = mask * (1.0 + torch.arange(width, device=groups.logps.device) % 3).to(groups.logps.dtype)
    share = share / share.sum(-1, keepdim=True)

    def spread(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[:, :, None] * share

    tokens = GroupTokens(mask, groups.logps[:, :, None] * share, spread(groups.ref_logps), spread(groups.behaviour))
    return dataclasses.replace(groups, tokens=tokens)


def check_groups(loss: Loss, device: str) -> Iterator[str]:
    """Shape, gradient, what must not matter (order, what is masked), and agreement with the pair."""
    if not isinstance(loss, GroupLoss):
        return
    groups = example_groups(loss, device=device)
    value = loss.group(groups)
    if value.shape != (3,) or value.dtype != groups.logps.dtype or not value.requires_grad:
        yield f"group() must give (3,) of the input's type with a gradient; got {tuple(value.shape)} {value.dtype}"
        return
    (gradient,) = torch.autograd.grad(value.mean(), groups.logps)
    if not (value.isfinite().all() and gradient.isfinite().all()):
        yield "group(): value or gradient is not finite on ordinary groups"
    if bool(gradient[~groups.mask].any()):
        yield "group(): a response that the mask leaves out has a gradient"
    order = [2, 0, 3, 1]
    if not same(loss.group(_taken(loss, groups, order)), value, 1e-7):
        yield "group(): the order of the responses changes the loss"
    filled = {name: getattr(groups, name).detach().clone() for name in ("logps", "rewards", "ref_logps", "behaviour")}
    for cells in filled.values():
        cells[~groups.mask] = -3.0
    filled["preference"] = filled["rewards"]
    if not same(loss.group(with_tokens(loss, dataclasses.replace(groups, **_typed(filled)))), value, 1e-7):
        yield "group(): values that the mask leaves out change the loss"
    pairs = ordinary_pairs(loss, dtype=torch.float64, device=device)
    if not same(loss(pairs), loss.group(as_groups(pairs)), 1e-9):
        yield "a pair's loss is not that of a group of two"
    yield from _at_its_own_behaviour(loss, groups)


def _at_its_own_behaviour(loss: GroupLoss, groups: GroupLogps) -> Iterator[str]:
    """A policy that drew the responses itself: the same first step whether its log-probabilities are given or not."""
    own = with_tokens(loss, dataclasses.replace(groups, behaviour=groups.logps.detach()))
    bare = with_tokens(loss, dataclasses.replace(groups, behaviour=None))
    steps = [torch.autograd.grad(loss.group(each).mean(), groups.logps)[0] for each in (own, bare)]
    if not same(steps[0], steps[1], 1e-7):
        yield "group(): behaviour = policy and behaviour = None have different gradients"


def group_effect(loss: Loss, other: Loss) -> bool:
    """Whether two losses differ on groups, near and far from the policy that drew the responses."""
    if not (isinstance(loss, GroupLoss) and isinstance(other, GroupLoss)):
        return False
    near = example_groups(loss)
    far = with_tokens(loss, dataclasses.replace(near, logps=(3 * near.logps).detach()))
    return any(not same(loss.group(groups), other.group(groups), 1e-6) for groups in (near, far))


def _taken(loss: Loss, groups: GroupLogps, order: list[int]) -> GroupLogps:
    cells: dict[str, Any] = {
        field.name: value[:, order]
        for field in dataclasses.fields(groups)
        if isinstance(value := getattr(groups, field.name), Tensor)
    }
    return with_tokens(loss, GroupLogps(**cells))


def _typed(values: dict[str, Tensor]) -> dict[str, Any]:
    return dict(values)
