"""Losses of K responses with rewards: RLOO, GRPO, listwise DPO and InfoNCA.

Shapes: B groups, K responses of the largest group, T response tokens (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.contract.groups import GroupLogps, GroupLoss
from prefopt.contract.loss import hyper
from prefopt.contract.registry import register
from prefopt.losses.numerics import exp_linear


def mean_of_siblings(values: Tensor, mask: Tensor) -> Tensor:
    """(B, K) for each response the mean of the others of its group; the value itself where there are none."""
    kept = values * mask
    others = mask.sum(1, keepdim=True) - 1
    return torch.where(others > 0, (kept.sum(1, keepdim=True) - kept) / others.clamp(min=1), values)


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean over the responses of each group."""
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)


@register("rloo")
@dataclass(frozen=True)
class RLOO(GroupLoss):
    """KL-regularised policy gradient with the other responses of the prompt as baseline: the RL baseline.

    With r the reward, q the policy that drew the responses and h_q = log q/pi_ref in nats summed over tokens:

        R_i  = r_i - beta * h_q(y_i)
        A_i  = R_i - mean of the other R
        rho  = pi(y_i) / q(y_i)
        loss = -mean_i min(rho * A_i, clip(rho, 1 - clip, 1 + clip) * A_i)

    R is constant under the gradient. Where q is the policy itself, as for a pair, rho is 1 and the loss is written
    -mean_i A_i * log pi(y_i), whose gradient is the same. The gradient's expectation is that of E[r] - beta * KL, and
    mean_i A_i log pi(y_i) = 1/(K(K-1)) * sum over pairs of (R_i - R_j) (log pi(y_i) - log pi(y_j)).

    Args:
        beta: Price of the KL, >= 0, in reward per nat; TRL's default is 0.05.
        clip: How far the probability ratio counts, > 0; 0.2 as in PPO.

    Source:
        Ahmadian et al. 2024, arXiv:2402.14740; the ratio and its clip as in TRL 1.16.

    Differs:
        TRL 1.16 (RLOOTrainer): the same loss and advantages, without ``normalize_advantages``.
    """

    source = "arXiv:2402.14740"
    needs_reference = True
    length_normalized = False
    needs_scores = True
    stops_gradient = True
    beta: float = hyper(0.05, "[0, inf)", paper=(0, 1))
    clip: float = hyper(0.2, "(0, inf)", paper=(0.05, 0.5))

    def implicit(self, groups: GroupLogps) -> Tensor:
        """(B, K) h, which the optimum has at r / beta."""
        return groups.logratios()

    def advantages(self, groups: GroupLogps) -> Tensor:
        """(B, K) A, without gradient."""
        assert groups.ref_logps is not None
        behaviour = groups.logps if groups.behaviour is None else groups.behaviour
        regularised = (groups.scores() - self.beta * (behaviour - groups.ref_logps)).detach()
        return regularised - mean_of_siblings(regularised, groups.mask)

    def group(self, groups: GroupLogps) -> Tensor:
        """(B,) the clipped surrogate."""
        advantage = self.advantages(groups)
        if groups.behaviour is None:
            return -group_mean(advantage * groups.logps, groups.mask)
        ratio = exp_linear(groups.logps - groups.behaviour)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        return -group_mean(torch.minimum(ratio * advantage, clipped * advantage), groups.mask)


