"""The one training loop: every variant of a seed, step by step, on the same batches and one frozen base.

All runs of a group see the same pairs at the same step. Each has its own adapter, optimizer state, schedule and
gradient clip, so its result does not depend on its companions; one that diverges, or whose code raises, leaves the
group, and the others go on unchanged.

Shapes: K runs of a group, k runs of one stacked pass, B pairs of an optimizer batch.
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from prefopt import memory, stopping
from prefopt.config import Train
from prefopt.data import TokenPair
from prefopt.data.order import pair_order
from prefopt.errors import PrefoptError
from prefopt.interface import Loss, PairLogps
from prefopt.lora import AdapterBank
from prefopt.model import Base
from prefopt.packing import use_layout
from prefopt.scoring import Reference, score_rows, unique_responses
from prefopt.signals import Needs, concatenate, forward, mismatched_logratios, pair_logps, prepare
from prefopt.step import METRICS, MICROBATCH_TOKENS, Batch, Run, collect, summary, train_step, with_optimizer


@dataclass(frozen=True, slots=True)
class PairSet:
    """Tokenised pairs with their reference log-probabilities."""

    pairs: tuple[TokenPair, ...]
    reference: Reference

    def take(self, index: Sequence[int]) -> tuple[list[TokenPair], np.ndarray]:
        """Some pairs, and their (2, n) reference log-probabilities."""
        rows = list(index)
        return [self.pairs[i] for i in rows], np.stack([self.reference.chosen[rows], self.reference.rejected[rows]])


Progress = Callable[[int, dict[str, dict[str, float]]], None]
AUTO_EVERY_S, AUTO_LAST_S = 60.0, 10.0  # of "auto" checkpoints: between two, and of work before one after the last step


class Keeper(Protocol):
    """Where a run's checkpoints go."""

    def write(self, run: Run, bank: AdapterBank) -> None:
        """Write the state of a run after ``run.step`` steps."""


def train_group(
    base: Base,
    bank: AdapterBank,
    runs: Sequence[Run],
    *,
    train: PairSet,
    heldout: PairSet,
    config: Train,
    seed: int,
    progress: Progress,
    keepers: Mapping[int, Keeper] | None = None,
) -> None:
    """Train all runs of one seed in lockstep; results are left in the bank's rows and in each run's history.

    A run may come with steps behind it (``run.step``, from a checkpoint): it joins when the others are there. One
    that diverges, or whose own code raises, leaves with the reason in ``run.reason``.

    Args:
        base: The frozen model.
        bank: Adapters, already initialised; run ``r`` trains row ``r.slot``. Slots are 0 .. K-1 in order.
        runs: The variants.
        train: Training pairs.
        heldout: Held-out pairs, scored at step 0, every ``eval_every`` steps and at the end.
        config: The shared loop's settings, made definite by ``fit``; adapters are not stacked where it still says
            ``auto``.
        seed: Decides the order of the pairs.
        progress: Called with the step and each variant's last metrics.
        keepers: Where each slot's checkpoints go; none are written without.

    Raises:
        Stopped: After a signal, once the step has ended and its checkpoints are written.
    """
    order = pair_order(len(train.pairs), seed=seed, steps=config.steps, pairs_per_step=config.pairs_per_step)
    width = config.stack if config.stack != "auto" else 1
    for run in runs:
        with_optimizer(run, bank, config)
    _evaluate(base, bank, [run for run in runs if run.step == 0], heldout, step=0, seed=seed)
    progress(min((run.step for run in runs), default=0), latest(runs))
    kept_at = time.monotonic()
    with stopping.deferred() as stop:
        for step in range(min((run.step for run in runs), default=0), config.steps):
            batch = Batch(base, bank, *train.take(order[step]), config, seed, step)
            active = [run for run in runs if run.step <= step and not run.reason]
            for chunk in consecutive(active, width):
                began = time.perf_counter()
                step_or_leave(base, bank, chunk, batch, config)
                for run in chunk:
                    run.seconds += (time.perf_counter() - began) / len(chunk)
                    run.step = step + 1
            last = step + 1 == config.steps
            ending = stop.requested  # asked once: a signal that comes later ends the next step
            keep = keepers is not None and (ending or _is_due(config, step + 1, kept_at))
            if (step + 1) % config.log_every == 0 or last or keep or (step + 1) % config.eval_every == 0:
                for run in active:
                    collect(run)
                memory.trim(base.device)
            for run in active:
                if run.diverged_at is not None and not run.reason:
                    _leave_diverged(base, bank, run, train, order, seed)
            active = [run for run in active if not run.reason]
            if (step + 1) % config.eval_every == 0 or last:
                _evaluate(base, bank, active, heldout, step=step + 1, seed=seed)
            if keep and keepers is not None:
                for run in active:
                    if not run.reason:
                        keepers[run.slot].write(run, bank)
                kept_at = time.monotonic()
            progress(step + 1, latest(runs))
            if ending:
                stop.raise_if_requested(f"after step {step + 1} of {config.steps}")
    for run in runs:
        run.optimizer = None


