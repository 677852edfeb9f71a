"""Losses of a pair that depend on the rest of the optimizer batch: KTO, BCO, AOT, Dr. DPO."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register
from prefopt.losses.numerics import classified, mean_reward


@register("kto")
@dataclass(frozen=True)
class KTO(Loss):
    """Prospect-theoretic value of each response against the policy's drift from the reference.

    With h(y) = log pi/pi_ref in nats summed over response tokens, and z = max(0, mean over the batch of h(y')), y' the
    next pair's chosen or rejected response given this prompt, without gradient:

        loss      = 1/2 desirable_weight * (1 - sigmoid(beta * (h(y_w) - z)))
                  + 1/2 undesirable_weight * (1 - sigmoid(beta * (z - h(y_l))))
        reward(y) = beta * h(y)

    A pair is two examples, and the loss their mean. Over the batch each of the 2B responses enters z once, as the
    authors' loader has it: the response that follows, desirable or not.

    Args:
        beta: Risk aversion, > 0, in reward per nat; the paper uses 0.01 to 1, mostly 0.1.
        desirable_weight: Weight of chosen responses, > 0; the paper keeps the ratio of the two near 1 to 4/3.
        undesirable_weight: Weight of rejected responses, > 0; likewise.

    Raises:
        ValueError: If a hyperparameter is out of range, or the batch has no mismatched log-ratios.

    Source:
        Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 7.

    Differs:
        HALOs: z of the micro-batch, over whatever responses lie side by side in it, and without those that are 0.
        TRL 1.16 (KTOTrainer): the same responses, each under the prompt that follows where ours stands under the one
            before; z is that of the micro-batch, and needs the data unshuffled.
        turbo-alignment, rlhf-book ("kto_pair"): z from the matched responses. oxRL: -log sigmoid for 1 - sigmoid.
    """

    source = "arXiv:2402.01306, Eq. 7"
    needs_reference = True
    length_normalized = False
    batch_coupled = True
    needs_mismatched = True
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    desirable_weight: float = hyper(1.0, "(0, inf)", paper=(0.1, 10))
    undesirable_weight: float = hyper(1.0, "(0, inf)", paper=(0.1, 10))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) mean of the two examples' losses."""
        if logps.mismatched is None:
            raise ValueError("kto: needs the log-ratios of mismatched responses (PairLogps.mismatched); got none")
        anchor = self.beta * logps.mismatched.detach().mean().clamp(min=0)
        r = self.rewards(logps)
        chosen = self.desirable_weight * torch.sigmoid(anchor - r.chosen)
        return (chosen + self.undesirable_weight * torch.sigmoid(r.rejected - anchor)) / 2


@register("bco")
@dataclass(frozen=True)
class BCO(Loss):
    """Binary classification of chosen against rejected, about the running mean of the rewards.

    With reward(y) = beta * h(y), h = log pi/pi_ref in nats summed over response tokens, and shift the moving average
    of the mean reward of all responses, without gradient:

        loss = -log sigmoid(reward(y_w) - shift) - log sigmoid(-(reward(y_l) - shift))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.01 to 0.1.
        decay: Share of the old average kept at each step, in [0, 1); 0.9 to 0.99 in use.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Jung et al. 2024, arXiv:2404.04656 (paired data, so without density-ratio weights).

    Differs:
        TRL 1.16 (DPOTrainer "bco_pair"), oxRL: drop the shift, which the paper's bound needs.
    """

    source = "arXiv:2404.04656"
    needs_reference = True
    length_normalized = False
    batch_coupled = True
    beta: float = hyper(0.01, "(0, inf)", paper=(0.01, 0.5))
    decay: float = hyper(0.9, "[0, 1)", paper=(0, 0.999))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def statistic(self, logps: PairLogps) -> Tensor:
        """() mean reward of the batch's responses."""
        return mean_reward(self.rewards(logps))

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) sum of the two classification losses."""
        shift = self.statistic(logps) if logps.running is None else logps.running
        return classified(self.rewards(logps), shift)


@register("aot")
@dataclass(frozen=True)
class AOT(Loss):
    """Stochastic dominance of the policy's log-odds over the reference's, quantile by quantile.

    With d = log pi(y_w|x) - log pi(y_l|x) and d_ref likewise, in nats, each sorted over the batch, the k-th smallest
    of one against the k-th smallest of the other:

        loss      = -log sigmoid(beta * (d_(k) - d_ref_(k)))
        reward(y) = beta * h(y),   h = log pi/pi_ref

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.01 to 0.1.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Melnyk et al. 2024, arXiv:2406.05882, paired, logistic.

    Differs:
        TRL 1.16 (DPOTrainer "aot"): the same, sorted within the micro-batch.
    """

    source = "arXiv:2406.05882, paired"
    needs_reference = True
    length_normalized = False
    batch_coupled = True
    beta: float = hyper(0.01, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the loss of the quantile that each pair stands at."""
        h = logps.logratios()
        gap = logps.chosen - logps.rejected
        # The reference gap is the policy gap less the difference of log-ratios: both (B,), no gradient needed.
        ref_gap = (gap - h.margin).detach()
        return -F.logsigmoid(self.beta * (gap - _at_rank_of(gap, ref_gap)))


@register("aot_unpaired")
@dataclass(frozen=True)
class AOTUnpaired(Loss):
    """Stochastic dominance of the chosen log-ratios over the rejected ones, quantile by quantile.

    With h(y) = log pi/pi_ref in nats summed over response tokens, h_w and h_l each sorted over the batch:

        loss      = -log sigmoid(beta * (h_w_(k) - h_l_(k)))
        reward(y) = beta * h(y)

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.01 to 0.1.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Melnyk et al. 2024, arXiv:2406.05882, unpaired, logistic.

    Differs:
        TRL 1.16 (DPOTrainer "aot_unpaired"): the same, sorted within the micro-batch.
    """

    source = "arXiv:2406.05882, unpaired"
    needs_reference = True
    length_normalized = False
    batch_coupled = True
    beta: float = hyper(0.01, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the loss of the quantile that each chosen response stands at."""
        r = self.rewards(logps)
        return -F.logsigmoid(r.chosen - _at_rank_of(r.chosen, r.rejected))


def _at_rank_of(keys: Tensor, values: Tensor) -> Tensor:
    """(B,) the value whose rank among ``values`` is that of each key among ``keys``; gradient to the values."""
    rank = keys.detach().argsort(stable=True).argsort(stable=True)
    return values.sort().values[rank]


@register("dr_dpo")
@dataclass(frozen=True)
class DrDPO(Loss):
    """DPO made robust to wrong pairs: the batch's losses are averaged softly towards the small ones.

    With L_i DPO's loss of pair i of B and reward(y) = beta * h(y), h = log pi/pi_ref in nats summed over tokens:

        loss = -beta_prime * log mean_i exp(-L_i / beta_prime)       the same for every pair

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.
        beta_prime: Trust in the pairs, > 0: large is DPO, small drops the pairs that fit badly; the paper uses 0.1 to
            10, mostly 1.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Wu et al. 2024, arXiv:2407.07880.
    """

    source = "arXiv:2407.07880"
    needs_reference = True
    length_normalized = False
    batch_coupled = True
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    beta_prime: float = hyper(1.0, "(0, inf)", paper=(0.1, 10))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the batch's loss, once for each pair."""
        fit = F.logsigmoid(self.rewards(logps).margin) / self.beta_prime
        mean = torch.logsumexp(fit, dim=0) - math.log(len(fit))
        return (-self.beta_prime * mean).repeat(len(fit))