@register("grpo")
@dataclass(frozen=True)
class GRPO(GroupLoss):
    """Group-relative policy optimisation: standardised rewards as advantages of every token, and a KL in the loss.

    With q the policy that drew the responses, rho_t = pi/q at a token and d_t = log pi_ref - log pi there:

        A_i  = (r_i - mean r) / (std r + 1e-4)
        l_t  = -min(rho_t * A_i, clip(rho_t, 1 - clip, 1 + clip) * A_i) + beta * (exp(d_t) - d_t - 1)
        loss = sum over all tokens of the batch of l_t / their number          (normalizer dapo)
        loss = mean over responses of the mean over tokens of l_t              (normalizer grpo)

    Where q is the policy itself, as for a pair, -A_i * log pi stands for the first term; its gradient is the same.

    Args:
        beta: Weight of the KL, >= 0; 0.04 in the paper, 0 in TRL, and nothing then holds the policy.
        clip: How far the probability ratio counts, > 0.
        normalizer: ``dapo`` weighs every token alike, ``grpo`` every response.

    Source:
        Shao et al. 2024, arXiv:2402.03300; the normaliser dapo from arXiv:2503.14476.

    Differs:
        TRL 1.16 (GRPOTrainer): the same loss and advantages; its beta is 0 by default.
    """

    source = "arXiv:2402.03300"
    needs_reference = True
    length_normalized = False
    needs_scores = True
    batch_coupled = True
    stops_gradient = False
    token_fields = frozenset({"logps"})
    beta: float = hyper(0.04, "[0, inf)", paper=(0, 0.2))
    clip: float = hyper(0.2, "(0, inf)", paper=(0.05, 0.5))
    normalizer: str = hyper("dapo", choices=("dapo", "grpo"))

    def implicit(self, groups: GroupLogps) -> Tensor:
        """(B, K) h, log pi/pi_ref in nats."""
        return groups.logratios()

    def advantages(self, groups: GroupLogps) -> Tensor:
        """(B, K) A: rewards less their mean, over their standard deviation (with K - 1)."""
        rewards, mask = groups.scores(), groups.mask
        centred = torch.where(mask, rewards - group_mean(rewards, mask)[:, None], 0.0)
        spread = (centred.square().sum(1) / (mask.sum(1) - 1).clamp(min=1)).sqrt()
        return centred / (spread[:, None] + 1e-4)

    def group(self, groups: GroupLogps) -> Tensor:
        """(B,) each group's share of the loss."""
        tokens = groups.tokens
        assert tokens is not None
        assert tokens.ref_logps is not None
        advantage = self.advantages(groups)[:, :, None]
        if tokens.behaviour is None:
            gain = advantage * tokens.logps
        else:
            ratio = exp_linear(tokens.logps - tokens.behaviour)
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        ahead = tokens.ref_logps - tokens.logps
        value = torch.where(tokens.mask, self.beta * (exp_linear(ahead) - ahead - 1) - gain, 0.0).sum(2)
        lengths = tokens.mask.sum(2)
        if self.normalizer == "grpo":
            return group_mean(value / lengths.clamp(min=1), groups.mask)
        total = lengths.sum()
        return torch.where(groups.mask, value, 0.0).sum(1) * len(value) / total


@register("dpo_pl", aliases=("listwise_dpo",))
@dataclass(frozen=True)
class PlackettLuceDPO(GroupLoss):
    """DPO of a whole ranking, under the Plackett-Luce model; of a pair it is DPO.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        reward(y) = beta * h(y)
        loss      = -sum_i (reward(y_i) - log sum of exp(reward(y_j)) over the y_j that rank no higher than y_i)

    Responses that tie count in each other's sum (Breslow), so that the loss does not depend on their order.

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 in the literature.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, appendix A.3, Eq. 20.
    """

    source = "arXiv:2305.18290, Eq. 20"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))

    def implicit(self, groups: GroupLogps) -> Tensor:
        """(B, K) beta * h."""
        return self.beta * groups.logratios()

    def group(self, groups: GroupLogps) -> Tensor:
        """(B,) -log probability of the ranking."""
        rewards, rank, mask = self.implicit(groups), groups.preference, groups.mask
        no_higher = (rank[:, None, :] <= rank[:, :, None]) & mask[:, None, :]  # (B, i, j)
        # A response is in its own sum, so no row is empty where the mask is True; elsewhere the value is dropped.
        no_higher = no_higher | torch.eye(rank.shape[1], dtype=torch.bool, device=rank.device)
        total = rewards[:, None, :].expand(no_higher.shape).masked_fill(~no_higher, -torch.inf).logsumexp(2)
        return torch.where(mask, total - rewards, 0.0).sum(1)


@register("infonca")
@dataclass(frozen=True)
class InfoNCA(GroupLoss):
    """Noise contrastive alignment of K responses: the policy's shares of a group against the rewards' shares.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens, and r the reward:

        loss = -sum_i softmax(r / alpha)_i * log softmax(beta * h)_i

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 0.1 in the paper.
        alpha: Temperature of the rewards, > 0, in reward; small makes the best response take all.

    Source:
        Chen et al. 2024, arXiv:2402.05369, Eq. 7 (InfoNCA).
    """

    source = "arXiv:2402.05369, Eq. 7"
    needs_reference = True
    length_normalized = False
    needs_scores = True
    beta: float = hyper(0.1, "(0, inf)", paper=(1e-3, 1))
    alpha: float = hyper(1.0, "(0, inf)", paper=(0.01, 10))

    def implicit(self, groups: GroupLogps) -> Tensor:
        """(B, K) beta * h."""
        return self.beta * groups.logratios()

    def group(self, groups: GroupLogps) -> Tensor:
        """(B,) cross-entropy of the policy's shares."""
        wanted = (groups.scores() / self.alpha).masked_fill(~groups.mask, -torch.inf).softmax(1)
        own = self.implicit(groups).masked_fill(~groups.mask, -torch.inf).log_softmax(1)
        return -(wanted * torch.where(groups.mask, own, 0.0)).sum(1)
