"""The one training loop: every variant of a seed, step by step, on one frozen base.

A feed says which pairs a run sees at a step; pairs that are fixed beforehand are the same for all runs. Each run has
its own adapter, optimizer state, schedule and gradient clip, so its result does not depend on its companions; one that
diverges, or whose code raises, leaves the group, and the others go on unchanged.

Shapes: K runs of a group, k runs of one stacked pass, B pairs of an optimizer batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prefopt.config.schema import Train
from prefopt.model.adapted import AdaptedModel
from prefopt.model.adapters import AdapterBank
from prefopt.runtime import interrupts, memory
from prefopt.runtime.progress import Progress
from prefopt.train.failures import leave_diverged, not_finite, step_or_leave, why_left
from prefopt.train.feed import Feed, GroupBatch, PairBatch
from prefopt.train.grouped import GroupedBatch
from prefopt.train.heldout import evaluate_heldout
from prefopt.train.optimizer import with_optimizer
from prefopt.train.pairset import PairSet
from prefopt.train.state import Run, collect, latest
from prefopt.train.step import AnyBatch, Batch

# Of "auto" checkpoints: seconds between two, and seconds of work that one after the last step must save.
AUTO_EVERY_S, AUTO_LAST_S = 60.0, 10.0


class Keeper(Protocol):
    """Where a run's checkpoints go."""

    def write(self, run: Run, bank: AdapterBank) -> None:
        """Write the state of a run after the steps that are behind it."""


def train_group(
    model: AdaptedModel,
    runs: Sequence[Run],
    *,
    feed: Feed,
    heldout: PairSet,
    config: Train,
    seed: int,
    progress: Progress,
    keepers: Mapping[int, Keeper] | None = None,
) -> None:
    """Train all runs of one seed in lockstep; results are left in the adapters' rows and in each run's history.

    A run may come with steps behind it, from a checkpoint: it joins when the others are there. One that diverges, or
    whose own code raises, leaves with the reason in ``run.outcome``.

    Args:
        model: The base, and adapters already initialised; run ``r`` trains row ``r.slot``. Slots are 0 .. K-1 in order.
        runs: The variants.
        feed: Asked for the pairs of each run at each step.
        heldout: Held-out pairs, scored at step 0, every ``eval_every`` steps and at the end.
        config: The shared loop's settings, made definite by ``fit``; adapters are not stacked where it still says
            ``auto``.
        seed: Decides the noise of losses that draw tokens.
        progress: Hears of every step, with each variant's last metrics.
        keepers: Where each slot's checkpoints go; none are written without.

    Raises:
        Stopped: After a signal, once the step has ended and its checkpoints are written.
    """
    for run in runs:
        with_optimizer(run, model.adapters, config)
    group = _Lockstep(model, feed, heldout, config, seed, keepers)
    group.evaluate([run for run in runs if run.counters.step == 0], step=0)
    first = min((run.counters.step for run in runs), default=0)
    _tell(progress, runs, first, config, seed)
    with interrupts.deferred() as stop:
        for step in range(first, config.steps):
            active = group.advance(runs, step)
            ending = stop.requested  # read once: a signal that comes later ends the next step
            keep = group.must_keep(step + 1, ending=ending)
            active = group.drop_failed(active, step + 1, keep=keep)
            group.evaluate_if_due(active, step + 1)
            _let_watch(active)
            if keep:
                group.keep([run for run in active if not run.outcome.reason])
            _tell(progress, runs, step + 1, config, seed)
            if ending:
                stop.raise_if_requested(f"after step {step + 1} of {config.steps}")
    for run in runs:
        run.state.optimizer = None


def _tell(progress: Progress, runs: Sequence[Run], done: int, config: Train, seed: int) -> None:
    progress.at(seed, [run.variant for run in runs], done)
    progress.step(f"training {len(runs)} variants", done, config.steps, latest(runs))


