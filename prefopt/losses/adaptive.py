"""Losses that adapt to how far recent batches were from the reference: beta-DPO, alpha-DPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register


def _mean_and_deviation(gap: Tensor) -> Tensor:
    """(2,) mean and standard deviation of the batch's gaps, without gradient; the latter is 0 for one pair."""
    gap = gap.detach()
    return torch.stack([gap.mean(), gap.std() if len(gap) > 1 else gap.new_zeros(())])


def _standardised(gap: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(B,) how many standard deviations each gap is from the mean, without gradient."""
    return (gap.detach() - mean) / deviation.clamp(min=1e-6)


@register("beta_dpo")
@dataclass(frozen=True)
class BetaDPO(Loss):
    """DPO with a beta that follows the batch's gap, mostly on the pairs whose gap is usual.

    With D = h(y_w) - h(y_l), h = log pi/pi_ref in nats summed over response tokens, M0 and S the moving averages of the
    batch's mean and standard deviation of D, and M the mean D of the ``keep`` share of pairs, drawn without
    replacement with weights exp(-((D - M0) / S)^2 / 2), all without gradient:

        beta' = max(0.001, beta * (1 + alpha * (M - M0)))
        loss  = -log sigmoid(beta' * D) for the pairs kept, 0 for the others

    scaled so that its mean over the batch is the mean over the pairs kept. The draw depends on seed, step and pair
    alone; a batch without ``TokenStats.uniform`` keeps the pairs of the greatest weight.

    Args:
        beta: The beta at M = M0, > 0, in reward per nat; the paper uses 0.1.
        alpha: How strongly beta follows the gap, >= 0, per nat; the paper uses 0.6.
        keep: Share of the batch kept, rounded down to pairs, in (0, 1]; the paper uses 0.8.
        decay: Share of the old average kept at each step, in [0, 1); the paper uses 0.9.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Wu et al. 2024, arXiv:2407.08639; draw and rounding as in the authors' code (beta-DPO).

    Differs:
        Its authors' code: begins both averages at 0; ours begin at the first batch's values.
        oxRL: a beta for each pair, through which it takes the gradient.
    """

    source = "arXiv:2407.08639"
    needs_reference = True
    length_normalized = False
    batch_coupled = True
    token_fields = frozenset({"uniform"})
    stops_gradient = True
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    alpha: float = hyper(0.6, "[0, inf)", paper=(0, 1))
    keep: float = hyper(0.8, "(0, 1]", paper=(0.5, 1))
    decay: float = hyper(0.9, "[0, 1)", paper=(0, 0.999))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h, with the beta that does not move."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def statistic(self, logps: PairLogps) -> Tensor:
        """(2,) mean and standard deviation of the batch's gaps, nats; of one pair the latter is 0."""
        return _mean_and_deviation(logps.logratios().margin)

    def _kept(self, logps: PairLogps, mean: Tensor, deviation: Tensor) -> Tensor:
        """Indices of the pairs kept."""
        gap = logps.logratios().margin
        count = max(1, int(self.keep * len(gap)))
        keys = -_standardised(gap, mean, deviation).square() / 2
        if logps.rejected_tokens is not None and logps.rejected_tokens.uniform is not None:
            # The greatest log weights plus Gumbel noise are a weighted draw without replacement.
            keys = keys - torch.log(-torch.log(logps.rejected_tokens.uniform[:, 0].clamp(1e-6, 1 - 1e-6)))
        return keys.argsort(descending=True, stable=True)[:count]

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) loss of the pairs kept, weighted for those dropped."""
        usual = (self.statistic(logps) if logps.running is None else logps.running).reshape(-1)
        mean, deviation = usual[0], usual[-1]
        gap = logps.logratios().margin
        kept = self._kept(logps, mean, deviation)
        beta = (self.beta * (1 + self.alpha * (gap.detach()[kept].mean() - mean))).clamp(min=1e-3)
        weight = torch.zeros_like(gap.detach()).index_fill(0, kept, len(gap) / len(kept))
        return -weight * F.logsigmoid(beta * gap)


@register("alpha_dpo")
@dataclass(frozen=True)
class AlphaDPO(Loss):
    """SimPO with a larger target margin for pairs whose gap from the reference is larger than usual.

    With a(y) = log pi(y|x) / |y| in nats per token, G = (a - a_ref)(y_w) - (a - a_ref)(y_l), and M and S the moving
    averages of the batch's mean and standard deviation of G, all three without gradient where they set the target:

        z         = (G - M) / S
        reward(y) = beta * a(y)
        loss      = -log sigmoid(reward(y_w) - reward(y_l) - beta * (gamma_beta_ratio + alpha * z))

    Args:
        beta: Scale of the reward, > 0, in reward per nat per token; the authors use 2.5 and 10.
        gamma_beta_ratio: Target margin of a usual pair in nats per token, >= 0; the authors use 0.15 to 0.6.
        alpha: Change of the target per standard deviation, >= 0; 0 is SimPO; the authors use 0.05 to 0.2.
        decay: Share of the old averages kept at each step, in [0, 1); the authors use 0.9.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Wu et al. 2024, arXiv:2410.10148; checked against the authors' code (alpha-DPO), whose config for
        Llama3-Instruct has our defaults. S counts as 1e-6 where it is less. Learning rate: 1.43 times DPO's, 1e-6 in
        that config against the 7e-7 that SimPO's authors give for DPO there.

    Differs:
        Its authors' code: begins both averages at 0, so that z is about ten times too large at the first step; ours
            begin at the first batch's values.
        oxRL: averages the variance, with a decay of 0.99.
    """

    source = "arXiv:2410.10148"
    needs_reference = True
    length_normalized = True
    batch_coupled = True
    stops_gradient = True
    lr_scale = 1.43
    beta: float = hyper(2.5, "(0, inf)", paper=(2, 10))
    gamma_beta_ratio: float = hyper(0.6, "[0, inf)", paper=(0, 1))
    alpha: float = hyper(0.2, "[0, inf)", paper=(0, 0.5))
    decay: float = hyper(0.9, "[0, 1)", paper=(0, 0.999))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * a."""
        a = logps.per_token()
        return ChosenRejected(self.beta * a.chosen, self.beta * a.rejected)

    def statistic(self, logps: PairLogps) -> Tensor:
        """(2,) mean and standard deviation of the batch's gaps, nats per token; of one pair the latter is 0."""
        return _mean_and_deviation(logps.per_token().logratios().margin)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin less its target."""
        mean, deviation = self.statistic(logps) if logps.running is None else logps.running
        z = _standardised(logps.per_token().logratios().margin, mean, deviation)
        target = self.gamma_beta_ratio + self.alpha * z
        return -F.logsigmoid(self.rewards(logps).margin - self.beta * target)
