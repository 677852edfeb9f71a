"""Length-normalised log-probabilities as the reward: SimPO, AlphaPO, SimPER."""

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
        gamma_beta_ratio: Target margin in nats per token, >= 0; the authors search 0 to 1, best 0.3 to 0.5. The
            paper's gamma is this times ``beta``.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Meng et al. 2024, arXiv:2405.14734, Eq. 6. Learning rate: 1.2 times DPO's, from the authors' README for the
        setting with our defaults (Llama3-Base: 6e-7, DPO 5e-7); its other settings have 0.6 to 3.3 times.

    Differs:
        TRL 1.16 (CPOTrainer "simpo"): takes the absolute gamma; its defaults beta = 0.1 and gamma = 0.5 ask for
            5 nats per token, and cpo_alpha = 1 adds an NLL term (our ``cpo_simpo``).
        LLaMA-Factory, axolotl, ms-swift, oxRL: the absolute gamma likewise.
    """

    source = "arXiv:2405.14734, Eq. 6"
    needs_reference = False
    length_normalized = True
    lr_scale = 1.2
    beta: float = hyper(2.0, "(0, inf)", paper=(2, 10))
    gamma_beta_ratio: float = hyper(0.5, "[0, inf)", paper=(0, 1))

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
        Gupta et al. 2025, arXiv:2501.03884. The exponential goes on as its tangent beyond e^20. Learning rate: 1.4
        times DPO's, 7e-7 for Mistral-Instruct as TRL's documentation quotes the paper, with our defaults for the rest,
        against the 5e-7 that SimPO's authors give for DPO there.

    Differs:
        TRL 1.16 (CPOTrainer "simpo" with ``alpha``): the same formula through exp and pow, which overflows for
            improbable responses.
        oxRL: the same formula at beta 0.1 and alpha 1, off the paper's scale.
    """

    source = "arXiv:2501.03884"
    needs_reference = False
    length_normalized = True
    lr_scale = 1.4
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


@register("simper")
@dataclass(frozen=True)
class SimPER(Loss):
    """The gap of inverse perplexities; no hyperparameter, no reference.

    With a(y) = log pi(y|x) / |y| in nats per token:

        reward(y) = exp(a(y))                 inverse perplexity, in (0, 1)
        loss      = -reward(y_w) + reward(y_l)

    Source:
        Xiao et al. 2025, arXiv:2502.00883; checked against the authors' code (SimPER). Learning rate: 1.1 times DPO's,
        the middle of the authors' four configs (3e-7 to 1e-6) over the rates that SimPO's authors give for DPO in the
        same settings: 0.6, 1, 1.2 and 1.43.
    """

    source = "arXiv:2502.00883"
    needs_reference = False
    length_normalized = True
    lr_scale = 1.1

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: exp(a)."""
        a = logps.per_token()
        return ChosenRejected(a.chosen.exp(), a.rejected.exp())

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) rejected less chosen inverse perplexity."""
        return -self.rewards(logps).margin
