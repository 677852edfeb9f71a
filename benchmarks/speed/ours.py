"""prefopt's own training loop and sampler, as a comparison runs them."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.profiler import profile

from benchmarks.speed import ablate
from benchmarks.speed.cases import (
    Case,
    initial_adapter,
)
from benchmarks.speed.side import Side
from benchmarks.speed.workers import Gate
from prefopt.data.order import pair_order
from prefopt.model.generate import Sampling, sample
from prefopt.train.state import Run

LOSSES = ("dpo", "cdpo", "simpo", "ipo")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")  # what a sampler cannot do without


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
            facts["loss"] = runs[0].history[-1].loss
            if step == 1:
                facts["gradient"] = side.model.adapters.grads[0].cpu().numpy()
        gate.step_done(facts)

    variants = side.runs(losses)
    runs.extend(variants)
    side.runs = lambda _: variants  # type: ignore[method-assign]
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
    prompt_ids = [p.prompt_ids for p in side.pairs[:prompts]]

    def once(length: int) -> tuple[float, int]:
        began = time.perf_counter()
        sampled = sample(
            side.model, prompt_ids, adapters=slice(0, adapters), how=Sampling(samples, length), seed=side.case.seed,
        )  # fmt: skip
        return time.perf_counter() - began, sum(len(s.tokens) for one in sampled for s in one)

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
    return {
        "seconds": seconds,
        "products_s": products / 1e6,
        "tokens": count,
        "rows": adapters * len(prompt_ids) * samples,
    }
