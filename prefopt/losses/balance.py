"""DPO that does not treat chosen and rejected alike: DPO-Shift, MinorDPO, BPO, C2-DPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register


def _scaled(logps: PairLogps, beta: float) -> ChosenRejected:
    """(B,) each: beta * h."""
    h = logps.logratios()
    return ChosenRejected(beta * h.chosen, beta * h.rejected)


@register("dpo_shift")
@dataclass(frozen=True)
class DPOShift(Loss):
    """DPO with the rejected reward scaled down, so that less of the gradient pushes down.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        reward(y) = beta * h(y)
        loss      = -log sigmoid(reward(y_w) - lam * reward(y_l))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.
        lam: Share of the rejected reward, in (0, 1]; 1 is DPO; the authors' runs have 0.5 to 1.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Yang et al. 2025, arXiv:2502.07599, the strategy "fixed"; checked against the authors' code (DPO-Shift).

    Differs:
        Its authors' code can also move lam linearly over training; here it is fixed.
    """

    source = "arXiv:2502.07599"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    lam: float = hyper(0.75, "(0, 1]", paper=(0.5, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        return _scaled(logps, self.beta)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the shifted margin."""
        r = self.rewards(logps)
        return -F.logsigmoid(r.chosen - self.lam * r.rejected)


@register("minor_dpo")
@dataclass(frozen=True)
class MinorDPO(Loss):
    """DPO that stops pushing the rejected response down once it is less likely than under the reference.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        loss      = -log sigmoid(beta * (h(y_w) - max(0, h(y_l))))
        reward(y) = beta * h(y)

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Xie et al. 2024, arXiv:2408.09834. Checked against oxRL's code and the paper's abstract; its authors publish no
        code. At h(y_l) = 0 exactly, where training begins, the gradient is DPO's.
    """

    source = "arXiv:2408.09834"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        return _scaled(logps, self.beta)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the margin with the rejected reward clamped."""
        r = self.rewards(logps)
        # A clamp, not relu: relu has no gradient at 0, and at the start every log-ratio is 0.
        return -F.logsigmoid(r.chosen - r.rejected.clamp(min=0))


@register("bpo")
@dataclass(frozen=True)
class BPO(Loss):
    """DPO on the weaker of the two sides: the rise of the chosen or the fall of the rejected response.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        loss      = -log sigmoid(beta * min(h(y_w), -alpha * h(y_l)))
        reward(y) = beta * h(y)

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the authors use 0.1.
        alpha: Gap adaptor, > 0: how much a nat of fall counts against a nat of rise; the authors use 0.3, and 1 for
            the plain balanced margin.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Sun et al. 2025, arXiv:2506.03557; checked against the authors' code (``balance_logistic_alpha``).

    Differs:
        Its authors' config: trains the hinge max(0, 1 - beta * min(...)) for its best result.
    """

    source = "arXiv:2506.03557"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    alpha: float = hyper(0.3, "(0, inf)", paper=(0.1, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        return _scaled(logps, self.beta)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the balanced margin."""
        r = self.rewards(logps)
        return -F.logsigmoid(torch.minimum(r.chosen, -self.alpha * r.rejected))


@register("c2_dpo")
@dataclass(frozen=True)
class C2DPO(Loss):
    """DPO with a penalty on the probability that the pair gains or loses as a whole.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        reward(y) = beta * h(y)
        loss      = -log sigmoid(reward(y_w) - reward(y_l)) + lam * (h(y_w) + h(y_l))^2

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.
        lam: Weight of the penalty, >= 0, per nat^2; oxRL quotes 0.0002 from the paper.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Asadi et al. 2025, arXiv:2502.17507, the constraint on log-probabilities with a squared penalty. Checked against
        oxRL's code and the paper's abstract; its authors publish no code that we know of.
    """

    source = "arXiv:2502.17507"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    lam: float = hyper(2e-4, "[0, inf)", paper=(0, 1e-2))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        return _scaled(logps, self.beta)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) DPO's loss plus penalty."""
        h = logps.logratios()
        return -F.logsigmoid(self.beta * h.margin) + self.lam * (h.chosen + h.rejected).square()
