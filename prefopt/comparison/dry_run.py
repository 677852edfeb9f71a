"""What a comparison would do and cost: counted from the configuration, measured by a short probe of the real model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefopt.config.schema import Config
from prefopt.config.situation import settle_epochs, shown
from prefopt.data import TokenPair
from prefopt.evaluate.divergence import policy_and_reference
from prefopt.evaluate.samples import Prompts, encode_all, sampled_together, sampling
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base, load_base
from prefopt.model.generate import Sample, rows_per_batch, sample
from prefopt.model.source import check_adapter
from prefopt.prepare.fitting import adapted, fitted
from prefopt.prepare.onpolicy import task_prompts
from prefopt.prepare.own_pairs import OwnPairs, own_pairs, read_pairs
from prefopt.prepare.pairs import PreparedPairs
from prefopt.prepare.task import load_tasks
from prefopt.runtime import memory
from prefopt.runtime.device import pick_device, wait
from prefopt.runtime.progress import Progress
from prefopt.storage.cache import require_writable
from prefopt.tasks.base import Prompt, Task
from prefopt.train.autosize import Fit, fit, step_seconds
from prefopt.train.state import Run

DECODE_STEPS = 3
PROBE_TOKENS = 768  # of what a probe computes on a CPU: enough for a rate, and seconds on a slow one
FORWARD_SHARE = 1 / 3  # of a training pass, that scoring the same tokens takes


@dataclass(frozen=True, slots=True)
class Probe:
    """What a short probe of the real model has measured.

    Attributes:
        fit: How a step fits the machine.
        train_s: Seconds that one run trains on a token.
        prompt_s: Seconds that a token of a prompt takes before sampling.
        token_s: Seconds that a sampled token takes.
        score_s: Seconds that scoring a sampled token takes.
        peak_gib: The most memory that training, sampling or scoring of a group of runs will hold.
    """

    fit: Fit
    train_s: float
    prompt_s: float
    token_s: float
    score_s: float
    peak_gib: float


def plan(config: Config, *, progress: Progress) -> dict[str, Any]:
    """Runs, steps, tokens, and estimates of memory (GiB) and time (s), by quantity.

    Trains one variant for a few steps, decodes a few prompts for a few tokens and scores them; nothing is written but
    the caches of the task and of the converted model.
    """
    device = pick_device(config.device)
    own = read_pairs(config, progress) if config.data.source else None
    settings = config.model
    require_writable()
    task = load_tasks(config, device, progress).prompts
    progress.stage("loading the model", 0, 1)
    if settings.adapter:
        check_adapter(settings.adapter)
    base = load_base(
        settings.name, dtype=settings.dtype, quantization=settings.quantization,
        chat_template=settings.chat_template, device=device,
    )  # fmt: skip
    progress.stage("turning pairs into tokens", 0, 1)
    config, prepared = _pairs(config, own, task, base, progress)
    model = fitted(adapted(base, config, progress), config, prepared, progress)
    probe = _probe(config, model, prepared, progress)
    return {**_counts(config, model, prepared), **shown(config), **_estimates(config, probe, prepared)}


def _probe(config: Config, model: AdaptedModel, prepared: PreparedPairs, progress: Progress) -> Probe:
    device = model.base.device
    memory.reset_peak(device)
    before_gib = memory.peak_gib(device)
    progress.stage("probing a training step", 0, 3)
    fitted, train_s = _time_steps(config, model, prepared.train)
    train_gib = before_gib + fitted.step_bytes / 2**30
    progress.stage("probing the sampling", 1, 3)
    memory.reset_peak(device)
    prompt_s, token_s, cache_gib = _time_decoding(config, model, prepared.prompts.ids)
    sample_gib = memory.peak_gib(device) + cache_gib
    memory.reset_peak(device)
    progress.stage("probing the scores", 2, 3)
    score_s = _time_scoring(config, model, prepared.prompts.ids)
    peak_gib = max(train_gib, sample_gib, memory.peak_gib(device))
    return Probe(fitted, train_s, prompt_s, token_s, score_s, peak_gib)


def _counts(config: Config, model: AdaptedModel, prepared: PreparedPairs) -> dict[str, Any]:
    """What follows from the configuration, the model and the pairs."""
    train, base, pairs = config.train, model.base, prepared.train
    seen = train.steps * train.pairs_per_step
    return {
        "name": config.name,
        "variants": ", ".join(variant.name for variant in config.variants),
        "seeds": ", ".join(map(str, config.seeds)),
        "runs": len(config.variants) * len(config.seeds),
        "training pairs": len(pairs) if config.data.source else f"at most {len(pairs)}",
        "rows dropped": prepared.facts.get("dropped_rows", 0),
        "held-out pairs": len(prepared.heldout),
        "evaluation prompts": len(prepared.prompts.ids),
        "optimizer steps a run": train.steps,
        "pairs a step": train.pairs_per_step,
        "pairs that a run sees": f"{min(seen, len(pairs))} ({100 * min(1.0, seen / len(pairs)):.0f} %)",
        "epochs": round(seen / len(pairs), 2),
        "training tokens a run": round(float(np.mean([p.length for p in pairs])) * seen),
        "sampled tokens": _sampled_tokens(config, prepared.prompts.ids),
        "fine-tune of the reference": f"{config.sft_steps} steps" if config.sft_steps else "none",
        "device": str(base.device),
        "weights": str(base.dtype).removeprefix("torch.") + ("" if base.packed else f", plain path: {base.why_plain}"),
        "ends of a response": " ".join(base.tokenizer.convert_ids_to_tokens(list(base.ends))),
        "adapter parameters": model.adapters.params.shape[1],
    }


def _sampled_tokens(config: Config, prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all policies and the reference sample, at all seeds, if none ends early."""
    evaluation = config.evaluation
    policies = (len(config.variants) + 1) * len(config.seeds)
    return len(prompts) * evaluation.samples * evaluation.max_new_tokens * policies


