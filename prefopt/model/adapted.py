"""One frozen base and the adapters on it, which everything that trains, samples or scores needs together."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from prefopt.config.schema import Lora
from prefopt.model.adapters import AdapterBank
from prefopt.model.base import Base


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """A frozen base with adapters of one shape; which of them run is what the three contexts say.

    Attributes:
        base: The frozen model.
        adapters: Its adapters; a slot is a row of theirs.
    """

    base: Base
    adapters: AdapterBank

    @classmethod
    def wrap(cls, base: Base, lora: Lora, *, size: int) -> AdaptedModel:
        """Put ``size`` adapters, all zero, on a base, whose layers are wrapped in place.

        Raises:
            UsageError: If the model has no such layers, or they cannot be adapted.
        """
        return cls(
            base,
            AdapterBank(
                base.model,
                size=size,
                rank=lora.rank,
                alpha=lora.alpha,
                targets=lora.targets,
                dropout=lora.dropout,
                device=base.device,
            ),
        )

    def ending(self, ends: Iterable[int]) -> AdaptedModel:
        """The same model, whose responses end with these tokens, too."""
        return replace(self, base=replace(self.base, ends=tuple(sorted({*self.base.ends, *ends}))))

    def use(self, slots: slice) -> AbstractContextManager[None]:
        """Run neighbouring adapters, one copy of the batch for each, without gradients."""
        return self.adapters.use(slots)

    def train(self, slots: slice) -> AbstractContextManager[None]:
        """Run neighbouring adapters, one copy of the batch for each; their gradients go to ``adapters.grads``."""
        return self.adapters.train(slots)

    def off(self) -> AbstractContextManager[None]:
        """Run the base alone: the reference."""
        return self.adapters.off()


def one(slot: int) -> slice:
    """The slots of a single adapter."""
    return slice(slot, slot + 1)
