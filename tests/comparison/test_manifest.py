"""What a manifest keeps of earlier commands in the same folder."""

from __future__ import annotations

from prefopt.comparison.manifest import beside_earlier
from prefopt.storage.records import Manifest

REFERENCE_TOO = [("reference", 0), ("reference", 1)]


def manifest(command: str, **seeds: list[int]) -> Manifest:
    variants = tuple({"variant": name, "seeds": own} for name, own in seeds.items())
    return Manifest(
        command=(command,), variants=variants, seeds=tuple(sorted({seed for own in seeds.values() for seed in own}))
    )


def planned(now: Manifest) -> dict[str, tuple[int, ...]]:
    return {name: now.planned_seeds(name) for name in now.variant_names}


def test_what_ran_stays_planned() -> None:
    before = manifest("first", dpo=[0, 1], ipo=[0, 1])
    ran = [("dpo", 0), ("dpo", 1), ("ipo", 0), *REFERENCE_TOO]
    merged = beside_earlier(manifest("second", dpo=[0, 1, 2]), before, ran)
    assert planned(merged) == {"dpo": (0, 1, 2), "ipo": (0, 1)}, "ipo stopped short of a seed that dpo has"
    assert merged.seeds == (0, 1, 2)
    assert merged.earlier_commands == ("first",)
    again = beside_earlier(manifest("second", dpo=[0, 1, 2]), merged, ran)
    assert again == merged, "the same command twice is the same manifest"


def test_what_never_ran_and_is_not_wanted_is_dropped() -> None:
    before = manifest("first", dpo=[0, 1, 2, 3], ipo=[0, 1, 2, 3])
    merged = beside_earlier(manifest("second", dpo=[0, 1]), before, [("dpo", 0), ("reference", 0)])
    assert planned(merged) == {"dpo": (0, 1)}
    assert merged.earlier_commands == ()


def test_folders_of_earlier_versions_planned_every_variant_at_every_seed() -> None:
    before = Manifest(command="first", variants=({"variant": "ipo"},), seeds=(0, 1))
    ran = [("ipo", 0), ("ipo", 1), *REFERENCE_TOO]
    assert planned(beside_earlier(manifest("second", dpo=[0, 1]), before, ran)) == {"ipo": (0, 1), "dpo": (0, 1)}
    assert beside_earlier(manifest("second", dpo=[0]), None, []) == manifest("second", dpo=[0])
