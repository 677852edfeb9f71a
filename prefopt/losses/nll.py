"""Objectives with a likelihood term on the chosen response: SLiC, ORPO, CPO, CPO-SimPO, RPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register
from prefopt.losses.numerics import log_odds


@register("slic")
@dataclass(frozen=True)
class SLiC(Loss):
    """Hinge on the gap of summed log-probabilities plus a likelihood term, without a reference.

    With s(y) = log pi(y|x) in nats, summed over response tokens:

        loss      = max(0, delta - s(y_w) + s(y_l)) - lam * s(y_w)
        reward(y) = s(y)

    Args:
        delta: Gap aimed at, > 0, in nats; the paper uses 1.
        lam: Weight of the likelihood term, >= 0; 0.1 to 1 in use.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Zhao et al. 2023, arXiv:2305.10425, with the chosen response as the regularisation target.

    Differs:
        TRL 1.16 (DPOTrainer "hinge"): calls this SLiC, and is the hinge on log-ratios of RSO, our ``hinge``.
        oat ("SLiC"): likewise our ``hinge``.
    """

    source = "arXiv:2305.10425"
    needs_reference = False
    length_normalized = False
    delta: float = hyper(1.0, "(0, inf)", paper=(0.1, 10))
    lam: float = hyper(0.1, "[0, inf)", paper=(0, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: summed log-probability, nats."""
        return ChosenRejected(logps.chosen, logps.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) calibration plus regularisation, nats."""
        return F.relu(self.delta - self.rewards(logps).margin) - self.lam * logps.chosen


@register("orpo")
@dataclass(frozen=True)
class ORPO(Loss):
    """Likelihood of the chosen response plus a logistic loss on the log odds ratio.

    With a(y) = log pi(y|x) / |y| in nats per token:

        odds(y)   = a(y) - log(1 - exp(a(y)))                 log odds of a token of y
        loss      = -a(y_w) - lam * log sigmoid(odds(y_w) - odds(y_l))
        reward(y) = lam * a(y)

    Args:
        lam: Weight of the odds ratio, > 0; the paper uses 0.1 to 1.

    Raises:
        ValueError: If ``lam`` is not positive.

    Source:
        Hong et al. 2024, arXiv:2403.07691, Eq. 6 and 7. A mean probability within 1e-7 of 1 counts as that far off.

    Differs:
        Its authors' code: the likelihood term covers the prompt as well, unless ``--disable_prompt_loss`` is given.
            Leaving the prompt out is our departure, so that every loss here trains on responses alone.
        TRL 1.16 (ORPOTrainer): covers the prompt as its authors do, averages over all tokens of the micro-batch, and
            takes the odds in float32 whatever the input.
    """

    source = "arXiv:2403.07691, Eq. 6"
    needs_reference = False
    length_normalized = True
    lam: float = hyper(0.1, "(0, inf)", paper=(0.1, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: lam * a."""
        a = logps.per_token()
        return ChosenRejected(self.lam * a.chosen, self.lam * a.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) likelihood term plus odds-ratio term."""
        a = logps.per_token()
        return -a.chosen - self.lam * F.logsigmoid(log_odds(a.chosen) - log_odds(a.rejected))


@register("cpo")
@dataclass(frozen=True)
class CPO(Loss):
    """DPO with a uniform reference, plus a likelihood term on the chosen response.

    With s(y) = log pi(y|x) in nats, summed over response tokens:

        reward(y) = beta * s(y)
        loss      = -log sigmoid(reward(y_w) - reward(y_l)) - nll_weight * s(y_w) / |y_w|

    Args:
        beta: Scale of the reward, > 0, in reward per nat; the paper uses 0.1.
        nll_weight: Weight of the likelihood term, >= 0; the paper uses 1.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Xu et al. 2024, arXiv:2401.08417. The likelihood is per token, as in the authors' code.

    Differs:
        TRL 1.16 (CPOTrainer "sigmoid"): its likelihood term averages over all chosen tokens of the micro-batch; the
            same where responses are equally long.
    """

    source = "arXiv:2401.08417"
    needs_reference = False
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    nll_weight: float = hyper(1.0, "[0, inf)", paper=(0, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * s."""
        return ChosenRejected(self.beta * logps.chosen, self.beta * logps.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) preference term plus likelihood term."""
        return -F.logsigmoid(self.rewards(logps).margin) - self.nll_weight * logps.per_token().chosen


@register("cpo_simpo")
@dataclass(frozen=True)
class CPOSimPO(Loss):
    """SimPO plus a likelihood term on the chosen response.

    With a(y) = log pi(y|x) / |y| in nats per token:

        reward(y) = beta * a(y)
        loss      = -log sigmoid(reward(y_w) - reward(y_l) - beta * gamma_beta_ratio) - nll_weight * a(y_w)

    Args:
        beta: Scale of the reward, > 0, in reward per nat per token; 2 to 10 as for SimPO, 10 in its authors' config.
        gamma_beta_ratio: Target margin in nats per token, >= 0; up to 1 as for SimPO, 0.54 in its authors' config.
        nll_weight: Weight of the likelihood term, >= 0; its authors' config has 0.05.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Xu et al., repository CPO_SIMPO, config llama-3-8b-instruct-cpo-simpo (beta 10, gamma 5.4, weight 0.05); the
        parts are arXiv:2405.14734, Eq. 6 and arXiv:2401.08417. Learning rate: 1.43 times DPO's, 1e-6 in that config
        against the 7e-7 that SimPO's authors give for DPO on the same model and data.

    Differs:
        TRL 1.16 (CPOTrainer "simpo"): takes the absolute gamma; its likelihood term averages over all chosen tokens
            of the micro-batch, and has a weight of 1 by default, twenty times its authors'.
    """

    source = "repository CPO_SIMPO; arXiv:2405.14734 + arXiv:2401.08417"
    needs_reference = False
    length_normalized = True
    lr_scale = 1.43
    beta: float = hyper(10.0, "(0, inf)", paper=(2, 10))
    gamma_beta_ratio: float = hyper(0.54, "[0, inf)", paper=(0, 1))
    nll_weight: float = hyper(0.05, "[0, inf)", paper=(0, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * a."""
        a = logps.per_token()
        return ChosenRejected(self.beta * a.chosen, self.beta * a.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) SimPO's term plus likelihood term."""
        gamma = self.beta * self.gamma_beta_ratio
        return -F.logsigmoid(self.rewards(logps).margin - gamma) - self.nll_weight * logps.per_token().chosen


@register("rpo", aliases=("irpo",))
@dataclass(frozen=True)
class RPO(Loss):
    """DPO plus a likelihood term on the chosen response; also called ``irpo``.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        reward(y) = beta * h(y)
        loss      = -log sigmoid(reward(y_w) - reward(y_l)) - nll_weight * log pi(y_w|x) / |y_w|

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.
        nll_weight: Weight of the likelihood term, >= 0; 1 in Iterative RPO, 0.005 in arXiv:2405.16436.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Pang et al. 2024, arXiv:2404.19733 (Iterative RPO). The first version of the paper divides the likelihood by
        the length of prompt and response together, later ones by that of the response, as here.

    Differs:
        TRL 1.16 (DPOTrainer loss_type ["sigmoid", "sft"]): its likelihood term averages over all chosen tokens of the
            micro-batch; the same where responses are equally long.
    """

    source = "arXiv:2404.19733"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    nll_weight: float = hyper(1.0, "[0, inf)", paper=(0, 2))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) DPO's term plus likelihood term."""
        return -F.logsigmoid(self.rewards(logps).margin) - self.nll_weight * logps.per_token().chosen
