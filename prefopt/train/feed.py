"""Where a run's next batch comes from.

The loop asks a feed for the pairs or groups of each run at each step. What a feed hands to several runs as one object
is packed once for all of them, so data that are fixed beforehand cost no more than they did; a feed whose data come
from the policies themselves hands each run its own.

Shapes: B pairs of an optimizer batch, G groups of one, K responses of a group, N pairs or groups in all, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from prefopt.config.schema import Train
from prefopt.data import TokenPair
from prefopt.data.order import pair_order
from prefopt.data.types import TokenGroup
from prefopt.train.pairset import PairSet
from prefopt.train.state import Run

Floats = npt.NDArray[np.float32]


class PairBatch(NamedTuple):
    """The pairs of one optimizer batch, and their (2, B) reference log-probabilities in nats."""

    pairs: list[TokenPair]
    reference: Floats


class GroupBatch(NamedTuple):
    """The groups of one optimizer batch.

    Attributes:
        groups: G groups.
        reference: G times (K,) reference log-probabilities in nats.
        behaviour: G times K arrays of the log-probability of each token under the policy that drew the responses;
            None where that is the reference.
    """

    groups: list[TokenGroup]
    reference: list[Floats]
    behaviour: list[list[Floats]] | None = None


class Feed(Protocol):
    """Hands out batches; the same question has the same answer, so that a run can be continued from any step."""

    def batch(self, run: Run, step: int) -> PairBatch | GroupBatch:
        """What ``run`` trains on at ``step``, counted from 0."""


@dataclass
class FixedOrder:
    """Pairs that are there beforehand, in an order that is the same for every run.

    Attributes:
        pairs: All N pairs.
        order: (S, B) indices of the pairs of each step.
    """

    pairs: PairSet
    order: npt.NDArray[np.int64]
    _last: dict[int, PairBatch] = field(default_factory=dict)

    @classmethod
    def of(cls, pairs: PairSet, config: Train, seed: int) -> FixedOrder:
        """The order that a seed gives."""
        return cls(
            pairs,
            pair_order(len(pairs.pairs), seed=seed, steps=config.steps, pairs_per_step=config.pairs_per_step),
        )

    def batch(self, run: Run, step: int) -> PairBatch:
        """The pairs of ``step``: one object for all runs that ask for it one after the other."""
        if step not in self._last:
            self._last = {step: PairBatch(*self.pairs.take(self.order[step]))}
        return self._last[step]


@dataclass
class FixedGroups:
    """Groups that are there beforehand, drawn by the reference, in an order that is the same for every run.

    Attributes:
        groups: All N groups.
        reference: N times (K,) reference log-probabilities in nats.
        order: (S, G) indices of the groups of each step.
    """

    groups: Sequence[TokenGroup]
    reference: Sequence[Floats]
    order: npt.NDArray[np.int64]
    _last: dict[int, GroupBatch] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Sequence[TokenGroup], reference: Sequence[Floats], config: Train, seed: int) -> FixedGroups:
        """The order that a seed gives: as many responses a step as the pairs of a step have, or a group at least."""
        per_step = min(len(groups), groups_per_step(groups, config.pairs_per_step))
        order = pair_order(len(groups), seed=seed, steps=config.steps, pairs_per_step=per_step)
        return cls(groups, reference, order)

    def batch(self, run: Run, step: int) -> GroupBatch:
        """The groups of ``step``: one object for all runs that ask for it one after the other."""
        if step not in self._last:
            rows = self.order[step].tolist()
            self._last = {step: GroupBatch([self.groups[i] for i in rows], [self.reference[i] for i in rows])}
        return self._last[step]


@dataclass(frozen=True)
class ByRun:
    """Another feed for each run.

    Attributes:
        feeds: By the run's slot.
    """

    feeds: Mapping[int, Feed]

    def batch(self, run: Run, step: int) -> PairBatch | GroupBatch:
        """What the run's own feed gives."""
        return self.feeds[run.slot].batch(run, step)


def groups_per_step(groups: Sequence[TokenGroup], pairs_per_step: int) -> int:
    """Groups with as many responses as so many pairs, one at least."""
    return max(1, 2 * pairs_per_step // max(len(group.responses) for group in groups))
