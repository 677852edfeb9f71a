"""Where pairs come from: K responses of a prompt to a fixed number of pairs.

The number depends on K alone, so that every variant takes the same steps; a tie, which nobody can label, is a pair of
weight 0. A builder is asked for by name behind a loss: ``dpo@rso``, ``sft@best``, ``dpo@ranked[chosen=0.5]``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import numpy as np

from prefopt.data.types import TokenGroup, TokenPair
from prefopt.errors import UsageError, did_you_mean

Labels = Literal["bradley-terry", "argmax"]


@dataclass(frozen=True, slots=True)
class Labelling:
    """How a pair of responses is labelled: by a draw from sigmoid(scale * gap) or the larger; a share is flipped."""

    labels: Labels
    scale: float
    noise: float = 0.0


@dataclass(frozen=True)
class Builder(ABC):
    """Picks pairs of responses of a group.

    Attributes:
        name: As it is asked for.
        ranked: Whether the first of each two is the chosen one; else the labels decide.
    """

    name: ClassVar[str]
    ranked: ClassVar[bool] = True

    @abstractmethod
    def pick(self, rewards: Sequence[float], random: np.random.Generator) -> list[tuple[int, int]]:
        """Indices of two responses for each pair; as many pairs whatever the rewards."""


@dataclass(frozen=True)
class All(Builder):
    """Every two responses."""

    name = "all"
    ranked = False

    def pick(self, rewards: Sequence[float], random: np.random.Generator) -> list[tuple[int, int]]:
        """K (K - 1) / 2 pairs."""
        return list(combinations(range(len(rewards)), 2))


@dataclass(frozen=True)
class BestWorst(Builder):
    """The best response against the worst, as iterative DPO takes them; the best alone is what RAFT trains on.

    Source: Yuan et al. 2024, arXiv:2401.10020; Dong et al. 2023, arXiv:2304.06767 (RAFT).
    """

    name = "best-worst"

    def pick(self, rewards: Sequence[float], random: np.random.Generator) -> list[tuple[int, int]]:
        """One pair; of equal rewards the first."""
        order = by_reward(rewards)
        return [(order[0], order[-1])]


@dataclass(frozen=True)
class BestRandom(Builder):
    """The best response against another at random."""

    name = "best-random"

    def pick(self, rewards: Sequence[float], random: np.random.Generator) -> list[tuple[int, int]]:
        """One pair."""
        order = by_reward(rewards)
        return [(order[0], order[int(random.integers(1, len(order)))])]


@dataclass(frozen=True)
class Ranked(Builder):
    """A chosen and a rejected response of given quality, as quantiles of the group's rewards: 1 the best, 0 the worst.

    Source: arXiv:2508.18312, which finds that the chosen response's quality decides.
    """

    name = "ranked"
    chosen: float = 1.0
    rejected: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rejected < self.chosen <= 1:
            raise UsageError(f"@ranked: 0 <= rejected < chosen <= 1 is wanted; got {self.rejected} and {self.chosen}")

    def pick(self, rewards: Sequence[float], random: np.random.Generator) -> list[tuple[int, int]]:
        """One pair, of two different responses."""
        order, last = by_reward(rewards), len(rewards) - 1
        first = min(round((1 - self.chosen) * last), last - 1)
        return [(order[first], order[max(first + 1, round((1 - self.rejected) * last))])]


@dataclass(frozen=True)
class RSO(Builder):
    """Statistical rejection sampling: responses as if the optimal policy had drawn them, paired as they are accepted.

    Args:
        beta: Temperature of the optimal policy, > 0, in reward; small takes the best alone.
        accept: Responses to accept, an even number; 0 for 8, or half of the responses where that is less.

    Source: Liu et al. 2023, arXiv:2309.06657, Algorithm 1.
    """

    name = "rso"
    ranked = False
    beta: float = 0.5
    accept: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise UsageError(f"@rso: beta must be > 0; got {self.beta}")
        if self.accept < 0 or self.accept % 2:
            raise UsageError(f"@rso: accept must be an even number, or 0; got {self.accept}")

    def pick(self, rewards: Sequence[float], random: np.random.Generator) -> list[tuple[int, int]]:
        """``accept`` / 2 pairs: first with second, third with fourth, and so on."""
        count = self.accept or min(8, max(2, len(rewards) // 4 * 2))
        if count > len(rewards):
            raise UsageError(f"@rso: {count} of {len(rewards)} responses cannot be accepted; raise pairs.samples")
        accepted = reject(rewards, count, self.beta, random)
        return list(zip(accepted[::2], accepted[1::2], strict=True))


@dataclass(frozen=True)
class OffPolicy(Builder):
    """Pairs of another policy, from the file ``pairs.offpolicy``; the responses that are sampled here are not used."""

    name = "offpolicy"

    def pick(self, rewards: Sequence[float], random: np.random.Generator) -> list[tuple[int, int]]:
        """None: the pairs are there already."""
        return []


BUILDERS: dict[str, type[Builder]] = {b.name: b for b in (All, BestWorst, BestRandom, Ranked, RSO, OffPolicy)}
ALIASES = {"best": "best-worst"}


def make_builder(name: str, given: dict[str, object]) -> Builder:
    """The builder of a name with its settings.

    Raises:
        UsageError: For a name or a setting that there is not, or a value that cannot be.
    """
    cls = BUILDERS.get(ALIASES.get(name, name))
    if cls is None:
        raise UsageError(f"unknown pair builder @{name}{did_you_mean(name, [*BUILDERS, *ALIASES])}")
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    values: dict[str, object] = {}
    for key, value in given.items():
        if key not in fields:
            raise UsageError(f"@{name} has no setting {key}; it has {', '.join(fields) or 'none'}")
        kind = float if fields[key] == "float" else int
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (kind is int and not isinstance(value, int))
        ):
            raise UsageError(f"@{name}: {key} must be a {kind.__name__}; got {value!r}")
        values[key] = kind(value)
    return cls(**values)


def by_reward(rewards: Sequence[float]) -> list[int]:
    """Indices from the best to the worst; of equal rewards the first first."""
    return sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))


def reject(rewards: Sequence[float], count: int, beta: float, random: np.random.Generator) -> list[int]:
    """``count`` different indices by rejection sampling, in the order of their acceptance.

    Over the responses that are left, each is accepted with probability exp((r - max r) / beta); those accepted leave
    after the pass, and passes go on until there are enough.

    Source:
        arXiv:2309.06657, Algorithm 1, by index: two responses of one text are two candidates.
    """
    left, accepted = list(range(len(rewards))), list[int]()
    while len(accepted) < count:
        top = max(rewards[i] for i in left)
        passed = []
        for i in left:
            if random.random() >= np.exp((rewards[i] - top) / beta):
                continue
            passed.append(i)
            if len(accepted) + len(passed) == count:
                break
        accepted += passed
        left = [i for i in left if i not in passed]
    return accepted


def build_pairs(
    group: TokenGroup, builder: Builder, labelling: Labelling, random: np.random.Generator, *, first_id: int
) -> list[TokenPair]:
    """The pairs of one group, labelled; a tie has weight 0.

    Two draws are taken for every pair, whatever the labels, so that one label moves no other.
    """
    pairs = []
    for number, (first, second) in enumerate(builder.pick(group.rewards, random)):
        draw, flip = random.random(2)
        gap = labelling.scale * (group.rewards[first] - group.rewards[second])
        tie = group.responses[first] == group.responses[second]
        if builder.ranked or labelling.labels == "argmax":
            wins, tie = gap > 0, tie or gap == 0
        else:
            wins = draw < 1 / (1 + np.exp(-np.clip(gap, -500, 500)))
        ahead, behind = (first, second) if bool(wins) != bool(flip < labelling.noise) else (second, first)
        pairs.append(pair_of(group, ahead, behind, pair_id=first_id + number, weight=0.0 if tie else 1.0))
    return pairs


def pair_of(group: TokenGroup, chosen: int, rejected: int, *, pair_id: int, weight: float = 1.0) -> TokenPair:
    """Two responses of a group as a pair."""
    golds = group.golds
    return TokenPair(
        prompt_ids=group.prompt_ids,
        chosen_ids=group.responses[chosen],
        rejected_ids=group.responses[rejected],
        prompt_id=group.prompt_id,
        pair_id=pair_id,
        chosen_score=group.rewards[chosen],
        rejected_score=group.rewards[rejected],
        chosen_truncated=not group.finished[chosen],
        rejected_truncated=not group.finished[rejected],
        chosen_gold=golds[chosen] if golds else None,
        rejected_gold=golds[rejected] if golds else None,
        weight=weight,
    )


def preferences(rewards: Sequence[float], labelling: Labelling, random: np.random.Generator) -> tuple[float, ...]:
    """What the labels rank K responses by: the rewards, or a Plackett-Luce draw, Bradley-Terry in every two."""
    if labelling.labels == "argmax":
        return tuple(rewards)
    noise = random.gumbel(size=len(rewards))
    return tuple(float(labelling.scale * reward + g) for reward, g in zip(rewards, noise, strict=True))
