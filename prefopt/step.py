"""One optimizer step of a stack of runs: forward passes, losses, gradients, clipping, AdamW, metrics.

Shapes: K runs of a stack, B pairs of an optimizer batch, P parameters of an adapter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.config import Train
from prefopt.data import TokenPair
from prefopt.errors import MachineError
from prefopt.interface import Loss, PairLogps
from prefopt.lora import AdapterBank
from prefopt.model import Base
from prefopt.packing import use_layout
from prefopt.results import HISTORY_COLUMNS
from prefopt.signals import (
    Microbatch,
    Needs,
    Signals,
    concatenate,
    forward,
    mismatched_logratios,
    pair_logps,
    prepare,
)

METRICS = HISTORY_COLUMNS[2:]
MICROBATCH_TOKENS = 16384  # of one pass with gradients, where micro_batch is "auto"


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


def schedule(config: Train, step: int) -> float:
    """The multiple of the peak learning rate at ``step``, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0


def make_optimizer(kind: str, values: Tensor, gradient: Tensor, config: Train) -> torch.optim.Optimizer:
    """AdamW on one adapter's flat row (1, P).

    Raises:
        MachineError: If bitsandbytes cannot provide the 8-bit kind here.
    """
    parameter = torch.nn.Parameter(values)
    parameter.grad = gradient
    if kind == "adamw":
        return torch.optim.AdamW([parameter], lr=0.0, weight_decay=config.weight_decay, fused=True)
    if kind == "paged_adamw8bit" and values.device.type == "cpu":
        raise MachineError("train.optimizer paged_adamw8bit pages GPU memory: on a CPU take adamw8bit or adamw")
    try:
        import bitsandbytes

        cls = bitsandbytes.optim.AdamW8bit if kind == "adamw8bit" else bitsandbytes.optim.PagedAdamW8bit
        made: torch.optim.Optimizer = cls([parameter], lr=0.0, weight_decay=config.weight_decay)
    except (ImportError, RuntimeError, NotImplementedError, AttributeError) as problem:
        raise MachineError(f"train.optimizer {kind}: bitsandbytes has no kernel for it here ({problem})") from None
    return made


def with_optimizer(run: Run, bank: AdapterBank, config: Train) -> torch.optim.Optimizer:
    """The run's optimizer, made for its row of the bank if it has none."""
    if run.optimizer is None:
        rows = slice(run.slot, run.slot + 1)
        run.optimizer = make_optimizer(config.optimizer, bank.params[rows], bank.grads[rows], config)
    return run.optimizer


def split_microbatches(pairs: Sequence[TokenPair], config: Train) -> list[slice]:
    """Slices of the optimizer batch; all runs of a comparison get the same."""
    if config.micro_batch == "auto":
        longest = max(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
        size = max(1, MICROBATCH_TOKENS // longest)
    else:
        size = config.micro_batch
    return [slice(start, start + size) for start in range(0, len(pairs), size)]


@dataclass
class Batch:
    """One optimizer batch, packed once for all runs that need the same of it."""

    base: Base
    bank: AdapterBank
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
                    self.base, self.bank, self.pairs[part], self.reference[:, part], needs,
                    others=successors[part], copies=copies, seed=self.seed, step=self.step,
                )
                for part in split_microbatches(self.pairs, self.config)
            ]  # fmt: skip
        return self.packed[needs, copies]


