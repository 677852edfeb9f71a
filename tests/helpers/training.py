"""Short training of tiny models."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from rows import pairs

from prefopt import make_loss
from prefopt.config.schema import Lora, Train
from prefopt.contract.loss import Loss
from prefopt.data import TokenPair
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.logps import score_rows
from prefopt.runtime.progress import Silent
from prefopt.train.feed import FixedOrder
from prefopt.train.loop import train_group
from prefopt.train.pairset import PairSet, Reference, unique_responses
from prefopt.train.state import Metrics, Run

LORA = Lora(rank=4, alpha=8)
CONFIG = Train(steps=4, pairs_per_step=4, learning_rate=1e-2, warmup_steps=1, eval_every=2, log_every=2)


def scored(count: int, seed: int) -> list[TokenPair]:
    source = np.random.default_rng(seed)
    return [
        dataclasses.replace(pair, chosen_score=float(a), rejected_score=float(a - b))
        for pair, a, b in zip(
            pairs(count, seed), source.normal(size=count), source.exponential(size=count), strict=True
        )
    ]


def pair_set(base: Base, some: list[TokenPair]) -> PairSet:
    unique = unique_responses(some, shared=base.packed)
    values = score_rows(base, unique.rows)
    return PairSet(tuple(some), Reference(values[unique.chosen], values[unique.rejected], "test"))


def train(
    base: Base, labels: list[str | Loss], config: Train = CONFIG, *, seed: int = 0, n: int = 8
) -> tuple[list[Run], AdaptedModel]:
    model = AdaptedModel.wrap(base, LORA, size=len(labels))
    runs = []
    for slot, label in enumerate(labels):
        loss = make_loss(label) if isinstance(label, str) else label
        model.adapters.initialise(slot, seed)
        runs.append(Run(f"{slot}", loss, config.learning_rate, slot))
    with model.off():
        sets = [pair_set(base, scored(n, 1)), pair_set(base, scored(4, 2))]
    train_group(
        model,
        runs,
        feed=FixedOrder.of(sets[0], config, seed),
        heldout=sets[1],
        config=config,
        seed=seed,
        progress=Silent(),
    )
    return runs, model


def heldout(run: Run) -> list[Metrics]:
    return [row for row in run.history if row.split == "heldout"]


def shaken(base: Base, size: int) -> AdaptedModel:
    """A base with adapters whose B is not zero."""
    model = AdaptedModel.wrap(base, LORA, size=size)
    bank = model.adapters
    source = torch.Generator().manual_seed(5)
    for index in range(size):
        bank.initialise(index, index)
    bank.params += 0.05 * torch.randn(bank.params.shape, generator=source)
    return model
