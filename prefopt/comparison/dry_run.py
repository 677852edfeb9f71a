"""What a comparison would do and cost: counted from the configuration, measured by a short probe of the real model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from prefopt.config.schema import Config
from prefopt.data import TokenPair
from prefopt.evaluate.divergence import policy_and_reference
from prefopt.evaluate.samples import encode_all, sampled_together
from prefopt.model.adapted import AdaptedModel
from prefopt.model.adapters import AdapterBank
from prefopt.model.base import Base, load_base
from prefopt.model.generate import Sample, rows_per_batch, sample
from prefopt.prepare.onpolicy import task_prompts
from prefopt.prepare.own_pairs import OwnPairs, own_pairs, read_pairs
from prefopt.prepare.task import load_tasks
from prefopt.runtime import memory
from prefopt.runtime.device import pick_device, wait
from prefopt.runtime.progress import Progress
from prefopt.tasks.base import Task
from prefopt.train.autosize import Fit, fit, step_seconds, together
from prefopt.train.state import Run

DECODE_STEPS = 3


@dataclass(frozen=True, slots=True)
class Probe:
    """What a short probe of the real model has measured.

    Attributes:
        fit: How a step fits the machine.
        step_s: Seconds of one optimizer step of one run.
        token_s: Seconds a sampled token takes.
        score_s: Seconds that scoring a sampled token takes.
        peak_gib: The most memory that training, sampling or scoring of a group of runs will hold.
    """

    fit: Fit
    step_s: float
    token_s: float
    score_s: float
    peak_gib: float


def plan(config: Config, *, progress: Progress) -> dict[str, Any]:
    """Runs, steps, tokens, and estimates of memory (GiB) and time (s), by quantity.

    Trains one variant for a few steps, decodes one batch for a few tokens and scores it; nothing is written but the
    caches of the task and of the converted model.
    """
    device = pick_device(config.device)
    own = read_pairs(config, progress) if config.data.source else None
    settings = config.model
    task = load_tasks(config, device, progress).prompts
    progress.stage("loading the model", 0, 1)
    base = load_base(settings.name, dtype=settings.dtype, quantization=settings.quantization, device=device)
    pairs, prompts, facts = _pairs(config, own, task, base, progress)
    model = AdaptedModel.wrap(base, config.lora, size=together(len(config.variants), device) + 1)
    probe = _probe(config, model, pairs, prompts, progress)
    counts = _counts(config, model, pairs, prompts) | _exposure(config, own, pairs) | facts
    return counts | _estimates(config, probe, _sampled_tokens(config, prompts))


def _probe(
    config: Config, model: AdaptedModel, pairs: list[TokenPair], prompts: Sequence[tuple[int, ...]], progress: Progress
) -> Probe:
    device = model.base.device
    memory.reset_peak(device)
    progress.stage("probing a training step", 0, 1)
    fitted, step_s, optimizer_gib = _time_steps(config, model, pairs)
    train_gib = memory.peak_gib(device) + optimizer_gib
    progress.stage("probing the evaluation", 0, 1)
    memory.reset_peak(device)
    token_s, cache_gib = _time_decoding(config, model, prompts)
    sample_gib = memory.peak_gib(device) + cache_gib
    memory.reset_peak(device)
    score_s = _time_scoring(config, model, prompts)
    return Probe(fitted, step_s, token_s, score_s, max(train_gib, sample_gib, memory.peak_gib(device)))


def _counts(
    config: Config, model: AdaptedModel, pairs: list[TokenPair], prompts: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """What follows from the configuration, the model and the pairs."""
    train, base = config.train, model.base
    return {
        "name": config.name,
        "variants": ", ".join(variant.name for variant in config.variants),
        "seeds": ", ".join(map(str, config.seeds)),
        "runs": len(config.variants) * len(config.seeds),
        "optimizer steps a run": train.steps,
        "pairs a step": train.pairs_per_step,
        "training tokens a run": round(float(np.mean([p.length for p in pairs])) * train.steps * train.pairs_per_step),
        "sampled tokens": _sampled_tokens(config, prompts),
        "fine-tune of the reference": f"{config.sft_steps} steps" if config.sft_steps else "none",
        "device": str(base.device),
        "weights": str(base.dtype).removeprefix("torch.") + ("" if base.packed else f", plain path: {base.why_plain}"),
        "adapter parameters": model.adapters.params.shape[1],
    }


def _exposure(config: Config, own: OwnPairs | None, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    """How many of the training pairs a run will see; pairs of a task are not made yet, and at most so many."""
    made = config.pairs
    there = len(pairs) if own is not None else made.prompts * comb(made.samples, 2)
    taken = config.train.steps * config.train.pairs_per_step
    return {
        "training pairs": there if own is not None else f"at most {there}",
        "pairs that a run sees": f"{min(taken, there)} ({100 * min(1.0, taken / there):.0f} %)",
        "epochs": round(taken / there, 2),
    }


def _sampled_tokens(config: Config, prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all policies and the reference sample, at all seeds, if none ends early."""
    evaluation = config.evaluation
    policies = (len(config.variants) + 1) * len(config.seeds)
    return len(prompts) * evaluation.samples * evaluation.max_new_tokens * policies


