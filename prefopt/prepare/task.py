"""The task of a comparison: whose prompts, and whose rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from prefopt.config.schema import Config
from prefopt.data.prompts import LoadedPrompts, load_prompts, pick
from prefopt.errors import UsageError
from prefopt.judges.rewards import make_reward
from prefopt.runtime.progress import Progress
from prefopt.runtime.seeding import numpy_generator
from prefopt.storage.cache import cache_dir
from prefopt.tasks import load_task
from prefopt.tasks.base import Prompt, Task, TaskPrompts, text_of
from prefopt.tasks.rewards import RewardedTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tasks:
    """What a comparison asks for prompts and rewards.

    Attributes:
        prompts: Gives prompts, and texts to fine-tune on.
        gold: Its reward evaluates policies; it is the same task where that has a reward of its own.
        labels: Its reward labels the pairs: ``gold`` unless a proxy was named.
        others: The task with the reward of each variant that names its own, by the reward.
    """

    prompts: Task
    gold: Task
    labels: Task
    others: Mapping[str, Task] = field(default_factory=dict)

    @property
    def has_proxy(self) -> bool:
        """Whether pairs are labelled by another reward than the one that evaluates."""
        return self.labels is not self.gold


def load_tasks(config: Config, device: torch.device, progress: Progress, *, of_variants: bool = True) -> Tasks:
    """The task, and the rewards, each of which has answered a trial; without those of variants where not wanted.

    Raises:
        PrefoptError: If one cannot be had, or its answer cannot be used.
    """
    cache = cache_dir() / "tasks"
    settings = config.task
    progress.stage("reading the task", 0, 1)
    own = PromptsTask(load_prompts(settings.prompts)) if settings.prompts else None
    task: Task = own or load_task(settings.name, cache=cache)
    trial: Sequence[Prompt] = own.loaded.prompts[:3] if own else ()

    def rewarded(text: str) -> Task:
        progress.stage(f"trying the reward {text}", 0, 1)

        def alive(done: int, total: int) -> None:
            progress.stage(f"scoring responses by {text}", done, total)

        reward = make_reward(text, device=device, cache=cache, seconds=settings.reward_s, alive=alive)
        reward.probe(trial)
        return RewardedTask(task, reward)

    gold = rewarded(settings.reward) if settings.reward else task
    labels = rewarded(config.pairs.reward) if config.pairs.reward else gold
    if not config.data.source and not (gold.has_reward and labels.has_reward):
        raise UsageError(f"task {task.name} has no reward of its own: name one with --reward")
    others = {v.reward: rewarded(v.reward) for v in config.variants if v.reward} if of_variants else {}
    return Tasks(task, gold, labels, others)


class PromptsTask:
    """Prompts of the user's own; a reward is named beside them.

    Args:
        loaded: The prompts.
    """

    name = "prompts"
    has_reward = False

    def __init__(self, loaded: LoadedPrompts) -> None:
        self.loaded = loaded

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the file."""
        return self.loaded.sha256[:16]

    def prompts(
        self, tokenizer: PreTrainedTokenizerBase, *, train: int, heldout: int, evaluation: int, seed: int
    ) -> TaskPrompts:
        """That many prompts of each kind, in an order that the seed decides.

        Raises:
            UsageError: If there are not so many.
        """
        there, wanted = len(self.loaded.prompts), train + heldout + evaluation
        if there < wanted:
            parts = [max(1, count * there // wanted) for count in (train, heldout, evaluation)]
            names = ("pairs.prompts", "pairs.heldout_prompts", "evaluation.prompts")
            fits = " ".join(f"--set {name}={count}" for name, count in zip(names, parts, strict=True))
            raise UsageError(
                f"{self.loaded.source}: {train} + {heldout} + {evaluation} prompts were asked for, and there are "
                f"{there} that differ; give more, or lower the numbers: {fits}"
            )
        order = numpy_generator(seed, "own_prompts").permutation(there).tolist()
        parts_of = pick(self.loaded.prompts, order, (train, heldout, evaluation))
        return TaskPrompts(*parts_of)

    def sft_texts(self, count: int, *, seed: int) -> list[str]:
        """``count`` prompts with the responses that the file gives, again in another order where it is more.

        Raises:
            UsageError: If the file gives none, or its prompts are chats.
        """
        both = zip(self.loaded.prompts, self.loaded.responses, strict=True)
        texts = [text_of(prompt) + response for prompt, response in both if response and isinstance(prompt, str)]
        if not texts:
            raise UsageError(
                f"{self.loaded.source}: no text prompt has a response to fine-tune the reference on: add the field "
                "response, or set sft.steps = 0"
            )
        rounds = -(-count // len(texts))
        orders = [numpy_generator(seed, "sft_texts", epoch).permutation(len(texts)) for epoch in range(rounds)]
        return [texts[i] for i in np.concatenate(orders)][:count]

    def reward(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> npt.NDArray[np.float64]:
        """Refuse: a reward is named beside the prompts.

        Raises:
            UsageError: Always.
        """
        raise UsageError("prompts of your own have no reward: name one with --reward")

    def reward_report(self) -> Mapping[str, float]:
        """Nothing: there is no reward."""
        return {}
