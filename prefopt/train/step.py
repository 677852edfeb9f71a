"""One optimizer step of a stack of runs: forward passes, losses, gradients, clipping, AdamW, metrics.

Shapes: K runs of a stack, B pairs of an optimizer batch, P parameters of an adapter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from prefopt.config.schema import Train
from prefopt.contract.loss import PairLogps
from prefopt.data import TokenPair
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.packing import use_layout
from prefopt.train.microbatch import (
    Microbatch,
    Needs,
    Signals,
    concatenate,
    forward,
    mismatched_logratios,
    pair_logps,
    prepare,
)
from prefopt.train.optimizer import schedule
from prefopt.train.state import Pending, Run, batch_means, collect

MICROBATCH_TOKENS = 16384  # of one pass with gradients, where micro_batch is "auto"


def split_microbatches(pairs: Sequence[TokenPair], config: Train) -> list[slice]:
    """Slices of the optimizer batch; all runs of a comparison get the same."""
    if config.micro_batch == "auto":
        longest = max(pair.length for pair in pairs)
        size = max(1, MICROBATCH_TOKENS // longest)
    else:
        size = config.micro_batch
    return [slice(start, start + size) for start in range(0, len(pairs), size)]


@dataclass
class Batch:
    """One optimizer batch, packed once for all runs that need the same of it."""

    model: AdaptedModel
    pairs: Sequence[TokenPair]
    reference: np.ndarray
    config: Train
    seed: int
    step: int
    packed: dict[tuple[Needs, int], list[Microbatch]] = field(default_factory=dict)

    def micro_batches(self, needs: Needs, copies: int) -> list[Microbatch]:
        """The batch in passes that fit the memory."""
        if (needs, copies) not in self.packed:
            successors = [*self.pairs[1:], self.pairs[0]]
            self.packed[needs, copies] = [
                prepare(
                    self.model, self.pairs[part], self.reference[:, part], needs,
                    others=successors[part], copies=copies, seed=self.seed, step=self.step,
                )
                for part in split_microbatches(self.pairs, self.config)
            ]  # fmt: skip
        return self.packed[needs, copies]

    @property
    def n_pairs(self) -> int:
        """B."""
        return len(self.pairs)

    def backward(self, chunk: Sequence[Run]) -> tuple[list[Tensor], int]:
        """Leave the gradients in the bank; the (9,) means of each run, and the tokens of one copy."""
        needs = Needs.of([run.loss for run in chunk])
        micros = self.micro_batches(needs, len(chunk))
        if len(micros) > 1 and any(run.loss.batch_coupled for run in chunk):
            seen = _coupled_backward(self.model.base, micros, chunk, needs)
        else:
            seen = _backward(self.model.base, micros, chunk, needs, self.n_pairs)
        means = [batch_means(run.loss, logps) for run, logps in zip(chunk, seen, strict=True)]
        return means, sum(m.rows.input_ids.shape[0] // m.rows.copies for m in micros)


class AnyBatch(Protocol):
    """A batch of pairs or of groups: what a step needs to know of it."""

    @property
    def step(self) -> int:
        """The step, counted from 0."""

    @property
    def n_pairs(self) -> int:
        """Pairs, for the counters."""

    def backward(self, chunk: Sequence[Run]) -> tuple[list[Tensor], int]:
        """Leave the gradients in the bank; the (9,) means of each run, and the tokens of one copy."""


def train_step(model: AdaptedModel, chunk: Sequence[Run], batch: AnyBatch, config: Train) -> None:
    """One optimizer step of a stack of runs."""
    base, slots = model.base, slice(chunk[0].slot, chunk[-1].slot + 1)
    step = batch.step
    model.adapters.grads[slots].zero_()
    with model.train(slots):
        seen, tokens = batch.backward(chunk)
    gradients = model.adapters.grads[slots]  # (K, P)
    norms = gradients.norm(dim=1)  # (K,): each run is clipped by its own norm
    rate = schedule(config, step)
    for run, means, norm, gradient in zip(chunk, seen, norms, gradients, strict=True):
        row = Pending(step + 1, "train", means, run.learning_rate * rate, norm)
        ok = norm.isfinite() & row.means.isfinite().all()
        gradient.mul_((config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))  # as torch's clip_grad_norm_
        if base.device.type != "cpu":
            gradient.copy_(torch.where(ok, gradient, 0.0))  # without waiting for the device; collect() sees it later
        run.pending.append(row)
        if base.device.type == "cpu" and not bool(ok):
            collect(run)
            continue
        optimizer = run.state.optimizer
        assert optimizer is not None
        optimizer.param_groups[0]["lr"] = run.learning_rate * rate
        optimizer.step()
        run.counters.pairs += batch.n_pairs
        run.counters.tokens += tokens


def _backward(
    base: Base, micros: Sequence[Microbatch], chunk: Sequence[Run], needs: Needs, n_pairs: int
) -> list[PairLogps]:
    """Gradients of losses that see pairs one by one (or the whole batch at once); the batch of each run, detached."""
    seen: list[list[PairLogps]] = [[] for _ in chunk]
    for micro in micros:
        with use_layout(micro.rows):
            signals = forward(base, micro, needs)
            leaves = _leaves(signals)
            batches = _with_mismatched(base, micro, pair_logps(micro, leaves, needs))
            if len(micros) == 1:  # a batch in parts has no moving average: losses that keep one are coupled
                batches = [_with_running(run, batch) for run, batch in zip(chunk, batches, strict=True)]
            losses = [weighted(run.loss(batch), micro.weights) for run, batch in zip(chunk, batches, strict=True)]
            total = torch.stack([loss.sum() for loss in losses]).sum() / n_pairs
            _send_back(signals, leaves, total)
        for one, batch in zip(seen, batches, strict=True):
            one.append(_detached(batch))
    return [concatenate(parts) for parts in seen]


def _coupled_backward(base: Base, micros: Sequence[Microbatch], chunk: Sequence[Run], needs: Needs) -> list[PairLogps]:
    """Gradients of losses that need the whole batch at once: a first pass without a graph, a second with one."""
    leaves, parts = [], []
    with torch.no_grad():  # only the values: a graph of the whole batch is what the micro-batches are to avoid
        for micro in micros:
            with use_layout(micro.rows):
                leaves.append(_leaves(forward(base, micro, needs)))
    for micro, leaf in zip(micros, leaves, strict=True):
        parts.append(_with_mismatched(base, micro, pair_logps(micro, leaf, needs)))
    batches = [concatenate([part[i] for part in parts]) for i in range(len(chunk))]
    batches = [_with_running(run, batch) for run, batch in zip(chunk, batches, strict=True)]
    weights = [micro.weights for micro in micros]
    given = [w if w is not None else torch.ones_like(m.lengths[0]) for w, m in zip(weights, micros, strict=True)]
    of_all = torch.cat(given) if any(w is not None for w in weights) else None
    losses = [weighted(run.loss(batch), of_all).mean() for run, batch in zip(chunk, batches, strict=True)]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    for micro, leaf in zip(micros, leaves, strict=True):  # d loss / d signal is known now: carry it on, part by part
        with use_layout(micro.rows):
            signals = forward(base, micro, needs)
            _into_graph(signals, leaf)
    return [_detached(batch) for batch in batches]


def weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    """(B,) losses times the pairs' weights; those themselves where every pair counts."""
    return losses if weights is None else losses * weights


