"""DPO with a term added to the margin: length (R-DPO), a floor on the chosen (DPOP), preference strength (ODPO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register


@register("r_dpo")
@dataclass(frozen=True)
class LengthRegularizedDPO(Loss):
    """DPO against a reward that charges for length.

    The optimum of E[r - alpha * |y|] - beta * KL has r(y) = beta * h(y) + alpha * |y| up to a constant, with
    h = log pi/pi_ref in nats summed over response tokens and |y| in tokens:

        reward(y) = beta * h(y) + alpha * |y|
        loss      = -log sigmoid(reward(y_w) - reward(y_l))

    A longer chosen response explains the preference already, and so gets a smaller gradient.

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.
        alpha: Price of a token, >= 0, in reward; 0.005 to 1 in use.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Park et al. 2024, arXiv:2403.19159; sign derived as above.

    Differs:
        oxRL (RDPO): has the sign of alpha wrong, which rewards verbosity.
    """

    source = "arXiv:2403.19159"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    alpha: float = hyper(0.05, "[0, inf)", paper=(0, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h + alpha * length."""
        h = logps.logratios()
        return ChosenRejected(
            self.beta * h.chosen + self.alpha * logps.chosen_len,
            self.beta * h.rejected + self.alpha * logps.rejected_len,
        )

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin."""
        return -F.logsigmoid(self.rewards(logps).margin)


@register("dpop")
@dataclass(frozen=True)
class DPOPositive(Loss):
    """DPO with a penalty where the chosen response falls below the reference.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        loss      = -log sigmoid(beta * (h(y_w) - h(y_l) - lam * max(0, -h(y_w))))
        reward(y) = beta * h(y)

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; the paper uses 0.1 to 0.3.
        lam: Weight of the penalty, >= 0; the paper uses 50, and tries 5 to 500.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Pal et al. 2024, arXiv:2402.13228 ("Smaug"): the penalty stands inside beta. Its setting of 50 is as
        LLaMA-Factory (issue 2587), SamPO and BPO have it; we had no text of the paper to check it by.

    Differs:
        turbo-alignment: a lam of 0.1.
        Another formula is about in which the penalty stands outside beta: the same with lam over beta for lam.
    """

    source = "arXiv:2402.13228"
    needs_reference = True
    length_normalized = False
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))
    lam: float = hyper(50.0, "[0, inf)", paper=(0, 500))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h, without the penalty."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the penalised margin."""
        r = self.rewards(logps)
        return -F.logsigmoid(r.margin - self.lam * F.relu(-r.chosen))


@register("odpo")
@dataclass(frozen=True)
class ODPO(Loss):
    """DPO whose margin must exceed an offset that grows with the strength of the preference.

    With h = log pi/pi_ref in nats summed over response tokens, and the scores that the data gives:

        reward(y) = beta * h(y)
        offset    = alpha * log(score(y_w) - score(y_l))
        loss      = -log sigmoid(reward(y_w) - reward(y_l) - offset)

    A pair whose scores tie or contradict the label has an offset of -14 alpha (a gap of 1e-6): it is all but ignored.

    Args:
        beta: Strength of the pull towards the reference, > 0, in reward per nat; 0.01 to 5 as for DPO.
        alpha: Weight of the offset, >= 0; the paper uses up to 1.

    Raises:
        ValueError: If a hyperparameter is out of range.
        DataError: If the data has no scores.

    Source:
        Amini et al. 2024, arXiv:2402.10571, with the logarithm for its scaling function.

    Differs:
        turbo-alignment: the offset is the plain score gap. oxRL: a constant 1.
    """

    source = "arXiv:2402.10571"
    needs_reference = True
    length_normalized = False
    needs_scores = True
    beta: float = hyper(0.1, "(0, inf)", paper=(0.01, 5))
    alpha: float = hyper(1.0, "[0, inf)", paper=(0, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: beta * h."""
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) -log sigmoid of the reward margin less the offset."""
        offset = self.alpha * logps.scores().margin.clamp(min=1e-6).log()
        return -F.logsigmoid(self.rewards(logps).margin - offset)