def _let_watch(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.watch is not None and not run.outcome.reason:
            run.watch(run)


@dataclass
class _Lockstep:
    """What the phases of a step share; ``done`` is the number of steps that the group has taken."""

    model: AdaptedModel
    feed: Feed
    heldout: PairSet
    config: Train
    seed: int
    keepers: Mapping[int, Keeper] | None
    kept_at: float = field(default_factory=time.monotonic)

    def advance(self, runs: Sequence[Run], step: int) -> list[Run]:
        """One step of every run that takes it: runs that have left, or are further on already, do not."""
        active = [run for run in runs if run.counters.step <= step and not run.outcome.reason]
        for batch, members in self._batches(active, step):
            for chunk in consecutive(members, self.config.stack if self.config.stack != "auto" else 1):
                began = time.perf_counter()
                step_or_leave(self.model, chunk, batch, self.config)
                for run in chunk:
                    run.counters.seconds += (time.perf_counter() - began) / len(chunk)
                    run.counters.step = step + 1
        return active

    def _batches(self, runs: Sequence[Run], step: int) -> list[tuple[AnyBatch, list[Run]]]:
        """The batches of a step, each with the runs that the feed gave that very object."""
        members: dict[int, tuple[PairBatch | GroupBatch, list[Run]]] = {}
        for run in runs:
            try:
                given = self.feed.batch(run, step)
            except Exception as problem:  # what labels its own responses may be somebody else's code
                run.outcome.reason = f"{why_left(problem)} while its responses were labelled at step {step}"
                continue
            members.setdefault(id(given), (given, []))[1].append(run)
        return [(self._batch(given, step), takers) for given, takers in members.values()]

    def _batch(self, given: PairBatch | GroupBatch, step: int) -> AnyBatch:
        if isinstance(given, GroupBatch):
            return GroupedBatch(self.model, given, self.config, self.seed, step)
        return Batch(self.model, given.pairs, given.reference, self.config, self.seed, step)

    def must_keep(self, done: int, *, ending: bool) -> bool:
        """Whether checkpoints are to be written after this step."""
        return self.keepers is not None and (ending or _is_due(self.config, done, self.kept_at))

    def drop_failed(self, runs: Sequence[Run], done: int, *, keep: bool) -> list[Run]:
        """Fetch what was logged, if it is shown or kept after this step; return the runs that go on."""
        if done % self.config.log_every == 0 or keep or self._is_evaluated(done):
            for run in runs:
                collect(run)
            memory.trim(self.model.base.device)
        for run in runs:
            if run.outcome.diverged_at is not None and not run.outcome.reason:
                leave_diverged(self.model, run, self.feed, self.seed)
        return [run for run in runs if not run.outcome.reason]

    def evaluate_if_due(self, runs: Sequence[Run], done: int) -> None:
        """Score the held-out pairs, where the settings ask for it after this step."""
        if self._is_evaluated(done):
            self.evaluate(runs, step=done)

    def evaluate(self, runs: Sequence[Run], *, step: int) -> None:
        """Score the held-out pairs under each run; one whose code raises, or whose numbers are not finite, leaves."""
        for run in runs:
            try:
                evaluate_heldout(self.model, [run], self.heldout, step=step, seed=self.seed)
            except Exception as problem:
                run.outcome.reason = f"{why_left(problem)} in the held-out evaluation at step {step}"
                continue
            if run.outcome.diverged_at is not None:
                run.outcome.reason = f"{not_finite(run)} of the held-out pairs not finite at step {step}"

    def keep(self, runs: Sequence[Run]) -> None:
        """Write a checkpoint of each run."""
        assert self.keepers is not None
        for run in runs:
            self.keepers[run.slot].write(run, self.model.adapters)
        self.kept_at = time.monotonic()

    def _is_evaluated(self, done: int) -> bool:
        return done % self.config.eval_every == 0 or done == self.config.steps


def _is_due(config: Train, step: int, kept_at: float) -> bool:
    """Whether a checkpoint is due after ``step`` steps, by their number or by the time since the last."""
    if config.checkpoint_every == "auto":
        waited = time.monotonic() - kept_at
        return waited > AUTO_EVERY_S or (step == config.steps and waited > AUTO_LAST_S)
    return step == config.steps or step % config.checkpoint_every == 0


def consecutive(runs: Sequence[Run], width: int) -> list[list[Run]]:
    """Runs in chunks of neighbouring slots, at most ``width`` each."""
    out: list[list[Run]] = []
    for run in runs:
        if out and len(out[-1]) < width and out[-1][-1].slot + 1 == run.slot:
            out[-1].append(run)
        else:
            out.append([run])
    return out
