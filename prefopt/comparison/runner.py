"""Variants x seeds: prepare once, train the runs that are missing, evaluate, write; refuse unequal conditions.

Whatever ends the process, the same call goes on where it stopped: finished runs are taken as they are, a run under way
continues from its newest checkpoint, and the outcome is that of a call that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from prefopt.comparison import record, resume
from prefopt.comparison.manifest import beside_earlier, describe
from prefopt.comparison.seed_group import Partition, SeedGroup
from prefopt.config.schema import Config
from prefopt.config.situation import shown
from prefopt.errors import DataError
from prefopt.losses import DPO
from prefopt.prepare.materials import Materials, prepare
from prefopt.runtime.device import pick_device
from prefopt.runtime.progress import Progress
from prefopt.storage import durable, locks
from prefopt.storage.records import Manifest
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import LOCK, PROMPT_COLUMNS
from prefopt.testing import check_loss
from prefopt.train import determinism
from prefopt.train.autosize import Fit, fit, set_checkpointing
from prefopt.train.state import Run


def compare(
    config: Config,
    *,
    results: Path = Path("results"),
    command: Sequence[str] = (),
    progress: Progress,
    wait: bool = False,
    isolate: bool = False,
) -> ResultsFolder:
    """Run a comparison; runs that have finished before are taken as they are.

    Args:
        config: What to compare.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        progress: Hears what is going on.
        wait: Wait for another process that uses the folder, rather than raise.
        isolate: Train losses from outside this package in a group of their own.

    Returns:
        The results folder, ready for the report.

    Raises:
        PrefoptError: For anything that the user can mend.
    """
    with locks.hold(results / config.name, wait=wait, say=progress.say):
        partition = Partition(isolate=isolate)
        return work(config, results=results, command=command, progress=progress, partition=partition)


def work(
    config: Config,
    *,
    results: Path,
    command: Sequence[str],
    progress: Progress,
    partition: Partition,
) -> ResultsFolder:
    """``compare`` for a caller that holds the folder's lock.

    Args:
        config: What to compare.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        progress: Hears what is going on.
        partition: Which runs to leave out this time, and which to train together.
    """
    folder = ResultsFolder(results / config.name)
    with durable.watched(folder.root, LOCK):
        device = _settle(config)
        resume.refuse_other(folder, config, device)
        resume.mend(folder, config, device, progress)
        if any(resume.missing(folder, config, seed) for seed in config.seeds):
            materials = prepare(config, device, progress)
            config = materials.config
            for name, value in shown(config).items():
                progress.say(f"{name} = {value}")
            _refuse_unfit(folder, config, materials)
            step = _describe(folder, config, materials, command, progress)
            group = SeedGroup(config, step.apply(config.train), materials, folder, progress)
            for number, seed in enumerate(config.seeds):
                group.run_seed(seed, f"seed {seed} ({number + 1} of {len(config.seeds)})", partition)
                record.judge(folder)  # so that a report of what is there so far has the win rates
        else:
            n = len(config.seeds) * len(config.variants)
            progress.say(f"all {n} runs are already in {folder.root}; nothing to train")
            _renew(folder, config)
        record.judge(folder)
    return folder


def _renew(folder: ResultsFolder, config: Config) -> None:
    """Say which variants of a tuned comparison, or which trials, the newest command is about, though all are there."""
    manifest, newest = folder.manifest(), config.model_dump(mode="json")
    if config.tune.trials and manifest.config != newest:
        folder.write_manifest(replace(manifest, config=newest))


def _settle(config: Config) -> torch.device:
    """Check the losses, make this process deterministic, and choose the device."""
    for variant in config.variants:
        check_loss(variant.build(), documented=False)
    device = pick_device(config.device)
    determinism.settle(device)
    return device


def _refuse_unfit(folder: ResultsFolder, config: Config, materials: Materials) -> None:
    """Refuse what only the loaded model and pairs can show, before anything is written."""
    _require_scores(config, materials)
    resume.refuse_other_materials(folder, materials)
    locks.require_room(folder.root, _bytes_needed(config, materials))


def _require_scores(config: Config, materials: Materials) -> None:
    """Refuse losses that read a preference strength which the pairs do not have."""
    reading = [variant.name for variant in config.variants if variant.build().needs_scores]
    pairs = (*materials.train.pairs, *materials.heldout.pairs)
    without = sum(pair.chosen_score is None or pair.rejected_score is None for pair in pairs)
    ranked = sum((pair.chosen_score or 0) > (pair.rejected_score or 0) for pair in materials.train.pairs)
    if reading and not without and not ranked:
        raise DataError(
            f"error[DATA033] {config.data.source or 'pairs'}: {', '.join(reading)} reads chosen_score and "
            f"rejected_score, and in none of {len(materials.train.pairs)} training rows chosen has the higher one. "
            "Fix: mend the scores, or drop the variant. Nothing was written."
        )
    if reading and without:
        raise DataError(
            f"error[DATA033] {config.data.source or 'pairs'}: {', '.join(reading)} reads chosen_score and "
            f"rejected_score, which {without} of {len(pairs)} rows lack. Fix: add the two columns, or drop the "
            "variant. Nothing was written."
        )


def _bytes_needed(config: Config, materials: Materials) -> int:
    """Two checkpoints of each run under way and one being written, an adapter of each run, and the samples."""
    adapter = 4 * int(materials.model.adapters.params.shape[1])
    evaluation, seeds, variants = config.evaluation, len(config.seeds), len(config.variants)
    samples = len(materials.prompts.ids) * evaluation.samples * (8 * evaluation.max_new_tokens + 100)
    return 3 * (3 * adapter) * variants + adapter * variants * seeds + samples * (variants + 1) * seeds


def _describe(
    folder: ResultsFolder, config: Config, materials: Materials, command: Sequence[str], progress: Progress
) -> Fit:
    """Write the manifest and the prompts; how a step fits the machine.

    What was measured when the folder was made is not measured again.
    """
    before = resume.manifest_before(folder)
    step = _step(before, config, materials, progress)
    progress.stage("training a few steps twice, to see whether they repeat", 0, 1)
    repeats = before.determinism if before is not None else None
    if not isinstance(repeats, dict):
        repeats = determinism.probe(
            materials.model, DPO(), materials.train, materials.heldout, step.apply(config.train)
        )
    manifest = describe(config, materials, step, command, repeats)
    folder.write_manifest(beside_earlier(manifest, before, folder.runs().keys()))
    texts = materials.prompts.texts
    frame = pd.DataFrame({"prompt_id": range(len(texts)), "prompt": texts})[list(PROMPT_COLUMNS)]
    folder.write_frame("prompts.parquet", frame)
    return step


def _step(before: Manifest | None, config: Config, materials: Materials, progress: Progress) -> Fit:
    """How a step fits the machine: as it was chosen when the folder was made, else measured now."""
    if before is not None and before.step:
        step = Fit(**before.step)
        set_checkpointing(materials.model.base, step.checkpointing)
        return step
    progress.stage("fitting a step to the machine", 0, 1)
    materials.model.adapters.params.zero_()
    fitted = config.variants[: materials.reference_slot]
    trial = [Run(v.name, v.build(), config.learning_rate(v), slot) for slot, v in enumerate(fitted)]
    return fit(materials.model, trial, materials.train.pairs, config.train)
