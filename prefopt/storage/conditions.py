"""What must be equal for all variants of one seed, as hashes, and the refusal of those that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from prefopt.errors import UnequalConditions


@dataclass(frozen=True, slots=True)
class Conditions:
    """Hashes of everything but the loss that a run's result depends on; None where an earlier version noted none.

    Attributes:
        data: The tokens of the pairs.
        pair_order: Which pairs each step trains on.
        initial_adapter: The adapter before the first step.
        reference: The reference model, and its log-probabilities of the pairs.
        evaluation: The evaluation prompts and how they are sampled from.
        code: The sources that can change a run.
        packages: Versions of the packages.
        device: The kind of machine.
        stream: Where some variants make their own data, what all share instead: prompts, samples of each, labeller,
            steps. Such a variant has no ``pair_order``.
        rounds: The number of rounds, then a hash of their prompts and noise; compared between equal numbers.
    """

    data: str | None = None
    pair_order: str | None = None
    initial_adapter: str | None = None
    reference: str | None = None
    evaluation: str | None = None
    code: str | None = None
    packages: str | None = None
    device: str | None = None
    stream: str | None = None
    rounds: str | None = None

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Conditions:
        """The conditions that ``as_dict`` wrote; other fields are not compared, and are left out."""
        return cls(**{name: value.get(name) for name in NAMES})

    def as_dict(self) -> dict[str, str]:
        """The hashes by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def require_equal(self, other: Conditions, *, seed: int, own: str, others: str) -> None:
        """Refuse another variant of the same seed whose conditions differ.

        Args:
            other: Its conditions.
            seed: The seed of both.
            own: The variant of these conditions.
            others: The other variant.

        Raises:
            UnequalConditions: Naming the seed, the two variants, the field and both values.
        """
        for name in NAMES:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and not _may_differ(name, self, other):
                raise UnequalConditions(
                    f"seed {seed}: variants {own!r} and {others!r} differ in {name} ({mine} / {theirs}); "
                    "rerun both or drop one"
                )


def _may_differ(name: str, one: Conditions, other: Conditions) -> bool:
    """Whether two variants may differ in a field, since one of them makes its own data."""
    both = (one, other)
    if name == "pair_order":
        return any(each.stream is not None and each.pair_order is None for each in both)
    if name == "stream":  # none was noted before some variant of the folder made its own data
        return any(each.stream is None for each in both)
    counts = [(each.rounds or "").rpartition(" ")[0] for each in both]
    return name == "rounds" and counts[0] != counts[1]


NAMES = tuple(field.name for field in fields(Conditions))
