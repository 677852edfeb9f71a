"""Numerics that several losses share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected


def exp_linear(x: Tensor, knee: float = 20.0) -> Tensor:
    """exp(x) up to the knee, and its tangent there beyond it: finite, increasing and convex for every float32.

    Probability ratios of whole responses overflow float32 at 88 nats; e^20 is far outside anything that a loss
    means, and a tangent keeps the direction of the gradient where a clamp would drop it.

    Args:
        x: Any shape, nats.
        knee: Where the tangent takes over, nats.
    """
    below = x.clamp(max=knee)
    # At the knee itself the clamp passes the whole gradient and the second factor's excess is zero.
    return below.exp() * (1 + (x - knee).clamp(min=0))


def log_odds(a: Tensor) -> Tensor:
    """log(p / (1 - p)) of a mean log-probability; expm1 keeps the digits where p is near 1.

    Args:
        a: Any shape, nats per token; above -1e-7 it counts as that.
    """
    a = a.clamp(max=-1e-7)
    return a - torch.log(-torch.expm1(a))


def mean_reward(rewards: ChosenRejected) -> Tensor:
    """() mean reward of all responses of the batch, without gradient."""
    return ((rewards.chosen.mean() + rewards.rejected.mean()) / 2).detach()


def classified(rewards: ChosenRejected, shift: Tensor) -> Tensor:
    """(B,) loss of telling chosen from rejected by whether the reward exceeds the shift."""
    return -F.logsigmoid(rewards.chosen - shift) - F.logsigmoid(shift - rewards.rejected)
