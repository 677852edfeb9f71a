"""What a task is: a source of prompts and, where there is one, of a gold reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from prefopt.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Prompt = str | tuple[tuple[str, ...], ...]  # a text, or (role, content, more that a template reads) of each message


@dataclass(frozen=True, slots=True)
class TaskPrompts:
    """Prompts of three disjoint sets of documents; no prompt occurs twice in all of them."""

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    evaluation: tuple[Prompt, ...]


def text_of(prompt: Prompt) -> str:
    """A prompt as one text; of a chat, what each turn says, a line each."""
    return prompt if isinstance(prompt, str) else "".join(f"{content}\n" for _, content in prompt)


class Task(Protocol):
    """A source of prompts, of texts to fine-tune on, and of a gold reward.

    Attributes:
        name: The registry's name.
        has_reward: Whether ``reward`` can be asked for.
    """

    name: str
    has_reward: bool

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever a prompt, a text or a reward would."""

    def prompts(
        self, tokenizer: PreTrainedTokenizerBase, *, train: int, heldout: int, evaluation: int, seed: int
    ) -> TaskPrompts:
        """That many prompts of each kind."""

    def sft_texts(self, count: int, *, seed: int) -> list[str]:
        """Texts of which none gave a prompt, for the supervised fine-tune that makes the reference."""

    def reward(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> npt.NDArray[np.float64]:
        """(N,) gold reward of each response to the prompt at the same place."""

    def reward_report(self) -> Mapping[str, float]:
        """How far the reward can be trusted: named figures measured on documents that it never saw."""


class DataTask:
    """The user's own pairs: no prompts beyond theirs, and no gold reward."""

    name = "data"
    has_reward = False
    fingerprint = "data"

    def prompts(
        self, tokenizer: PreTrainedTokenizerBase, *, train: int, heldout: int, evaluation: int, seed: int
    ) -> TaskPrompts:
        """Refuse: the prompts are those of the pairs.

        Raises:
            UsageError: Always.
        """
        raise UsageError("task data makes no prompts of its own: give pairs with --data, or choose the task imdb")

    def sft_texts(self, count: int, *, seed: int) -> list[str]:
        """Refuse: there are no texts beyond the pairs.

        Raises:
            UsageError: Always.
        """
        raise UsageError("task data has no texts to fine-tune the reference on: set sft.steps = 0")

    def reward(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> npt.NDArray[np.float64]:
        """Refuse: nothing scores the responses.

        Raises:
            UsageError: Always.
        """
        raise UsageError("task data has no gold reward: name a judge for win rates, or leave them out")

    def reward_report(self) -> Mapping[str, float]:
        """Nothing: there is no reward."""
        return {}
