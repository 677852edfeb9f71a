"""What all runs of a comparison share: the task, the reference, the pairs and their reference log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

import prefopt
from prefopt import environment
from prefopt.config import Config, Variant
from prefopt.data import (
    LoadedPairs,
    Pair,
    TokenPair,
    check_no_leak,
    check_unchanged,
    load_pairs,
    pair_facts,
    require_enough,
    split_by_prompt,
    tokenize_pairs,
)
from prefopt.evaluate import Prompts
from prefopt.fit import Fit
from prefopt.harness import PairSet
from prefopt.lora import AdapterBank
from prefopt.model import Base
from prefopt.pairs import encode, make_pairs
from prefopt.places import cache_dir
from prefopt.redact import portable
from prefopt.reference import load_reference
from prefopt.results import SCHEMA, digest
from prefopt.scoring import reference_logps
from prefopt.tasks import Task, load_task


class Progress(Protocol):
    """Where a comparison says what it is doing."""

    def stage(self, text: str, done: int, total: int) -> None:
        """What is running now, and how far it is."""

    def step(self, text: str, done: int, total: int, values: Mapping[str, Mapping[str, float]]) -> None:
        """The same for a step of training, with the last metrics of each variant."""

    def say(self, text: str) -> None:
        """A line that stays."""


@dataclass(frozen=True, slots=True)
class Materials:
    """Everything that all runs share."""

    base: Base
    bank: AdapterBank
    task: Task
    train: PairSet
    heldout: PairSet
    prompts: Prompts
    data_hash: str
    facts: dict[str, Any]
    task_facts: dict[str, Any]

    @property
    def reference_slot(self) -> int:
        """The bank's last adapter, which is zero: the reference itself."""
        return self.bank.params.shape[0] - 1


def prepare(config: Config, device: torch.device, progress: Progress) -> Materials:
    """Load the task, the reference and the pairs, and score the pairs under the reference."""
    cache = cache_dir()
    own = read_pairs(config, progress) if config.data.source else None
    progress.stage("reading the task", 0, 1)
    task = load_task(config.task.name, cache=cache / "tasks")
    base = load_reference(config, task, device, cache, progress.stage)
    if not base.packed:
        progress.say(f"plain path, each response in a padded row of its own: {base.why_plain}")
    bank = AdapterBank(
        base.model,
        size=len(config.variants) + 1,
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        targets=config.lora.targets,
        device=device,
    )
    if own is None:
        train, heldout, prompts, facts = _task_pairs(config, base, bank, task, cache, progress)
    else:
        train, heldout, prompts, facts = own_pairs(config, own, base, progress)
    require_enough(len(train), config.train.pairs_per_step)
    progress.stage("scoring the pairs under the reference", 0, 1)
    sets = []
    hashes = []
    for some in (train, heldout):
        hashes.append(digest([[p.prompt_ids, p.chosen_ids, p.rejected_ids] for p in some]))
        sets.append(PairSet(tuple(some), reference_logps(base, some, data_hash=hashes[-1], cache=cache)))
    accuracy = task.reward_report() if task.has_reward else {}
    task_facts = {
        "name": config.task.name,
        "reward": "log-odds of positive sentiment" if task.has_reward else "",
        "reward_accuracy": accuracy.get("accuracy_full_reviews"),
        "reward_figures": dict(accuracy),
        "label_accuracy": facts.pop("label_accuracy", None),
        "fingerprint": task.fingerprint,
    }
    return Materials(base, bank, task, sets[0], sets[1], prompts, digest(hashes), facts, task_facts)


def _task_pairs(
    config: Config, base: Base, bank: AdapterBank, task: Task, cache: Path, progress: Progress
) -> tuple[Sequence[TokenPair], Sequence[TokenPair], Prompts, dict[str, Any]]:
    progress.stage("sampling responses for the pairs", 0, 1)
    wanted = config.pairs
    texts = task.prompts(
        base.tokenizer,
        train=wanted.prompts,
        heldout=wanted.heldout_prompts,
        evaluation=config.evaluation.prompts,
        seed=wanted.seed,
    )
    made = make_pairs(base, bank, task, texts, config, cache)
    prompts = Prompts(tuple(encode(base, text) for text in texts.evaluation), texts.evaluation)
    facts = {
        "truncated_chosen": sum(p.chosen_truncated for p in made.train),
        "truncated_rejected": sum(p.rejected_truncated for p in made.train),
        "dropped_rows": 0,
        "label_accuracy": made.label_accuracy,
    }
    return made.train, made.heldout, prompts, facts


