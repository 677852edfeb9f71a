"""What both sources of pairs give, the user's file and a task's own samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prefopt.data import TokenPair
from prefopt.data.types import TokenGroup
from prefopt.evaluate.samples import Prompts
from prefopt.tasks.base import Prompt


@dataclass(frozen=True, slots=True)
class PreparedPairs:
    """Tokenised pairs, and the prompts on which policies are evaluated.

    Attributes:
        train: Training pairs.
        heldout: Held-out pairs, of other prompts.
        prompts: Evaluation prompts.
        facts: What was counted on the way, for the manifest.
        label_accuracy: Share of the training pairs whose chosen response has the larger gold reward; None where the
            task has none.
        groups: The sampled responses of each training prompt; none for the user's own pairs.
        training_prompts: Those prompts, as texts or chats.
        ends: The tokens with which responses end, where they are the user's.
    """

    train: tuple[TokenPair, ...]
    heldout: tuple[TokenPair, ...]
    prompts: Prompts
    facts: Mapping[str, object]
    label_accuracy: float | None = None
    groups: tuple[TokenGroup, ...] = ()
    training_prompts: tuple[Prompt, ...] = ()
    ends: tuple[int, ...] = ()
