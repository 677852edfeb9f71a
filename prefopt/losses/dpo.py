"""DPO, its two treatments of noisy labels, and its length-normalised form: the logistic link."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register


@register("dpo")
@dataclass(frozen=True)
class DPO(Loss):
    """Logistic regression on the difference of implicit rewards.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        reward(y) = beta * h(y)
        loss      = -log sigmoid(reward(y_w) - reward(y_l))

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat.
            Larger keeps the policy closer to it; the paper uses 0.05 to 5, chat models down to 0.01.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290: loss Eq. 7, implicit reward Eq. 5.
    """

    source = "arXiv:2305.18290, Eq. 7"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin)


@register("cdpo")
@dataclass(frozen=True)
class ConservativeDPO(Loss):
    """DPO that expects a share of the labels to be flipped, and stops at a finite margin.

    With m the margin of DPO's rewards beta * h, h = log pi/pi_ref in nats summed over response tokens:

        loss = -(1 - e) log sigmoid(m) - e log sigmoid(-m),   e = label_smoothing

    Its minimum lies at m = log((1 - e) / e).

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5); its users take up to 0.4, mostly 0.1 or 0.2.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO", Eq. 3.

    Differs:
        TRL 1.16 (DPOTrainer "sigmoid"): accepts ``label_smoothing`` and ignores it, so that it trains DPO.
    """

    source = "ericmitchell.ai/cdpo.pdf, Eq. 3"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    label_smoothing: float = hyper(0.1, "[0.0, 0.5)", paper=(0, 0.4))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) cross-entropy of the smoothed label."""
        m = self.rewards(logps).margin
        return -(1 - self.label_smoothing) * F.logsigmoid(m) - self.label_smoothing * F.logsigmoid(-m)


@register("rdpo")
@dataclass(frozen=True)
class RobustDPO(Loss):
    """DPO corrected for flipped labels, so that over the flips it is DPO on the clean ones.

    With m the margin of DPO's rewards beta * h, h = log pi/pi_ref in nats summed over response tokens:

        loss = (-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2e),   e = label_smoothing

    It falls without bound as m grows, with slope -e / (1 - 2e): on clean data stop early.

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.
        label_smoothing: The true share of flipped labels, in [0, 0.5); the paper uses 0.1 to 0.4.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Chowdhury et al. 2024, arXiv:2403.00409 ("rDPO").

    Differs:
        oxRL (RobustDPO): has the second sign wrong, which makes it cDPO divided by 1 - 2e.
    """

    source = "arXiv:2403.00409"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    label_smoothing: float = hyper(0.1, "[0.0, 0.5)", paper=(0, 0.4))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the unbiased estimate of DPO's loss under the clean label."""
        m, e = self.rewards(logps).margin, self.label_smoothing
        return (-(1 - e) * F.logsigmoid(m) + e * F.logsigmoid(-m)) / (1 - 2 * e)


@register("dpo_norm")
@dataclass(frozen=True)
class LengthNormalizedDPO(Loss):
    """DPO on log-ratios averaged over response tokens.

    With h(y) = log pi(y|x) - log pi_ref(y|x), averaged over response tokens, in nats per token:

        reward(y) = beta * h(y)
        loss      = -log sigmoid(reward(y_w) - reward(y_l))

    Args:
        beta: Scale of the reward, > 0, in reward per nat per token; 2 to 10 in use, 5 in Tulu 3. DPO's 0.1 is
            too small here by about the length of a response.

    Raises:
        ValueError: If ``beta`` is not positive.

    Source:
        Lambert et al. 2024, arXiv:2411.15124 (Tulu 3), after the appendix of arXiv:2405.14734.

    Differs:
        TRL 1.16 (DPOTrainer "sigmoid_norm"): the same formula; its default beta is DPO's 0.1.
    """

    source = "arXiv:2411.15124"
    needs_reference = True
    length_normalized = True
    beta: float = hyper(5.0, "(0, inf)", paper=(2, 10))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta times the mean log-ratio."""
        h = logps.per_token().logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin)