def _estimates(config: Config, probe: Probe, sampled: int) -> dict[str, Any]:
    """What the probe says of the whole comparison."""
    runs = len(config.variants) * len(config.seeds)
    return {
        "pairs of a pass": probe.fit.micro_batch,
        "adapters of a pass": probe.fit.stack,
        "checkpointing": probe.fit.checkpointing,
        "peak memory of a group, GiB": round(probe.peak_gib, 2),
        "time to train, s": round(probe.step_s * config.train.steps * runs),
        "time to sample, s": round(probe.token_s * sampled),
        "time to score, s": round(probe.score_s * sampled),
    }


def _pairs(
    config: Config, own: OwnPairs | None, task: Task, base: Base, progress: Progress
) -> tuple[list[TokenPair], Sequence[tuple[int, ...]], dict[str, Any]]:
    """Training pairs and evaluation prompts: the user's, or the task's prompts with random responses of full length.

    Counts of the rest of the data come with them.
    """
    if own is not None:
        prepared = own_pairs(config, own, base, progress)
        asked = prepared.prompts.ids
        facts = {"rows dropped": prepared.facts["dropped_rows"], "held-out pairs": len(prepared.heldout)}
        return list(prepared.train), asked, {**facts, "evaluation prompts": len(asked)}
    texts = task_prompts(config, task, base)
    source = np.random.default_rng(0)

    def draw() -> tuple[int, ...]:
        return tuple(source.integers(0, base.head.shape[0], config.pairs.max_new_tokens).tolist())

    prompts = encode_all(base, texts.train)
    pairs = [TokenPair(prompt, draw(), draw(), i, i, 1.0, 0.0, True, True) for i, prompt in enumerate(prompts)]
    return pairs, encode_all(base, texts.evaluation), {"evaluation prompts": len(texts.evaluation)}


def _time_steps(config: Config, model: AdaptedModel, pairs: list[TokenPair]) -> tuple[Fit, float, float]:
    """How a step fits the machine, the seconds of one run's, and the GiB of the other runs' optimizer states."""
    at_once = config.variants[: model.adapters.params.shape[0] - 1]
    runs = [Run(v.name, v.build(), config.learning_rate(v), slot) for slot, v in enumerate(at_once)]
    for run in runs:
        model.adapters.initialise(run.slot, 0)
    fitted = fit(model, runs, pairs, config.train)
    train = fitted.apply(config.train)
    longest = sorted(pairs, key=lambda pair: -pair.length)
    runs, rest = runs[: fitted.stack], len(runs) - fitted.stack
    step_seconds(model, runs, longest[: train.pairs_per_step], train)  # decides the peak of memory
    seconds = step_seconds(model, runs, pairs[: train.pairs_per_step], train) / fitted.stack
    moments = 8 if train.optimizer == "adamw" else 2  # bytes a parameter
    return fitted, seconds, rest * moments * model.adapters.params.shape[1] / 2**30


def _probed(
    config: Config, bank: AdapterBank, prompts: Sequence[tuple[int, ...]]
) -> tuple[slice, Sequence[tuple[int, ...]]]:
    """The adapters that are sampled together, and the prompts of one batch."""
    adapters = sampled_together(bank, 0)
    rows = (adapters.stop - adapters.start) * config.evaluation.samples
    return adapters, prompts[: max(1, rows_per_batch(bank.params.device) // rows)]


def _time_decoding(config: Config, model: AdaptedModel, prompts: Sequence[tuple[int, ...]]) -> tuple[float, float]:
    """Seconds a sampled token in one batch, and the GiB that its keys and values will still grow by."""
    evaluation = config.evaluation
    base = model.base
    adapters, batch = _probed(config, model.adapters, prompts)
    began = time.perf_counter()
    sample(
        model,
        batch,
        adapters=adapters,
        samples=evaluation.samples,
        max_new_tokens=DECODE_STEPS,
        temperature=evaluation.temperature,
        seed=0,
    )
    wait(base.device)
    rows = len(batch) * evaluation.samples * (adapters.stop - adapters.start)
    shape = base.model.config.get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    per_token = 2 * shape.num_hidden_layers * heads * size * base.dtype.itemsize
    growth = rows * max(0, evaluation.max_new_tokens - DECODE_STEPS) * per_token / 2**30
    return (time.perf_counter() - began) / (rows * DECODE_STEPS), growth


def _time_scoring(config: Config, model: AdaptedModel, prompts: Sequence[tuple[int, ...]]) -> float:
    """Seconds a sampled token that its exact KL and log-probabilities take."""
    evaluation = config.evaluation
    source = np.random.default_rng(0)
    base = model.base
    _, batch = _probed(config, model.adapters, prompts)
    samples = [
        Sample(i, number, tuple(source.integers(0, base.head.shape[0], evaluation.max_new_tokens).tolist()), False)
        for i in range(len(batch))
        for number in range(evaluation.samples)
    ]
    began = time.perf_counter()
    policy_and_reference(model, 0, batch, samples)
    wait(base.device)
    return (time.perf_counter() - began) / (len(samples) * evaluation.max_new_tokens)
