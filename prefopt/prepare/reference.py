"""The reference policy: a short fine-tune of the base on texts of the task, merged, made once and cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from prefopt.config.schema import Config, Sft
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.base import Base, load_base
from prefopt.model.logps import scored_logps
from prefopt.model.packing import Row, pack, use_layout
from prefopt.model.source import save_model
from prefopt.storage.cache import kept_folder
from prefopt.storage.hashing import digest
from prefopt.tasks.base import Task


def load_reference(
    config: Config, task: Task, device: torch.device, cache: Path, progress: Callable[[str, int, int], None]
) -> Base:
    """The model that all runs start from and are compared with.

    That is the base itself with ``sft.steps = 0``; else the fine-tuned base, from the cache or made and cached. It is
    made on unquantized weights and quantized afterwards.

    Args:
        config: The comparison.
        task: Gives the texts.
        device: Where the model goes.
        cache: The cache folder.
        progress: Called with what is done, the step and the number of steps.
    """
    settings = config.model
    if config.sft_steps == 0:
        progress("loading the model", 0, 1)
        return load_base(settings.name, dtype=settings.dtype, quantization=settings.quantization, device=device)
    progress("loading the model", 0, 1)
    base = load_base(settings.name, dtype=settings.dtype, device=device)
    lora = config.lora.model_dump()
    key = digest([base.hash, config.sft.model_dump(), config.sft_steps, lora, task.fingerprint, device.type])

    def make(folder: Path) -> None:
        _fine_tune(base, task, config, progress)
        save_model(folder, base.model, base.tokenizer)

    folder = kept_folder(cache / "references" / key, make)
    reference = load_base(str(folder), dtype=settings.dtype, quantization=settings.quantization, device=device)
    return replace(reference, revision=base.revision)


def _fine_tune(base: Base, task: Task, config: Config, progress: Callable[[str, int, int], None]) -> None:
    """Train one adapter on the mean log-probability of texts' tokens, and merge it into the base."""
    sft, steps = config.sft, config.sft_steps
    model = AdaptedModel.wrap(base, config.lora, size=1)
    bank = model.adapters
    bank.initialise(0, seed=0)
    parameter = torch.nn.Parameter(bank.params)
    parameter.grad = bank.grads
    optimizer = torch.optim.AdamW([parameter], lr=sft.learning_rate, weight_decay=0.0, fused=True)
    rows = _text_rows(base, task.sft_texts(steps * sft.texts_per_step, seed=0), sft)
    for step in range(steps):
        progress("fine-tuning the reference", step, steps)
        packed = pack(rows[step * sft.texts_per_step : (step + 1) * sft.texts_per_step], device=base.device)
        bank.grads.zero_()
        with model.train(one(0)), use_layout(packed):
            (-scored_logps(base, packed).mean()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([parameter], config.train.max_grad_norm)
        optimizer.param_groups[0]["lr"] = sft.learning_rate * (1 - step / steps)
        optimizer.step()
    bank.merge(0)
    bank.remove()


def _text_rows(base: Base, texts: list[str], sft: Sft) -> list[Row]:
    """Rows whose first token is given and whose others are learnt, cut at ``text_tokens``."""
    limit = sft.text_tokens
    encoded = base.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    whole = [ids if len(ids) >= limit else [*ids, base.eos] for ids in encoded]
    return [Row(ids[:1], (ids[1:],)) for ids in whole]
