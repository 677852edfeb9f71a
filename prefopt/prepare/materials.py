"""What all runs of a comparison share: the task, the reference, the pairs and their reference log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefopt.config.schema import Config
from prefopt.data import TokenPair, hash_ids, require_enough
from prefopt.evaluate.samples import Prompts
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.prepare.onpolicy import sampled_pairs
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
    """Everything that all runs share.

    Attributes:
        model: The reference as the base, with room for one adapter a variant and one that stays zero.
        task: Where prompts and rewards come from.
        train: Training pairs with their reference log-probabilities.
        heldout: Held-out pairs, likewise.
        prompts: What policies are evaluated on.
        data_hash: Of the tokens of all pairs.
        facts: What was counted while the pairs were made, for the manifest.
        task_facts: What the manifest says about the task and its reward.
    """

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
    model = _load_model(config, task, device, cache, progress)
    if own is None:
        pairs = sampled_pairs(config, model, task, cache, progress)
    else:
        pairs = own_pairs(config, own, model.base, progress)
    require_enough(len(pairs.train), config.train.pairs_per_step)
    progress.stage("scoring the pairs under the reference", 0, 1)
    return Materials(
        model=model,
        task=task,
        train=_scored(model.base, pairs.train, cache),
        heldout=_scored(model.base, pairs.heldout, cache),
        prompts=pairs.prompts,
        data_hash=digest([hash_ids(pairs.train), hash_ids(pairs.heldout)]),
        facts=dict(pairs.facts),
        task_facts=_task_facts(config, task, pairs.label_accuracy),
    )


def _load_model(config: Config, task: Task, device: torch.device, cache: Path, progress: Progress) -> AdaptedModel:
    """The reference, with one adapter for each variant and one that stays zero."""
    base = load_reference(config, task, device, cache, progress.stage)
    if not base.packed:
        progress.say(f"plain path, each response in a padded row of its own: {base.why_plain}")
    return AdaptedModel.wrap(base, config.lora, size=len(config.variants) + 1)


def _scored(base: Base, pairs: Sequence[TokenPair], cache: Path) -> PairSet:
    return PairSet(tuple(pairs), reference_logps(base, pairs, data_hash=hash_ids(pairs), cache=cache))


def _task_facts(config: Config, task: Task, label_accuracy: float | None) -> dict[str, Any]:
    accuracy = task.reward_report() if task.has_reward else {}
    return {
        "name": config.task.name,
        "reward": "log-odds of positive sentiment" if task.has_reward else "",
        "reward_accuracy": accuracy.get("accuracy_full_reviews"),
        "reward_figures": dict(accuracy),
        "label_accuracy": label_accuracy,
        "fingerprint": task.fingerprint,
    }
