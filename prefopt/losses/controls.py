"""Controls: losses whose result is known beforehand, to show that the suite measures right."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register


@register("noop")
@dataclass(frozen=True)
class Noop(Loss):
    """Zero, with a zero gradient: the policy must stay the reference.

        loss = 0 * (log pi(y_w|x) + log pi(y_l|x))

    Source:
        A control of this project: KL exactly 0, win rate 50 %.
    """

    source = "control"
    needs_reference = False
    length_normalized = False
    raises_margin = False

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: zeros."""
        return ChosenRejected(0 * logps.chosen, 0 * logps.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) zeros that carry a zero gradient."""
        return 0 * (logps.chosen + logps.rejected)


@register("sft")
@dataclass(frozen=True)
class SFT(Loss):
    """Fine-tuning on the chosen responses alone.

        loss = -log pi(y_w|x) / |y_w|    nats per token

    Source:
        "Preferred-FT" in Rafailov et al. 2023, arXiv:2305.18290, section 6.

    Differs:
        TRL 1.16 (DPOTrainer "sft"): averages over all chosen tokens of the micro-batch, so that a long response
            weighs more; here each response weighs the same.
    """

    source = "arXiv:2305.18290, section 6 (Preferred-FT)"
    needs_reference = False
    length_normalized = True
    raises_margin = False

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: mean log-probability, nats per token."""
        a = logps.per_token()
        return ChosenRejected(a.chosen, a.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) negative mean log-probability of the chosen response."""
        return -logps.per_token().chosen


@register("dpo_flipped")
@dataclass(frozen=True)
class FlippedDPO(Loss):
    """DPO with chosen and rejected swapped: every metric must move the wrong way.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        reward(y) = beta * h(y)
        loss      = -log sigmoid(reward(y_l) - reward(y_w))

    Args:
        beta: As for DPO: strength of the pull towards the reference, > 0; 0.01 to 5 in the literature.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        A control of this project, from arXiv:2305.18290, Eq. 7.
    """

    source = "control"
    needs_reference = True
    length_normalized = False
    raises_margin = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h, in DPO's sign, so that its margins are seen to fall."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the negated reward margin."""
        return -F.logsigmoid(-self.rewards(logps).margin)
