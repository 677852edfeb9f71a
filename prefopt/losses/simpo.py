"""SimPO and AlphaPO: length-normalised and without a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register
from prefopt.losses.numerics import exp_linear


@register("simpo")
@dataclass(frozen=True)
class SimPO(Loss):
    """Logistic regression on the gap of mean log-probabilities, less a target margin.

    With a(y) = log pi(y|x) / |y| in nats per token:

        reward(y) = beta * a(y)
        loss      = -log sigmoid(reward(y_w) - reward(y_l) - gamma),   gamma = beta * gamma_beta_ratio

    Args:
        beta: Scale of the reward, > 0, in reward per nat per token; the paper uses 2 to 10.
        gamma_beta_ratio: Target margin in nats per token, >= 0; the paper uses up to 0.8, best 0.3 to 0.5. Its gamma
            is this times ``beta``.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Meng et al. 2024, arXiv:2405.14734, Eq. 6.

    Differs:
        TRL 1.16 (CPOTrainer "simpo"): takes the absolute gamma; its defaults beta = 0.1 and gamma = 0.5 ask for
            5 nats per token, and cpo_alpha = 1 adds an NLL term (our ``cpo_simpo``).
        LLaMA-Factory, axolotl, ms-swift, oxRL: the absolute gamma likewise.
    """

    source = "arXiv:2405.14734, Eq. 6"
    needs_reference = False
    length_normalized = True
    beta: float = hyper(2.0, "(0, inf)", paper=(2, 10))
    gamma_beta_ratio: float = hyper(0.5, "[0, inf)", paper=(0, 0.8))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * a."""
        a = logps.per_token()
        return ChosenRejected(self.beta * a.chosen, self.beta * a.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin less gamma."""
        gamma = self.beta * self.gamma_beta_ratio
        return -F.logsigmoid(self.rewards(logps).margin - gamma)


@register("alphapo")
@dataclass(frozen=True)
class AlphaPO(Loss):
    """SimPO with a reward function whose shape alpha sets between linear and saturating in the probability.

    With a(y) = log pi(y|x) / |y| in nats per token:

        reward(y) = beta * (1 - exp(-alpha * a(y))) / alpha        beta * a(y) at alpha = 0
        loss      = -log sigmoid(reward(y_w) - reward(y_l) - gamma)

    Args:
        alpha: Shape of the reward; 0 is SimPO; the paper tries -2 to 2, best 0.1 to 0.25.
        beta: Scale of the reward, > 0; the paper uses 2.5 to 10.
        gamma: Target margin in reward, >= 0; the paper's gamma over beta is at most 1.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Gupta et al. 2025, arXiv:2501.03884. The exponential goes on as its tangent beyond e^20.

    Differs:
        TRL 1.16 (CPOTrainer "simpo" with ``alpha``): the same formula through exp and pow, which overflows for
            improbable responses.
        oxRL: the same formula at beta 0.1 and alpha 1, off the paper's scale.
    """

    source = "arXiv:2501.03884"
    needs_reference = False
    length_normalized = True
    alpha: float = hyper(0.25, paper=(-2, 2))
    beta: float = hyper(2.5, "(0, inf)", paper=(2, 10))
    gamma: float = hyper(0.1, "[0, inf)", paper=(0, 10))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta times the shaped mean log-probability."""
        a = logps.per_token()
        return ChosenRejected(self.beta * self._shape(a.chosen), self.beta * self._shape(a.rejected))

    def _shape(self, a: Tensor) -> Tensor:
        return a if self.alpha == 0 else (1 - exp_linear(-self.alpha * a)) / self.alpha

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin less gamma."""
        return -F.logsigmoid(self.rewards(logps).margin - self.gamma)
