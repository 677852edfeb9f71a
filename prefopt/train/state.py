"""A run while it trains, in parts that change for different reasons, and the metrics that it logs.

Shapes: B pairs of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from prefopt.contract.loss import Loss, PairLogps
from prefopt.storage.schema import HISTORY_COLUMNS
from prefopt.train.foreign import guarded

Split = Literal["train", "heldout"]


class Means(NamedTuple):
    """Means over a batch, () each; rewards in the loss's own units, the others as ``PairLogps`` has them."""

    loss: Tensor
    rewards_chosen: Tensor
    rewards_rejected: Tensor
    rewards_margins: Tensor
    rewards_accuracies: Tensor
    logps_chosen: Tensor
    logps_rejected: Tensor
    logratio_margins: Tensor
    logratio_accuracies: Tensor


class Metrics(NamedTuple):
    """One row of a history: the means of a batch, and for a step its learning rate and gradient norm.

    The fields are those of ``HISTORY_COLUMNS``, in their order, with ``_`` for ``/``.
    """

    step: int
    split: Split
    loss: float
    rewards_chosen: float
    rewards_rejected: float
    rewards_margins: float
    rewards_accuracies: float
    logps_chosen: float
    logps_rejected: float
    logratio_margins: float
    logratio_accuracies: float
    learning_rate: float = math.nan
    grad_norm: float = math.nan

    def numbers(self) -> dict[str, float]:
        """All but the split, by column."""
        return {name: value for name, value in zip(HISTORY_COLUMNS, self, strict=True) if not isinstance(value, str)}

    def not_finite(self) -> list[str]:
        """The columns whose values are not finite; a held-out row has neither learning rate nor gradient norm."""
        absent = () if self.split == "train" else HISTORY_COLUMNS[-2:]
        return [name for name, value in self.numbers().items() if not math.isfinite(value) and name not in absent]


class Pending(NamedTuple):
    """A row that is still on the device: fetching it would make the host wait for the step to end.

    ``means`` is a stacked ``Means``, (9,), so that one copy fetches them all.
    """

    step: int
    split: Split
    means: Tensor
    learning_rate: float = math.nan
    grad_norm: Tensor | None = None

    def fetch(self) -> Metrics:
        """The row with plain numbers."""
        means = Means(*self.means.tolist())._asdict()
        norm = math.nan if self.grad_norm is None else float(self.grad_norm)
        return Metrics(self.step, self.split, **means, learning_rate=self.learning_rate, grad_norm=norm)


@dataclass(slots=True)
class State:
    """What training changes beside the adapter: the optimizer's state, and the loss's moving average."""

    optimizer: torch.optim.Optimizer | None = None
    running: Tensor | None = None


@dataclass(slots=True)
class Counters:
    """How far a run is, and what that has cost: steps, seconds, tokens and pairs."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    pairs: int = 0


@dataclass(slots=True)
class Outcome:
    """Why a run takes no more steps; empty as long as it does.

    Attributes:
        diverged_at: The first step at which something was not finite.
        reason: In words, once the run has left its group.
    """

    diverged_at: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One variant at one seed while it trains: what it is, and the parts of it that change.

    Attributes:
        variant: The variant's name.
        loss: Its loss, behind a guard if it is foreign.
        learning_rate: The peak of its schedule.
        slot: Its row in the adapter bank.
        state: What training changes beside the adapter.
        counters: How far it is.
        history: What it has logged.
        pending: What it has logged since, still on the device.
        outcome: Why it takes no more steps.
        watch: Called with the run after each of its steps, or None.
        sampled: What ``watch`` has gathered, rows of ``SAMPLED_COLUMNS``.
    """

    variant: str
    loss: Loss
    learning_rate: float
    slot: int
    state: State = field(default_factory=State)
    counters: Counters = field(default_factory=Counters)
    history: list[Metrics] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    watch: Callable[[Run], None] | None = None
    sampled: list[tuple[float, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", guarded(self.loss))

    @property
    def n_logged(self) -> int:
        """Rows of the history, those on the device among them."""
        return len(self.history) + len(self.pending)


@torch.no_grad()
def batch_means(loss: Loss, batch: PairLogps) -> Tensor:
    """(9,) what ``Means`` names, over a batch of B pairs, still on the device."""
    return means_of(loss, batch, loss(batch))


@torch.no_grad()
def means_of(loss: Loss, batch: PairLogps, values: Tensor) -> Tensor:
    """(9,) the same, where the losses are known; of groups, ``batch`` is the best and the worst of each."""
    rewards, h = loss.rewards(batch), batch.logratios()

    def share(margin: Tensor) -> Tensor:
        return ((margin > 0).float() + 0.5 * (margin == 0).float()).mean()  # a tie is half right

    means = Means(
        loss=values.mean(),
        rewards_chosen=rewards.chosen.mean(),
        rewards_rejected=rewards.rejected.mean(),
        rewards_margins=rewards.margin.mean(),
        rewards_accuracies=share(rewards.margin),
        logps_chosen=batch.chosen.mean(),
        logps_rejected=batch.rejected.mean(),
        logratio_margins=h.margin.mean(),
        logratio_accuracies=share(h.margin),
    )
    return torch.stack([value.float() for value in means])


def collect(run: Run) -> None:
    """Fetch what a run has logged from the device, and see whether it is still finite."""
    for pending in run.pending:
        row = pending.fetch()
        run.history.append(row)
        if row.not_finite() and run.outcome.diverged_at is None:
            run.outcome.diverged_at = row.step
    run.pending.clear()


def latest(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Each variant's last collected metrics by column, for the progress."""
    return {run.variant: run.history[-1].numbers() if run.history else {} for run in runs}
