"""DPO under another regularisation than the reverse KL: f-DPO, chi-squared PO, H-DPO."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register
from prefopt.losses.numerics import exp_linear


@register("fdpo")
@dataclass(frozen=True)
class FDPO(Loss):
    """DPO with the reward that belongs to another f-divergence from the reference.

    With h(y) = log u, u = pi(y|x) / pi_ref(y|x), in nats summed over response tokens, reward = beta * f'(u):

        reverse_kl    f'(u) = h                          DPO, less a constant
        forward_kl    f'(u) = 1 - exp(-h)
        js            f'(u) = log 2 + log sigmoid(h)
        alpha         f'(u) = (1 - exp(-alpha * h)) / alpha
        loss = -log sigmoid(reward(y_w) - reward(y_l))

    Args:
        divergence: reverse_kl, forward_kl, js or alpha.
        alpha: Order of the alpha divergence, in (0, 1): towards 0 it is the reverse KL, towards 1 the forward one;
            the paper uses 0.3 to 0.7. Leave it alone with another divergence.
        beta: Strength of the pull towards the reference, > 0, in reward per unit of f'; 0.01 to 1 in the paper.

    Raises:
        ValueError: If a hyperparameter is out of range, or ``alpha`` is set for a divergence that has none.

    Source:
        Wang et al. 2023, arXiv:2309.16240, Table 1. The exponentials go on as their tangent beyond e^20.

    Differs:
        TRL 1.16 (DPOTrainer ``f_divergence_type``): the same below e^20, where our tangent begins; beyond, its
            exponentials go on to infinity (alpha: to e^80, then no gradient). Its coefficient is 1 - alpha, and its
            alpha divergence refuses float64. It applies to "sigmoid", "ipo", "hinge" and others alike.
        oxRL: zero gradient at the start for forward_kl, the wrong sign for js, no beta in alpha.
    """

    source = "arXiv:2309.16240, Table 1"
    needs_reference = True
    length_normalized = False
    divergence: str = hyper("alpha", choices=("reverse_kl", "forward_kl", "js", "alpha"))
    alpha: float = hyper(0.5, "(0, 1)", paper=(0.1, 0.9))
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence != "alpha" and self.alpha != 0.5:
            raise ValueError(f"fdpo: alpha has no effect with divergence {self.divergence}; leave it out")

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * f'(u)."""
        h = logps.logratios()
        return ChosenRejected(self.beta * self._slope(h.chosen), self.beta * self._slope(h.rejected))

    def _slope(self, h: Tensor) -> Tensor:
        if self.divergence == "reverse_kl":
            return h
        if self.divergence == "js":
            return math.log(2) + F.logsigmoid(h)
        order = 1.0 if self.divergence == "forward_kl" else self.alpha
        return (1 - exp_linear(-order * h)) / order

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin)


@register("chipo")
@dataclass(frozen=True)
class ChiPO(Loss):
    """DPO with the chi-squared divergence mixed in, against over-optimisation.

    With h(y) = log u, u = pi(y|x) / pi_ref(y|x), in nats summed over response tokens:

        reward(y) = beta * (u + log u)
        loss      = -log sigmoid(clip(reward(y_w) - reward(y_l), -2 r_max, 2 r_max))

    Beyond the clip the gradient is zero.

    Args:
        beta: Strength of the pull towards the reference, > 0; the paper uses 0.01 to 0.3.
        r_max: Greatest reward that is believed, > 0; the clip lies at twice that. 1 to 10 is in use.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Huang et al. 2024, arXiv:2407.13399, Algorithm 1. u goes on as its tangent beyond e^20, where the paper's
        own experiments stop at e^20.

    Differs:
        oxRL: leaves the clip out.
    """

    source = "arXiv:2407.13399, Algorithm 1"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    r_max: float = hyper(10.0, "(0, inf)", paper=(1, 100))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * (u + log u)."""
        h = logps.logratios()
        return ChosenRejected(
            self.beta * (exp_linear(h.chosen) + h.chosen), self.beta * (exp_linear(h.rejected) + h.rejected)
        )

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the clipped reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin.clamp(-2 * self.r_max, 2 * self.r_max))


@register("h_dpo")
@dataclass(frozen=True)
class HDPO(Loss):
    """DPO with the entropy of the policy weighed apart from its cross-entropy to the reference.

    The regulariser beta * KL(pi || pi_ref) becomes -alpha * beta * H(pi) + beta * H(pi, pi_ref), so that with
    log-probabilities in nats summed over response tokens:

        reward(y) = beta * (alpha * log pi(y|x) - log pi_ref(y|x))
        loss      = -log sigmoid(reward(y_w) - reward(y_l))

    Below 1, alpha gives a sharper policy than DPO's, above 1 a flatter one; at policy = reference the margin is not 0.

    Args:
        beta: Strength of the regularisation, > 0, in reward per nat; 0.01 to 5 as for DPO.
        alpha: Weight of the entropy, > 0; 1 is DPO; a little below 1 is the paper's case.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Omura et al. 2024, arXiv:2411.07595. Derived as above, and the same as oxRL's code; checked against the paper's
        abstract only, and its authors publish no code.
    """

    source = "arXiv:2411.07595"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    alpha: float = hyper(0.95, "(0, inf)", paper=(0.5, 1.5))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * (alpha * log pi - log pi_ref)."""
        h, less = logps.logratios(), self.alpha - 1
        return ChosenRejected(
            self.beta * (h.chosen + less * logps.chosen), self.beta * (h.rejected + less * logps.rejected)
        )

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin)
