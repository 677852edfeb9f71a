"""prefopt's own training loop and sampler, as a comparison runs them."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import profile

from benchmarks.speed import ablate
from benchmarks.speed.cases import (
    ALPHA,
    BETA,
    LEARNING_RATE,
    RANK,
    Case,
    build_model,
    build_tokenizer,
    initial_adapter,
    make_pairs,
)
from benchmarks.speed.workers import Gate
from prefopt import make_loss
from prefopt.config.schema import Lora, Train
from prefopt.data.order import pair_order
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base, choose_path
from prefopt.model.generate import sample
from prefopt.runtime import memory
from prefopt.storage.hashing import digest
from prefopt.train.autosize import Fit, fit
from prefopt.train.feed import FixedOrder
from prefopt.train.loop import train_group
from prefopt.train.pairset import PairSet, Reference, reference_logps
from prefopt.train.state import Run

LOSSES = ("dpo", "cdpo", "simpo", "ipo")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")  # what a sampler cannot do without


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
            progress=lambda step, _: progress(step),
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


def work(
    connection: Connection,
    *,
    case: Case,
    losses: Sequence[str] = ("dpo",),
    b_std: float = 0.0,
    max_grad_norm: float = 1.0,
    options: dict[str, Any] | None = None,
) -> None:
    """Train until told to stop; see ``trl_side.work``."""
    side = Side(case, len(losses))
    if b_std:
        values = initial_adapter(side.model.adapters.peft, case.seed, b_std=b_std)
        for (a, b), (new_a, new_b) in zip(
            side.model.adapters.views(side.model.adapters.params[:1]), values, strict=True
        ):
            a.copy_(new_a)
            b.copy_(new_b)
    gate = Gate(connection, case.device)
    runs: list[Run] = []

    def progress(step: int) -> None:
        if step == 0:
            gate.open({"build_s": side.build_s, "prepare_s": side.reference_s})
            return
        facts: dict[str, Any] = {}
        if b_std:
            facts["loss"] = runs[0].history[-1]["loss"]
            if step == 1:
                facts["gradient"] = side.model.adapters.grads[0].cpu().numpy()
        gate.step_done(facts)

    made = side.runs(losses)
    runs.extend(made)
    side.runs = lambda _: made  # type: ignore[method-assign]
    side.group(losses, progress, max_grad_norm=max_grad_norm, **({"log_every": 1} if b_std else {}), **(options or {}))


def order(case: Case, steps: int) -> list[int]:
    """The order of the pairs that ``work`` trains on, step after step."""
    return [int(i) for i in pair_order(case.n_pairs, seed=case.seed, steps=steps, pairs_per_step=case.pairs).ravel()]


def work_list(connection: Connection, *, case: Case, adapters: int, jobs: Sequence[dict[str, Any]]) -> None:
    """Do several jobs one after the other on one base; a report for each when asked for.

    A job is {"kind": "steps", "losses", "warmup", "steps", "without": name of a saving, or "", "options"} or
    {"kind": "sample", "adapters", "prompts", "samples", "tokens"}; either may bring its own "case".
    """
    side = Side(case, adapters)
    connection.send({"build_s": side.build_s, "prepare_s": side.reference_s})
    for job in jobs:
        if not connection.recv():
            return
        job = dict(job)
        wanted = job.pop("case", case)
        if wanted != side.case:
            del side
            gc.collect()
            side = Side(wanted, adapters)
        try:
            connection.send({**_job(side, job), "prepare_s": side.reference_s})
        except torch.OutOfMemoryError as problem:
            connection.send({"out_of_memory": str(problem)[:200]})
        if case.device == "cuda":
            torch.cuda.empty_cache()
    connection.recv()


def _job(side: Side, job: dict[str, Any]) -> dict[str, Any]:
    if job.pop("kind") == "sample":
        return _sample_job(side, **job)
    with ablate.without(job.pop("without", ""), side):
        options = job.pop("options", {})
        times, peak = side.time_steps(job["losses"], warmup=job["warmup"], steps=job["steps"], **options)
    return {"times": times, "peak_gib": peak, "stack": side.fit.stack, "micro": side.fit.micro_batch}


def _sample_job(side: Side, *, adapters: int, prompts: int, samples: int, tokens: int) -> dict[str, Any]:
    some = [p.prompt_ids for p in side.pairs[:prompts]]

    def once(length: int) -> tuple[float, int]:
        began = time.perf_counter()
        drawn = sample(
            side.model, some, adapters=slice(0, adapters), samples=samples, max_new_tokens=length,
            temperature=1.0, seed=side.case.seed,
        )  # fmt: skip
        return time.perf_counter() - began, sum(len(s.tokens) for one in drawn for s in one)

    once(2)
    seconds, count = once(tokens)
    with profile() as record:
        once(tokens)
    cuda = side.device.type == "cuda"
    products = sum(
        event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in record.key_averages()
        if event.key.removeprefix("aten::").rstrip("_") in PRODUCTS
    )
    return {"seconds": seconds, "products_s": products / 1e6, "tokens": count, "rows": adapters * len(some) * samples}
