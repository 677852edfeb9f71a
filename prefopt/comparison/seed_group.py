"""All variants of one seed: trained in lockstep, evaluated one after the other, and written down."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pandas as pd

from prefopt.comparison import provenance, record, resume
from prefopt.comparison.feeds import Feeds, make_feeds
from prefopt.comparison.on_the_way import SampledOnTheWay
from prefopt.comparison.record import Evaluation, Origin
from prefopt.config.schema import Config, Train, Variant
from prefopt.errors import DataError
from prefopt.evaluate.neutral import neutral_text
from prefopt.evaluate.samples import best_of_samples, draw_samples, sampled_together, score_samples
from prefopt.model.generate import Sample
from prefopt.prepare.materials import Materials
from prefopt.runtime import memory
from prefopt.runtime.progress import Progress, Titled
from prefopt.storage.conditions import Conditions
from prefopt.storage.hashing import digest
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import REFERENCE
from prefopt.tasks.base import Task
from prefopt.tasks.rewards import RewardError
from prefopt.train.checkpoint import Checkpoints, common_step
from prefopt.train.failures import why_left
from prefopt.train.feed import Feed
from prefopt.train.foreign import is_foreign
from prefopt.train.heldout import heldout_frame
from prefopt.train.loop import train_group
from prefopt.train.state import Run


@dataclass(frozen=True, slots=True)
class Partition:
    """Which runs are trained, and which of them in lockstep; what a run computes does not depend on it.

    Attributes:
        skip: Variants and seeds to leave out.
        alone: Seeds whose runs are trained one after the other.
        isolate: Whether losses from outside this package form a group of their own, after all others have been
            trained, evaluated and written.
    """

    skip: Collection[tuple[str, int]] = ()
    alone: Collection[int] = ()
    isolate: bool = False

    def groups(self, variants: Sequence[Variant], seed: int, *, at_once: int) -> list[list[Variant]]:
        """The variants of one seed that are trained, by group; there is room for ``at_once`` adapters."""
        rest = [variant for variant in variants if (variant.name, seed) not in self.skip]
        if seed in self.alone:
            return [[variant] for variant in rest]
        foreign = [variant for variant in rest if self.isolate and is_foreign(variant.build())]
        parts = ([v for v in rest if v not in foreign], foreign)
        return [part[start : start + at_once] for part in parts for start in range(0, len(part), at_once)]


@dataclass(frozen=True)
class SeedGroup:
    """Trains and evaluates the missing runs of one seed after the other.

    Attributes:
        config: The comparison.
        train: The shared loop's settings, made definite.
        materials: What all runs share.
        folder: Where results go.
        progress: Hears what is under way.
        sampled: Samples by slot that were drawn in one batch with another policy's and are not evaluated yet.
    """

    config: Config
    train: Train
    materials: Materials
    folder: ResultsFolder
    progress: Progress
    sampled: dict[int, list[Sample]] = field(default_factory=dict)

    def run_seed(self, seed: int, title: str, partition: Partition) -> None:
        """Train and evaluate the missing runs of one seed, those of a group in lockstep.

        Args:
            seed: The seed.
            title: What messages begin with.
            partition: Which runs to leave out, and which form a group.
        """
        absent = resume.missing(self.folder, self.config, seed)
        if not absent:
            return
        conditions = self._conditions(seed)
        variants = [variant for variant in absent if variant is not None]
        for group in partition.groups(variants, seed, at_once=self.materials.reference_slot):
            self._train_and_evaluate(group, seed, title, conditions)
        if None in absent and (REFERENCE, seed) not in partition.skip:
            key = provenance.reference_key(self.config, self.materials.model.base.device)
            self.progress.at(seed, [REFERENCE], self.train.steps)
            self._evaluate_reference(Origin(REFERENCE, seed, key, conditions), title)

    def _conditions(self, seed: int) -> Conditions:
        """The conditions of a seed's runs; every adapter is left at zero but the first, which is as each begins."""
        bank = self.materials.model.adapters
        self.sampled.clear()
        bank.params.zero_()
        bank.initialise(0, seed)
        return provenance.conditions(self.config, self.materials, seed=seed, initial_adapter=bank.hash(0))

    def _train_and_evaluate(self, variants: Sequence[Variant], seed: int, title: str, conditions: Conditions) -> None:
        device = self.materials.model.base.device
        watch = self._watch(seed)
        runs = [
            Run(v.name, v.build(), self.config.learning_rate(v), slot, watch=watch) for slot, v in enumerate(variants)
        ]
        origins = [
            Origin(
                v.name,
                seed,
                provenance.run_key(self.config, v, device),
                provenance.conditions_of(conditions, self.config, self.materials, v, seed),
            )
            for v in variants
        ]
        memory.reset_peak(device)
        self.sampled.clear()
        for run in runs:
            self.materials.model.adapters.initialise(run.slot, seed)
            self._require_same_start(run.variant, seed, origins[run.slot].conditions)
        keepers = {run.slot: self._keeper(origin) for run, origin in zip(runs, origins, strict=True)}
        keys = [digest([origin.key, origin.conditions.as_dict()]) for origin in origins]
        feeds = make_feeds(
            self.config,
            self.train,
            self.materials,
            variants,
            seed=seed,
            path=lambda slot, number: keepers[slot].path / f"round-{number:06}-{keys[slot]}.sealed",
        )
        self._restore(runs, keepers, feeds, title)
        self._train(runs, keepers, feeds.feed, seed, title)
        for run, origin in zip(runs, origins, strict=True):
            self.progress.at(seed, [run.variant], run.counters.step)
            self._evaluate_run(run, origin, title)

    def _train(self, runs: Sequence[Run], keepers: dict[int, Checkpoints], feed: Feed, seed: int, title: str) -> None:
        train_group(
            self.materials.model,
            runs,
            feed=feed,
            heldout=self.materials.heldout,
            config=self.train,
            seed=seed,
            progress=Titled(self.progress, title),
            keepers=keepers,
        )

    def _watch(self, seed: int) -> SampledOnTheWay | None:
        """What samples from runs on their way, where the settings ask for it."""
        evaluation, made = self.config.evaluation, self.materials
        if not evaluation.every:
            return None
        return SampledOnTheWay(made.model, made.prompts, evaluation, made.task, seed, self.train.steps)

    def _keeper(self, origin: Origin) -> Checkpoints:
        path = self.folder.run(origin.variant, origin.seed) / record.CHECKPOINTS
        key = {
            "variant": origin.variant,
            "seed": origin.seed,
            "run": origin.key,
            "conditions": origin.conditions.as_dict(),
        }
        return Checkpoints(path, key, self.progress.say)

    def _restore(self, runs: Sequence[Run], keepers: dict[int, Checkpoints], feeds: Feeds, title: str) -> None:
        """Put every run where its newest usable checkpoint was; all at the same step, where they have one."""
        steps_of = {run.slot: feeds.usable(run.slot, keepers[run.slot].look()) for run in runs}
        shared = common_step(list(steps_of.values()))
        for run in runs:
            steps = steps_of[run.slot]
            if steps:
                step = steps[0] if shared is None else shared
                keepers[run.slot].restore(step, run, self.materials.model.adapters, self.train)
            keepers[run.slot].valid.clear()
            feeds.start_from(run.slot, run.counters.step)
        going_on = {run.counters.step for run in runs if run.counters.step}
        if going_on:
            self.progress.say(f"{title}: going on from step {', '.join(map(str, sorted(going_on)))}")

    def _evaluate_reference(self, origin: Origin, title: str) -> None:
        """Evaluate and write the reference; what goes wrong here is no run's own fault, and is raised."""
        try:
            evaluation = self._evaluate(None, origin, title)
            best_of = self._best_of(origin.seed, title)
        except RewardError as problem:
            raise DataError(f"the reference cannot be evaluated: {problem}; trained runs are kept") from None
        record.write_reference(self.folder, origin, evaluation, best_of)

    def _proxy(self, origin: Origin) -> Task | None:
        """What a policy was trained by in place of the gold reward, if by anything."""
        named = {variant.name: variant.reward for variant in self.config.variants}
        return self.materials.proxy_of(named.get(origin.variant, ""))

    def _best_of(self, seed: int, title: str) -> pd.DataFrame | None:
        """BEST_OF_COLUMNS of further samples of the reference, where the settings ask for them."""
        settings, materials = self.config.evaluation, self.materials
        if not settings.best_of or not materials.task.has_reward:
            return None
        self.progress.stage(f"{title}: sampling {settings.best_of} responses of the reference", 0, 1)
        more = settings.model_copy(update={"samples": settings.best_of})
        return best_of_samples(materials.model, materials.prompts, more, materials.task, seed=seed)

    def _evaluate_run(self, run: Run, origin: Origin, title: str) -> None:
        """Evaluate and write one run; an error in its own code is written as a failure of that run alone."""
        try:
            if run.outcome.diverged_at is not None or not run.outcome.reason:
                evaluation = None if run.outcome.reason else self._evaluate(run, origin, title)
                record.write_run(self.folder, origin, run, self.materials.model, evaluation)
                return
        except Exception as problem:
            run.outcome.reason = f"{why_left(problem)} in its evaluation"
        self.progress.say(f"{title}: {origin.variant} failed: {run.outcome.reason}; the others are not affected")
        self.folder.write_record(origin.record(status="failed", reason=run.outcome.reason))

    def _evaluate(self, run: Run | None, origin: Origin, title: str) -> Evaluation:
        """Sample from one policy, the reference with ``run`` None, and score the samples."""
        materials, seed = self.materials, origin.seed
        slot = materials.reference_slot if run is None else run.slot
        self.progress.stage(f"{title}: sampling from {origin.variant}", 0, 1)
        memory.give_back(materials.model.base.device)
        began = time.perf_counter()
        samples = self._samples(slot, seed)
        sample_s = time.perf_counter() - began
        self.progress.stage(f"{title}: evaluating {origin.variant}", 0, 1)
        began = time.perf_counter()
        scored = score_samples(
            materials.model, slot, materials.prompts, samples, materials.task, proxy=self._proxy(origin)
        )
        pairs = heldout_frame(materials.model, run, materials.heldout, seed=seed) if run is not None else None
        neutral = neutral_text(materials.model, slot) if run is not None else {}
        cost = {"sample_s": sample_s, "evaluate_s": time.perf_counter() - began}
        return Evaluation(scored, pairs, cost, neutral)

    def _samples(self, slot: int, seed: int) -> list[Sample]:
        """One policy's samples; those that were drawn in one batch with it are kept for their own evaluation."""
        materials = self.materials
        if slot not in self.sampled:
            together = sampled_together(materials.model.adapters, slot)
            settings = self.config.evaluation
            self.sampled.update(draw_samples(materials.model, together, materials.prompts, settings, seed=seed))
        return self.sampled.pop(slot)

    def _require_same_start(self, variant: str, seed: int, conditions: Conditions) -> None:
        """Refuse to add a run beside finished ones of the same seed that had other conditions."""
        for (other, other_seed), run in self.folder.runs().items():
            if other_seed == seed and other not in (variant, REFERENCE) and run.has_numbers:
                conditions.require_equal(run.conditions, seed=seed, own=variant, others=other)