def _estimates(config: Config, probe: Probe, prepared: PreparedPairs) -> dict[str, Any]:
    """What the probe says of the whole comparison."""
    train, runs = config.train, len(config.variants) * len(config.seeds)
    policies = runs + len(config.seeds)
    sampled = _sampled_tokens(config, prepared.prompts.ids)
    per_pair = float(np.mean([pair.length for pair in prepared.train]))
    evaluations = 2 + train.steps // train.eval_every
    heldout = sum(pair.length for pair in prepared.heldout) * evaluations * runs
    text = per_pair if config.sft.on == "chosen" else config.sft.text_tokens
    tuned = config.sft_steps * config.sft.texts_per_step * text
    seconds = {
        "time to fine-tune the reference, s": probe.train_s * tuned,
        "time to train, s": probe.train_s * per_pair * train.steps * train.pairs_per_step * runs,
        "time for held-out pairs, s": probe.train_s * FORWARD_SHARE * heldout,
        "time to sample, s": probe.token_s * sampled + probe.prompt_s * sum(map(len, prepared.prompts.ids)) * policies,
        "time to score, s": probe.score_s * sampled,
    }
    return {
        "pairs of a pass": probe.fit.micro_batch,
        "adapters of a pass": probe.fit.stack,
        "checkpointing": probe.fit.checkpointing,
        "peak memory of a group, GiB": round(probe.peak_gib, 2),
        **{name: round(value) for name, value in seconds.items()},
        "time in all": time_in_all(seconds),
    }


def time_in_all(plan: Mapping[str, Any]) -> str:
    """The sum of a plan's seconds."""
    seconds = sum(value for name, value in plan.items() if name.startswith("time ") and name.endswith(", s"))
    return f"about {duration(seconds)}, at most: responses that end early are faster"


def duration(seconds: float) -> str:
    """Seconds as people say them, such as ``2 h 05 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _pairs(
    config: Config, own: OwnPairs | None, task: Task, base: Base, progress: Progress
) -> tuple[Config, PreparedPairs]:
    """The comparison made definite, its pairs and evaluation prompts; a task's pairs are random responses here."""
    if own is not None:
        return own_pairs(own, base, progress)
    texts = task_prompts(config, task, base)
    source = np.random.default_rng(0)

    def draw() -> tuple[int, ...]:
        return tuple(source.integers(0, base.head.shape[0], config.pairs.max_new_tokens).tolist())

    def pairs(prompts: Sequence[Prompt]) -> tuple[TokenPair, ...]:
        each = [prompt for prompt in encode_all(base, prompts) for _ in range(math.comb(config.pairs.samples, 2))]
        return tuple(TokenPair(prompt, draw(), draw(), i, i, 1.0, 0.0, True, True) for i, prompt in enumerate(each))

    train = pairs(texts.train)
    prepared = PreparedPairs(train, pairs(texts.heldout), Prompts.of(base, texts.evaluation), {})
    return settle_epochs(config, len(train)), prepared


