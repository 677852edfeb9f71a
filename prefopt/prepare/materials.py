"""What all runs of a comparison share: the task, the reference, the pairs and their reference log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefopt.config.schema import Config
from prefopt.data import (
    TokenPair,
    require_enough,
)
from prefopt.evaluate.samples import Prompts
from prefopt.model.adapted import AdaptedModel
from prefopt.prepare.onpolicy import encode, make_pairs
from prefopt.prepare.own_pairs import own_pairs, read_pairs
from prefopt.prepare.reference import load_reference
from prefopt.runtime.progress import Progress
from prefopt.storage.cache import cache_dir
from prefopt.storage.hashing import digest
from prefopt.tasks import load_task
from prefopt.tasks.base import Task
from prefopt.train.pairset import PairSet, reference_logps


@dataclass(frozen=True, slots=True)
class Materials:
    """Everything that all runs share."""

    model: AdaptedModel
    task: Task
    train: PairSet
    heldout: PairSet
    prompts: Prompts
    data_hash: str
    facts: dict[str, Any]
    task_facts: dict[str, Any]

    @property
    def reference_slot(self) -> int:
        """The last adapter, which is zero: the reference itself."""
        return self.model.adapters.params.shape[0] - 1


def prepare(config: Config, device: torch.device, progress: Progress) -> Materials:
    """Load the task, the reference and the pairs, and score the pairs under the reference."""
    cache = cache_dir()
    own = read_pairs(config, progress) if config.data.source else None
    progress.stage("reading the task", 0, 1)
    task = load_task(config.task.name, cache=cache / "tasks")
    base = load_reference(config, task, device, cache, progress.stage)
    if not base.packed:
        progress.say(f"plain path, each response in a padded row of its own: {base.why_plain}")
    model = AdaptedModel.wrap(base, config.lora, size=len(config.variants) + 1)
    if own is None:
        train, heldout, prompts, facts = _task_pairs(config, model, task, cache, progress)
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
    return Materials(model, task, sets[0], sets[1], prompts, digest(hashes), facts, task_facts)


def _task_pairs(
    config: Config, model: AdaptedModel, task: Task, cache: Path, progress: Progress
) -> tuple[Sequence[TokenPair], Sequence[TokenPair], Prompts, dict[str, Any]]:
    progress.stage("sampling responses for the pairs", 0, 1)
    wanted = config.pairs
    texts = task.prompts(
        model.base.tokenizer,
        train=wanted.prompts,
        heldout=wanted.heldout_prompts,
        evaluation=config.evaluation.prompts,
        seed=wanted.seed,
    )
    made = make_pairs(model, task, texts, config, cache)
    prompts = Prompts(tuple(encode(model.base, text) for text in texts.evaluation), texts.evaluation)
    facts = {
        "truncated_chosen": sum(p.chosen_truncated for p in made.train),
        "truncated_rejected": sum(p.rejected_truncated for p in made.train),
        "dropped_rows": 0,
        "label_accuracy": made.label_accuracy,
    }
    return made.train, made.heldout, prompts, facts