def _is_due(config: Train, step: int, kept_at: float) -> bool:
    if config.checkpoint_every == "auto":
        waited = time.monotonic() - kept_at
        return waited > AUTO_EVERY_S or (step == config.steps and waited > AUTO_LAST_S)
    return step == config.steps or step % config.checkpoint_every == 0


def step_or_leave(base: Base, bank: AdapterBank, chunk: Sequence[Run], batch: Batch, config: Train) -> None:
    """One step of a stack; where it raises, each member takes the step by itself, and the guilty one leaves.

    What says that the device or the machine is lost is nobody's fault here, and is raised.
    """
    before = [(len(run.history), run.running) for run in chunk]
    try:
        train_step(base, bank, chunk, batch, config)
    except Exception as problem:
        reason = why_left(problem)
        for run, (length, running) in zip(chunk, before, strict=True):
            if len(chunk) > 1 and len(run.history) > length:
                continue  # its optimizer has stepped already
            del run.history[length:]
            run.running = running
            if len(chunk) == 1:
                run.reason = f"{reason} at step {batch.step + 1}"
            else:
                step_or_leave(base, bank, [run], batch, config)


def why_left(problem: Exception) -> str:
    """What one run's own code or size did wrong, in a line; other problems are raised again."""
    if isinstance(problem, PrefoptError) or type(problem).__name__ == "AcceleratorError":
        raise problem
    if isinstance(problem, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
    frame = traceback.extract_tb(problem.__traceback__)[-1]
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''} ({Path(frame.filename).name}:{frame.lineno})"


def _evaluate(base: Base, bank: AdapterBank, runs: Sequence[Run], heldout: PairSet, *, step: int, seed: int) -> None:
    for run in runs:
        try:
            evaluate_heldout(base, bank, [run], heldout, step=step, seed=seed)
        except Exception as problem:
            run.reason = f"{why_left(problem)} in the held-out evaluation at step {step}"
            continue
        if run.diverged_at is not None:
            run.reason = f"{_not_finite(run)} of the held-out pairs not finite at step {step}"


def _leave_diverged(base: Base, bank: AdapterBank, run: Run, train: PairSet, order: np.ndarray, seed: int) -> None:
    """Say which terms and pairs were not finite, and forget what was logged after it, before anybody looked."""
    at = run.diverged_at or 0
    run.history = [r for r in run.history if r["step"] < at or (r["step"] == at and r["split"] == "train")]
    terms = _not_finite(run)
    pairs, reference = train.take(order[at - 1])
    some = PairSet(tuple(pairs), Reference(reference[0], reference[1], ""))
    try:
        batch = heldout_logps(base, bank, run.slot, run.loss, some, seed=seed)
        with torch.no_grad():
            bad = (~run.loss(batch).isfinite()).nonzero().flatten().tolist()
    except Exception:
        bad = []  # the loss cannot even be asked again
    named = ", ".join(str(pairs[i].pair_id) for i in (bad or range(len(pairs))))
    where = f"pairs {named}" if bad else f"one of pairs {named}"
    run.reason = f"{terms} not finite at step {at}, {where}"


