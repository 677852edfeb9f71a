"""Settings that nobody gave and that follow from the pairs and the model: which they are, and how they are decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, PrivateAttr

# What is chosen by situation where the user's own pairs are compared and the setting is not given.
SITUATIONAL = (
    "data.heldout_share", "sft.steps", "sft.learning_rate", "train.steps", "train.learning_rate", "train.eval_every",
    "evaluation.prompts", "evaluation.max_new_tokens",
)  # fmt: skip


class OpenSettings(BaseModel):
    """The part of a configuration that knows what was given, and what was chosen by situation and why."""

    if TYPE_CHECKING:
        data: Any
        train: Any

    _settled: dict[str, str] | None = PrivateAttr(default=None)

    def is_given(self, dotted: str) -> bool:
        """Whether a setting, such as ``train.steps``, was typed or read from a file."""
        section, _, key = dotted.partition(".")
        return section in self.model_fields_set and (not key or key in getattr(self, section).model_fields_set)

    @property
    def open_settings(self) -> tuple[str, ...]:
        """What is chosen by situation, whether that has happened or not."""
        if self._settled is not None:
            return tuple(self._settled)
        if not self.data.source:
            return ("train.steps",) if self.train.epochs is not None else ()
        return tuple(dotted for dotted in SITUATIONAL if not self.is_given(dotted))

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why each setting that was chosen by situation is what it is; empty before that."""
        return self._settled or {}

    def settled(self, values: Mapping[str, Any], reasons: Mapping[str, str]) -> Self:
        """This comparison with some settings, by dotted name, decided for the reasons given."""
        sections: dict[str, dict[str, Any]] = {}
        for dotted, value in values.items():
            section, _, key = dotted.partition(".")
            sections.setdefault(section, {})[key] = value
        update = {name: getattr(self, name).model_copy(update=changes) for name, changes in sections.items()}
        decided = self.model_copy(update=update)
        decided._settled = {**(self._settled or {}), **reasons}
        return decided
