"""IPO in its two readings: regression of the log-ratio gap onto a constant."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, hyper
from prefopt.contract.registry import register


@register("ipo")
@dataclass(frozen=True)
class IPO(Loss):
    """Squared distance of the mean log-ratio gap from 1 / (2 tau).

    With h(y) = log pi(y|x) - log pi_ref(y|x), averaged over response tokens, in nats per token:

        loss      = (h(y_w) - h(y_l) - 1 / (2 tau))^2
        reward(y) = tau * h(y)

    Args:
        tau: Strength of the pull towards the reference, > 0. The gap aimed at is 1 / (2 tau) nats per token;
            0.01 to 1 in the literature.

    Raises:
        ValueError: If ``tau`` is not positive.

    Source:
        Azar et al. 2023, arXiv:2310.12036, Eq. 17. The paper writes sums; its authors advise means over tokens for
        language models, which is what this is. ``ipo_sum`` is the literal reading.

    Differs:
        TRL 1.16 (DPOTrainer "ipo"): the same. TRL's OnlineDPOTrainer, OpenRLHF, oxRL: sums, our ``ipo_sum``.
        RainbowPO: (beta * gap - 1/2)^2, which is beta^2 times IPO with tau = beta.
        HALOs: divides by the count of tokens with a non-zero log-ratio, which is 0 / 0 at the first step.
    """

    source = "arXiv:2310.12036, Eq. 17, means"
    needs_reference = True
    length_normalized = True
    tau: float = hyper(0.5, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: tau times the mean log-ratio."""
        h = logps.per_token().logratios()
        return ChosenRejected(self.tau * h.chosen, self.tau * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) squared error of the gap, nats^2 per token^2."""
        gap = logps.per_token().logratios().margin
        return (gap - 1 / (2 * self.tau)).square()


@register("ipo_sum")
@dataclass(frozen=True)
class IPOSum(Loss):
    """Squared distance of the summed log-ratio gap from 1 / (2 tau): the paper's IPO, read literally.

    With h(y) = log pi(y|x) - log pi_ref(y|x) in nats, summed over response tokens:

        loss      = (h(y_w) - h(y_l) - 1 / (2 tau))^2
        reward(y) = tau * h(y)

    Args:
        tau: Strength of the pull towards the reference, > 0. The gap aimed at is 1 / (2 tau) nats for the whole
            response, so a useful value is that of ``ipo`` over the length; the paper uses 0.1 to 1, on bandits.

    Raises:
        ValueError: If ``tau`` is not positive.

    Source:
        Azar et al. 2023, arXiv:2310.12036, Eq. 17.

    Differs:
        TRL 1.16 (DPOTrainer "ipo"), HALOs, LLaMA-Factory: means over tokens, our ``ipo``.
    """

    source = "arXiv:2310.12036, Eq. 17, sums"
    needs_reference = True
    length_normalized = False
    tau: float = hyper(0.1, "(0, inf)", paper=(0.01, 1))

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: tau * h."""
        h = logps.logratios()
        return ChosenRejected(self.tau * h.chosen, self.tau * h.rejected)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) squared error of the gap, nats^2."""
        return (logps.logratios().margin - 1 / (2 * self.tau)).square()
