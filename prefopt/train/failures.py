"""Runs that diverge, or whose own code raises: they leave with the reason, and the others go on unchanged."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from prefopt.config.schema import Train
from prefopt.errors import PrefoptError
from prefopt.model.adapted import AdaptedModel
from prefopt.train.feed import Feed, GroupBatch
from prefopt.train.heldout import heldout_logps
from prefopt.train.pairset import PairSet, Reference
from prefopt.train.state import Run
from prefopt.train.step import AnyBatch, train_step


def step_or_leave(model: AdaptedModel, chunk: Sequence[Run], batch: AnyBatch, config: Train) -> None:
    """One step of a stack; where it raises, each run takes the step by itself, and the one that raises again leaves.

    An error that says that the device or the machine is lost is no run's fault, and is raised.
    """
    before = [(run.n_logged, len(run.pending), run.state.running) for run in chunk]
    try:
        train_step(model, chunk, batch, config)
    except Exception as problem:
        reason = why_left(problem)
        for run, (n_logged, n_pending, running) in zip(chunk, before, strict=True):
            if len(chunk) > 1 and run.n_logged > n_logged:
                continue  # its optimizer has stepped already
            del run.pending[n_pending:]
            run.state.running = running
            if len(chunk) == 1:
                run.outcome.reason = f"{reason} at step {batch.step + 1}"
            else:
                step_or_leave(model, [run], batch, config)


def why_left(problem: Exception) -> str:
    """What one run's own code or size did wrong, in a line; a problem that is no run's fault is raised again."""
    if isinstance(problem, PrefoptError) or type(problem).__name__ == "AcceleratorError":
        raise problem
    if isinstance(problem, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
    frame = traceback.extract_tb(problem.__traceback__)[-1]
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''} ({Path(frame.filename).name}:{frame.lineno})"


def leave_diverged(model: AdaptedModel, run: Run, feed: Feed, seed: int) -> None:
    """Write down which metrics and pairs were not finite, and forget the rows that were logged after that step.

    A device runs ahead of the host: steps may follow the one that diverged before its metrics are fetched.
    """
    at = run.outcome.diverged_at or 0
    run.history[:] = [row for row in run.history if row.step < at or (row.step == at and row.split == "train")]
    terms = not_finite(run)
    given = feed.batch(run, at - 1)
    if isinstance(given, GroupBatch):
        prompts = ", ".join(str(group.prompt_id) for group in given.groups)
        run.outcome.reason = f"{terms} not finite at step {at}, one of the groups of prompts {prompts}"
        return
    pairs, reference = given
    batch_pairs = PairSet(tuple(pairs), Reference(reference[0], reference[1], ""))
    try:
        batch = heldout_logps(model, run.slot, run.loss, batch_pairs, seed=seed)
        with torch.no_grad():
            bad = (~run.loss(batch).isfinite()).nonzero().flatten().tolist()
    except Exception:
        bad = []  # the loss raises on these pairs now, so that every one of them is named
    named = ", ".join(str(pairs[i].pair_id) for i in (bad or range(len(pairs))))
    where = f"pairs {named}" if bad else f"one of pairs {named}"
    run.outcome.reason = f"{terms} not finite at step {at}, {where}"


def not_finite(run: Run) -> str:
    """Which metrics of the last row are not finite, the first three of them."""
    return ", ".join(run.history[-1].not_finite()[:3])
