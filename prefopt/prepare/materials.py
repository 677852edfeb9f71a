"""What all runs of a comparison share: the task, the reference, the pairs and their reference log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prefopt.config.schema import Config
from prefopt.config.situation import settle_epochs
from prefopt.data import TokenPair, hash_ids, require_enough
from prefopt.evaluate.samples import Prompts
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.prepare.fitting import adapted, fitted
from prefopt.prepare.onpolicy import all_prompts, sampled_pairs
from prefopt.prepare.own_pairs import own_pairs, read_pairs
from prefopt.prepare.pairs import PreparedPairs
from prefopt.prepare.pool import Pool, make_pool, needs_pool
from prefopt.prepare.reference import Lessons, load_model, make_reference
from prefopt.prepare.task import Tasks, load_tasks
from prefopt.runtime.progress import Progress
from prefopt.storage.cache import require_writable
from prefopt.storage.hashing import digest
from prefopt.tasks.base import Task
from prefopt.tasks.rewards import RewardedTask
from prefopt.train.pairset import PairSet, reference_logps


@dataclass(frozen=True, slots=True)
class Materials:
    """Everything that all runs share.

    Attributes:
        config: The comparison, with every setting that follows from model and pairs decided.
        model: The reference as the base, with room for one adapter a variant and one that stays zero.
        task: Where prompts and rewards come from.
        train: Training pairs with their reference log-probabilities.
        heldout: Held-out pairs, likewise.
        prompts: What policies are evaluated on.
        data_hash: Of the tokens of all pairs.
        facts: What was counted while the pairs were made, for the manifest.
        task_facts: What the manifest says about the task and its reward.
        proxies: What labels in place of the gold reward: by the reward that a variant names, and by an empty name the
            one of the pairs.
        pool: What builders, losses of groups and rounds work on; None where no variant needs it.
    """

    config: Config
    model: AdaptedModel
    task: Task
    train: PairSet
    heldout: PairSet
    prompts: Prompts
    data_hash: str
    facts: dict[str, Any]
    task_facts: dict[str, Any]
    pool: Pool | None = None
    proxies: Mapping[str, Task] = field(default_factory=dict)

    def proxy_of(self, reward: str) -> Task | None:
        """What stands for the gold reward in the training of a variant that names ``reward``, or none.

        Where there is but one proxy, every policy is scored by it, for comparison.
        """
        if len(self.proxies) == 1:
            return next(iter(self.proxies.values()))
        return self.proxies.get(reward)

    @property
    def reference_slot(self) -> int:
        """The last adapter, which is zero: the reference itself."""
        return self.model.adapters.params.shape[0] - 1


def prepare(config: Config, device: torch.device, progress: Progress) -> Materials:
    """Load the task, the reference and the pairs, and score the pairs under the reference."""
    cache = require_writable()
    own = read_pairs(config, progress) if config.data.source else None
    tasks = load_tasks(config, device, progress)
    base = load_model(config, device, progress.stage)
    if own is None:
        model = _adapted(config, base, Lessons.of_texts(config, tasks.prompts), cache, progress)
        prompts = PreparedPairs((), (), Prompts.of(base, all_prompts(config, tasks.prompts, base)), {})
        model = fitted(model, config, prompts, progress)
        pairs = sampled_pairs(config, model, tasks, cache, progress)
        config = settle_epochs(config, len(pairs.train))
    else:
        config, pairs = own_pairs(own, base, progress)
        chosen = config.sft.on == "chosen"
        lessons = Lessons.of_chosen(config, pairs.train) if chosen else Lessons.of_texts(config, tasks.prompts)
        model = _adapted(config, base, lessons, cache, progress)
        model = fitted(model, config, pairs, progress)
    require_enough(len(pairs.train), config.train.pairs_per_step)
    progress.stage("scoring the pairs under the reference", 0, 1)
    return Materials(
        config=config,
        model=model,
        task=tasks.gold,
        train=_scored(model.base, pairs.train, cache),
        heldout=_scored(model.base, pairs.heldout, cache),
        prompts=pairs.prompts,
        data_hash=digest([hash_ids(pairs.train), hash_ids(pairs.heldout)]),
        facts=dict(pairs.facts),
        task_facts=_task_facts(config, tasks, pairs.label_accuracy),
        proxies={**tasks.others, **({"": tasks.labels} if tasks.has_proxy else {})},
        pool=make_pool(config, model.base, tasks, pairs, cache, progress) if needs_pool(config) else None,
    )


def _adapted(config: Config, base: Base, lessons: Lessons, cache: Path, progress: Progress) -> AdaptedModel:
    """The reference, with one adapter for each variant and one that stays zero."""
    return adapted(make_reference(config, base, lessons, cache, progress.stage), config, progress)


def _scored(base: Base, pairs: Sequence[TokenPair], cache: Path) -> PairSet:
    return PairSet(tuple(pairs), reference_logps(base, pairs, data_hash=hash_ids(pairs), cache=cache))


def _task_facts(config: Config, tasks: Tasks, label_accuracy: float | None) -> dict[str, Any]:
    task = tasks.gold
    accuracy = task.reward_report() if task.has_reward else {}
    return {
        "name": config.task.name,
        "reward": _reward_name(task),
        **({"labels": _reward_name(tasks.labels)} if tasks.has_proxy else {}),
        "reward_accuracy": accuracy.get("accuracy_full_reviews"),
        "reward_figures": dict(accuracy),
        "label_accuracy": label_accuracy,
        "fingerprint": task.fingerprint,
    }


def _reward_name(task: Task) -> str:
    """What scores responses, in words; empty where nothing does."""
    if isinstance(task, RewardedTask):
        return str(task.scored_by.name)
    if not task.has_reward:
        return ""
    return "log-odds of positive sentiment" if task.name == "imdb" else f"that of the task {task.name}"
