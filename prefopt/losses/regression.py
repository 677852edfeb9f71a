"""Regression of log-ratios onto constants or onto the data's scores: SPPO, Cal-DPO, reward-aware RPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
        Wu et al. 2024, arXiv:2405.00675, Eq. 4.7 with the probability of winning set to 1 and 0. The authors' own runs
        have soft labels, our ``sppo_soft``.

    Differs:
        Its authors' code: half of this, the mean of the two squared errors; AdamW does not see the factor.
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


@register("sppo_soft")
@dataclass(frozen=True)
class SoftSPPO(Loss):
    """Squared distance of each log-ratio from how much more often than not the response wins.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens, and the scores that the data gives:

        P         = sigmoid(score(y_w) - score(y_l))          how often y_w wins
        loss      = (h(y_w) - (P - 1/2) / beta)^2 + (h(y_l) + (P - 1/2) / beta)^2
        reward(y) = beta * h(y)

    At P = 1 it is ``sppo``.

    Args:
        beta: Inverse of the paper's step size eta, > 0; the paper uses 0.001 (eta = 1000).

    Raises:
        ValueError: If ``beta`` is not positive.
        DataError: If the data has no scores.

    Source:
        Wu et al. 2024, arXiv:2405.00675, Eq. 4.7, for a pair of responses; checked against the authors' code
        (``sppo_single``), which is half of this, the mean of the two squared errors.

    Differs:
        Its authors' runs: P of each response is its mean over five responses to the prompt, by PairRM (``sppo``).
    """

    source = "arXiv:2405.00675, Eq. 4.7, soft labels"
    needs_reference = True
    length_normalized = False
    needs_scores = True
    beta: float = hyper(1e-3, "(0, inf)", paper=(1e-4, 1e-2))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) sum of the two squared errors, nats^2."""
        h = logps.logratios()
        target = (torch.sigmoid(logps.scores().margin) - 0.5) / self.beta
        return (h.chosen - target).square() + (h.rejected + target).square()


@register("rpo_reward")
@dataclass(frozen=True)
class RewardAwareRPO(Loss):
    """DPO's reward margin fitted to the gap of the scores that the data gives, not to the label alone.

    With D = h(y_w) - h(y_l), h = log pi/pi_ref in nats summed over response tokens, ds = score(y_w) - score(y_l),
    p = sigmoid(eta * ds) and q = sigmoid(beta * D):

        bwd_kl    loss = p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))
        fwd_kl    loss = q * log(q / p) + (1 - q) * log((1 - q) / (1 - p))
        sq        loss = (beta * D - eta * ds)^2
        reward(y) = beta * h(y)

    ``sq`` is REBEL's regression (arXiv:2404.16767) with beta / eta for the inverse of its step size, times eta^2.

    Args:
        distance: How the two gaps are compared: bwd_kl, fwd_kl or sq.
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.1 to 1 in NeMo-Aligner's guide.
        eta: Scale of the scores, > 0, in reward per score; NeMo-Aligner's default is 1.

    Raises:
        ValueError: If a hyperparameter is out of range.
        DataError: If the data has no scores.

    Source:
        Nemotron-4 340B, arXiv:2406.11704; checked against NeMo-Aligner (rpo_bwd_kl, rpo_fwd_kl, rpo_sq), whose names
        and defaults these are but for beta, 0.2 there.

    Differs:
        Another loss called RPO, our ``rpo``, is DPO plus a likelihood term.
    """

    source = "arXiv:2406.11704"
    needs_reference = True
    length_normalized = False
    needs_scores = True
    distance: str = hyper("bwd_kl", choices=("bwd_kl", "fwd_kl", "sq"))
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    eta: float = hyper(1.0, "(0, inf)", paper=(0.01, 100))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) distance of the two gaps: nats, or squared reward."""
        gap, wanted = self.rewards(logps).margin, self.eta * logps.scores().margin
        if self.distance == "sq":
            return (gap - wanted).square()
        return _bernoulli_kl(wanted, gap) if self.distance == "bwd_kl" else _bernoulli_kl(gap, wanted)


def _bernoulli_kl(a: Tensor, b: Tensor) -> Tensor:
    """(B,) KL(sigmoid(a) || sigmoid(b)) of two coins given by their logits, nats."""
    heads = torch.sigmoid(a) * (F.logsigmoid(a) - F.logsigmoid(b))
    return heads + torch.sigmoid(-a) * (F.logsigmoid(-a) - F.logsigmoid(-b))


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
        Xiao et al. 2024, arXiv:2412.14516. The logistic term has no beta. The calibration counts once, as in the
        authors' first release; their later one, and BPO's code, give it a weight of 1/2.

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