@dataclass(frozen=True, slots=True)
class OwnPairs:
    """The user's pairs as read, before any model is loaded: training and held-out rows, and what was found."""

    sources: tuple[LoadedPairs, ...]
    train: tuple[Pair, ...]
    heldout: tuple[Pair, ...]


def read_pairs(config: Config, progress: Progress) -> OwnPairs:
    """Read, validate and split the user's pairs.

    Raises:
        DataError: For rows that cannot be used, or a prompt on both sides.
    """
    progress.stage("reading the pairs", 0, 1)
    data = config.data
    sources = tuple(
        load_pairs(source, on_bad_rows=data.on_bad_rows, column_map=data.column_map, dedup=data.dedup)
        for source in filter(None, (data.source, data.heldout))
    )
    for warning in (warning for source in sources for warning in source.report.warnings):
        progress.say(warning)
    if len(sources) == 1:
        train, heldout = split_by_prompt(sources[0].pairs, heldout=data.heldout_share, seed=0)
    else:
        check_no_leak(*sources)
        train, heldout = sources[0].pairs, sources[1].pairs
    require_enough(len(train), config.train.pairs_per_step)
    return OwnPairs(sources, train, heldout)


def own_pairs(
    config: Config, own: OwnPairs, base: Base, progress: Progress
) -> tuple[Sequence[TokenPair], Sequence[TokenPair], Prompts, dict[str, Any]]:
    """The user's pairs, tokenised, the prompts to evaluate on, and what was counted on the way.

    Raises:
        DataError: For rows that do not fit the model.
    """
    data = config.data
    train, heldout = (
        tokenize_pairs(part, base.tokenizer, max_length=data.max_length, on_bad_rows=data.on_bad_rows, source=source)
        for part, source in ((own.train, own.sources[0].source), (own.heldout, own.sources[-1].source))
    )
    for warning in (*train.warnings, *heldout.warnings):
        progress.say(warning)
    ids = list(dict.fromkeys(p.prompt_ids for p in heldout.pairs))[: config.evaluation.prompts]
    prompts = Prompts(tuple(ids), tuple(base.tokenizer.decode(list(i)) for i in ids))
    for source in own.sources:
        check_unchanged(source)
    return train.pairs, heldout.pairs, prompts, pair_facts(own.sources, train, heldout)


def manifest(config: Config, materials: Materials, chosen: Fit, command: Sequence[str]) -> dict[str, Any]:
    """What the comparison was made of."""
    base, evaluation = materials.base, config.evaluation
    model = base.model
    device = environment.device_facts(base.device)
    return {
        "schema": SCHEMA,
        "name": config.name,
        "prefopt_version": prefopt.__version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": [portable(word) for word in command],
        "commit": environment.commit(),
        "config": config.model_dump(mode="json"),
        "seeds": list(config.seeds),
        "variants": [_variant_facts(config, variant) for variant in config.variants],
        "model": {
            "name": portable(config.model.name),
            "revision": base.revision,
            "hash": base.hash,
            "dtype": str(base.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in model.parameters() if p.device.type != "meta"),
            "packed": base.packed,
            "why_plain": base.why_plain,
        },
        "reference": {"sft_steps": config.sft_steps, "hash": base.hash},
        "task": materials.task_facts,
        "data": {
            "train_pairs": len(materials.train.pairs),
            "heldout_pairs": len(materials.heldout.pairs),
            "evaluation_prompts": len(materials.prompts.ids),
            "samples_per_prompt": evaluation.samples,
            **materials.facts,
        },
        "step": dataclasses.asdict(chosen),
        "hashes": {
            "data": materials.data_hash,
            "reference_train": materials.train.reference.hash,
            "reference_heldout": materials.heldout.reference.hash,
            "code": environment.code_hash(),
        },
        "packages": environment.packages(),
        "device": device,
    }


def _variant_facts(config: Config, variant: Variant) -> dict[str, Any]:
    loss = variant.build()
    return {
        "variant": variant.name,
        "loss": loss.name,
        "spec": loss.spec(),
        "source": loss.source,
        "summary": (type(loss).__doc__ or "").strip().splitlines()[0],
        "needs_reference": loss.needs_reference,
        "length_normalized": loss.length_normalized,
        "batch_coupled": loss.batch_coupled,
        "learning_rate": config.learning_rate(variant),
    }
