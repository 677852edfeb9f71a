"""The state of a run while it trains, and the metrics that it logs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefopt.contract.loss import Loss, PairLogps
from prefopt.storage.schema import HISTORY_COLUMNS
from prefopt.train.foreign import guarded

METRICS = HISTORY_COLUMNS[2:]


@dataclass(slots=True)
class Run:
    """One variant at one seed while it trains.

    ``slot`` is its row in the adapter bank, ``step`` how many steps it has taken, and ``reason`` why it takes no more.
    """

    variant: str
    loss: Loss
    learning_rate: float
    slot: int
    optimizer: torch.optim.Optimizer | None = None
    running: Tensor | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    diverged_at: int | None = None
    reason: str = ""
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    pairs: int = 0

    def __post_init__(self) -> None:
        self.loss = guarded(self.loss)


@torch.no_grad()
def summary(loss: Loss, batch: PairLogps) -> Tensor:
    """(9,) means over a batch of what METRICS names, up to logratio/accuracies."""
    rewards, h = loss.rewards(batch), batch.logratios()

    def share(margin: Tensor) -> Tensor:
        return ((margin > 0).float() + 0.5 * (margin == 0).float()).mean()

    values = [
        loss(batch).mean(), rewards.chosen.mean(), rewards.rejected.mean(), rewards.margin.mean(),
        share(rewards.margin), batch.chosen.mean(), batch.rejected.mean(), h.margin.mean(), share(h.margin),
    ]  # fmt: skip
    return torch.stack([value.float() for value in values])


def collect(run: Run) -> None:
    """Fetch what a run has logged from the device, and see whether it is still finite."""
    for row in run.history:
        if "values" not in row:
            continue
        values = [float(v) for v in row.pop("values").cpu()]
        norm = row.pop("norm", None)
        extra = [float(row.pop("rate", math.nan)), math.nan if norm is None else float(norm)]
        row.update(zip(METRICS, values + extra, strict=True))
        finite = all(math.isfinite(v) for v in values) and (norm is None or math.isfinite(row["grad_norm"]))
        if not finite and run.diverged_at is None:
            run.diverged_at = int(row["step"])


def latest(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Each variant's last collected metrics, for people who watch."""
    out = {}
    for run in runs:
        rows = [row for row in run.history if "values" not in row]
        out[run.variant] = {k: row for k, row in rows[-1].items() if k != "split"} if rows else {}
    return out
