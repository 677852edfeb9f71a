"""Which feed each variant of a seed trains on: all pairs, a builder's, groups, or what its own policy says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefopt.config.schema import Config, Train, Variant
from prefopt.data.builders import All
from prefopt.prepare.materials import Materials
from prefopt.train.feed import ByRun, Feed, FixedGroups, FixedOrder
from prefopt.train.rounds import OnPolicy, Plan


@dataclass(frozen=True, slots=True)
class Feeds:
    """The feed of a group of runs.

    Attributes:
        feed: For the training loop.
        rounds: The part of it that asks the policies, or None.
    """

    feed: Feed
    rounds: OnPolicy | None = None

    def usable(self, slot: int, steps: Sequence[int]) -> list[int]:
        """Of the steps with a checkpoint, those after which the run can go on."""
        if self.rounds is None or slot not in self.rounds.plans:
            return list(steps)
        return [step for step in steps if self.rounds.can_continue(slot, step)]

    def start_from(self, slot: int, step: int) -> None:
        """Forget what a run's policy said in rounds that have not begun after so many steps."""
        if self.rounds is not None and slot in self.rounds.plans:
            self.rounds.forget_after(slot, step)


def make_feeds(
    config: Config,
    train: Train,
    materials: Materials,
    variants: Sequence[Variant],
    *,
    seed: int,
    path: Callable[[int, int], Path],
) -> Feeds:
    """The feed of the variants of one seed, which have the slots 0 .. K-1.

    Args:
        config: The comparison.
        train: The shared loop's settings, made definite.
        materials: What all runs share.
        variants: The variants, by slot.
        seed: Decides orders and, in rounds, the noise.
        path: Where a slot's responses of a round are kept.
    """
    everything = FixedOrder.of(materials.train, train, seed)
    pool = materials.pool
    if pool is None:
        return Feeds(everything)
    plans = {slot: plan_of(config, v, materials, seed) for slot, v in enumerate(variants) if config.rounds_of(v)}
    builders = {slot: variants[slot].recipe.builder or All() for slot in plans}
    scores = {slot: pool.score[variants[slot].reward] for slot in plans}
    rounds = OnPolicy(materials.model, pool.prompts, scores, plans, builders, path) if plans else None
    shared: dict[object, Feed] = {None: everything}
    feeds: dict[int, Feed] = {}
    for slot, variant in enumerate(variants):
        builder = variant.recipe.builder
        if slot in plans and rounds is not None:
            feeds[slot] = rounds
        elif variant.build().takes_groups:
            shared.setdefault("groups", FixedGroups.of(pool.groups, pool.reference, train, seed))
            feeds[slot] = shared["groups"]
        else:
            if builder is not None:
                shared.setdefault(builder, FixedOrder.of(pool.built[builder], train, seed))
            feeds[slot] = shared[builder]
    return Feeds(ByRun(feeds), rounds)


def plan_of(config: Config, variant: Variant, materials: Materials, seed: int) -> Plan:
    """The rounds of a variant."""
    count, pairs, pool = config.rounds_of(variant), config.pairs, materials.pool
    assert pool is not None
    return Plan(
        steps=config.train.steps // count,
        prompts=config.prompts_of_round(count),
        samples=pairs.samples,
        max_new_tokens=pairs.max_new_tokens,
        temperature=pairs.temperature,
        reference=config.rounds.reference,
        # A judge's verdict is a label already, and is not drawn once more.
        labelling=replace(pool.labelling, labels="argmax") if pool.by_judge and not variant.reward else pool.labelling,
        pairs_per_step=config.train.pairs_per_step,
        seed=seed,
        top_p=pairs.top_p,
    )


def generations(config: Config, variant: Variant) -> int:
    """Responses that are sampled and scored for a variant's training."""
    count = config.rounds_of(variant)
    return config.pairs.samples * (count * config.prompts_of_round(count) if count else config.pairs.prompts)
