"""Held-out pairs under a policy that is being trained, or that has been.

Shapes: n held-out pairs, u distinct responses among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from prefopt.contract.loss import Loss, PairLogps
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.base import Base
from prefopt.model.logps import score_rows
from prefopt.model.packing import use_layout
from prefopt.storage.schema import PAIR_COLUMNS
from prefopt.train.microbatch import Needs, concatenate, forward, mismatched_logratios, pair_logps, prepare
from prefopt.train.pairset import PairSet, unique_responses
from prefopt.train.state import Pending, Run, batch_means, collect
from prefopt.train.step import MICROBATCH_TOKENS


@torch.no_grad()
def evaluate_heldout(model: AdaptedModel, runs: Sequence[Run], heldout: PairSet, *, step: int, seed: int) -> None:
    """Append a row of held-out metrics to each run's history."""
    for run in runs:
        batch = heldout_logps(model, run.slot, run.loss, heldout, seed=seed)
        if run.state.running is not None:
            batch = dataclasses.replace(batch, running=run.state.running.to(batch.chosen.device))
        run.pending.append(Pending(step, "heldout", batch_means(run.loss, batch)))
        collect(run)


@torch.no_grad()
def heldout_logps(model: AdaptedModel, slot: int, loss: Loss, pairs: PairSet, *, seed: int) -> PairLogps:
    """All held-out pairs under one adapter as one batch.

    Sums are computed in the very passes in which the reference's were, so that at step 0 both are equal to the bit.
    """
    base, needs = model.base, Needs.of([loss])
    parts = []
    with model.use(one(slot)):
        if needs == Needs():
            return _with_statistic(loss, _heldout_sums(base, pairs))
        size = max(1, MICROBATCH_TOKENS // max(len(p.prompt_ids) + 2 * len(p.chosen_ids) for p in pairs.pairs))
        for start in range(0, len(pairs.pairs), size):
            part, reference = pairs.take(range(start, min(start + size, len(pairs.pairs))))
            micro = prepare(model, part, reference, needs, others=[*part[1:], part[0]], seed=seed)
            with use_layout(micro.rows):
                batch = pair_logps(micro, forward(base, micro, needs), needs)[0]
            crossed = mismatched_logratios(base, micro)
            parts.append(batch if crossed is None else dataclasses.replace(batch, mismatched=crossed[0]))
    return _with_statistic(loss, concatenate(parts))


def _heldout_sums(base: Base, pairs: PairSet) -> PairLogps:
    unique = unique_responses(pairs.pairs, shared=base.packed)
    values = torch.from_numpy(score_rows(base, unique.rows))  # (u,)
    every = pairs.pairs
    scored = all(p.chosen_score is not None and p.rejected_score is not None for p in every)
    return PairLogps(
        chosen=values[torch.from_numpy(unique.chosen)],  # (n,), as all that follow
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


def heldout_frame(model: AdaptedModel, run: Run, pairs: PairSet, *, seed: int) -> pd.DataFrame:
    """PAIR_COLUMNS of a trained run."""
    with torch.no_grad():
        batch = heldout_logps(model, run.slot, run.loss, pairs, seed=seed)
        rewards = run.loss.rewards(batch)
    values = {
        "logps_chosen": batch.chosen,
        "logps_rejected": batch.rejected,
        "reward_chosen": rewards.chosen,
        "reward_rejected": rewards.rejected,
        "chosen_len": batch.chosen_len,
        "rejected_len": batch.rejected_len,
    }
    frame = pd.DataFrame({name: value.cpu().numpy() for name, value in values.items()})
    frame["pair_id"] = [p.pair_id for p in pairs.pairs]
    frame["prompt_id"] = [p.prompt_id for p in pairs.pairs]
    frame["ref_logps_chosen"], frame["ref_logps_rejected"] = pairs.reference.chosen, pairs.reference.rejected
    frame["gold_chosen"] = [_first(p.chosen_gold, p.chosen_score) for p in pairs.pairs]
    frame["gold_rejected"] = [_first(p.rejected_gold, p.rejected_score) for p in pairs.pairs]
    return frame[list(PAIR_COLUMNS)]


def _first(*values: float | None) -> float:
    """The first that is there, else NaN."""
    return next((value for value in values if value is not None), np.nan)
