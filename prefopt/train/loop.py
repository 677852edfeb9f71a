"""The one training loop: every variant of a seed, step by step, on the same batches and one frozen base.

All runs of a group see the same pairs at the same step. Each has its own adapter, optimizer state, schedule and
gradient clip, so its result does not depend on its companions; one that diverges, or whose code raises, leaves the
group, and the others go on unchanged.

Shapes: K runs of a group, k runs of one stacked pass, B pairs of an optimizer batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from prefopt.config.schema import Train
from prefopt.data.order import pair_order
from prefopt.model.adapted import AdaptedModel
from prefopt.model.adapters import AdapterBank
from prefopt.runtime import interrupts, memory
from prefopt.train.failures import leave_diverged, not_finite, step_or_leave, why_left
from prefopt.train.heldout import evaluate_heldout
from prefopt.train.optimizer import with_optimizer
from prefopt.train.pairset import PairSet
from prefopt.train.state import Run, collect, latest
from prefopt.train.step import Batch

Progress = Callable[[int, dict[str, dict[str, float]]], None]
AUTO_EVERY_S, AUTO_LAST_S = 60.0, 10.0  # of "auto" checkpoints: between two, and of work before one after the last step


class Keeper(Protocol):
    """Where a run's checkpoints go."""

    def write(self, run: Run, bank: AdapterBank) -> None:
        """Write the state of a run after ``run.step`` steps."""


def train_group(
    model: AdaptedModel,
    runs: Sequence[Run],
    *,
    train: PairSet,
    heldout: PairSet,
    config: Train,
    seed: int,
    progress: Progress,
    keepers: Mapping[int, Keeper] | None = None,
) -> None:
    """Train all runs of one seed in lockstep; results are left in the adapters' rows and in each run's history.

    A run may come with steps behind it (``run.step``, from a checkpoint): it joins when the others are there. One
    that diverges, or whose own code raises, leaves with the reason in ``run.reason``.

    Args:
        model: The base, and adapters already initialised; run ``r`` trains row ``r.slot``. Slots are 0 .. K-1 in order.
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
        with_optimizer(run, model.adapters, config)
    _evaluate(model, [run for run in runs if run.step == 0], heldout, step=0, seed=seed)
    progress(min((run.step for run in runs), default=0), latest(runs))
    kept_at = time.monotonic()
    with interrupts.deferred() as stop:
        for step in range(min((run.step for run in runs), default=0), config.steps):
            batch = Batch(model, *train.take(order[step]), config, seed, step)
            active = [run for run in runs if run.step <= step and not run.reason]
            for chunk in consecutive(active, width):
                began = time.perf_counter()
                step_or_leave(model, chunk, batch, config)
                for run in chunk:
                    run.seconds += (time.perf_counter() - began) / len(chunk)
                    run.step = step + 1
            last = step + 1 == config.steps
            ending = stop.requested  # asked once: a signal that comes later ends the next step
            keep = keepers is not None and (ending or _is_due(config, step + 1, kept_at))
            if (step + 1) % config.log_every == 0 or last or keep or (step + 1) % config.eval_every == 0:
                for run in active:
                    collect(run)
                memory.trim(model.base.device)
            for run in active:
                if run.diverged_at is not None and not run.reason:
                    leave_diverged(model, run, train, order, seed)
            active = [run for run in active if not run.reason]
            if (step + 1) % config.eval_every == 0 or last:
                _evaluate(model, active, heldout, step=step + 1, seed=seed)
            if keep and keepers is not None:
                for run in active:
                    if not run.reason:
                        keepers[run.slot].write(run, model.adapters)
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


def _evaluate(model: AdaptedModel, runs: Sequence[Run], heldout: PairSet, *, step: int, seed: int) -> None:
    for run in runs:
        try:
            evaluate_heldout(model, [run], heldout, step=step, seed=seed)
        except Exception as problem:
            run.reason = f"{why_left(problem)} in the held-out evaluation at step {step}"
            continue
        if run.diverged_at is not None:
            run.reason = f"{not_finite(run)} of the held-out pairs not finite at step {step}"


def consecutive(runs: Sequence[Run], width: int) -> list[list[Run]]:
    """Runs in chunks of neighbouring slots, at most ``width`` each."""
    out: list[list[Run]] = []
    for run in runs:
        if out and len(out[-1]) < width and out[-1][-1].slot + 1 == run.slot:
            out[-1].append(run)
        else:
            out.append([run])
    return out
