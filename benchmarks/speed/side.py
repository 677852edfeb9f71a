"""One side of a measurement: a base with adapters, and the pairs of a case with their reference."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.speed.cases import (
    ALPHA,
    BETA,
    LEARNING_RATE,
    RANK,
    Case,
    build_model,
    build_tokenizer,
    make_pairs,
)
from prefopt import make_loss
from prefopt.config.schema import Lora, Train
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base, choose_path
from prefopt.runtime import memory
from prefopt.runtime.progress import LatestMetrics, Silent
from prefopt.storage.hashing import digest
from prefopt.train.autosize import Fit, fit
from prefopt.train.feed import FixedOrder
from prefopt.train.loop import train_group
from prefopt.train.pairset import PairSet, Reference, reference_logps
from prefopt.train.state import Run


class Side:
    """A base with K adapters, and the pairs of a case with their reference.

    Attributes:
        fit: What the last group's "auto" came to.
        reference_s: Seconds that the reference's log-probabilities of the whole data set took.
    """

    fit: Fit

    def __init__(self, case: Case, adapters: int) -> None:
        self.case = case
        self.device = torch.device(case.device)
        began = time.perf_counter()
        model = build_model(case, case.torch_dtype)
        if case.quantization == "nf4":
            _to_nf4(model)
        model.requires_grad_(False)
        model.eval()
        name = digest(repr(case))
        base = choose_path(Base(model, build_tokenizer(), name, name, case.torch_dtype, self.device))
        if not base.packed:
            raise RuntimeError(f"packed rows were refused: {base.why_plain}")
        self.model = AdaptedModel.wrap(base, Lora(rank=RANK, alpha=ALPHA), size=adapters)
        for slot in range(adapters):
            self.model.adapters.initialise(slot, case.seed)
        self.build_s = time.perf_counter() - began
        self.pairs = make_pairs(case)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as cache:
            reference = reference_logps(base, self.pairs, data_hash=name, cache=Path(cache))
        self.reference_s = time.perf_counter() - began
        self.train = PairSet(self.pairs, reference)

    def runs(self, losses: Sequence[str]) -> list[Run]:
        """A run for each loss, slot by slot."""
        return [
            Run(f"{i}-{name}", make_loss(f"{name}[beta={BETA}]" if name == "dpo" else name), LEARNING_RATE, i)
            for i, name in enumerate(losses)
        ]

    def group(self, losses: Sequence[str], progress: Callable[[int], None], **options: Any) -> None:
        """Train a group; ``progress`` is called before the first step with 0 and after each."""
        config = {
            "steps": 100_000,
            "pairs_per_step": self.case.pairs,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 0,
            "schedule": "constant",
            "eval_every": 1_000_000,
            "log_every": 10,
            **options,
        }
        runs = self.runs(losses)
        self.fit = fit(self.model, runs, self.pairs, Train(**config))
        train_group(
            self.model,
            runs,
            feed=FixedOrder.of(self.train, Train(**config), self.case.seed),
            heldout=PairSet(self.pairs[:1], _first(self.train.reference)),
            config=self.fit.apply(Train(**config)),
            seed=self.case.seed,
            progress=_Steps(progress),
        )

    def time_steps(
        self, losses: Sequence[str], *, warmup: int, steps: int, **options: Any
    ) -> tuple[list[float], float]:
        """(Seconds of each of ``steps`` steps after ``warmup`` ones, peak memory in GiB)."""
        marks: list[float] = []

        def mark(step: int) -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            if step == 0:
                memory.reset_peak(self.device)
            marks.append(time.perf_counter())

        self.group(losses, mark, steps=warmup + steps, **options)
        times = np.diff(marks)[warmup : warmup + steps]
        return [float(t) for t in times], memory.peak_gib(self.device)


class _Steps(Silent):
    """Calls a function with each step that is behind the group, the start first."""

    def __init__(self, told: Callable[[int], None]) -> None:
        self.told = told

    def step(self, text: str, done: int, total: int, values: LatestMetrics) -> None:
        """A step has ended."""
        self.told(done)


def _first(reference: Reference) -> Reference:
    """That of the first pair alone: the smallest held-out set there is."""
    return Reference(reference.chosen[:1], reference.rejected[:1], reference.hash)


def _to_nf4(model: nn.Module) -> None:
    """Quantise every linear layer but the head, one after the other, where it lies."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child is not head:
                new = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=child.weight.dtype,
                    quant_type="nf4", device="meta",
                )  # fmt: skip
                new.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                setattr(module, name, new.to(child.weight.device))
    model.is_loaded_in_4bit = True