def _leaves(signals: Signals) -> Signals:
    """The signals cut off from their graph, so that a loss's gradient stops there and can be sent on in pieces."""
    return {name: value.detach().requires_grad_() for name, value in signals.items()}


def _grad(leaf: Tensor) -> Tensor:
    """A leaf's gradient; no loss need use every signal."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _send_back(signals: Signals, leaves: Signals, total: Tensor) -> None:
    """The gradient of ``total`` to the leaves, and from there through the graph of the signals."""
    total.backward()  # type: ignore[no-untyped-call]
    _into_graph(signals, leaves)


def _into_graph(signals: Signals, leaves: Signals) -> None:
    """Send the leaves' gradients back; signals without a graph only weight others and have nowhere to send theirs."""
    live = [name for name, value in signals.items() if value.requires_grad]
    torch.autograd.backward([signals[name] for name in live], [_grad(leaves[name]) for name in live])


def _with_mismatched(base: Base, micro: Microbatch, batches: list[PairLogps]) -> list[PairLogps]:
    crossed = mismatched_logratios(base, micro)
    if crossed is None:
        return batches
    return [dataclasses.replace(b, mismatched=c) for b, c in zip(batches, crossed, strict=True)]


def _with_running(run: Run, batch: PairLogps) -> PairLogps:
    """Advance the loss's moving average by this batch, and hand it over."""
    statistic = run.loss.statistic(batch)
    if statistic is None:
        return batch
    value = statistic.detach()
    decay = run.loss.decay  # type: ignore[attr-defined]
    before = run.state.running
    run.state.running = value if before is None else decay * before + (1 - decay) * value
    return dataclasses.replace(batch, running=run.state.running)


def _detached(batch: PairLogps) -> PairLogps:
    values: dict[str, Any] = {f.name: getattr(batch, f.name) for f in dataclasses.fields(PairLogps)}
    values |= {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    return PairLogps(**values)
