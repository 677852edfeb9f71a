"""Likelihood of the chosen and unlikelihood of the rejected response, without a reference: unlikelihood, ASFT."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register
from prefopt.losses.numerics import log_odds


@register("unlikelihood")
@dataclass(frozen=True)
class Unlikelihood(Loss):
    """Likelihood of the chosen response up, that of the rejected one down: the baseline of the DPO paper.

    With s(y) = log pi(y|x) in nats, summed over response tokens:

        loss      = -s(y_w) + alpha * s(y_l)
        reward(y) = s(y)

    It falls without bound as the rejected response becomes impossible, and the policy then writes nonsense: stop early.

    Args:
        alpha: Weight of the rejected response, in [0, 1] as in the paper; 0 is likelihood alone.

    Raises:
        ValueError: If ``alpha`` is out of range.

    Source:
        "Unlikelihood" in Rafailov et al. 2023, arXiv:2305.18290, section 6, after Welleck et al. 2019,
        arXiv:1908.04319. The paper says what is maximised and what minimised; its authors publish no code of it, and
        that it is summed over tokens is our reading.

    Differs:
        Welleck et al.: log(1 - p) of each token that is not wanted, which is bounded.
    """

    source = "arXiv:2305.18290, section 6 (Unlikelihood)"
    needs_reference = False
    length_normalized = False
    alpha: float = hyper(1.0, "[0, 1]", paper=(0.05, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: summed log-probability, nats."""
        return ChosenRejected(logps.chosen, logps.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) likelihood term plus unlikelihood term, nats."""
        return -logps.chosen + self.alpha * logps.rejected


@register("asft")
@dataclass(frozen=True)
class ASFT(Loss):
    """Likelihood of the chosen response plus a logistic loss on each response's log odds.

    With a(y) = log pi(y|x) / |y| in nats per token:

        odds(y)   = a(y) - log(1 - exp(a(y)))                 log odds of a token of y
        loss      = -nll_weight * a(y_w) - lam * (log sigmoid(beta * odds(y_w)) + log sigmoid(-beta * odds(y_l)))
        reward(y) = beta * a(y)

    Where beta = 1 the second term is -lam * (a(y_w) + log(1 - exp(a(y_l)))).

    Args:
        beta: Sharpness of the two decisions, > 0; 1 is the paper that proposes the loss, arXiv:2502.01237 tunes it.
        lam: Weight of the two decisions, > 0; 1 in turbo-alignment.
        nll_weight: Weight of the likelihood term, >= 0; 1 in turbo-alignment.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Wang et al. 2024, arXiv:2409.10571; beta from Gorbatovski et al. 2025, arXiv:2502.01237. Checked against
        turbo-alignment's code, not against the papers' text. A mean probability within 1e-7 of 1 counts as that far
        off.
    """

    source = "arXiv:2409.10571"
    needs_reference = False
    length_normalized = True
    beta: float = hyper(1.0, "(0, inf)", paper=(1e-3, 1))
    lam: float = hyper(1.0, "(0, inf)", paper=(0.1, 1))
    nll_weight: float = hyper(1.0, "[0, inf)", paper=(0, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * a."""
        a = logps.per_token()
        return ChosenRejected(self.beta * a.chosen, self.beta * a.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) likelihood term plus the two decisions."""
        a = logps.per_token()
        right = F.logsigmoid(self.beta * log_odds(a.chosen)) + F.logsigmoid(-self.beta * log_odds(a.rejected))
        return -self.nll_weight * a.chosen - self.lam * right
