"""A variant as it is written: a loss, where its pairs come from, and in how many rounds it makes its own.

``dpo``, ``dpo@rso``, ``hinge@rso[beta=0.3]``, ``sft@best``, ``dpo@best-worst@3rounds``, ``rloo@48rounds``.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache

from prefopt.contract.labels import parse_label
from prefopt.data.builders import Builder, make_builder
from prefopt.errors import UsageError

_PART = re.compile(r"@(?![^\[]*\])")
_ROUNDS = re.compile(r"(\d{1,6})rounds?")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parts of a variant.

    Attributes:
        loss: The loss with its hyperparameters.
        builder: What picks the pairs; None for all pairs, as a comparison without builders has them.
        rounds: In how many rounds the policy makes its own data; None where the comparison's settings say.
    """

    loss: str
    builder: Builder | None = None
    rounds: int | None = None

    @property
    def suffix(self) -> str:
        """What follows the loss's own label in the variant's name."""
        return (f"@{_label(self.builder)}" if self.builder else "") + (
            "" if self.rounds is None else f"@{self.rounds}round{'s' * (self.rounds != 1)}"
        )


def split_recipe(text: str) -> tuple[str, str]:
    """The loss with its hyperparameters, and all that follows it, as it was typed."""
    loss = _PART.split(text)[0]
    return loss.strip(), text[len(loss) :].strip()


@cache
def parse_recipe(text: str) -> Recipe:
    """The parts of what was typed.

    Raises:
        UsageError: For a builder that there is not, or a part that is given twice.
    """
    loss, *parts = (part.strip() for part in _PART.split(text))
    builder: Builder | None = None
    rounds: int | None = None
    for part in parts:
        if match := _ROUNDS.fullmatch(part):
            if rounds is not None:
                raise UsageError(f"{text}: the number of rounds is given twice")
            rounds = int(match[1])
        elif builder is not None:
            raise UsageError(f"{text}: two builders of pairs; write one")
        else:
            builder = make_builder(*parse_label(part))
    return Recipe(loss, builder, rounds)


def _label(builder: Builder) -> str:
    """The builder's name with the settings that differ from their defaults."""
    changed = [
        f"{field.name}={getattr(builder, field.name):g}"
        for field in dataclasses.fields(builder)
        if getattr(builder, field.name) != field.default
    ]
    return builder.name + (f"[{','.join(changed)}]" if changed else "")