def _not_finite(run: Run) -> str:
    """Which metrics of the last row are not finite; a held-out row has neither rate nor norm."""
    row = run.history[-1]
    names = METRICS if row["split"] == "train" else METRICS[:-2]
    return ", ".join([name for name in names if not math.isfinite(row[name])][:3])


def consecutive(runs: Sequence[Run], width: int) -> list[list[Run]]:
    """Runs in chunks of neighbouring slots, at most ``width`` each."""
    out: list[list[Run]] = []
    for run in runs:
        if out and len(out[-1]) < width and out[-1][-1].slot + 1 == run.slot:
            out[-1].append(run)
        else:
            out.append([run])
    return out


@torch.no_grad()
def evaluate_heldout(
    base: Base, bank: AdapterBank, runs: Sequence[Run], heldout: PairSet, *, step: int, seed: int
) -> None:
    """Append a row of held-out metrics to each run's history."""
    for run in runs:
        batch = heldout_logps(base, bank, run.slot, run.loss, heldout, seed=seed)
        if run.running is not None:
            batch = dataclasses.replace(batch, running=run.running.to(batch.chosen.device))
        run.history.append({"step": step, "split": "heldout", "values": summary(run.loss, batch)})
        collect(run)


@torch.no_grad()
def heldout_logps(base: Base, bank: AdapterBank, slot: int, loss: Loss, pairs: PairSet, *, seed: int) -> PairLogps:
    """All held-out pairs under one adapter as one batch.

    Sums are computed in the very passes in which the reference's were, so that at step 0 both are equal to the bit.
    """
    needs = Needs.of([loss])
    parts = []
    with bank.use(slot, slot + 1):
        if needs == Needs():
            return _with_statistic(loss, _heldout_sums(base, pairs))
        size = max(1, MICROBATCH_TOKENS // max(len(p.prompt_ids) + 2 * len(p.chosen_ids) for p in pairs.pairs))
        for start in range(0, len(pairs.pairs), size):
            some, reference = pairs.take(range(start, min(start + size, len(pairs.pairs))))
            micro = prepare(base, bank, some, reference, needs, others=[*some[1:], some[0]], seed=seed)
            with use_layout(micro.rows):
                batch = pair_logps(micro, forward(base, micro, needs), needs)[0]
            crossed = mismatched_logratios(base, micro)
            parts.append(batch if crossed is None else dataclasses.replace(batch, mismatched=crossed[0]))
    return _with_statistic(loss, concatenate(parts))


def _heldout_sums(base: Base, pairs: PairSet) -> PairLogps:
    unique = unique_responses(pairs.pairs, shared=base.packed)
    values = torch.from_numpy(score_rows(base, unique.rows))
    every = pairs.pairs
    scored = all(p.chosen_score is not None and p.rejected_score is not None for p in every)
    return PairLogps(
        chosen=values[torch.from_numpy(unique.chosen)],
        rejected=values[torch.from_numpy(unique.rejected)],
        chosen_len=torch.tensor([float(len(p.chosen_ids)) for p in every]),
        rejected_len=torch.tensor([float(len(p.rejected_ids)) for p in every]),
        ref_chosen=torch.from_numpy(pairs.reference.chosen),
        ref_rejected=torch.from_numpy(pairs.reference.rejected),
        chosen_score=torch.tensor([float(p.chosen_score or 0.0) for p in every]) if scored else None,
        rejected_score=torch.tensor([float(p.rejected_score or 0.0) for p in every]) if scored else None,
    )


def _with_statistic(loss: Loss, batch: PairLogps) -> PairLogps:
    statistic = loss.statistic(batch)
    return batch if statistic is None else dataclasses.replace(batch, running=statistic)


def latest(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Each variant's last collected metrics, for people who watch."""
    out = {}
    for run in runs:
        rows = [row for row in run.history if "values" not in row]
        out[run.variant] = {k: row for k, row in rows[-1].items() if k != "split"} if rows else {}
    return out
