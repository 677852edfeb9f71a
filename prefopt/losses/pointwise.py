"""Losses that judge each response by itself against the reference: NCA and APO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register


@register("nca")
@dataclass(frozen=True)
class NCA(Loss):
    """Noise contrastive alignment of a pair: it also keeps the chosen likelihood from falling.

    With reward(y) = beta * h(y), h = log pi/pi_ref in nats summed over response tokens:

        loss = -log sigmoid(reward(y_w)) - 1/2 log sigmoid(-reward(y_w)) - 1/2 log sigmoid(-reward(y_l))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.01 to 0.1.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Chen et al. 2024, arXiv:2402.05369, the NCA loss for two responses.
    """

    source = "arXiv:2402.05369 (pair)"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.01, "(0, inf)", paper=(1e-3, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) classification of responses against noise."""
        r = self.rewards(logps)
        return -F.logsigmoid(r.chosen) - 0.5 * F.logsigmoid(-r.chosen) - 0.5 * F.logsigmoid(-r.rejected)


@register("apo_zero")
@dataclass(frozen=True)
class APOZero(Loss):
    """Anchored preference: raise the chosen, lower the rejected; for data better than the policy.

    With reward(y) = beta * h(y), h = log pi/pi_ref in nats summed over response tokens:

        loss = (1 - sigmoid(reward(y_w))) + sigmoid(reward(y_l))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.05 to 0.5 in use, 0.1 in the paper.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7.
    """

    source = "arXiv:2408.06266, Eq. 7"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) two anchored terms, each in (0, 1)."""
        r = self.rewards(logps)
        return torch.sigmoid(-r.chosen) + torch.sigmoid(r.rejected)


@register("apo_down")
@dataclass(frozen=True)
class APODown(Loss):
    """Anchored preference: lower both, the rejected more; for data worse than the policy.

    With reward(y) = beta * h(y), h = log pi/pi_ref in nats summed over response tokens:

        loss = sigmoid(reward(y_w)) + (1 - sigmoid(reward(y_w) - reward(y_l)))

    At policy = reference the gradient on the chosen response is exactly zero.

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.05 to 0.5 in use, 0.1 in the paper.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 8.
    """

    source = "arXiv:2408.06266, Eq. 8"
    needs_reference = True
    length_normalized = False
    raises_margin = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) anchor on the chosen plus preference, each in (0, 1)."""
        r = self.rewards(logps)
        return torch.sigmoid(r.chosen) + torch.sigmoid(-r.margin)
