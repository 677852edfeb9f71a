"""Regression of log-ratios onto constants: SPPO and Cal-DPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register


@register("sppo")
@dataclass(frozen=True)
class SPPO(Loss):
    """Squared distance of each log-ratio from plus or minus 1 / (2 beta), with hard labels.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        loss      = (h(y_w) - 1 / (2 beta))^2 + (h(y_l) + 1 / (2 beta))^2
        reward(y) = beta * h(y)

    Args:
        beta: Inverse of the paper's step size eta, > 0; the paper uses 0.001 (eta = 1000), which aims at 500 nats.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Wu et al. 2024, arXiv:2405.00675, Eq. 4.7 with the probability of winning set to 1 and 0.

    Differs:
        TRL 1.16 (DPOTrainer "sppo_hard"): the same formula; with its default beta of 0.1 the target is 5 nats.
        oxRL: runs it at beta 0.1, a hundred times the paper's.
    """

    source = "arXiv:2405.00675, Eq. 4.7"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(1e-3, "(0, inf)", paper=(1e-4, 1e-2))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) sum of the two squared errors, nats^2."""
        h, target = logps.logratios(), 1 / (2 * self.beta)
        return (h.chosen - target).square() + (h.rejected + target).square()


@register("cal_dpo")
@dataclass(frozen=True)
class CalDPO(Loss):
    """Logistic loss on the log-ratio gap plus a calibration of each log-ratio to the reward's scale.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        loss      = -log sigmoid(h(y_w) - h(y_l)) + (h(y_w) - 1 / (2 beta))^2 + (h(y_l) + 1 / (2 beta))^2
        reward(y) = beta * h(y)

    Args:
        beta: Sets the targets of plus and minus 1 / (2 beta) nats, > 0; the paper uses 0.001 to 0.01.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Xiao et al. 2024, arXiv:2412.14516. The logistic term has no beta.

    Differs:
        oxRL: runs it at beta 0.1, where the targets are 5 nats.
    """

    source = "arXiv:2412.14516"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(1e-3, "(0, inf)", paper=(1e-3, 1e-2))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) contrast plus calibration."""
        h, target = logps.logratios(), 1 / (2 * self.beta)
        return -F.logsigmoid(h.margin) + (h.chosen - target).square() + (h.rejected + target).square()
