"""Losses that look at single tokens: TDPO, WPO, LD-DPO, SamPO.

Shapes: B pairs, T response tokens, padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, TokenStats, hyper
from prefopt.contract.registry import register


def _tokens(logps: PairLogps) -> tuple[TokenStats, TokenStats]:
    """The per-token values of both responses.

    Raises:
        ValueError: If the batch has none.
    """
    if logps.chosen_tokens is None or logps.rejected_tokens is None:
        raise ValueError("this loss needs per-token values, and the batch has none; declare them in token_fields")
    return logps.chosen_tokens, logps.rejected_tokens


def _given(tokens: TokenStats, field: str) -> Tensor:
    """(B, T) one field of the per-token values.

    Raises:
        ValueError: If it is missing.
    """
    value: Tensor | None = getattr(tokens, field)
    if value is None:
        raise ValueError(f"this loss needs {field} for each token, and the batch has none; declare it in token_fields")
    return value


def _sequence_kl(tokens: TokenStats) -> Tensor:
    """(B,) KL(pi_ref || pi) along the response, nats."""
    return _given(tokens, "ref_kl").sum(-1)


def _log_ratio(tokens: TokenStats, weight: Tensor) -> Tensor:
    """(B,) weighted sum of the tokens' log pi/pi_ref, nats."""
    return ((_given(tokens, "logps") - _given(tokens, "ref_logps")) * weight).sum(-1)


@register("tdpo")
@dataclass(frozen=True)
class TDPO(Loss):
    """Token-level DPO (TDPO2): DPO less the extra drift along the rejected response, at a chosen weight.

    With h = log pi/pi_ref in nats summed over response tokens, and K(y) = sum_t KL(pi_ref || pi) at each token of y:

        loss      = -log sigmoid(beta * (h(y_w) - h(y_l) - alpha * (K(y_l) - stop_gradient(K(y_w)))))
        reward(y) = beta * (h(y) + K(y))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.1.
        alpha: Weight of the drift, >= 0; the paper uses 0.1 to 1.5, mostly 0.5.

    Raises:
        ValueError: If a hyperparameter is out of range, or the batch has no per-token KL.

    Source:
        Zeng et al. 2024, arXiv:2404.11999 (TDPO2), loss and reward as in the authors' code. ``tdpo1`` is its other
        form.
    """

    source = "arXiv:2404.11999 (TDPO2)"
    needs_reference = True
    length_normalized = False
    token_fields = frozenset({"ref_kl"})
    stops_gradient = True
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    alpha: float = hyper(0.5, "[0, inf)", paper=(0, 2))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta times log-ratio plus divergence along the response."""
        h, (chosen, rejected) = logps.logratios(), _tokens(logps)
        return ChosenRejected(
            self.beta * (h.chosen + _sequence_kl(chosen)), self.beta * (h.rejected + _sequence_kl(rejected))
        )

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin less the drift."""
        chosen, rejected = _tokens(logps)
        drift = _sequence_kl(rejected) - _sequence_kl(chosen).detach()
        return -F.logsigmoid(self.beta * (logps.logratios().margin - self.alpha * drift))


@register("tdpo1")
@dataclass(frozen=True)
class TDPO1(Loss):
    """Token-level DPO (TDPO1): DPO less the extra drift along the rejected response.

    With h = log pi/pi_ref in nats summed over response tokens, and K(y) = sum_t KL(pi_ref || pi) at each token of y:

        reward(y) = beta * (h(y) + K(y))
        loss      = -log sigmoid(reward(y_w) - reward(y_l))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.1.

    Raises:
        ValueError: If ``beta`` is not positive, or the batch has no per-token KL.

    Source:
        Zeng et al. 2024, arXiv:2404.11999 (TDPO1), loss and reward as in the authors' code.
    """

    source = "arXiv:2404.11999 (TDPO1)"
    needs_reference = True
    length_normalized = False
    token_fields = frozenset({"ref_kl"})
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta times log-ratio plus divergence along the response."""
        h, (chosen, rejected) = logps.logratios(), _tokens(logps)
        return ChosenRejected(
            self.beta * (h.chosen + _sequence_kl(chosen)), self.beta * (h.rejected + _sequence_kl(rejected))
        )

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin)


@register("wpo")
@dataclass(frozen=True)
class WPO(Loss):
    """DPO with each pair weighted by how likely the policy itself is to write its responses.

    With h = log pi/pi_ref in nats summed over response tokens, p_t the policy's probability of token t of y, and
    c_t = sum_v pi(v)^2 at that position:

        v(y)      = mean_t (log p_t - log c_t)
        w         = min(1, exp(v(y_w) + v(y_l)))         without gradient
        reward(y) = beta * h(y)
        loss      = -w * log sigmoid(reward(y_w) - reward(y_l))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.01.

    Raises:
        ValueError: If ``beta`` is not positive, or the batch has no per-token values.

    Source:
        Zhou et al. 2024, arXiv:2406.11827, Eq. 2, sampled alignment; the weight stops at 1 as in the authors' code.

    Differs:
        TRL 1.16 (DPOTrainer ``use_weighting``): lets the weight pass 1, which it does where the policy is sure of the
            tokens: at p = 1/2 each, and the rest spread thin, a pair counts four times.
        open-instruct: feeds sums to the mean, so that with one pair a micro-batch the weight is 0 and nothing is
            learnt; with more it raises.
        oxRL: leaves c_t out, and normalises the weights over the batch.
    """

    source = "arXiv:2406.11827, Eq. 2"
    needs_reference = True
    length_normalized = False
    token_fields = frozenset({"logps", "log_collision"})
    stops_gradient = True
    beta: float = hyper(0.01, "(0, inf)", paper=(0.005, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) weighted DPO loss."""
        chosen, rejected = _tokens(logps)
        log_weight = self._log_weight(chosen) + self._log_weight(rejected)
        return -log_weight.clamp(max=0).exp() * F.logsigmoid(self.rewards(logps).margin)

    @staticmethod
    def _log_weight(tokens: TokenStats) -> Tensor:
        excess = (_given(tokens, "logps") - _given(tokens, "log_collision")).detach() * tokens.mask
        return excess.sum(-1) / tokens.mask.sum(-1)


