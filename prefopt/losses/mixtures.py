"""Weighted sums of losses: MPO, and ``mix`` for any other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import make_loss, register
from prefopt.losses.numerics import classified, mean_reward

_TERM = re.compile(r"(\d+(?:\.\d+)?)\*?([a-z].*)")
_PLUS = re.compile(r"\+(?![^\[]*\])")  # outside brackets
_ANY = ("needs_reference", "batch_coupled", "needs_scores", "needs_mismatched", "raises_margin", "stops_gradient")


@register("mpo")
@dataclass(frozen=True)
class MPO(Loss):
    """Mixed preference optimisation: DPO for which is better, BCO for how good each is, likelihood for how to write.

    With reward(y) = beta * h(y), h = log pi/pi_ref in nats summed over response tokens, and shift the moving average
    of the mean reward of all responses, without gradient:

        L_p  = -log sigmoid(reward(y_w) - reward(y_l))
        L_q  = -log sigmoid(reward(y_w) - shift) - log sigmoid(-(reward(y_l) - shift))
        L_g  = -log pi(y_w|x) / |y_w|
        loss = w_p * L_p + w_q * L_q + w_g * L_g

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.1.
        w_p: Weight of the preference, >= 0; the paper uses 0.8.
        w_q: Weight of the quality, >= 0; the paper uses 0.2.
        w_g: Weight of the likelihood, >= 0; the paper uses 1.
        decay: Share of the old average kept at each step, in [0, 1); 0.9 to 0.99 in use.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Wang et al. 2024, arXiv:2411.10442. Weights checked against TRL, parts against those of ``dpo`` and ``bco``; we
        had no text of the paper.

    Differs:
        TRL 1.16 (DPOTrainer loss_type ["sigmoid", "bco_pair", "sft"], loss_weights [0.8, 0.2, 1.0]): its BCO has no
            shift, and its likelihood averages over all chosen tokens of the micro-batch.
    """

    source = "arXiv:2411.10442"
    needs_reference = True
    length_normalized = False
    batch_coupled = True
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    w_p: float = hyper(0.8, "[0, inf)", paper=(0, 1))
    w_q: float = hyper(0.2, "[0, inf)", paper=(0, 1))
    w_g: float = hyper(1.0, "[0, inf)", paper=(0, 1))
    decay: float = hyper(0.9, "[0, 1)", paper=(0, 0.999))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def statistic(self, logps: PairLogps) -> Tensor:
        """() mean reward of the batch's responses."""
        return mean_reward(self.rewards(logps))

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) weighted sum of preference, quality and likelihood."""
        r = self.rewards(logps)
        quality = classified(r, self.statistic(logps) if logps.running is None else logps.running)
        return -self.w_p * F.logsigmoid(r.margin) + self.w_q * quality - self.w_g * logps.per_token().chosen


@register("mix")
@dataclass(frozen=True)
class Mix(Loss):
    """A weighted sum of other losses, written out: ``mix[0.8*dpo+0.2*bco+1.0*sft]``.

    With w_i and L_i the weight and the loss of term i, each with hyperparameters of its own where given, as in
    ``mix[1.0*dpo[beta=0.2]+0.5*sft]``:

        loss      = w_1 * L_1 + w_2 * L_2 + ...
        reward(y) = that of the first term

    Rewards and learning rate are those of the first term; what the sum reads and needs is what any term does.

    Args:
        terms: Weight times loss, joined by plus signs; the star may be left out, as it is in names of folders.

    Raises:
        ValueError: If a term cannot be read, or two terms keep moving averages of different decay.

    Source:
        A tool of this project; the default is MPO's weights (arXiv:2411.10442) with each loss at its own defaults.

    Differs:
        TRL 1.16 (DPOTrainer ``loss_type`` as a list with ``loss_weights``): one beta for all terms.
    """

    source = "a sum of the user's own"
    needs_reference = True
    length_normalized = False
    batch_coupled = True
    decay = 0.9
    terms: str = hyper("0.8dpo+0.2bco+1.0sft", tries=("1.0dpo+1.0sft",))

    def __post_init__(self) -> None:
        super().__post_init__()
        canonical = "+".join(
            f"{np.format_float_positional(weight, trim='0')}{loss.label}" for weight, loss in self.parts
        )
        losses = [loss for _, loss in self.parts]
        declared = {name: any(getattr(loss, name) for loss in losses) for name in _ANY}
        decays = {loss.decay for loss in losses if hasattr(loss, "decay")}
        if len(decays) > 1:
            raise ValueError(f"mix: terms that keep a moving average need one decay; got {sorted(decays)}")
        values = {
            "terms": canonical,
            **declared,
            "length_normalized": all(loss.length_normalized for loss in losses),
            "token_fields": frozenset(field for loss in losses for field in loss.token_fields),
            "lr_scale": losses[0].lr_scale,
            "decay": decays.pop() if decays else 0.0,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @cached_property
    def parts(self) -> tuple[tuple[float, Loss], ...]:
        """Weight and loss of each term."""
        return tuple(_part(text.strip()) for text in _PLUS.split(self.terms))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: those of the first term."""
        return self.parts[0][1].rewards(next(self._seen(logps)))

    def statistic(self, logps: PairLogps) -> Tensor | None:
        """(N,) what the terms keep moving averages of, one after another."""
        kept = [loss.statistic(logps) for _, loss in self.parts]
        flat = [value.reshape(-1) for value in kept if value is not None]
        return torch.cat(flat) if flat else None

    def _seen(self, logps: PairLogps) -> Iterator[PairLogps]:
        """The batch as each term is to see it: with its own part of the moving averages."""
        start = 0
        for _, loss in self.parts:
            own = loss.statistic(logps)
            if own is None or logps.running is None:
                yield replace(logps, running=None)
                continue
            yield replace(logps, running=logps.running.reshape(-1)[start : start + own.numel()].reshape(own.shape))
            start += own.numel()

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the weighted sum."""
        values = [weight * loss(seen) for (weight, loss), seen in zip(self.parts, self._seen(logps), strict=True)]
        return torch.stack(values).sum(0)

    @property
    def label(self) -> str:
        """The sum in brackets."""
        return f"{self.name}[{self.terms}]"


def _part(text: str) -> tuple[float, Loss]:
    """Weight and loss of a term such as ``0.8*dpo[beta=0.2]``.

    Raises:
        ValueError: If it is no such term.
        UsageError: If there is no such loss.
    """
    match = _TERM.fullmatch(text)
    if match is None or float(match[1]) == 0 or match[2].startswith("mix"):
        raise ValueError(f"mix: cannot read the term {text!r}; write weight*loss, such as 0.8*dpo, the weight above 0")
    return float(match[1]), make_loss(match[2])
