"""The contract's second form: K responses of each prompt with their rewards, for what pairs cannot express.

A group loss is a loss like any other: of a pair it is the loss of a group of two, so that it is checked, plotted and
evaluated on held-out pairs as the rest are.

Shapes: B groups, K responses of the largest group, T response tokens (padded).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class GroupTokens:
    """Per-token values of the responses of each group: 0 where ``mask`` is False.

    Attributes:
        mask: (B, K, T) bool, True on response tokens.
        logps: (B, K, T) log pi(y_t | x, y_<t) in nats. Carries gradient.
        ref_logps: (B, K, T) the same under the reference, or None.
        behaviour: (B, K, T) the same under the policy that drew the responses; None where that is the policy itself.
    """

    mask: Tensor
    logps: Tensor
    ref_logps: Tensor | None = None
    behaviour: Tensor | None = None


@dataclass(frozen=True, slots=True)
class GroupLogps:
    """Log-probabilities of B groups of up to K responses: nats, summed over response tokens.

    Attributes:
        logps: (B, K) log pi(y | x). Carries gradient.
        lengths: (B, K) response tokens, each >= 1.
        mask: (B, K) bool, False where a group has fewer responses; every other value there is without meaning.
        preference: (B, K) what the labels rank by: the rewards with the labels' noise, or 1 and 0 for a pair.
        rewards: (B, K) the rewards, or None where the data gives none.
        ref_logps: (B, K) log pi_ref(y | x), or None when no reference was scored.
        behaviour: (B, K) log-probability under the policy that drew the responses; None where that is the policy
            itself, as it is now.
        tokens: Per-token values, or None unless the loss asks for them.
    """

    logps: Tensor
    lengths: Tensor
    mask: Tensor
    preference: Tensor
    rewards: Tensor | None = None
    ref_logps: Tensor | None = None
    behaviour: Tensor | None = None
    tokens: GroupTokens | None = None

    def logratios(self) -> Tensor:
        """(B, K) log pi / pi_ref.

        Raises:
            ValueError: If no reference was scored.
        """
        if self.ref_logps is None:
            raise ValueError("log-ratios need reference log-probabilities; declare needs_reference = True")
        return self.logps - self.ref_logps

    def scores(self) -> Tensor:
        """(B, K) the rewards.

        Raises:
            DataError: If the data has none.
        """
        from prefopt.errors import DataError

        if self.rewards is None:
            raise DataError("this loss needs a reward for each response, and the data has none")
        return self.rewards


@dataclass(frozen=True)
class GroupLoss(Loss):
    """A loss of groups; ``group`` is its formula, and a pair counts as a group of two that the policy drew itself."""

    takes_groups: ClassVar[bool] = True

    @abstractmethod
    def group(self, groups: GroupLogps) -> Tensor:
        """(B,) the loss of each group; a step minimises its mean."""

    @abstractmethod
    def implicit(self, groups: GroupLogps) -> Tensor:
        """(B, K) the implicit rewards, in the loss's own units."""

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """(B,) each: the implicit rewards."""
        values = self.implicit(as_groups(logps))
        return ChosenRejected(values[:, 0], values[:, 1])

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the loss of each pair as a group of two."""
        return self.group(as_groups(logps))


def as_groups(pairs: PairLogps) -> GroupLogps:
    """Pairs as groups of two, the chosen response first."""
    import torch

    def both(chosen: Tensor | None, rejected: Tensor | None) -> Tensor | None:
        return None if chosen is None or rejected is None else torch.stack([chosen, rejected], dim=1)

    logps, lengths = (
        torch.stack(sides, dim=1) for sides in ((pairs.chosen, pairs.rejected), (pairs.chosen_len, pairs.rejected_len))
    )
    preference = torch.zeros_like(logps)
    preference[:, 0] = 1
    return GroupLogps(
        logps=logps,
        lengths=lengths,
        mask=torch.ones_like(logps, dtype=torch.bool),
        preference=preference.detach(),
        rewards=both(pairs.chosen_score, pairs.rejected_score),
        ref_logps=both(pairs.ref_chosen, pairs.ref_rejected),
        tokens=_tokens(pairs.chosen_tokens, pairs.rejected_tokens),
    )


def _tokens(chosen: TokenStats | None, rejected: TokenStats | None) -> GroupTokens | None:
    import torch

    if chosen is None or rejected is None or chosen.logps is None or rejected.logps is None:
        return None
    width = max(chosen.mask.shape[1], rejected.mask.shape[1])

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (a, b)], dim=1)

    reference = None
    if chosen.ref_logps is not None and rejected.ref_logps is not None:
        reference = both(chosen.ref_logps, rejected.ref_logps)
    return GroupTokens(both(chosen.mask, rejected.mask), both(chosen.logps, rejected.logps), reference)


def best_and_worst(groups: GroupLogps) -> PairLogps:
    """The response that the labels rank first and the one that they rank last, of each group, as pairs."""
    import torch

    inf = torch.inf
    at = torch.arange(len(groups.logps), device=groups.logps.device)
    first = groups.preference.masked_fill(~groups.mask, -inf).argmax(1)
    last = groups.preference.masked_fill(~groups.mask, inf).argmin(1)

    def side(value: Tensor | None, which: Tensor) -> Tensor | None:
        return None if value is None else value[at, which]

    return PairLogps(
        chosen=groups.logps[at, first],
        rejected=groups.logps[at, last],
        chosen_len=groups.lengths[at, first],
        rejected_len=groups.lengths[at, last],
        ref_chosen=side(groups.ref_logps, first),
        ref_rejected=side(groups.ref_logps, last),
        chosen_score=side(groups.rewards, first),
        rejected_score=side(groups.rewards, last),
    )
