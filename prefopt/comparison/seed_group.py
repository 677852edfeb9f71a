"""All variants of one seed: trained in lockstep, evaluated one after the other, and written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.comparison import provenance, record
from prefopt.comparison.record import Origin
from prefopt.comparison.resume import missing
from prefopt.config.schema import Config, Train, Variant
from prefopt.data.order import pair_order
from prefopt.evaluate.samples import draw_samples, sampled_together, score_samples
from prefopt.model.generate import Sample
from prefopt.prepare.materials import Materials
from prefopt.runtime import memory
from prefopt.runtime.progress import Progress
from prefopt.storage.conditions import require_equal
from prefopt.storage.hashing import digest
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import REFERENCE
from prefopt.train.checkpoint import Checkpoints, common_step
from prefopt.train.failures import why_left
from prefopt.train.heldout import heldout_frame
from prefopt.train.loop import train_group
from prefopt.train.state import Run

# Told of the seed, the variants and the step that are under way.
Watch = Callable[[int, list[str], int], None]


@dataclass(frozen=True)
class SeedGroup:
    """Trains and evaluates the missing runs of one seed after the other."""

    config: Config
    train: Train
    materials: Materials
    folder: ResultsFolder
    progress: Progress
    watch: Watch
    drawn: dict[int, list[Sample]] = field(default_factory=dict)

    def run_seed(self, seed: int, title: str, skip: set[tuple[str, int]], *, alone: bool) -> None:
        """Train and evaluate the missing runs of one seed, in lockstep or one after the other."""
        device = self.materials.model.base.device
        absent = [v for v, s in missing(self.folder, self.config, device, self.progress) if s == seed]
        variants = [v for v in absent if v is not None and (v.name, seed) not in skip]
        if not absent:
            return
        self.drawn.clear()
        bank = self.materials.model.adapters
        bank.params.zero_()
        bank.initialise(0, seed)
        conditions = self._conditions(seed, bank.hash(0))
        for group in [[v] for v in variants] if alone else [variants] if variants else []:
            self._train_and_evaluate(group, seed, title, conditions)
        if None in absent and (REFERENCE, seed) not in skip:
            self.watch(seed, [REFERENCE], self.train.steps)
            origin = Origin(REFERENCE, seed, provenance.reference_key(self.config, device), conditions)
            self._evaluate(None, origin, title)

    def _train_and_evaluate(
        self, variants: Sequence[Variant], seed: int, title: str, conditions: dict[str, str]
    ) -> None:
        bank, device = self.materials.model.adapters, self.materials.model.base.device
        runs = [Run(v.name, v.build(), self.config.learning_rate(v), slot) for slot, v in enumerate(variants)]
        origins = [Origin(v.name, seed, provenance.run_key(self.config, v, device), conditions) for v in variants]
        memory.reset_peak(device)
        self.drawn.clear()
        for run in runs:
            bank.initialise(run.slot, seed)
            self._require_same_start(run.variant, seed, conditions)
        keepers = {run.slot: self._resume(run, origin) for run, origin in zip(runs, origins, strict=True)}
        self._restore(runs, keepers, title)
        names = [run.variant for run in runs]

        def shown(step: int, values: dict[str, dict[str, float]]) -> None:
            self.watch(seed, names, step)
            self.progress.step(f"{title}: training {len(runs)} variants", step, self.train.steps, values)

        train_group(
            self.materials.model,
            runs,
            train=self.materials.train,
            heldout=self.materials.heldout,
            config=self.train,
            seed=seed,
            progress=shown,
            keepers=keepers,
        )
        for run, origin in zip(runs, origins, strict=True):
            self.watch(seed, [run.variant], run.step)
            self._evaluate(run, origin, title)

    def _resume(self, run: Run, origin: Origin) -> Checkpoints:
        path = self.folder.run(origin.variant, origin.seed) / record.CHECKPOINTS
        key = {"variant": origin.variant, "seed": origin.seed, "run": origin.key, "conditions": origin.conditions}
        return Checkpoints(path, key, self.progress.say)

    def _restore(self, runs: Sequence[Run], keepers: dict[int, Checkpoints], title: str) -> None:
        """Put every run where its newest usable checkpoint was; all at the same step, where they have one."""
        found = {run.slot: keepers[run.slot].look() for run in runs}
        shared = common_step(list(found.values()))
        for run in runs:
            steps = found[run.slot]
            if steps:
                step = steps[0] if shared is None else shared
                keepers[run.slot].restore(step, run, self.materials.model.adapters, self.train)
            keepers[run.slot].found.clear()
        going_on = {run.step for run in runs if run.step}
        if going_on:
            self.progress.say(f"{title}: going on from step {', '.join(map(str, sorted(going_on)))}")

    def _evaluate(self, run: Run | None, origin: Origin, title: str) -> None:
        """Sample, score and write one policy; what its own code raises is written as a failure of that run alone."""
        try:
            if run is None or not run.reason:
                self._sample_and_write(run, origin, title)
                return
            if run.diverged_at is not None:
                record.write_run(self.folder, origin, scored=None, cost={}, run=run, bank=self.materials.model.adapters)
                return
        except Exception as problem:
            if run is None:
                raise
            run.reason = f"{why_left(problem)} in its evaluation"
        self.progress.say(f"{title}: {origin.variant} failed: {run.reason}; the others are not affected")
        more = {"key": origin.key, "conditions": origin.conditions}
        self.folder.write_failed(origin.variant, origin.seed, run.reason, **more)

    def _sample_and_write(self, run: Run | None, origin: Origin, title: str) -> None:
        some, seed = self.materials, origin.seed
        slot = some.reference_slot if run is None else run.slot
        self.progress.stage(f"{title}: sampling from {origin.variant}", 0, 1)
        memory.give_back(some.model.base.device)
        began = time.perf_counter()
        drawn = self._samples(slot, seed)
        cost = {"sample_s": time.perf_counter() - began}
        self.progress.stage(f"{title}: evaluating {origin.variant}", 0, 1)
        began = time.perf_counter()
        scored = score_samples(some.model, slot, some.prompts, drawn, some.task)
        pairs = heldout_frame(some.model, run, some.heldout, seed=seed) if run is not None else None
        cost["evaluate_s"] = time.perf_counter() - began
        record.write_run(self.folder, origin, scored=scored, cost=cost, run=run, pairs=pairs, bank=some.model.adapters)

    def _samples(self, slot: int, seed: int) -> list[Sample]:
        """One policy's samples; those that were drawn in one batch with it are kept until they are asked for."""
        some = self.materials
        if slot not in self.drawn:
            together = sampled_together(some.model.adapters, slot)
            settings = self.config.evaluation
            self.drawn.update(draw_samples(some.model, together, some.prompts, settings, seed=seed))
        return self.drawn.pop(slot)

    def _conditions(self, seed: int, adapter: str) -> dict[str, str]:
        some, train = self.materials, self.config.train
        n = len(some.train.pairs)
        order = pair_order(n, seed=seed, steps=train.steps, pairs_per_step=train.pairs_per_step)
        asked: dict[str, Any] = self.config.evaluation.model_dump(mode="json", exclude={"delta"})
        return provenance.conditions(
            data=some.data_hash,
            pair_order=digest(order.tolist()),
            initial_adapter=adapter,
            reference=digest([some.model.base.hash, some.train.reference.hash, some.heldout.reference.hash]),
            evaluation=digest([some.prompts.ids, asked]),
            device=some.model.base.device,
        )

    def _require_same_start(self, variant: str, seed: int, shared: dict[str, str]) -> None:
        """Refuse to add a run beside finished ones of the same seed that had other conditions."""
        for (other, other_seed), run in self.folder.runs().items():
            if other_seed == seed and other not in (variant, REFERENCE) and run.get("status") != "failed":
                require_equal(seed, variant, shared, other, run["conditions"])
