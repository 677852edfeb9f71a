"""Other links on DPO's reward margin: hinge, EXO, DiscoPOP, GPO, FocalPO."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register
from prefopt.losses.numerics import exp_linear


@register("hinge")
@dataclass(frozen=True)
class Hinge(Loss):
    """Hinge on the difference of implicit rewards, as in RSO.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        reward(y) = beta * h(y)
        loss      = max(0, 1 - (reward(y_w) - reward(y_l)))

    Args:
        beta: Inverse of the margin aimed at, in nats, > 0 (the paper's gamma); the paper uses 0.05 to 0.5.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Liu et al. 2023, arXiv:2309.06657, "hinge-norm".

    Differs:
        TRL 1.16 (DPOTrainer "hinge"): the same, and cited there as SLiC, which is another loss, our ``slic``.
    """

    source = "arXiv:2309.06657 (hinge-norm)"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.05, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) shortfall of the reward margin from 1."""
        return F.relu(1 - self.rewards(logps).margin)


@register("exo")
@dataclass(frozen=True)
class EXO(Loss):
    """Reverse KL from the policy's preference to the smoothed label, where DPO takes the forward one.

    With m = beta * (h(y_w) - h(y_l)), h = log pi/pi_ref in nats summed over response tokens, and q = sigmoid(m):

        loss = q * (log q - log(1 - e)) + (1 - q) * (log(1 - q) - log e),   e = label_smoothing

    Args:
        beta: Scale of the reward, > 0, in reward per nat; the authors use 0.1 on IMDb, 0.5 on HH and TL;DR.
        label_smoothing: Assumed share of flipped labels, in (0, 0.5); at 0 the KL is infinite. The paper uses 0.001.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Ji et al. 2024, arXiv:2402.00856, Eq. 16 (EXO-pref, K = 2).

    Differs:
        Its authors' code: has log e = -10 written into it, a label_smoothing of 4.5e-5.
        TRL 1.16 (DPOTrainer "exo_pair"): the same, with ``label_smoothing`` in float32; its default of 0 is refused.
        RainbowPO, ms-swift: replace 0 by 0.001 in silence.
    """

    source = "arXiv:2402.00856, Eq. 16"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    label_smoothing: float = hyper(1e-3, "(0.0, 0.5)", paper=(4e-5, 0.1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) KL divergence, nats."""
        m, e = self.rewards(logps).margin, self.label_smoothing
        win = torch.sigmoid(m) * (F.logsigmoid(m) - math.log1p(-e))
        lose = torch.sigmoid(-m) * (F.logsigmoid(-m) - math.log(e))
        return win + lose


@register("discopop")
@dataclass(frozen=True)
class DiscoPOP(Loss):
    """A logistic and an exponential loss, mixed by the size of the margin; found by search over programs.

    With m = beta * (h(y_w) - h(y_l)), h = log pi/pi_ref in nats summed over response tokens:

        w    = sigmoid(m / tau)
        loss = (1 - w) * -log sigmoid(m) + w * exp(-m)

    Not convex: with the defaults it rises between gaps h(y_w) - h(y_l) of -2.37 and 1.44 nats, so that from
    policy = reference the first step goes the wrong way, to the local minimum at -2.37.

    Args:
        beta: Scale of the reward, > 0, in reward per nat; the paper uses 0.025 to 0.1.
        tau: Width of the change-over, in (0, 1]; the paper uses 0.05. Above 1 the exponential would win at negative
            margins, without bound.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Lu et al. 2024, arXiv:2406.08414, Eq. 5 (log-ratio modulated loss).

    Differs:
        TRL 1.16 (DPOTrainer "discopop"): the same formula as a product, which is 0 * inf for margins below -88.
    """

    source = "arXiv:2406.08414, Eq. 5"
    needs_reference = True
    length_normalized = False
    raises_margin = False
    beta: float = hyper(0.05, "(0, inf)", paper=(0.01, 0.5))
    tau: float = hyper(0.05, "(0, 1]", paper=(0.01, 0.1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the mixture."""
        m = self.rewards(logps).margin
        logistic = -torch.sigmoid(-m / self.tau) * F.logsigmoid(m)
        # In the exponent, so that a vanishing weight meets an exploding exponential as a difference.
        return logistic + torch.exp(F.logsigmoid(m / self.tau) - m)


@register("gpo")
@dataclass(frozen=True)
class GPO(Loss):
    """The family of convex surrogates on DPO's margin; logistic is ``dpo``, hinge ``hinge``.

    With m = beta * (h(y_w) - h(y_l)), h = log pi/pi_ref in nats summed over response tokens:

        exponential    loss = exp(-m)
        squared_hinge  loss = max(0, 1 - m)^2
        savage         loss = sigmoid(-m)^2

    The square, (1 - m)^2, is ``ipo_sum`` times 4 tau^2 where beta = 2 tau.

    Args:
        link: The function of the margin: exponential, squared_hinge (the paper's truncated quadratic) or savage.
        beta: Scale of the reward, > 0, in reward per nat; the paper uses 0.01 to 1.

    Raises:
        ValueError: If ``beta`` is not positive or ``link`` is unknown.

    Source:
        Tang et al. 2024, arXiv:2402.05749, Table 1. The exponential goes on as its tangent beyond e^20.
    """

    source = "arXiv:2402.05749, Table 1"
    needs_reference = True
    length_normalized = False
    link: str = hyper("exponential", choices=("exponential", "squared_hinge", "savage"))
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the link of the margin."""
        m = self.rewards(logps).margin
        if self.link == "exponential":
            return exp_linear(-m)
        return F.relu(1 - m).square() if self.link == "squared_hinge" else torch.sigmoid(-m).square()


@register("focalpo")
@dataclass(frozen=True)
class FocalPO(Loss):
    """DPO weighted by the probability of ranking right, so that pairs far from it count less.

    With p = sigmoid(beta * (h(y_w) - h(y_l))), h = log pi/pi_ref in nats summed over response tokens:

        loss = -p^gamma * log p

    The gradient turns round where log p < -1 / gamma: such pairs are given up.

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 1 in the paper.
        gamma: Weight of the focus, >= 0; 0 is DPO; the paper fixes 0.05.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Liu et al. 2025, arXiv:2501.06645.

    Differs:
        oxRL: detaches the factor p^gamma, where the loss as written is differentiated here; its gamma is 1 by default.
    """

    source = "arXiv:2501.06645"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    gamma: float = hyper(0.05, "[0, inf)", paper=(0, 0.5))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) focal logistic loss."""
        log_p = F.logsigmoid(self.rewards(logps).margin)
        return -torch.exp(self.gamma * log_p) * log_p
