"""The reference policy: the base, or a fine-tune of it on texts of the task or chosen responses, merged and cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prefopt.config.schema import Config, Sft
from prefopt.data import TokenPair, hash_ids, pair_order
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.base import Base, load_base
from prefopt.model.logps import scored_logps
from prefopt.model.packing import Row, pack, use_layout
from prefopt.model.source import check_adapter, merge_adapter, save_model
from prefopt.storage.cache import kept_folder
from prefopt.storage.hashing import digest, sha256_file
from prefopt.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Lessons:
    """What the reference is fine-tuned on.

    Attributes:
        key: Changes whenever a row would.
        rows: The rows of each step, for the base that tokenises them.
    """

    key: str
    rows: Callable[[Base], list[list[Row]]]

    @classmethod
    def of_texts(cls, config: Config, task: Task) -> Lessons:
        """Texts of the task, each learnt from its second token on."""
        sft = config.sft

        def rows(base: Base) -> list[list[Row]]:
            whole = _text_rows(base, task.sft_texts(config.sft_steps * sft.texts_per_step, seed=0), sft)
            return [whole[start : start + sft.texts_per_step] for start in range(0, len(whole), sft.texts_per_step)]

        return cls(task.fingerprint, rows)

    @classmethod
    def of_chosen(cls, config: Config, pairs: Sequence[TokenPair]) -> Lessons:
        """The chosen responses of the training pairs, each learnt after its prompt (DPO paper, section 4)."""
        order = pair_order(len(pairs), seed=0, steps=config.sft_steps, pairs_per_step=config.sft.texts_per_step)
        rows = [[Row(pairs[i].prompt_ids, (pairs[i].chosen_ids,)) for i in step] for step in order.tolist()]
        return cls(digest([hash_ids(pairs), order.tolist()]), lambda base: rows)


def tunes(config: Config) -> bool:
    """Whether the reference is a fine-tuned base."""
    return config.sft.on == "chosen" or config.sft_steps > 0


def load_model(config: Config, device: torch.device, progress: Callable[[str, int, int], None]) -> Base:
    """The base as the reference needs it: a fine-tune or an adapter changes weights that are not quantized."""
    settings = config.model
    progress("loading the model", 0, 1)
    if settings.adapter:
        check_adapter(settings.adapter)
    quantization = "none" if tunes(config) or settings.adapter else settings.quantization
    return load_base(
        settings.name, dtype=settings.dtype, quantization=quantization,
        chat_template=settings.chat_template, device=device,
    )  # fmt: skip


def make_reference(
    config: Config, base: Base, lessons: Lessons, cache: Path, progress: Callable[[str, int, int], None]
) -> Base:
    """The model that all runs start from and are compared with.

    That is the base itself with ``sft.steps = 0``; else the fine-tuned base, or the base with the user's adapter, from
    the cache or made and cached. It is made on unquantized weights and quantized afterwards.

    Args:
        config: The comparison.
        base: From ``load_model``.
        lessons: What it is fine-tuned on.
        cache: The cache folder.
        progress: Called with what is done, the step and the number of steps.
    """
    settings, device = config.model, base.device
    if settings.adapter:
        weights = sha256_file(check_adapter(settings.adapter) / "adapter_model.safetensors")
        key = digest([base.hash, weights, device.type])
    elif config.sft_steps == 0:
        return base
    else:
        sft, lora = config.sft.model_dump(exclude={"on"}), config.lora.model_dump(exclude={"dropout"})
        key = digest([base.hash, sft, config.sft_steps, lora, lessons.key, device.type])

    def make(folder: Path) -> None:
        if settings.adapter:
            save_model(folder, merge_adapter(base.model, settings.adapter), base.tokenizer)
            return
        _fine_tune(base, lessons, config, progress)
        save_model(folder, base.model, base.tokenizer)

    folder = kept_folder(cache / "references" / key, make)
    reference = load_base(
        str(folder), dtype=settings.dtype, quantization=settings.quantization,
        chat_template=settings.chat_template, device=device,
    )  # fmt: skip
    return replace(reference, revision=base.revision)


def _fine_tune(base: Base, lessons: Lessons, config: Config, progress: Callable[[str, int, int], None]) -> None:
    """Train one adapter on the mean log-probability of the rows' tokens, and merge it into the base."""
    sft, steps = config.sft, config.sft_steps
    model = AdaptedModel.wrap(base, config.lora, size=1)
    bank = model.adapters
    bank.initialise(0, seed=0)
    parameter = torch.nn.Parameter(bank.params)
    parameter.grad = bank.grads
    optimizer = torch.optim.AdamW([parameter], lr=sft.learning_rate, weight_decay=0.0, fused=True)
    for step, rows in enumerate(lessons.rows(base)):
        progress("fine-tuning the reference", step, steps)
        packed = pack(rows, device=base.device)
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