def train_step(base: Base, bank: AdapterBank, chunk: Sequence[Run], batch: Batch, config: Train) -> None:
    """One optimizer step of a stack of runs."""
    first, last = chunk[0].slot, chunk[-1].slot + 1
    needs = Needs.of([run.loss for run in chunk])
    micros = batch.micro_batches(needs, len(chunk))
    n_pairs, step = len(batch.pairs), batch.step
    bank.grads[first:last].zero_()
    with bank.train(first, last):
        if len(micros) > 1 and any(run.loss.batch_coupled for run in chunk):
            seen = _coupled_backward(base, micros, chunk, needs)
        else:
            seen = _backward(base, micros, chunk, needs, n_pairs)
    gradients = bank.grads[first:last]
    norms = gradients.norm(dim=1)
    rate = schedule(config, step)
    for run, logps, norm, gradient in zip(chunk, seen, norms, gradients, strict=True):
        row = _metrics(run, logps, step, run.learning_rate * rate, norm)
        ok = norm.isfinite() & row["values"].isfinite().all()
        gradient.mul_((config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        if base.device.type != "cpu":
            gradient.copy_(torch.where(ok, gradient, 0.0))  # no waiting for the device; _collect finds it
        run.history.append(row)
        if base.device.type == "cpu" and not bool(ok):
            collect(run)
            continue
        assert run.optimizer is not None
        run.optimizer.param_groups[0]["lr"] = run.learning_rate * rate
        run.optimizer.step()
        run.pairs += n_pairs
        run.tokens += sum(m.rows.input_ids.shape[0] // m.rows.copies for m in micros)


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
            if len(micros) == 1:  # only losses that see the whole batch at once keep a moving average
                batches = [_with_running(run, batch) for run, batch in zip(chunk, batches, strict=True)]
            total = torch.stack([r.loss(b).sum() for r, b in zip(chunk, batches, strict=True)]).sum() / n_pairs
            _send_back([signals], [leaves], total)
        for one, batch in zip(seen, batches, strict=True):
            one.append(_detached(batch))
    return [concatenate(parts) for parts in seen]


def _coupled_backward(base: Base, micros: Sequence[Microbatch], chunk: Sequence[Run], needs: Needs) -> list[PairLogps]:
    """Gradients of losses that need the whole batch at once: a first pass without a graph, a second with one."""
    leaves, parts = [], []
    with torch.no_grad():
        for micro in micros:
            with use_layout(micro.rows):
                leaves.append(_leaves(forward(base, micro, needs)))
    for micro, leaf in zip(micros, leaves, strict=True):
        parts.append(_with_mismatched(base, micro, pair_logps(micro, leaf, needs)))
    batches = [concatenate([part[i] for part in parts]) for i in range(len(chunk))]
    batches = [_with_running(run, batch) for run, batch in zip(chunk, batches, strict=True)]
    torch.stack([run.loss(batch).mean() for run, batch in zip(chunk, batches, strict=True)]).sum().backward()  # type: ignore[no-untyped-call]
    for micro, leaf in zip(micros, leaves, strict=True):
        with use_layout(micro.rows):
            signals = forward(base, micro, needs)
            torch.autograd.backward(list(signals.values()), [_grad(leaf[name]) for name in signals])
    return [_detached(batch) for batch in batches]


def _leaves(signals: Signals) -> Signals:
    return {name: value.detach().requires_grad_() for name, value in signals.items()}


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _send_back(signals: Sequence[Signals], leaves: Sequence[Signals], total: Tensor) -> None:
    total.backward()  # type: ignore[no-untyped-call]
    for signal, leaf in zip(signals, leaves, strict=True):
        live = [name for name, value in signal.items() if value.requires_grad]
        torch.autograd.backward([signal[name] for name in live], [_grad(leaf[name]) for name in live])


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
    run.running = value if run.running is None else decay * run.running + (1 - decay) * value
    return dataclasses.replace(batch, running=run.running)


def _detached(batch: PairLogps) -> PairLogps:
    values: dict[str, Any] = {f.name: getattr(batch, f.name) for f in dataclasses.fields(PairLogps)}
    values |= {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    return PairLogps(**values)


@torch.no_grad()
def _metrics(run: Run, batch: PairLogps, step: int, rate: float, norm: Tensor) -> dict[str, Any]:
    """A row of the history, still on the device."""
    return {"step": step + 1, "split": "train", "values": summary(run.loss, batch), "rate": rate, "norm": norm}


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
