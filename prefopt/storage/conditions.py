"""What must be equal for all variants of one seed, as hashes, and the refusal of those that differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.errors import UnequalConditions


def require_equal(seed: int, first: str, a: dict[str, str], second: str, b: dict[str, str]) -> None:
    """Refuse two variants of one seed whose conditions differ.

    Raises:
        UnequalConditions: Naming the field and both values.
    """
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            raise UnequalConditions(
                f"seed {seed}: variants {first!r} and {second!r} differ in {name} "
                f"({a.get(name)} / {b.get(name)}); rerun both or drop one"
            )


CONDITIONS = ("data", "pair_order", "initial_adapter", "reference", "evaluation", "code", "packages", "device")


def check_conditions(runs: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """Refuse to compare variants that differ, at one seed, in anything but the loss.

    Raises:
        UnequalConditions: Naming the seed, the two variants, the field and both values.
    """
    first: dict[int, tuple[str, Mapping[str, Any]]] = {}
    for (variant, seed), run in sorted(runs.items()):
        if run.get("status") == "failed":
            continue  # it has no numbers to compare
        conditions = run.get("conditions", {})
        other, expected = first.setdefault(seed, (variant, conditions))
        for field in CONDITIONS:
            if conditions.get(field) != expected.get(field):
                raise UnequalConditions(
                    f"seed {seed}: variants '{other}' and '{variant}' differ in {field} "
                    f"({expected.get(field)} / {conditions.get(field)}); rerun both or drop one"
                )
