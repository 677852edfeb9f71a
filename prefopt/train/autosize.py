"""How a training step fits the machine: pairs of a pass, adapters of a pass, recomputation of activations.

Decided once, before any run, from measured sizes, and the same for every run of a comparison. None of it changes
what a run computes but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prefopt.config.schema import Train
from prefopt.data import TokenPair
from prefopt.errors import MachineError
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.base import Base
from prefopt.model.head import CHUNK_ELEMENTS
from prefopt.model.logps import pair_rows, response_logps
from prefopt.model.packing import pack, use_layout
from prefopt.runtime.device import wait
from prefopt.runtime.memory import free_bytes
from prefopt.train.optimizer import with_optimizer
from prefopt.train.state import Run
from prefopt.train.step import Batch, train_step

MEMORY_SHARE = 0.7  # of the free memory goes to activations; the rest is for what the allocator wastes
# Of one pass: they keep any device busy, and more would only cost memory; two cores are busy with far fewer.
MAX_TOKENS = {"cpu": 4096, "cuda": 32768}
MOST_ON_CPU = 16  # variants at once
MIN_GAIN = 0.05  # the least share of a run's time that a wider stack must save


def together(variants: int, device: torch.device) -> int:
    """How many of a seed's variants train at once, each with an adapter and an optimizer state in memory.

    On a GPU all of them, whose passes are stacked. On a CPU nothing is gained by more, and each is alone to the bit.
    """
    return variants if device.type == "cuda" else min(variants, MOST_ON_CPU)


@dataclass(frozen=True, slots=True)
class Fit:
    """What each "auto" is replaced with.

    Attributes:
        micro_batch: Pairs of a pass.
        stack: Adapters of a pass.
        checkpointing: Whether activations are recomputed.
        bytes_per_token: Activations kept for the backward pass, for each token of one adapter.
        step_bytes: Predicted peak of a training step beyond the base model: adapters, their optimizer state,
            activations, and one chunk of logits.
    """

    micro_batch: int
    stack: int
    checkpointing: bool
    bytes_per_token: int
    step_bytes: int

    def apply(self, config: Train) -> Train:
        """The configuration with every "auto" replaced."""
        update = {"micro_batch": self.micro_batch, "stack": self.stack, "checkpointing": self.checkpointing}
        return config.model_copy(update=update)


def fit(model: AdaptedModel, runs: Sequence[Run], pairs: Sequence[TokenPair], config: Train) -> Fit:
    """Measure what a step keeps in memory, and choose.

    Args:
        model: The base and its adapters; those of ``runs`` are used as they are and left as they were.
        runs: The variants of one seed.
        pairs: All training pairs; the longest decides.
        config: The shared loop's settings; what is set there is kept.

    Raises:
        MachineError: If not even one pair with recomputed activations fits.
    """
    base, bank = model.base, model.adapters
    longest = max(pairs, key=lambda pair: pair.length)
    free = free_bytes(base.device) * MEMORY_SHARE
    checkpointing = bool(config.checkpointing) if config.checkpointing != "auto" else False
    set_checkpointing(base, checkpointing)
    per_token = activation_bytes(model, longest)
    if config.checkpointing == "auto" and per_token * longest.length > free:
        checkpointing = True
        set_checkpointing(base, True)
        per_token = activation_bytes(model, longest)
    if per_token * longest.length > free / MEMORY_SHARE:
        raise MachineError(
            f"one pair of {longest.length} tokens needs {per_token * longest.length / 2**30:.1f} GiB for its "
            f"activations, and {free / MEMORY_SHARE / 2**30:.1f} GiB are free: lower data.max_length, take a smaller "
            "model, or --quantization nf4"
        )
    most = MAX_TOKENS[base.device.type]
    room = max(1, int(min(free // per_token, most)) // longest.length)  # pairs x adapters of a pass
    micro = config.micro_batch if config.micro_batch != "auto" else min(config.pairs_per_step, room)
    if config.stack != "auto":
        stack = config.stack
    elif base.device.type == "cpu":
        stack = 1  # bound by arithmetic, which stacking does not save
    else:
        stack = fastest_stack(model, runs, pairs, config, widest=max(1, room // micro))
    tokens = micro * stack * longest.length
    # float32 of 4 bytes: values and gradients of every slot, and AdamW's two moments of every run.
    adapters = bank.params.shape[0] * bank.params.shape[1] * 4 * 2 + len(runs) * bank.params.shape[1] * 4 * 2
    return Fit(micro, stack, checkpointing, per_token, int(adapters + tokens * per_token + 3 * 4 * CHUNK_ELEMENTS))


def activation_bytes(model: AdaptedModel, pair: TokenPair) -> int:
    """Bytes for each token that a pass over a pair keeps for its backward pass, parameters not counted."""
    base = model.base
    known = {p.untyped_storage().data_ptr() for p in base.model.parameters() if p.device.type != "meta"}
    known.add(model.adapters.params.untyped_storage().data_ptr())
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    rows = pack(pair_rows([pair], shared=base.packed), device=base.device)
    with model.train(one(0)), use_layout(rows), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        held = response_logps(base, rows)  # while it lives no storage is freed and its address used again
    del held
    return max(1, sum(kept.values()) // rows.input_ids.shape[0])


def set_checkpointing(base: Base, on: bool) -> None:
    """Recompute each decoder layer's activations in the backward pass, or keep them.

    Transformers checkpoints layers only while they train; only the layers themselves are told so, and not the
    modules in them, whose dropout stays off.
    """
    if on:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
    elif getattr(base.model, "is_gradient_checkpointing", False):
        base.model.gradient_checkpointing_disable()
    for module in base.model.modules():
        if hasattr(module, "gradient_checkpointing") and module is not base.model:
            module.training = on


def fastest_stack(
    model: AdaptedModel, runs: Sequence[Run], pairs: Sequence[TokenPair], config: Train, *, widest: int
) -> int:
    """How many adapters a pass should train: powers of two are tried until one makes a run no faster, and then all."""
    before = model.adapters.params.clone()
    best, best_seconds = 1, float("inf")
    widths = [w for w in (1, 2, 4, 8, 16, 32, 64) if w < min(widest, len(runs))] + [min(widest, len(runs))]
    pairs_of_a_step = list(pairs[: config.pairs_per_step])
    for width in widths:
        seconds = step_seconds(model, runs[:width], pairs_of_a_step, config) / width
        if seconds > best_seconds * (1 - MIN_GAIN):
            break
        best, best_seconds = width, seconds
    model.adapters.params.copy_(before)
    return best


def step_seconds(
    model: AdaptedModel, runs: Sequence[Run], pairs: list[TokenPair], config: Train, *, repeats: int = 3
) -> float:
    """Seconds of one stacked step, the fastest of some; trains the adapters, leaves the runs' own state."""
    mine = [Run(run.variant, run.loss, run.learning_rate, run.slot) for run in runs]
    for run in mine:
        with_optimizer(run, model.adapters, config)
    times = []
    for step in range(repeats):
        batch = Batch(model, pairs, np.zeros((2, len(pairs)), dtype=np.float32), config, 0, step)
        wait(model.base.device)
        began = time.perf_counter()
        train_step(model, mine, batch, config)
        wait(model.base.device)
        times.append(time.perf_counter() - began)
    return min(times)
