"""What a comparison would do and cost: counted from the configuration, measured by a short probe of the real model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from prefopt.config.schema import Config
from prefopt.data import TokenPair
from prefopt.evaluate.divergence import policy_and_reference
from prefopt.evaluate.samples import sampled_together
from prefopt.model.adapted import AdaptedModel
from prefopt.model.adapters import AdapterBank
from prefopt.model.base import Base, load_base
from prefopt.model.generate import Sample, rows_per_batch, sample
from prefopt.prepare.onpolicy import encode
from prefopt.prepare.own_pairs import OwnPairs, own_pairs, read_pairs
from prefopt.runtime import memory
from prefopt.runtime.device import pick_device, wait
from prefopt.runtime.progress import Progress
from prefopt.storage.cache import cache_dir
from prefopt.tasks import load_task
from prefopt.tasks.base import Task
from prefopt.train.autosize import Fit, fit, step_seconds
from prefopt.train.state import Run

DECODE_STEPS = 3


def plan(config: Config, *, progress: Progress) -> dict[str, Any]:
    """Runs, steps, tokens, and estimates of memory (GiB) and time (s), by quantity.

    Trains one variant for a few steps, decodes one batch for a few tokens and scores it; nothing is written but the
    caches of the task and of the converted model.
    """
    device = pick_device(config.device)
    own = read_pairs(config, progress) if config.data.source else None
    model = config.model
    progress.stage("reading the task", 0, 1)
    task = load_task(config.task.name, cache=cache_dir() / "tasks")
    progress.stage("loading the model", 0, 1)
    base = load_base(model.name, dtype=model.dtype, quantization=model.quantization, device=device)
    pairs, prompts = _pairs(config, own, task, base, progress)
    train = config.train
    n_variants, n_seeds = len(config.variants), len(config.seeds)
    adapted = AdaptedModel.wrap(base, config.lora, size=n_variants + 1)
    memory.reset_peak(device)
    progress.stage("probing a training step", 0, 1)
    chosen, step_s, optimizer_gib = _time_steps(config, adapted, pairs)
    train_gib = memory.peak_gib(device) + optimizer_gib
    progress.stage("probing the evaluation", 0, 1)
    memory.reset_peak(device)
    token_s, cache_gib = _time_decoding(config, adapted, prompts)
    sample_gib = memory.peak_gib(device) + cache_gib
    memory.reset_peak(device)
    score_s = _time_scoring(config, adapted, prompts)
    peaks = (train_gib, sample_gib, memory.peak_gib(device))
    tokens = [len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]
    per_run = round(float(np.mean(tokens)) * train.steps * train.pairs_per_step)
    evaluation = config.evaluation
    sampled = len(prompts) * evaluation.samples * evaluation.max_new_tokens * (n_variants + 1) * n_seeds
    return {
        "name": config.name,
        "variants": ", ".join(variant.name for variant in config.variants),
        "seeds": ", ".join(map(str, config.seeds)),
        "runs": n_variants * n_seeds,
        "optimizer steps a run": train.steps,
        "pairs a step": train.pairs_per_step,
        "training tokens a run": per_run,
        "sampled tokens": sampled,
        "fine-tune of the reference": f"{config.sft_steps} steps" if config.sft_steps else "none",
        "device": str(device),
        "weights": str(base.dtype).removeprefix("torch.") + ("" if base.packed else f", plain path: {base.why_plain}"),
        "adapter parameters": adapted.adapters.params.shape[1],
        "pairs of a pass": chosen.micro_batch,
        "adapters of a pass": chosen.stack,
        "checkpointing": chosen.checkpointing,
        "peak memory of a group, GiB": round(max(peaks), 2),
        "time to train, s": round(step_s * train.steps * n_variants * n_seeds),
        "time to sample, s": round(token_s * sampled),
        "time to score, s": round(score_s * sampled),
    }


def _pairs(
    config: Config, own: OwnPairs | None, task: Task, base: Base, progress: Progress
) -> tuple[list[TokenPair], list[tuple[int, ...]]]:
    """Training pairs and evaluation prompts: the user's, or the task's prompts with random responses of full length."""
    if own is not None:
        train, _, asked, _ = own_pairs(config, own, base, progress)
        return list(train), list(asked.ids)
    wanted = config.pairs
    texts = task.prompts(
        base.tokenizer,
        train=wanted.prompts,
        heldout=wanted.heldout_prompts,
        evaluation=config.evaluation.prompts,
        seed=wanted.seed,
    )
    source = np.random.default_rng(0)

    def draw() -> tuple[int, ...]:
        return tuple(source.integers(0, base.head.shape[0], wanted.max_new_tokens).tolist())

    prompts = [encode(base, text) for text in texts.train]
    pairs = [TokenPair(prompt, draw(), draw(), i, i, 1.0, 0.0, True, True) for i, prompt in enumerate(prompts)]
    return pairs, [encode(base, text) for text in texts.evaluation]


def _time_steps(config: Config, model: AdaptedModel, pairs: list[TokenPair]) -> tuple[Fit, float, float]:
    """How a step fits the machine, the seconds of one run's, and the GiB of the other runs' optimizer states."""
    runs = [Run(v.name, v.build(), config.learning_rate(v), slot) for slot, v in enumerate(config.variants)]
    for run in runs:
        model.adapters.initialise(run.slot, 0)
    chosen = fit(model, runs, pairs, config.train)
    train = chosen.apply(config.train)
    longest = sorted(pairs, key=lambda p: -len(p.prompt_ids) - len(p.chosen_ids) - len(p.rejected_ids))
    runs, rest = runs[: chosen.stack], len(runs) - chosen.stack
    step_seconds(model, runs, longest[: train.pairs_per_step], train)  # decides the peak of memory
    seconds = step_seconds(model, runs, pairs[: train.pairs_per_step], train) / chosen.stack
    moments = 8 if train.optimizer == "adamw" else 2  # bytes a parameter
    return chosen, seconds, rest * moments * model.adapters.params.shape[1] / 2**30


def _probed(config: Config, bank: AdapterBank, prompts: list[tuple[int, ...]]) -> tuple[slice, list[tuple[int, ...]]]:
    """The adapters that are sampled together, and the prompts of one batch."""
    adapters = sampled_together(bank, 0)
    rows = (adapters.stop - adapters.start) * config.evaluation.samples
    return adapters, prompts[: max(1, rows_per_batch(bank.params.device) // rows)]


def _time_decoding(config: Config, model: AdaptedModel, prompts: list[tuple[int, ...]]) -> tuple[float, float]:
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


def _time_scoring(config: Config, model: AdaptedModel, prompts: list[tuple[int, ...]]) -> float:
    """Seconds a sampled token that its exact KL and log-probabilities take."""
    evaluation = config.evaluation
    source = np.random.default_rng(0)
    base = model.base
    _, batch = _probed(config, model.adapters, prompts)
    drawn = [
        Sample(i, number, tuple(source.integers(0, base.head.shape[0], evaluation.max_new_tokens).tolist()), False)
        for i in range(len(batch))
        for number in range(evaluation.samples)
    ]
    began = time.perf_counter()
    policy_and_reference(model, 0, batch, drawn)
    wait(base.device)
    return (time.perf_counter() - began) / (len(drawn) * evaluation.max_new_tokens)