@register("ld_dpo")
@dataclass(frozen=True)
class LDDPO(Loss):
    """DPO with the tokens past the length of the pair's shorter response weighted down.

    With h_t = log pi/pi_ref of token t in nats, and n = min(|y_w|, |y_l|):

        reward(y) = beta * (sum_{t <= n} h_t + alpha * sum_{t > n} h_t)
        loss      = -log sigmoid(reward(y_w) - reward(y_l))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.1.
        alpha: Weight of the tokens past n, in [0, 1]; 1 is DPO; the paper uses 0.3 to 0.8.

    Raises:
        ValueError: If a hyperparameter is out of range, or the batch has no per-token values.

    Source:
        Liu et al. 2024, arXiv:2409.06411.

    Differs:
        TRL 1.16 (DPOTrainer ``ld_alpha``): the same.
        LLaMA-Factory: weights the policy alone, so that the log-ratios are not 0 at the start.
    """

    source = "arXiv:2409.06411"
    needs_reference = True
    length_normalized = False
    token_fields = frozenset({"logps"})
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    alpha: float = hyper(0.5, "[0, 1]", paper=(0, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta times the weighted sum of the tokens' log-ratios."""
        chosen, rejected = _tokens(logps)
        shared = torch.minimum(chosen.mask.sum(-1), rejected.mask.sum(-1))

        def reward(tokens: TokenStats) -> Tensor:
            tail = tokens.mask.cumsum(-1) > shared[:, None]
            weight = tokens.mask * torch.where(tail, self.alpha, 1.0)
            return self.beta * _log_ratio(tokens, weight)

        return ChosenRejected(reward(chosen), reward(rejected))

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin)


@register("sampo")
@dataclass(frozen=True)
class SamPO(Loss):
    """DPO on as many tokens of the longer response as the shorter one has, drawn at random.

    With h_t = log pi/pi_ref of token t in nats, and S(y) a random min(|y_w|, |y_l|) of the tokens of y, drawn anew at
    each step, the same for every variant:

        reward(y) = beta * sum_{t in S(y)} h_t
        loss      = -log sigmoid(reward(y_w) - reward(y_l))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.05 to 0.5.

    Raises:
        ValueError: If ``beta`` is not positive, or the batch has no per-token values.

    Source:
        Lu et al. 2024, arXiv:2406.10957. Policy and reference are summed over the same tokens, so that the margin at
        policy = reference is 0.

    Differs:
        Its authors' code: draws the tokens of policy and reference apart, so that its margin at the start is noise.
    """

    source = "arXiv:2406.10957"
    needs_reference = True
    length_normalized = False
    token_fields = frozenset({"logps", "uniform"})
    beta: float = hyper(0.05, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta times the sum of the drawn tokens' log-ratios."""
        chosen, rejected = _tokens(logps)
        shared = torch.minimum(chosen.mask.sum(-1), rejected.mask.sum(-1))

        def reward(tokens: TokenStats) -> Tensor:
            # Padding sorts last, so the first places are a uniform draw among the response's tokens.
            order = _given(tokens, "uniform").masked_fill(~tokens.mask, 2.0).argsort(dim=-1, stable=True)
            first = torch.arange(order.shape[-1], device=order.device) < shared[:, None]
            sampled = torch.zeros_like(tokens.mask).scatter(-1, order, first)
            return self.beta * _log_ratio(tokens, sampled)

        return ChosenRejected(reward(chosen), reward(rejected))

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin)
