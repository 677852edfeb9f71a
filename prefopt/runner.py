"""Variants x seeds: prepare once, train what is missing, evaluate, write; refuse unequal conditions.

Whatever ends the process, the same call goes on where it stopped: finished runs are taken as they are, a run under way
continues from its newest checkpoint, and the outcome is that of a call that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from prefopt import determinism, environment, identity, locks, memory, outcome
from prefopt.checkpoint import Checkpoints, common_step
from prefopt.config import Config, Train, Variant
from prefopt.data.order import pair_order
from prefopt.errors import DataError
from prefopt.evaluate import draw_samples, heldout_frame, sampled_together, score_samples
from prefopt.fit import Fit, fit, set_checkpointing
from prefopt.harness import train_group, why_left
from prefopt.materials import Materials, Progress, manifest, prepare
from prefopt.model import pick_device
from prefopt.outcome import Origin
from prefopt.results import PROMPT_COLUMNS, REFERENCE, ResultsFolder, digest, seal, write_json
from prefopt.sampling import Sample
from prefopt.step import Run
from prefopt.testing import check_loss

# Told of the seed, the variants and the step that are under way.
Watch = Callable[[int, list[str], int], None]


def compare(
    config: Config,
    *,
    results: Path = Path("results"),
    command: Sequence[str] = (),
    progress: Progress,
    wait: bool = False,
) -> ResultsFolder:
    """Run a comparison, or what of it is missing.

    Args:
        config: What to compare.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        progress: Told what is going on.
        wait: Wait for another process that uses the folder, rather than raise.

    Returns:
        The results folder, ready for the report.

    Raises:
        PrefoptError: For anything that the user can mend.
    """
    with locks.hold(results / config.name, wait=wait, say=progress.say):
        return work(config, results=results, command=command, progress=progress)


def work(
    config: Config,
    *,
    results: Path,
    command: Sequence[str],
    progress: Progress,
    watch: Watch = lambda seed, variants, step: None,
    skip: Collection[tuple[str, int]] = (),
    alone: Collection[int] = (),
) -> ResultsFolder:
    """``compare`` for a caller that holds the folder's lock.

    Args:
        config: What to compare.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        progress: Told what is going on.
        watch: Told which seed, variants and step are under way.
        skip: Runs to leave out this time.
        alone: Seeds whose runs are trained one after the other.
    """
    folder = ResultsFolder(results / config.name)
    for variant in config.variants:
        check_loss(variant.build(), documented=False)
    device = pick_device(config.device)
    determinism.settle(device)
    identity.refuse_other(folder, config, device)
    if not _missing(folder, config, device, progress):
        outcome.judge(folder)
        n = len(config.seeds) * len(config.variants)
        progress.say(f"all {n} runs are already in {folder.root}; nothing to train")
        return folder
    materials = prepare(config, device, progress)
    _require_scores(config, materials)
    identity.refuse_other_materials(folder, materials)
    locks.require_room(folder.root, _bytes_needed(config, materials))
    chosen = _step(folder, config, materials, progress)
    before = folder.manifest() if folder.manifest_path.is_file() else {}
    progress.stage("training a few steps twice, to see whether they repeat", 0, 1)
    again = before.get("determinism") or determinism.probe(
        materials.base, materials.bank, materials.train, materials.heldout, chosen.apply(config.train)
    )
    whole = {**manifest(config, materials, chosen, command), **identity.facts(config), "determinism": again}
    write_json(folder.manifest_path, seal({**whole, "created": before.get("created", whole["created"])}))
    texts = materials.prompts.texts
    frame = pd.DataFrame({"prompt_id": range(len(texts)), "prompt": texts})[list(PROMPT_COLUMNS)]
    folder.write_frame("prompts.parquet", frame)
    group = _Group(config, chosen.apply(config.train), materials, folder, progress, watch)
    for number, seed in enumerate(config.seeds):
        group.run_seed(seed, f"seed {seed} ({number + 1} of {len(config.seeds)})", set(skip), alone=seed in alone)
    outcome.judge(folder)
    return folder


def _require_scores(config: Config, materials: Materials) -> None:
    """Refuse losses that read a preference strength which the pairs do not have."""
    asking = [variant.name for variant in config.variants if variant.build().needs_scores]
    pairs = (*materials.train.pairs, *materials.heldout.pairs)
    without = sum(pair.chosen_score is None or pair.rejected_score is None for pair in pairs)
    if asking and without:
        raise DataError(
            f"error[DATA033] {config.data.source or 'pairs'}: {', '.join(asking)} reads chosen_score and "
            f"rejected_score, which {without} of {len(pairs)} rows lack. Fix: add the two columns, or drop the "
            "variant. Nothing was written."
        )


def _bytes_needed(config: Config, materials: Materials) -> int:
    """Two checkpoints of each run under way and one being written, an adapter of each run, and the samples."""
    adapter = 4 * int(materials.bank.params.shape[1])
    asked, seeds, variants = config.evaluation, len(config.seeds), len(config.variants)
    samples = len(materials.prompts.ids) * asked.samples * (8 * asked.max_new_tokens + 100)
    return 3 * (3 * adapter) * variants + adapter * variants * seeds + samples * (variants + 1) * seeds


def _step(folder: ResultsFolder, config: Config, materials: Materials, progress: Progress) -> Fit:
    """How a step fits the machine: as it was chosen when the folder was made, else measured now."""
    if folder.manifest_path.is_file() and (before := folder.manifest().get("step")):
        chosen = Fit(**before)
        set_checkpointing(materials.base, chosen.checkpointing)
        return chosen
    progress.stage("fitting a step to the machine", 0, 1)
    materials.bank.params.zero_()
    trial = [Run(v.name, v.build(), config.learning_rate(v), slot) for slot, v in enumerate(config.variants)]
    return fit(materials.base, materials.bank, trial, materials.train.pairs, config.train)


def _missing(
    folder: ResultsFolder, config: Config, device: torch.device, progress: Progress
) -> list[tuple[Variant | None, int]]:
    """What is not in the folder yet, None for the reference; damaged runs are set aside, leftovers removed.

    Raises:
        UsageError: If a run of that name is there and is not this one.
    """
    found: list[tuple[Variant | None, int]] = []
    for seed in config.seeds:
        for variant in (*config.variants, None):
            name = variant.name if variant else REFERENCE
            if (damage := folder.damage(name, seed)) is not None:
                outcome.set_aside(folder, name, seed, damage, progress)
            run = folder.finished(name, seed)
            if run is None:
                found.append((variant, seed))
                continue
            key = identity.run_key(config, variant, device) if variant else identity.reference_key(config, device)
            identity.require_same_run(folder, name, seed, run.get("key", {}), key)
            outcome.drop_checkpoints(folder, name, seed)
    return found


@dataclass(frozen=True)
class _Group:
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
        device = self.materials.base.device
        missing = [v for v, s in _missing(self.folder, self.config, device, self.progress) if s == seed]
        variants = [v for v in missing if v is not None and (v.name, seed) not in skip]
        if not missing:
            return
        self.drawn.clear()
        bank = self.materials.bank
        bank.params.zero_()
        bank.initialise(0, seed)
        conditions = self._conditions(seed, bank.hash(0))
        for group in [[v] for v in variants] if alone else [variants] if variants else []:
            self._train_and_evaluate(group, seed, title, conditions)
        if None in missing and (REFERENCE, seed) not in skip:
            self.watch(seed, [REFERENCE], self.train.steps)
            origin = Origin(REFERENCE, seed, identity.reference_key(self.config, device), conditions)
            self._evaluate(None, origin, title)

    def _train_and_evaluate(
        self, variants: Sequence[Variant], seed: int, title: str, conditions: dict[str, str]
    ) -> None:
        bank, device = self.materials.bank, self.materials.base.device
        runs = [Run(v.name, v.build(), self.config.learning_rate(v), slot) for slot, v in enumerate(variants)]
        origins = [Origin(v.name, seed, identity.run_key(self.config, v, device), conditions) for v in variants]
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
            self.materials.base,
            bank,
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
        path = self.folder.run(origin.variant, origin.seed) / outcome.CHECKPOINTS
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
                keepers[run.slot].restore(step, run, self.materials.bank, self.train)
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
                outcome.write_run(self.folder, origin, scored=None, cost={}, run=run, bank=self.materials.bank)
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
        memory.give_back(some.base.device)
        began = time.perf_counter()
        drawn = self._samples(slot, seed)
        cost = {"sample_s": time.perf_counter() - began}
        self.progress.stage(f"{title}: evaluating {origin.variant}", 0, 1)
        began = time.perf_counter()
        scored = score_samples(some.base, some.bank, slot, some.prompts, drawn, some.task)
        pairs = heldout_frame(some.base, some.bank, run, some.heldout, seed=seed) if run is not None else None
        cost["evaluate_s"] = time.perf_counter() - began
        outcome.write_run(self.folder, origin, scored=scored, cost=cost, run=run, pairs=pairs, bank=some.bank)

    def _samples(self, slot: int, seed: int) -> list[Sample]:
        """One policy's samples; those that were drawn in one batch with it are kept until they are asked for."""
        some = self.materials
        if slot not in self.drawn:
            together = sampled_together(some.bank, slot)
            settings = self.config.evaluation
            self.drawn.update(draw_samples(some.base, some.bank, together, some.prompts, settings, seed=seed))
        return self.drawn.pop(slot)

    def _conditions(self, seed: int, adapter: str) -> dict[str, str]:
        some, train = self.materials, self.config.train
        n = len(some.train.pairs)
        order = pair_order(n, seed=seed, steps=train.steps, pairs_per_step=train.pairs_per_step)
        asked: dict[str, Any] = self.config.evaluation.model_dump(mode="json", exclude={"delta"})
        return environment.conditions(
            data=some.data_hash,
            pair_order=digest(order.tolist()),
            initial_adapter=adapter,
            reference=digest([some.base.hash, some.train.reference.hash, some.heldout.reference.hash]),
            evaluation=digest([some.prompts.ids, asked]),
            device=some.base.device,
        )

    def _require_same_start(self, variant: str, seed: int, shared: dict[str, str]) -> None:
        """Refuse to add a run beside finished ones of the same seed that had other conditions."""
        for (other, other_seed), run in self.folder.runs().items():
            if other_seed == seed and other not in (variant, REFERENCE) and run.get("status") != "failed":
                environment.require_equal(seed, variant, shared, other, run["conditions"])