def _time_steps(config: Config, model: AdaptedModel, pairs: Sequence[TokenPair]) -> tuple[Fit, float]:
    """How a step fits the machine, and the seconds that one run trains on a token."""
    at_once = config.variants[: model.adapters.params.shape[0] - 1]
    runs = [Run(v.name, v.build(), config.learning_rate(v), slot) for slot, v in enumerate(at_once)]
    for run in runs:
        model.adapters.initialise(run.slot, 0)
    fitted = fit(model, runs, pairs, config.train)
    train = fitted.apply(config.train)
    by_length = sorted(pairs, key=lambda pair: pair.length)
    usual = by_length[len(by_length) // 2 :][: train.pairs_per_step]
    few = [pair for i, pair in enumerate(usual) if not i or _within(usual[: i + 1], model)]
    seconds = step_seconds(model, runs[: fitted.stack], few, train, repeats=2)
    return fitted, seconds / fitted.stack / sum(pair.length for pair in few)


def _within(pairs: Sequence[TokenPair], model: AdaptedModel) -> bool:
    """Whether a probe may compute so many; a GPU takes a whole step, which it has to be filled with."""
    return model.base.device.type != "cpu" or sum(pair.length for pair in pairs) <= PROBE_TOKENS


def _probed(
    config: Config, model: AdaptedModel, prompts: Sequence[tuple[int, ...]]
) -> tuple[slice, Sequence[tuple[int, ...]]]:
    """The adapters that are sampled together, and the prompts of one batch, few on a CPU."""
    adapters = sampled_together(model.adapters, 0)
    rows = (adapters.stop - adapters.start) * config.evaluation.samples
    batch = prompts[: max(1, rows_per_batch(model.base.device) // rows)]
    if model.base.device.type == "cpu":
        tokens = np.cumsum([len(prompt) for prompt in batch])
        batch = batch[: max(1, int(np.searchsorted(tokens, PROBE_TOKENS, side="right")))]
    return adapters, batch


def _time_decoding(
    config: Config, model: AdaptedModel, prompts: Sequence[tuple[int, ...]]
) -> tuple[float, float, float]:
    """Seconds of a prompt's token and of a sampled one, and the GiB that keys and values of a batch will grow by."""
    evaluation = config.evaluation
    adapters, batch = _probed(config, model, prompts)
    seconds = []
    for steps in (1, 1 + DECODE_STEPS):
        began = time.perf_counter()
        sample(
            model,
            batch,
            adapters=adapters,
            how=replace(sampling(evaluation), max_new_tokens=steps),
            seed=0,
        )
        wait(model.base.device)
        seconds.append(time.perf_counter() - began)
    per_prompt = evaluation.samples * (adapters.stop - adapters.start)
    token_s = max(seconds[1] - seconds[0], 0.0) / (len(batch) * per_prompt * DECODE_STEPS)
    most = min(len(prompts), max(1, rows_per_batch(model.base.device) // per_prompt)) * per_prompt
    growth = most * evaluation.max_new_tokens * _cache_bytes(model.base) / 2**30
    return seconds[0] / sum(map(len, batch)), token_s, growth


def _cache_bytes(base: Base) -> int:
    """Bytes of a token's keys and values."""
    shape = base.model.config.get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return int(2 * shape.num_hidden_layers * heads * size * base.dtype.itemsize)


def _time_scoring(config: Config, model: AdaptedModel, prompts: Sequence[tuple[int, ...]]) -> float:
    """Seconds a sampled token that its exact KL and log-probabilities take."""
    source = np.random.default_rng(0)
    base = model.base
    _, batch = _probed(config, model, prompts)
    length = min(config.evaluation.max_new_tokens, PROBE_TOKENS // 4)
    batch = batch[: max(1, PROBE_TOKENS // length)] if base.device.type == "cpu" else batch
    samples = [
        Sample(i, number, tuple(source.integers(0, base.head.shape[0], length).tolist()), False)
        for i in range(len(batch))
        for number in range(config.evaluation.samples if base.device.type != "cpu" else 1)
    ]
    began = time.perf_counter()
    policy_and_reference(model, 0, batch, samples)
    wait(base.device)
    return (time.perf_counter() - began) / (len(samples) * length)
