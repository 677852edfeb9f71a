"""Where a run's next batch comes from.

The loop asks a feed for the pairs of each run at each step. What a feed hands to several runs as one object is packed
once for all of them, so pairs that are fixed beforehand cost no more than they did; a feed whose pairs come from the
policies themselves hands each run its own.

Shapes: B pairs of an optimizer batch, N pairs in all, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from prefopt.config.schema import Train
from prefopt.data import TokenPair
from prefopt.data.order import pair_order
from prefopt.train.pairset import PairSet
from prefopt.train.state import Run


class PairBatch(NamedTuple):
    """The pairs of one optimizer batch, and their (2, B) reference log-probabilities in nats."""

    pairs: list[TokenPair]
    reference: npt.NDArray[np.float32]


class Feed(Protocol):
    """Hands out batches; the same question has the same answer, so that a run can be continued from any step."""

    def batch(self, run: Run, step: int) -> PairBatch:
        """The pairs that ``run`` takes at ``step``, counted from 0."""


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
